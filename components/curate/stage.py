"""The curate stage: sources -> links -> policy -> decode -> exact and PCA-hash duplicates -> NSFW -> faces -> shards.

Passes are mapped over files or chunks of addresses; their results stand in a work folder beside the output, named by a
fingerprint of parameters and sources, so that a run that was killed carries on where it was.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from components.context import StageContext
from components.curate import contact_sheet, pca_hash
from components.curate.audit import AUDIT, audit, audit_counts
from components.curate.duplicates import mark_exact, mark_near, settle
from components.curate.examine import ChunkItem, Place, StoreItem, examine, read_bytes, store_chunk
from components.curate.gather import Gathered, NothingFound, Row, gather_warc
from components.curate.gather_files import gather_images, gather_tars
from components.curate.pca_hash import HashParams
from components.curate.reasons import LINK_REASONS, REASONS
from components.curate.report import listed, save_picture, summary
from components.curate.safety import FaceParams, NsfwParams
from components.curate.sandboxed_decode import Eye
from components.errors import VitrailError
from components.executor import ExecutorParams, kept_workers, map_shards
from components.images.decode import DECODE_REASONS, RGB, DecodeError, DecodeLimits
from components.images.sandbox import SandboxParams
from components.images.tables import INDEX, Shards, write_table
from components.leftover import too_little
from components.lock import hold
from components.params import Share, Strict, fingerprint
from components.progress import Progress
from components.storage import ObjectUnreadable, Store, atomic_dir, atomic_file, inside_outputs, open_store
from components.web.block_list import Forgotten
from components.web.kinds import Kind
from components.web.link_table import LINKS, iter_rows
from components.web.policy import Policy, PolicyParams
from components.web.sources import Sources
from components.web.unique import MemoryParams
from components.web.work import work_folder

CHECKED = 1_000_000  # rows that Great Expectations looks at, of very many
FORMAT = 4  # of what the passes leave in the work folder, and of the decoding behind it


IMAGES = pa.schema(
    [("key", pa.string()), ("reason", pa.string()), ("sha256", pa.string()), ("format", pa.string()),
     ("width", pa.int32()), ("height", pa.int32()), ("bytes", pa.int64())]
)  # fmt: skip  # what decoding found, as Great Expectations sees it


class CurateParams(Strict):
    """``params/curate.yaml``."""

    policy: PolicyParams
    decode: DecodeLimits
    sandbox: SandboxParams = SandboxParams()
    pca_hash: HashParams
    nsfw: NsfwParams
    faces: FaceParams
    memory: MemoryParams = MemoryParams()  # while links are made unique
    max_page_bytes: int = Field(10_000_000, ge=1, le=2**50)
    chunk: int = Field(512, ge=1, le=1_000_000)  # images a work item
    shard_bytes: int = Field(268_435_456, ge=1, le=2**50)  # a tar shard begins anew above this
    least_kept: Share = 0.5  # of the images; a run that leaves less says which values dropped the others
    executor: ExecutorParams

    def culprits(self) -> dict[str, str]:
        """Reason to drop an image -> the value that decided."""
        decode, policy = self.decode, self.policy
        return {
            "forgotten": "policy.forgotten",
            "restricted-domain": "policy.restricted",
            "robots-disallowed": "policy.respect_robots",
            "opt-out": "policy.respect_opt_out" if policy.respect_opt_out else "the page",
            "too-many-bytes": f"decode.max_bytes {decode.max_bytes:,}",
            "too-many-pixels": f"decode.max_pixels {decode.max_pixels:,}",
            "too-many-frames": f"decode.max_frames {decode.max_frames}",
            "too-small": f"decode.min_side {decode.min_side}",
            "too-much-memory": f"sandbox.megabytes {self.sandbox.megabytes}",
            "too-slow": f"sandbox.seconds {self.sandbox.seconds:g}",
            "near-duplicate": f"pca_hash.radius {self.pca_hash.radius}",
            "nsfw": f"nsfw.threshold {self.nsfw.threshold:g}",
        }


@dataclass(frozen=True)
class CurateInputs:
    """What the curate stage reads."""

    crawl: Path  # the crawl stage's output: sources.json, and WARC files where it made some


def run(params: CurateParams, inputs: CurateInputs, outputs: Path, context: StageContext) -> dict[str, Any]:
    """Curate what ``sources.json`` names into ``outputs``; returns the report, also written to ``context.report``.

    Raises:
        VitrailError: nothing readable, nothing kept, a broken quality suite, or another run at work on
            ``outputs``.
    """
    from components.tracking import run as tracked

    crawl, out, storage, report_path = inputs.crawl, outputs, context.storage, context.report
    began = time.monotonic()
    sources = Sources.load(crawl)
    record = tracked("curate", "curate", context.tracking, params)
    with hold(out), record as recording, kept_workers(params.executor):
        digest = fingerprint(
            params.model_dump(mode="json", exclude={"executor", "memory", "least_kept"}), sources.model_dump(), [FORMAT]
        )[:16]
        store = sources.store(crawl, storage)
        # Files that were replaced since a run was interrupted must not meet what that run found in the old ones.
        work = work_folder(out, fingerprint(digest, sources.versions(store))[:16])
        (work / "shards").mkdir(exist_ok=True)
        found = _gather(params, sources, store, work, crawl)
        _examine(params, sources, store, found, work)
        _forget(params.policy, found)
        exact = mark_exact(found.rows)
        hashed = _near_duplicates(params.pca_hash, found.rows)
        local = inside_outputs(storage)
        shards_at = open_store(str(work / "shards")) if local else open_store(storage, "curate", digest)
        shards = _store(params, sources, store, shards_at, found, work)
        settle(found.rows)
        for row in found.rows:
            row["status"] = "dropped" if row["reason"] else "kept"
        report = summary(found, exact, shards, hashed is not None, time.monotonic() - began)
        audited = audit(found.rows, params.nsfw, params.faces)
        report |= audit_counts(audited)
        said = too_little(
            "curate", report["kept"], report["reasons"], params.least_kept, params.culprits(), "params/curate.yaml"
        )
        if not report["kept"]:
            raise VitrailError(f"{crawl}: nothing is left; {said or listed(report['reasons'])}")
        if said:
            print(f"warning: {said}", file=sys.stderr, flush=True)
        index = pa.Table.from_pylist([{k: row[k] for k in INDEX.names} for row in found.rows], schema=INDEX)
        sheet = contact_sheet.choose(found.rows, lambda row: _show(row, params, sources, store, shards_at, found))
        docs = (report_path or out).parent / "gx/curate"
        with atomic_dir(out) as folder:
            _validate(index, params, docs)
            _validate_inputs(found, params, docs)
            write_table(folder / "index.parquet", index, INDEX)
            write_table(folder / "audit.parquet", audited, AUDIT)
            Shards("" if local else shards_at.root, shards).save(folder)
            save_picture(sheet, folder / "contact-sheet.png")
            if hashed is not None:
                facts: dict[str, object] = {"radius": params.pca_hash.radius, "seed": params.pca_hash.seed}
                hashed.save(folder, facts)
            if found.links is not None:
                os.replace(found.links, folder / "links.parquet")
            if local:
                os.replace(work / "shards", folder / "shards")
        shutil.rmtree(work.parent)
        if report_path is not None:
            with atomic_file(report_path, "w") as file:
                json.dump(report, file, indent=1)
        recording.log_metrics({f"curate.{k}": float(v) for k, v in report.items() if isinstance(v, int | float)})
        recording.log_metrics({f"curate.dropped.{k}": float(v) for k, v in report["reasons"].items()})
        recording.log_image(sheet, "contact-sheet")
        recording.log_dataset("curated", digest, str(out), "curation")
        recording.log_artifacts(docs, "gx")
    return report


def _gather(params: CurateParams, sources: Sources, store: Store, work: Path, crawl: Path) -> Gathered:
    """What files of every kind hold; a kind that holds nothing ends the run only where there is no other."""
    policy = Policy(params.policy)
    gather: dict[Kind, Callable[[], Gathered]] = {
        "warc": lambda: gather_warc(
            sources, store, policy, work, params.max_page_bytes, params.executor, params.memory, crawl, params.sandbox
        ),
        "tars": lambda: gather_tars(sources, store, policy),
        "images": lambda: gather_images(sources, store, policy),
    }
    found, faults = Gathered(), list[NothingFound]()
    for kind, gathered in gather.items():
        if sources.of(kind):
            try:
                found.add(gathered())
            except NothingFound as fault:
                faults.append(fault)
                found.counts.update(fault.counts)
    if not found.rows and faults:
        raise faults[0]
    for unread in faults:
        print(f"warning: {unread}", file=sys.stderr, flush=True)
    found.counts.update({f"left-{why}": count for why, count in sources.left.items()})
    return found


def _chunks(params: CurateParams, places: list[Place]) -> list[tuple[Place, ...]]:
    return [tuple(places[i : i + params.chunk]) for i in range(0, len(places), params.chunk)]


def _examine(params: CurateParams, sources: Sources, store: Store, found: Gathered, work: Path) -> None:
    """Decode everything that policy let through; rows take reason, digest, format, size and thumbnail."""
    by_key = {row["key"]: row for row in found.rows}
    chunks = _chunks(params, list(found.places.values()))
    items = [
        ChunkItem(store, places, work / f"examined-{number:06d}.parquet", params.decode, params.sandbox)
        for number, places in enumerate(chunks)
    ]
    progress = Progress("decode", len(found.places), unit="images")
    for item, path in zip(items, map_shards(examine, items, params.executor), strict=True):
        for result in iter_rows(path):
            by_key[str(result["key"])].update(result)
        progress.advance(len(item.places))
    progress.close()


def _forget(params: PolicyParams, found: Gathered) -> None:
    """Drop images whose bytes were taken down, whatever address they have now."""
    digests = Forgotten.read(params.forgotten).digests
    for row in found.rows if digests else ():
        if not row["reason"] and row["sha256"] in digests:
            row["reason"] = "forgotten"
            row["decisions"].append("forgotten: by its bytes")


def _near_duplicates(params: HashParams, rows: list[Row]) -> pca_hash.PcaHash | None:
    """Hash what is left and drop near-duplicates; None (and a line that says so) when there is no hash."""
    left = [row for row in rows if not row["reason"]]
    thumbnails = np.frombuffer(b"".join(row["thumbnail"] for row in left), np.uint8).reshape(
        len(left), pca_hash.SIDE**2
    )
    if params.artifact is not None:
        hashing: pca_hash.PcaHash | None = pca_hash.load(params.artifact)
    else:
        hashing = pca_hash.fit(thumbnails, params) if left else None
    if hashing is None:
        print(
            f"PCA hash: left out, fewer than {params.min_images} of {len(left)} images have contrast"
            " (pca_hash.min_images); only exact duplicates are dropped",
            file=sys.stderr,
        )
        return None
    hashes, usable = hashing(thumbnails)
    with_hash = [row for row, good in zip(left, usable, strict=True) if good]
    for row, bits in zip(with_hash, hashes[usable], strict=True):
        row["pca_hash"] = bits.tobytes().hex()
    mark_near(with_hash, hashes[usable], params.radius)
    return hashing


def _store(
    params: CurateParams, sources: Sources, store: Store, shards_at: Store, found: Gathered, work: Path
) -> dict[str, dict[str, object]]:
    """Score, blur and store the survivors; returns the shards."""
    survivors = [
        replace(found.places[row["key"]], format=row["format"], sha256=row["sha256"])
        for row in found.rows
        if not row["reason"]
    ]
    by_key = {row["key"]: row for row in found.rows}
    items = []
    for number, places in enumerate(_chunks(params, survivors)):
        chunk = ChunkItem(store, places, work / f"stored-{number:06d}.parquet", params.decode, params.sandbox)
        items.append(StoreItem(chunk, shards_at, f"{number:06d}", params.shard_bytes, params.nsfw, params.faces))
    shards: dict[str, dict[str, object]] = {}
    progress = Progress("NSFW, faces, shards", len(survivors), unit="images")
    for item, path in zip(items, map_shards(store_chunk, items, params.executor), strict=True):
        for result in iter_rows(path):
            by_key[str(result["key"])].update(result)
        shards.update(json.loads(path.with_suffix(".json").read_text()))
        progress.advance(len(item.chunk.places))
    progress.close()
    return shards


def _validate(index: pa.Table, params: CurateParams, out: Path) -> None:
    from components.quality import validate
    from components.quality.suites import index_suite

    suite = index_suite(
        REASONS,
        min_side=params.decode.min_side,
        nsfw_threshold=params.nsfw.threshold if params.nsfw.enabled else None,
        restricted=Policy(params.policy).restricted,
    )
    validate(index, suite, out)


def _validate_inputs(found: Gathered, params: CurateParams, out: Path) -> None:
    """The links that were met, and what decoding found; of very many rows the first :data:`CHECKED`."""
    from components.quality import validate
    from components.quality.suites import images_suite, links_suite

    if found.links is not None:
        with pq.ParquetFile(found.links) as file:
            batches = itertools.islice(file.iter_batches(8192), CHECKED // 8192)
            validate(pa.Table.from_batches(batches, LINKS), links_suite(("", *LINK_REASONS)), out)
    looked_at = [row for row in found.rows if row["sha256"]][:CHECKED]
    names = ("key", "reason", "sha256", "format", "width", "height", "bytes")
    table = pa.Table.from_pylist([{name: row.get(name, 0) for name in names} for row in looked_at], IMAGES)
    limits = params.decode
    suite = images_suite(REASONS, limits.max_bytes, limits.max_pixels, limits.min_side, DECODE_REASONS)
    validate(table, suite, out)


def _show(
    row: Row, params: CurateParams, sources: Sources, store: Store, shards_at: Store, found: Gathered
) -> RGB | None:
    """A row's picture for the contact sheet: the stored one, or for a dropped row what was crawled, unless unsafe."""
    place = found.places.get(row["key"])
    if place is None or row["reason"] == "nsfw" or row["reason"] in DECODE_REASONS:
        return None
    try:
        if not row["reason"]:
            data = shards_at.read(row["shard"], row["offset"], row["length"])
        else:
            data = read_bytes(store, place, params.decode)
        return Eye(params.decode, params.sandbox).pixels(data)[0]
    except (DecodeError, ObjectUnreadable):
        return None
