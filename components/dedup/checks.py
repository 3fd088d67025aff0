"""What must hold of dedup's outputs before they appear, by Great Expectations suites over what was written.

Two checks go back behind what the stage decided from: images drawn at random are described again, and images of the
written manifest are compared again with the held-out images, in plain NumPy, on the paths of no decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from components.dedup.copy_graph.edges import EDGES, EdgeParts
from components.dedup.decisions import decide
from components.dedup.decisions.files import JoinFiles
from components.dedup.pool.extract import describe_pictures
from components.dedup.pool.images import INDEX_NAME, Pool
from components.descriptors.kinds import Descriptor
from components.errors import VitrailError
from components.params import Seed, Strict
from components.tables.parts import parts
from components.tables.schemas import DECISIONS, INDEX, MANIFEST

if TYPE_CHECKING:
    from components.dedup.params import GraphParams

SAME = 0.99  # cosine, at least, of an image described twice: batches change the last bits
ROUNDING = 1e-4  # cosine by which the comparison with held-out images may differ from the decision's
BLOCK = 256  # images compared with held-out images at a time
HELD = 4096  # held-out images at a time
FAULTS = 5  # rows whose keys differ that are named


class CheckParams(Strict):
    """How much of very large outputs the checks look at; what is drawn is drawn evenly."""

    edges: int = Field(100_000, ge=1, le=10**12)  # edges
    descriptors: int = Field(100_000, ge=1, le=10**12)  # descriptors whose norm is looked at
    described: int = Field(32, ge=0, le=10**12)  # images described again
    held_out: int = Field(
        10_000, ge=1, le=1_000_000
    )  # images of the manifest that are compared again with the held-out ones
    seed: Seed = 0


@dataclass(frozen=True)
class HeldOutDescriptors:
    """The images that must not be trained on, M of them, which may be 0."""

    rows: NDArray[Any]  # [M, R, d]
    digests: Sequence[str]  # [M] SHA-256 (hex) of their files
    threshold: float  # cosine over which an image is a copy of one


def check_components(
    connection: Any, files: JoinFiles, counts: NDArray[np.uint32], graph: GraphParams, threshold: float, docs: Path
) -> None:
    """One component must not hold more than ``graph.largest_share`` of the pool, unless it is of few images.

    ``counts`` [N] are their sizes, at the number of the smallest row.

    Raises:
        VitrailError: one does, or they are no partition; ``docs`` has the page by then.
    """
    from components.quality import validate
    from components.quality.suites import components_suite

    count, largest = len(counts), int(counts.max())
    allowed = max(graph.largest_least, int(graph.largest_share * count))
    (represented,) = connection.execute(
        f"""SELECT count(*) FROM read_parquet('{files.state}') WHERE kept = "row" """
    ).fetchone()
    facts = {"images": int(counts.sum(dtype=np.int64)), "components": int(np.count_nonzero(counts))}
    table = pa.table(
        {name: [value] for name, value in (facts | {"largest": largest, "represented": represented}).items()}
    )
    try:
        validate(table, components_suite(count, allowed), docs)
    except VitrailError:
        if largest <= allowed:
            raise
        raise VitrailError(
            f"dedup: one component holds {largest:,} of {count:,} images ({largest / count:.0%}, "
            f"graph.largest_share allows {graph.largest_share:.0%} and graph.largest_least {graph.largest_least:,}); "
            f"raise graph.threshold, now {threshold:.4f}: descriptors and edges are kept for the next run. See "
            f"{docs / 'components/index.html'}"
        ) from None


def check_edges(edges: EdgeParts, images: int, floor: float, params: CheckParams, docs: Path) -> None:
    """The suite over all edges, or every n-th of very many.

    Raises:
        VitrailError: a rule is broken.
    """
    from components.quality import validate
    from components.quality.suites import edges_suite

    validate(every_nth(edges, params.edges), edges_suite(images, floor), docs)


def check_descriptors(
    pool: Pool,
    described: Iterable[list[str]],
    rows: NDArray[Any],
    descriptor: Descriptor,
    params: CheckParams,
    docs: Path,
) -> None:
    """The suite over whole images' descriptors ``rows`` [N, d], aligned with the index: ``params.descriptors`` of them.

    ``described``: the keys of the images that were read for them, in their order, chunk by chunk; all of them are
    compared with the index. Images drawn at random are read and described again.

    Raises:
        VitrailError: a rule is broken.
    """
    from components.quality import validate
    from components.quality.suites import descriptor_table, descriptors_suite

    generator = np.random.default_rng(params.seed)
    drawn = np.unique(generator.integers(0, len(pool), params.described)) if params.described else np.zeros(0, np.int64)
    store = pool.store()
    again = describe_pictures(descriptor, (pool.rgb(int(row), store) for row in drawn))[:, 0].astype(np.float32)
    cosine = np.einsum("nd,nd->n", again, np.asarray(rows[drawn], np.float32))
    step = max(1, -(-len(pool) // params.descriptors))
    looked_at = np.unique(np.r_[np.arange(0, len(pool), step), drawn])
    found, known, wrong = _keys_at(pool, described, looked_at)
    places = np.union1d(looked_at, wrong)
    strangers = np.flatnonzero(np.isin(places, drawn[cosine < SAME]))
    table = descriptor_table(
        np.asarray(rows[places]), [*found.values()], [*known.values()], strangers={*strangers.tolist()}
    )
    validate(table, descriptors_suite(rows.shape[1], tolerance=1e-3), docs)


def _keys_at(
    pool: Pool, described: Iterable[list[str]], places: NDArray[np.int64]
) -> tuple[dict[int, str], dict[int, str], NDArray[np.int64]]:
    """Keys as described and as in the index at ``places`` and at the first rows where they differ; and those rows."""
    ours: dict[int, str] = {}
    theirs: dict[int, str] = {}
    wrong: list[int] = []
    keys = (key for chunk in described for key in chunk)
    start = 0
    for table in pool.batches(["key"]):
        expected = table["key"].to_pylist()
        found = [next(keys, "") for _ in expected]
        low, high = np.searchsorted(places, [start, start + len(expected)])
        wanted = {*(places[low:high] - start).tolist()}
        if found != expected and len(wrong) < FAULTS:
            differ = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b][:FAULTS]
            wanted |= {*differ}
            wrong += [start + i for i in differ]
        for i in sorted(wanted):
            ours[start + i], theirs[start + i] = found[i], expected[i]
        start += len(expected)
    return ours, theirs, np.asarray(wrong, np.int64)


def check_manifest(
    connection: Any,
    folder: Path,
    pool: Pool,
    rows: NDArray[Any],
    held_out: HeldOutDescriptors,
    checks: tuple[CheckParams, Path],
) -> None:
    """The suites over manifest and decisions as written to ``folder``, counted over all rows; pages go to the path.

    ``rows`` [N, R, d] describe the pool. Digests are compared of every image, descriptors of those that are drawn.

    Raises:
        VitrailError: a rule is broken; an image of the manifest is over the threshold to a held-out image, or has the
            bytes of one.
    """
    from components.quality import validate_files
    from components.quality.suites import decisions_suite, manifest_suite

    params, docs = checks
    manifest = parts(folder / "manifest", MANIFEST)
    # Drawn from what was written, by the keys; not from what the decisions were made of.
    drawn = connection.execute(
        f"SELECT key FROM read_parquet($files) ORDER BY hash(key || '{params.seed}') LIMIT {params.held_out}",
        {"files": [str(path) for path in manifest]},
    ).fetchall()
    place = pool.rows_of([key for (key,) in drawn]) if len(held_out.rows) else {}
    chosen = np.array([*place.values()], np.int64)
    near = nearest_held_out(rows, chosen, held_out.rows) > held_out.threshold + ROUNDING
    copies = [key for key, over in zip(place, near.tolist(), strict=True) if over]
    index = parts(pool.curated / INDEX_NAME, INDEX)
    validate_files(connection, manifest, manifest_suite(index, copies, held_out.digests), docs)
    decisions = parts(folder / "decisions", DECISIONS)
    validate_files(connection, decisions, decisions_suite(index, len(pool), decide.REASONS), docs)


def nearest_held_out(rows: NDArray[Any], chosen: NDArray[np.int64], held_out: NDArray[Any]) -> NDArray[np.float32]:
    """The cosine of each of the ``chosen`` images of ``rows`` [N, R, d] to its nearest of ``held_out`` [M, R, d].

    As in relative dedup, either image may be the crop. -inf where M is 0.
    """
    found = np.full(len(chosen), -np.inf, np.float32)
    dim = rows.shape[2]
    for start in range(0, len(held_out), HELD):
        held = np.asarray(held_out[start : start + HELD], np.float32)
        for begin in range(0, len(chosen), BLOCK):
            block = np.asarray(rows[chosen[begin : begin + BLOCK]], np.float32)
            whole = (block[:, 0] @ held.reshape(-1, dim).T).max(1)
            views = (block.reshape(-1, dim) @ held[:, 0].T).reshape(len(block), -1).max(1)
            part = slice(begin, begin + len(block))
            found[part] = np.maximum(found[part], np.maximum(whole, views))
    return found


def every_nth(edges: EdgeParts, most: int) -> pa.Table:
    """All edges, or of more than ``most`` every n-th, through all parts."""
    total = sum(pq.ParquetFile(path).metadata.num_rows for path in edges.parts)
    step, skip, taken = max(1, -(-total // most)), 0, []
    for block in edges:
        taken.append(pa.table([pa.array(column[skip::step]) for column in block], schema=EDGES))
        skip = (skip - len(block.a)) % step
    return pa.concat_tables(taken) if taken else EDGES.empty_table()
