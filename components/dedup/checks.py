"""What must hold of dedup's outputs before they appear, by Great Expectations suites over what was written.

Two checks go back behind what the stage decided from: images drawn at random are described again, and images of the
written manifest are compared again with the held-out images, in plain NumPy, on the paths of no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from components.dedup import decide
from components.dedup.edges import EDGES, EdgeParts
from components.dedup.extract import Pool, describe_pictures
from components.descriptors.kinds import Descriptor
from components.errors import VitrailError
from components.params import Strict
from components.tables.parts import read_table
from components.tables.schemas import DECISIONS, MANIFEST

SAME = 0.99  # cosine, at least, of an image described twice: batches change the last bits
ROUNDING = 1e-4  # cosine by which the comparison with held-out images may differ from the decision's
BLOCK = 256  # images compared with held-out images at a time
HELD = 4096  # held-out images at a time


class CheckParams(Strict):
    """How much of very large outputs the checks look at; what is drawn is drawn evenly."""

    edges: int = Field(1_000_000, ge=1)  # edges
    described: int = Field(32, ge=0)  # images described again
    held_out: int = Field(10_000, ge=1)  # images of the manifest that are compared again with the held-out ones
    seed: int = 0


@dataclass(frozen=True)
class HeldOut:
    """The images that must not be trained on, M of them, which may be 0."""

    rows: NDArray[Any]  # [M, R, d]
    digests: Sequence[str]  # [M] SHA-256 (hex) of their files
    threshold: float  # cosine over which an image is a copy of one


def check_components(resolved: decide.Resolved, share: float, least: int, threshold: float, docs: Path) -> None:
    """One component must not hold more than ``share`` of the pool, unless it is of ``least`` images or fewer.

    Raises:
        VitrailError: one does, or they are no partition; ``docs`` has the page by then.
    """
    from components.quality import validate
    from components.quality.suites import components_suite

    count = len(resolved.labels)
    allowed = max(least, int(share * count))
    own = np.flatnonzero(resolved.labels == np.arange(count))
    sizes = np.bincount(resolved.labels, minlength=count)[own]
    partition = pa.table({"component": own, "size": sizes, "kept": resolved.representative[own]})
    try:
        validate(partition, components_suite(count, allowed), docs)
    except VitrailError:
        if sizes.max() <= allowed:
            raise
        raise VitrailError(
            f"dedup: one component holds {sizes.max():,} of {count:,} images ({sizes.max() / count:.0%}, "
            f"graph.largest_share allows {share:.0%} and graph.largest_least {least:,}); raise graph.threshold, now "
            f"{threshold:.4f}: descriptors and edges are kept for the next run. See {docs / 'components/index.html'}"
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
    described: Sequence[str],
    rows: NDArray[Any],
    descriptor: Descriptor,
    params: CheckParams,
    docs: Path,
) -> None:
    """The suite over the whole images' descriptors ``rows`` [N, d], aligned with the index.

    ``described``: the keys of the images that were read for them, in their order. Images drawn at random are read and
    described again.

    Raises:
        VitrailError: a rule is broken.
    """
    from components.quality import validate
    from components.quality.suites import descriptor_table, descriptors_suite

    drawn = np.random.default_rng(params.seed).permutation(len(pool))[: params.described]
    store = pool.store()
    again = describe_pictures(descriptor, (pool.rgb(int(row), store) for row in drawn))[:, 0].astype(np.float32)
    cosine = np.einsum("nd,nd->n", again, np.asarray(rows[drawn], np.float32))
    table = descriptor_table(rows, described, pool.keys, strangers={*drawn[cosine < SAME].tolist()})
    validate(table, descriptors_suite(rows.shape[1], tolerance=1e-3), docs)


def check_manifest(
    folder: Path, pool: Pool, rows: NDArray[Any], held_out: HeldOut, params: CheckParams, docs: Path
) -> None:
    """The suites over manifest and decisions as written to ``folder``.

    ``rows`` [N, R, d] describe the pool. Digests are compared of every image, descriptors of those that are drawn.

    Raises:
        VitrailError: a rule is broken; an image of the manifest is over the threshold to a held-out image, or has the
            bytes of one.
    """
    from components.quality import validate
    from components.quality.suites import decisions_suite, manifest_suite

    manifest = read_table(folder / "manifest", MANIFEST)
    decisions = read_table(folder / "decisions", DECISIONS)
    place = {key: row for row, key in enumerate(pool.keys)}
    chosen = np.array([place[key] for key in manifest["key"].to_pylist() if key in place], np.int64)
    same = _with_digests(pool.rows, chosen, held_out.digests)
    if len(chosen) > params.held_out:
        chosen = np.sort(np.random.default_rng(params.seed).choice(chosen, params.held_out, replace=False))
    near = chosen[nearest_held_out(rows, chosen, held_out.rows) > held_out.threshold + ROUNDING]
    keys = pool.keys
    validate(manifest, manifest_suite(pool.rows, {keys[row] for row in [*near.tolist(), *same.tolist()]}), docs)
    validate(decisions, decisions_suite(pool.rows, decide.REASONS), docs)


def _with_digests(rows: pa.Table, chosen: NDArray[np.int64], digests: Sequence[str]) -> NDArray[np.int64]:
    """Those of the ``chosen`` rows of the index whose bytes, as crawled or as stored, have one of the ``digests``."""
    import pyarrow.compute as pc

    known = pa.array(digests, pa.string())
    table = rows.take(pa.array(chosen, pa.int64()))
    same = pc.or_(pc.is_in(table["sha256"], known), pc.is_in(table["stored_sha256"], known))
    return np.asarray(chosen[same.to_numpy().astype(bool)])


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
