"""The curate stage: sources -> links -> policy -> decode -> exact and PCA-hash duplicates -> NSFW -> faces -> shards.

Passes are mapped over files, parts of 65,536 addresses, or chunks of a part; between them tables are joined on disk.
No pass and no join holds the pool in memory. Results are in a work folder beside the output, named by a fingerprint
of parameters and sources, so that a run that was killed carries on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.context import StageContext
from components.curate import passes
from components.curate.links.addresses import Gathering, Met
from components.curate.links.gather import gather
from components.curate.links.judge import items as judge_items
from components.curate.links.judge import judge
from components.curate.params import CurateParams
from components.curate.results.reasons import LINK_REASONS
from components.curate.results.report import listed, median_face, save_picture, summary
from components.curate.results.sheet import PictureReader, draw
from components.errors import VitrailError
from components.executor import kept_workers, map_shards
from components.images.decode import DECODE_REASONS
from components.images.shards import Shards
from components.leftover import too_little
from components.lock import hold
from components.params import fingerprint
from components.plugins import code_digests
from components.storage import atomic_dir, atomic_file, inside_outputs, open_store
from components.tables.database import database
from components.tables.parts import PART_ROWS, assemble, parts
from components.tables.schemas import AUDIT, INDEX, LINKS
from components.web.rules.policy import Policy
from components.web.sources.sources_json import Sources
from components.web.work import work_folder

if TYPE_CHECKING:
    from components.curate.results.assemble import Tally

FORMAT = 6  # of what the passes leave in the work folder, and of the decoding behind it


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
            params.model_dump(mode="json", exclude={"executor", "memory", "least_kept"}),
            sources.model_dump(),
            [FORMAT, *code_digests(params.plugins())],
        )[:16]
        store = sources.store(crawl, storage)
        # Files that were replaced since a run was interrupted must not meet what that run found in the old ones.
        work = work_folder(out, fingerprint(digest, sources.versions(store))[:16])
        (work / "shards").mkdir(exist_ok=True)
        local = inside_outputs(storage)
        shards_at = open_store(str(work / "shards")) if local else open_store(storage, "curate", digest)
        shared = passes.PassContext(params, store, work, shards_at)
        met = gather(sources, gathering(shared, crawl))
        judged = list(map_shards(judge, judge_items(met, params.policy, work, params.chunk), params.executor))
        examined = passes.decode(shared, judged)
        facts = passes.facts(shared, judged, examined)
        exact, copies = passes.exact(shared, facts)
        hashing, hashed = passes.hashes(shared, facts, exact, examined)
        near = passes.near_copies(shared, hashed)
        stored, shards = passes.store(shared, judged, facts, (exact, near) if near else (exact,))
        tallies = passes.index(shared, passes.PassFiles(judged, facts, exact, near, hashed, stored))
        report = summary(tallies, met.counts, copies, shards, hashing is not None)
        said = too_little(
            "curate", report["kept"], report["reasons"], params.least_kept, params.blamed(), "params/curate.yaml"
        )
        if not report["kept"]:
            raise VitrailError(f"{crawl}: nothing is left; {said or listed(report['reasons'])}")
        if said:
            print(f"warning: {said}", file=sys.stderr, flush=True)
        pictures = PictureReader(shared.store, shards_at, params.decode, params.sandbox)
        sheet = draw(tallies, [one.places for one in judged], PART_ROWS, pictures)
        docs = (report_path or out).parent / "gx/curate"
        report["face-median-side"] = _validate(shared, tallies, facts, met, docs)
        report["seconds"] = round(time.monotonic() - began, 1)
        with atomic_dir(out) as folder:
            assemble(folder / "index", [tally.index for tally in tallies], INDEX)
            assemble(folder / "audit", [tally.audit for tally in tallies], AUDIT)
            if met.links is not None:
                assemble(folder / "links", parts(met.links, LINKS), LINKS)
            Shards("" if local else shards_at.root, shards).save(folder)
            save_picture(sheet, folder / "contact-sheet.png")
            if hashing is not None:
                facts_of_hash: dict[str, object] = {"radius": params.pca_hash.radius, "seed": params.pca_hash.seed}
                hashing.save(folder, facts_of_hash)
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


def gathering(run: passes.PassContext, crawl: Path) -> Gathering:
    """How a run reads the sources that are named in the folder ``crawl``."""
    params = run.params
    return Gathering(
        run.store, crawl, run.work, params.policy, params.max_page_bytes, params.sandbox, params.memory, params.executor
    )


def _validate(run: passes.PassContext, tallies: Sequence[Tally], facts: Sequence[Path], met: Met, docs: Path) -> float:
    """Check index, links and what decoding found; returns the median face's longer side in pixels."""
    from components.quality import checked_together, validate_files
    from components.quality.suites import images_suite, index_suite, links_suite

    params, limits = run.params, run.params.decode
    with database(params.memory, run.work) as connection, checked_together():
        of_index = index_suite(
            params.reasons(),
            min_side=limits.min_side,
            nsfw_threshold=params.nsfw.threshold if params.nsfw.enabled else None,
            restricted=Policy(params.policy).restricted,
        )
        validate_files(connection, [tally.index for tally in tallies], of_index, docs)
        if met.links is not None:
            validate_files(connection, parts(met.links, LINKS), links_suite(("", *LINK_REASONS)), docs)
        of_images = images_suite(params.reasons(), limits.max_bytes, limits.max_pixels, limits.min_side, DECODE_REASONS)
        validate_files(connection, facts, of_images, docs, only="sha256 <> ''")
        return median_face(connection, [tally.audit for tally in tallies])
