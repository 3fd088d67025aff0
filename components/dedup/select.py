"""What is selected of the images that survive: by queries, by an even sample, or all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.dedup.decisions.balance import balance
from components.dedup.decisions.decide import BALANCED, Selection
from components.dedup.decisions.files import ColumnWriter, JoinFiles, batches
from components.dedup.decisions.retrieve import QuerySetSummary, retrieve
from components.dedup.described import describe_pool, describe_set
from components.dedup.params import DedupParams
from components.dedup.pool.extract import gathered
from components.dedup.pool.images import Pool
from components.descriptors.rows import DescriptorRows
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import Benchmark

Sets = Mapping[str, tuple[Benchmark, NDArray[np.float16]]]


def select(
    params: DedupParams, pool: Pool, rows: DescriptorRows, sets: Sets, files: JoinFiles
) -> tuple[Selection, list[QuerySetSummary]]:
    """Choose among the rows that survive, into ``files.found``; and what each set of queries brought.

    ``rows`` describe the pool's images; ``sets`` are the benchmarks with their descriptors [n, R, d].
    """
    if params.balance is None and params.retrieval is None:
        return Selection(), []
    survivors = survivors_of(files)
    if not len(survivors):
        return Selection(), []
    if params.balance is not None:
        points = gathered(rows.open()[:, 0], survivors, files.folder / "survivors.npy")
        chosen = balance(points, params.balance, params.neighbours.device)
        with ColumnWriter(files.found) as writer:
            writer.write(row=survivors[chosen])
        return Selection(BALANCED), []
    return _by_queries(params, pool, survivors, rows, sets, files)


def survivors_of(files: JoinFiles) -> NDArray[np.int64]:
    """The rows that survive, in order, memory-mapped."""
    path = files.folder / "survivors-rows.bin"
    with open(path, "wb") as file:
        for block in batches(files.state, ["row", "component", "kept", "leak"]):
            file.write(block["row"][(block["leak"] < 0) & (block["kept"] == block["row"])].tobytes())
    if not path.stat().st_size:
        return np.zeros(0, np.int64)
    return np.asarray(np.memmap(path, np.int64, "r"))


def _by_queries(
    params: DedupParams, pool: Pool, survivors: NDArray[np.int64], rows: DescriptorRows, sets: Sets, files: JoinFiles
) -> tuple[Selection, list[QuerySetSummary]]:
    how = params.retrieval
    assert how is not None
    training = {name: np.flatnonzero(~sets[name][0].test) for name in how.queries}
    if how.descriptor is None:
        embedded = {name: sets[name][1][chosen, 0] for name, chosen in training.items()}
    else:
        other = describe_pool(how.descriptor, params, pool, files.folder, "retrieval")
        rows = other.rows
        embedded = {
            name: describe_set(other, sets[name][0], params, which=chosen)[:, 0] for name, chosen in training.items()
        }
    points = gathered(rows.open()[:, 0], survivors, files.folder / "survivors.npy")
    found, summaries = retrieve(points, embedded, how, params.neighbours)
    keys = [sets[name][0].keys[i] for name, chosen in training.items() for i in chosen]
    reasons = [f"retrieved:{name}" for name, chosen in training.items() for _ in chosen]
    as_is = {name: _starting(name, prefix, pool, survivors) for name, prefix in how.as_is.items()}
    with ColumnWriter(files.found, ("row", "times", "query", "similarity")) as writer:
        brought = np.flatnonzero(found.times)
        writer.write(
            row=survivors[brought],
            times=found.times[brought],
            query=found.query[brought],
            similarity=found.similarity[brought],
        )
        taken = found.times > 0
        for name, places in as_is.items():
            fresh = places[~taken[places]]  # what a query found as well stays with the query that explains it
            taken[fresh] = True
            count, number = len(fresh), len(keys)
            writer.write(
                row=survivors[fresh],
                times=np.ones(count, np.int64),
                query=np.full(count, number),
                similarity=np.full(count, np.nan, np.float32),
            )
            keys.append("")
            reasons.append(f"as-is:{name}")
            summaries.append(QuerySetSummary(f"{name} as is", 0, len(places), len(places)))
    with ColumnWriter(files.brought, ("row", "name", "place")) as writer:
        for number, name in enumerate(dict.fromkeys([*found.sources, *as_is])):
            places = np.union1d(found.sources.get(name, survivors[:0]), as_is.get(name, survivors[:0])).astype(np.int64)
            writer.write(row=survivors[places], name=np.full(len(places), name), place=np.full(len(places), number))
    return Selection("retrieved", keys, reasons), summaries


def _starting(name: str, prefix: str, pool: Pool, survivors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places among the ``survivors`` whose source begins with ``prefix``, for ``retrieval.as_is.name``."""
    found, start, any_at_all = [], 0, False
    for table in pool.batches(["source"]):
        begins = pc.starts_with(table["source"], prefix).to_numpy()
        any_at_all = any_at_all or bool(begins.any())
        low, high = np.searchsorted(survivors, [start, start + len(table)])
        places = np.arange(low, high)
        found.append(places[begins[survivors[low:high] - start]])
        start += len(table)
    if not any_at_all:
        raise VitrailError(f"retrieval.as_is.{name}: no image's source begins with {prefix!r}; see the index")
    return np.concatenate(found)
