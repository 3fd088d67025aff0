"""Look a finished dedup over again: the threshold sweep and the review page, from the stage's outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.dedup.edges import EdgeParts
from components.dedup.extract import Pool
from components.dedup.review import Reviewed, sweep_thresholds, write_review
from components.dedup.sweep import sweep, table, write_csv
from components.errors import VitrailError
from components.evaluation.benchmarks import BenchmarksFile, load_benchmark
from components.params import parse_params
from components.storage import StorageParams
from components.tables.parts import read_table
from components.tables.schemas import DECISIONS


def revisit(
    curated: Path,
    dedup: Path,
    benchmarks: BenchmarksFile,
    storage: StorageParams,
    out: Path,
    thresholds: Sequence[float] | None,
    limit: int,
) -> str:
    """Write the page to ``out`` and the sweep as ``.csv`` beside it; returns the sweep as a table.

    Raises:
        VitrailError: outputs are missing or of another pool, or a threshold is below the edges that were kept.
    """
    from components.dedup.params import DedupParams

    decisions = read_table(dedup / "decisions", DECISIONS)
    pool = Pool.load(curated, storage)
    if decisions["key"].to_pylist() != pool.keys:
        raise VitrailError(f"{dedup} was made from another pool than {curated}; run the dedup stage again")
    force = json.loads((dedup / "thresholds.json").read_text())
    if thresholds and min(thresholds) < force["floor"]:
        raise VitrailError(
            f"--threshold-sweep {min(thresholds):g}: only edges over {force['floor']:g} were kept; "
            "lower graph.edges_from and run dedup again"
        )
    in_force = force["self"], force["relative"]
    params = parse_params(json.loads((dedup / "params.json").read_text()), DedupParams, str(dedup / "params.json"))
    to_held_out = np.load(dedup / "to-held-out.npy", allow_pickle=False)
    outcomes = sweep(
        len(pool),
        EdgeParts.of(dedup / "edges"),
        to_held_out,
        thresholds or sweep_thresholds(force["floor"], in_force),
        decisions["component"].to_numpy(),
        params.graph.giants,
        params.relative.within,
    )
    write_csv(outcomes, out.with_suffix(".csv"))
    sets = {name: load_benchmark(name, given) for name, given in benchmarks.benchmarks.items()}
    reviewed = Reviewed(pool, decisions.to_pylist(), sets, params.described_views())
    write_review(out, reviewed, outcomes, in_force, limit)
    return f"{table(outcomes)}\n-> {out}, {out.with_suffix('.csv')}"
