"""Look a finished dedup over again: the threshold sweep and the review page, from the stage's outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup.copy_graph.edges import EdgeParts
from components.dedup.pages.review import Reviewed, sweep_thresholds, write_review
from components.dedup.pages.sweep import sweep, table, write_csv
from components.dedup.pool.images import Pool
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.params import parse_params
from components.storage import StorageParams
from components.tables.database import database
from components.tables.parts import iter_batches
from components.tables.schemas import DECISIONS


@dataclass(frozen=True)
class ReviewPage:
    """What is written once more."""

    out: Path  # the page; the sweep is beside it, as .csv
    thresholds: Sequence[float] | None  # of the sweep; None: spread around those in force
    limit: int  # groups shown


def revisit(curated: Path, dedup: Path, benchmarks: BenchmarksFile, storage: StorageParams, again: ReviewPage) -> str:
    """Write the page and the sweep; returns the sweep as a table.

    Raises:
        VitrailError: outputs are missing or of another pool, or a threshold is below the edges that were kept.
    """
    from components.dedup.params import DedupParams

    out, thresholds, limit = again.out, again.thresholds, again.limit
    pool = Pool.load(curated, storage)
    check_same_pool(pool, dedup)
    force = json.loads((dedup / "thresholds.json").read_text())
    if thresholds and min(thresholds) < force["floor"]:
        raise VitrailError(
            f"--threshold-sweep {min(thresholds):g}: only edges over {force['floor']:g} were kept; "
            "lower graph.edges_from and run dedup again"
        )
    in_force = force["self"], force["relative"]
    params = parse_params(json.loads((dedup / "params.json").read_text()), DedupParams, str(dedup / "params.json"))
    labels: NDArray[Any] = np.empty(len(pool), np.uint32 if len(pool) < 2**32 else np.int64)
    start = 0
    for batch in iter_batches(dedup / "decisions", DECISIONS, ["component"]):
        labels[start : start + len(batch)] = batch["component"].to_numpy()
        start += len(batch)
    outcomes = sweep(
        EdgeParts.of(dedup / "edges"),
        np.load(dedup / "to-held-out.npy", mmap_mode="r", allow_pickle=False),
        thresholds or sweep_thresholds(force["floor"], in_force),
        labels,
        params.graph.giants,
        params.relative.within,
    )
    write_csv(outcomes, out.with_suffix(".csv"))
    sets = {name: load_benchmark(name, given) for name, given in benchmarks.benchmarks.items()}
    reviewed = Reviewed(curated, storage, dedup / "decisions", sets, params.described_views())
    with database(params.memory, out.parent) as connection:
        write_review(connection, out, reviewed, outcomes, in_force, limit)
    return f"{table(outcomes)}\n-> {out}, {out.with_suffix('.csv')}"


def check_same_pool(pool: Pool, dedup: Path) -> None:
    """Compare the keys that ``dedup`` decided on with those of the ``pool``, part by part.

    Raises:
        VitrailError: they differ.
    """
    ours = (key for table in pool.batches(["key"]) for key in table["key"].to_pylist())
    theirs = (
        key for batch in iter_batches(dedup / "decisions", DECISIONS, ["key"]) for key in batch["key"].to_pylist()
    )
    if any(a != b for a, b in zip_longest(ours, theirs)):
        raise VitrailError(f"{dedup} was made from another pool than {pool.curated}; run the dedup stage again")
