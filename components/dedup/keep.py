"""Which image of a component is kept, by ``graph.keep``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.dedup.copy_graph.graph import Keep
from components.dedup.decisions.files import ColumnWriter, JoinFiles, firsts, rows_between
from components.dedup.params import DedupParams
from components.dedup.pool import quality
from components.dedup.pool.extract import decode_picture
from components.dedup.pool.images import PLACE, Pool
from components.dedup.pool.quality import PictureQuality, ranks
from components.descriptors.views import reduce
from components.executor import map_shards
from components.images.samples import RGB
from components.progress import track
from components.tables.database import stream

SIDE = 256  # pixels of the short side that sharpness is measured at, so that size as such does not count


def measure(params: DedupParams, pool: Pool, files: JoinFiles) -> None:
    """Write ``files.measured`` where ``graph.keep`` must look at pictures: those of ``files.members``."""
    keep = params.graph.keep
    if keep not in ("quality", "sharpest"):
        return
    count = pq.read_metadata(files.members).num_rows
    jobs = -(-count // params.chunk)
    done = map_shards(partial(_measured, keep), _jobs(pool, files.members, params.chunk, jobs), params.executor)
    with ColumnWriter(
        files.measured, ("row", "component", *(_field(n) for n in range(len(PictureQuality._fields))))
    ) as writer:
        for rows, groups, values in track(done, f"{keep} of duplicates", jobs, unit="chunks"):
            fields = {_field(number): column for number, column in enumerate(values.T)}
            writer.write(row=rows, component=groups, **fields)


def best(keep: Keep, connection: Any, files: JoinFiles) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of components of two and more, by their smallest row, and the row that is kept of each.

    * quality: what size, format and pixels say of edits and losses (:mod:`components.dedup.pool.quality`);
    * largest: the area in pixels;
    * oldest: the first in the order of the crawl, by source file and offset, for WARC file names begin with their date;
    * sharpest: the variance of the Laplacian of the gray picture at :data:`SIDE` pixels.

    Of equal ones the smallest content hash, then the smallest row.
    """
    if keep == "quality":
        yield from _best_quality(connection, files)
        return
    order = {
        "largest": "width::BIGINT * height DESC, stored_sha256",
        "oldest": "source, source_offset",
        "sharpest": f"{_field(0)} DESC, stored_sha256",
    }[keep]
    members = files.measured if keep == "sharpest" else files.members
    query = f"""SELECT m.component, m."row" FROM read_parquet('{members}') AS m
        JOIN read_parquet('{files.rows}') AS r ON m."row" = r."row" ORDER BY m.component, {order}, m."row" """
    for batch in firsts(stream(connection, query), "component"):
        yield batch["component"].to_numpy(), batch["row"].to_numpy()


def _best_quality(connection: Any, files: JoinFiles) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Whole components at a time, in the order of their numbers."""
    query = f"""SELECT m.*, r.stored_sha256 FROM read_parquet('{files.measured}') AS m
        JOIN read_parquet('{files.rows}') AS r ON m."row" = r."row" ORDER BY m.component, r.stored_sha256, m."row" """
    held: list[pa.Table] = []
    for batch in stream(connection, query):
        held.append(pa.Table.from_batches([batch]))
        table = pa.concat_tables(held)
        component = table["component"].to_numpy()
        whole = int(np.searchsorted(component, component[-1]))  # the last one may go on
        held = [table.slice(whole)]
        if whole:
            yield _best_of(table.slice(0, whole))
    if held and len(held[0]):
        yield _best_of(held[0])


def _best_of(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    measured = np.stack([table[_field(n)].to_numpy() for n in range(len(PictureQuality._fields))], 1)
    components, groups = np.unique(table["component"].to_numpy(), return_inverse=True)
    score = ranks(measured, groups)
    order = np.lexsort((-score, groups))
    first = np.r_[True, groups[order][1:] != groups[order][:-1]]
    return components, table["row"].to_numpy()[order[first]]


def _field(number: int) -> str:
    return f"field{number}"


def sharpness(rgb: RGB) -> float:
    """The variance of the Laplacian of ``rgb`` [H, W, 3] in gray, reduced to :data:`SIDE`."""
    import cv2

    gray = cv2.cvtColor(reduce(rgb, SIDE), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_32F).var())


PictureChunk = tuple[Pool, NDArray[np.int64], NDArray[np.int64]]  # rows [n] and components [n]


def _jobs(pool: Pool, members: Path, chunk: int, count: int) -> Iterator[PictureChunk]:
    for number in range(count):
        table = rows_between(members, number * chunk, (number + 1) * chunk)
        rows = table["row"].to_numpy()
        yield pool.narrowed(int(rows[0]), int(rows[-1]) + 1), rows, table["component"].to_numpy()


def _measured(keep: Keep, job: PictureChunk) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Rows, components and what ``keep`` asks to know [n, fields] of a job's images."""
    pool, rows, components = job
    store, found = pool.store(), []
    for place in pool.take(rows, PLACE).to_pylist():
        data = store.read(place["shard"], place["offset"], place["length"])
        rgb = decode_picture(data, store, place)
        found.append([*quality.measure(data, rgb)] if keep == "quality" else [sharpness(rgb)])
    return rows, components, np.asarray(found, np.float64)
