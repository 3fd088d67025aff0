"""What is selected of the images that survive: by queries, by an even sample, or all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.dedup.balance import balance
from components.dedup.decide import Selection
from components.dedup.described import describe_pool, describe_set
from components.dedup.extract import Pool, gathered
from components.dedup.params import DedupParams
from components.dedup.retrieve import QuerySetSummary, Retrieved, retrieve
from components.errors import VitrailError
from components.evaluation.benchmarks import Benchmark


def select(
    params: DedupParams,
    pool: Pool,
    survives: NDArray[np.bool_],
    rows: NDArray[np.float16],
    sets: Mapping[str, tuple[Benchmark, NDArray[np.float16]]],
    work: Path,
) -> tuple[Selection, list[QuerySetSummary]]:
    """The selection of the rows that ``survives`` [N] says, and what each set of queries brought.

    ``rows`` [N, d] describe the pool's images; ``sets`` are the benchmarks with their descriptors [n, R, d].
    """
    survivors = np.flatnonzero(survives)
    if not len(survivors):
        return Selection(), []
    if params.balance is not None:
        sampled = np.zeros(len(rows), bool)
        chosen = balance(gathered(rows, survivors, work / "survivors.npy"), params.balance, params.neighbours.device)
        sampled[survivors[chosen]] = True
        return Selection(sampled=sampled), []
    if params.retrieval is None:
        return Selection(), []
    return _by_queries(params, pool, survivors, rows, sets, work)


def _by_queries(
    params: DedupParams,
    pool: Pool,
    survivors: NDArray[np.int64],
    rows: NDArray[np.float16],
    sets: Mapping[str, tuple[Benchmark, NDArray[np.float16]]],
    work: Path,
) -> tuple[Selection, list[QuerySetSummary]]:
    how = params.retrieval
    assert how is not None
    training = {name: np.flatnonzero(~sets[name][0].test) for name in how.queries}
    if how.descriptor is None:
        embedded = {name: sets[name][1][chosen, 0] for name, chosen in training.items()}
    else:
        other = describe_pool(how.descriptor, params, pool, work, "retrieval")
        rows = other.rows.open()[:, 0]
        embedded = {
            name: describe_set(other.descriptor, sets[name][0], which=chosen)[:, 0] for name, chosen in training.items()
        }
    found, summaries = retrieve(gathered(rows, survivors, work / "survivors.npy"), embedded, how, params.neighbours)
    sources = {name: survivors[brought] for name, brought in found.sources.items()}
    times, query = np.zeros(len(pool), np.int64), np.full(len(pool), -1, np.int64)
    similarity = np.full(len(pool), np.nan, np.float32)
    times[survivors], query[survivors], similarity[survivors] = found.times, found.query, found.similarity
    keys = [sets[name][0].keys[i] for name, chosen in training.items() for i in chosen]
    reasons = [f"retrieved:{name}" for name, chosen in training.items() for _ in chosen]
    for name, prefix in how.as_is.items():
        taken = survivors[_starts(name, prefix, pool)[survivors]]
        sources[name] = np.union1d(sources.get(name, taken[:0]), taken).astype(np.int64)
        fresh = taken[times[taken] == 0]  # what a query found as well stays with the query that explains it
        times[fresh], query[fresh] = 1, len(keys)
        summaries.append(QuerySetSummary(f"{name} as is", 0, len(taken), len(taken)))
        keys.append("")
        reasons.append(f"as-is:{name}")
    return Selection(Retrieved(times, query, similarity, sources), keys, reasons), summaries


def _starts(name: str, prefix: str, pool: Pool) -> NDArray[np.bool_]:
    """Which images' source begins with ``prefix`` [N], for ``retrieval.as_is.name``."""
    starts = np.array([source.startswith(prefix) for source in pool.rows["source"].to_pylist()])
    if not starts.any():
        raise VitrailError(f"retrieval.as_is.{name}: no image's source begins with {prefix!r}; see index.parquet")
    return starts
