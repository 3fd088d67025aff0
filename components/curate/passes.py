"""The passes of a curation, each over parts or chunks of parts, each done once: its files are in the work folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from components.curate.duplicates import hashing, near, pca_hash
from components.curate.duplicates.facts import FactsItem, SurvivorsItem, collect, exact_copies, survivors
from components.curate.links.judge import Judged
from components.curate.links.places import Chunk, chunks
from components.curate.params import CurateParams
from components.curate.pixels.examine import ChunkItem, StoreItem, examine, store_chunk
from components.curate.results import assemble
from components.executor import map_shards
from components.progress import Progress
from components.storage import Store
from components.tables.database import database
from components.tables.parts import PART_ROWS


@dataclass(frozen=True)
class PassContext:
    """What all passes share."""

    params: CurateParams
    store: Store  # of the sources
    work: Path
    shards: Store  # where shards are written

    def chunk_item(self, places: Chunk, out: Path) -> ChunkItem:
        """A chunk of images to work on."""
        return ChunkItem(self.store, places, out, self.params.decode, self.params.sandbox)


PartFiles = list[Path]


def decode(run: PassContext, judged: Sequence[Judged]) -> list[tuple[Path, ...]]:
    """Decode everything that policy let through; the results (EXAMINED) of each part."""
    found: list[PartFiles] = [[] for _ in judged]

    def items() -> Iterator[ChunkItem]:
        number = 0
        for part, one in enumerate(judged):
            for chunk in chunks(one.places, one.fetched, run.params.chunk):
                found[part].append(run.work / f"examined-{number:06d}.parquet")
                yield run.chunk_item(chunk, found[part][-1])
                number += 1

    progress = Progress("decode", sum(one.fetched for one in judged), unit="images")
    for path in map_shards(examine, items(), run.params.executor):
        progress.advance(int(pq.read_metadata(path).num_rows))
    progress.close()
    return [tuple(files) for files in found]


def facts(run: PassContext, judged: Sequence[Judged], examined: Sequence[tuple[Path, ...]]) -> PartFiles:
    """What is known of every row (FACTS), part by part."""
    items = (
        FactsItem(one.path, files, run.params.policy.forgotten, run.work / f"facts-{part:06d}.parquet")
        for part, (one, files) in enumerate(zip(judged, examined, strict=True))
    )
    return list(map_shards(collect, items, run.params.executor))


def exact(run: PassContext, known: Sequence[Path]) -> tuple[Path, int]:
    """(row, original) of every image whose bytes an earlier one has, and how many there are."""
    out = run.work / "exact.parquet"
    with database(run.params.memory, run.work) as connection:
        return out, exact_copies(connection, known, out)


def hashes(
    run: PassContext, known: Sequence[Path], copies: Path, examined: Sequence[tuple[Path, ...]]
) -> tuple[pca_hash.PcaHash | None, PartFiles]:
    """The PCA hash of the pool, and the hashes (HASHED) of each part; None (a line says why) where there is none."""
    hashing_, artifact = _fitted(run, known, copies, examined)
    if hashing_ is None:
        return None, []
    items = (
        hashing.HashItem(fact, copies, files, run.work / f"hashed-{part:06d}.parquet", artifact)
        for part, (fact, files) in enumerate(zip(known, examined, strict=True))
    )
    return hashing_, list(map_shards(hashing.hash_part, items, run.params.executor))


def _fitted(
    run: PassContext, known: Sequence[Path], copies: Path, examined: Sequence[tuple[Path, ...]]
) -> tuple[pca_hash.PcaHash | None, Path]:
    how, artifact = run.params.pca_hash, run.work / "pca_hash.npz"
    if how.artifact is not None:
        return pca_hash.load(how.artifact), how.artifact
    done = artifact.with_suffix(".done").exists()
    if done and artifact.exists():
        return pca_hash.load(artifact), artifact
    left = _left(run, known, copies)
    if not done:
        ends = np.cumsum(left)
        chosen = pca_hash.sample(int(ends[-1]), how)
        items = []
        for part, (fact, files) in enumerate(zip(known, examined, strict=True)):
            first = int(ends[part] - left[part])
            mine = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, int(ends[part]))] - first
            out = run.work / f"sample-{part:06d}.npy"
            items.append(hashing.HashItem(fact, copies, files, out, sample=mine))
        thumbnails = hashing.fitted(list(map_shards(hashing.sample_thumbnails, items, run.params.executor)))
        found = pca_hash.fit(thumbnails, how) if len(thumbnails) else None
        hashing.saved(found, artifact)
        if found is not None:
            return found, artifact
    print(
        f"PCA hash: left out, fewer than {how.min_images} of {sum(left)} images have contrast"
        " (pca_hash.min_images); only exact duplicates are dropped",
        file=sys.stderr,
    )
    return None, artifact


def _left(run: PassContext, known: Sequence[Path], copies: Path) -> list[int]:
    """How many images of each part nothing has dropped yet."""
    counts = [0] * len(known)
    with database(run.params.memory, run.work) as connection:
        for sign, query in (
            (1, "SELECT \"row\" // $rows, count(*) FROM read_parquet($files) WHERE reason = '' GROUP BY 1"),
            (-1, 'SELECT "row" // $rows, count(*) FROM read_parquet($files) GROUP BY 1'),
        ):
            files = [str(path) for path in (known if sign > 0 else [copies])]
            for part, count in connection.execute(query, {"rows": PART_ROWS, "files": files}).fetchall():
                counts[part] += sign * count
    return counts


def near_copies(run: PassContext, hashed: Sequence[Path]) -> Path | None:
    """(row, original) of every near copy; None where nothing was hashed."""
    if not hashed:
        return None
    params, out = run.params, run.work / "near.parquet"
    near.near_copies(
        hashed, out, near.Search(params.pca_hash.bits, params.pca_hash.radius, params.memory, params.executor)
    )
    return out


def store(
    run: PassContext, judged: Sequence[Judged], known: Sequence[Path], copies: tuple[Path, ...]
) -> tuple[list[tuple[Path, ...]], dict[str, dict[str, object]]]:
    """Score, blur and store the survivors; the results (STORED) of each part, and the shards."""
    wanted = (
        SurvivorsItem(one.places, fact, copies, run.params.chunk, run.work / f"survivors-{part:06d}.parquet")
        for part, (one, fact) in enumerate(zip(judged, known, strict=True))
    )
    left = list(map_shards(survivors, wanted, run.params.executor))
    found: list[PartFiles] = [[] for _ in left]

    def items() -> Iterator[StoreItem]:
        number, params, filters = 0, run.params, tuple(run.params.filters)
        for part, (places, count) in enumerate(left):
            for chunk in chunks(places, count, params.chunk):
                found[part].append(run.work / f"stored-{number:06d}.parquet")
                item = run.chunk_item(chunk, found[part][-1])
                yield StoreItem(
                    item, run.shards, f"{number:06d}", params.shard_bytes, params.nsfw, params.faces, filters
                )
                number += 1

    shards: dict[str, dict[str, object]] = {}
    progress = Progress("NSFW, faces, shards", sum(count for _, count in left), unit="images")
    for path in map_shards(store_chunk, items(), run.params.executor):
        shards.update(json.loads(path.with_suffix(".json").read_text()))
        progress.advance(int(pq.read_metadata(path).num_rows))
    progress.close()
    return [tuple(files) for files in found], shards


@dataclass(frozen=True)
class PassFiles:
    """The files of all passes, part by part."""

    judged: Sequence[Judged]
    facts: PartFiles
    exact: Path
    near: Path | None
    hashed: PartFiles
    stored: Sequence[tuple[Path, ...]]


def index(run: PassContext, results: PassFiles) -> list[assemble.Tally]:
    """Index and audit, part by part."""
    settled = run.work / "settled.parquet"
    near_file = results.near or _nothing(run.work / "near.parquet", results.exact)
    stored = [path for files in results.stored for path in files]
    with database(run.params.memory, run.work) as connection:
        found: dict[str, Sequence[Path]] = {
            "exact": [results.exact], "near": [near_file], "facts": results.facts,
            "stored": stored or [_nothing(run.work / "nothing.parquet", results.facts[0])],
        }  # fmt: skip
        assemble.resolve_copies(connection, found, settled)
    items = (
        assemble.IndexItem(
            one.path, results.facts[part], settled, results.hashed[part] if results.hashed else None,
            results.stored[part], run.params.nsfw, run.params.faces, run.work / f"part-{part:06d}",
            tuple(run.params.filters),
        )
        for part, one in enumerate(results.judged)
    )  # fmt: skip
    return list(map_shards(assemble.put_together, items, run.params.executor))


def _nothing(path: Path, like: Path) -> Path:
    """A table without rows, with the columns of ``like``."""
    pq.write_table(pq.read_schema(like).empty_table(), path)
    return path
