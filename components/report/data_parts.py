"""The report's sections about data: what came in, what was dropped, copies, and the checks of every table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.pipeline import load_pipeline
from components.report.markup import bar, link, picture, table, text
from components.report.reasons import meaning

_LEFT_OUT = ("links-skipped", "pages-cut", "pages-too-costly", "bad-addresses")


def read(path: Path) -> dict[str, Any]:
    """The JSON object at ``path``; empty if the file is not there or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def missing(stage: str) -> str:
    """What a section says if its stage has not run."""
    return f"<p class=soft>The stage {stage} has not finished yet: <code>vitrail run {stage}</code>.</p>"


def came_in(root: Path) -> str:
    """Where the images come from, and what the crawl met."""
    source = f"<p>Source: <code>{text(load_pipeline(root).source)}</code></p>"
    sources = read(root / "data/crawl/sources.json")
    if not sources:
        return source + missing("crawl")
    kinds: dict[str, list[int]] = {}
    for file in sources.get("files", ()):
        kinds.setdefault(file["kind"], []).append(file.get("bytes") or 0)
    rows = [(kind, len(sizes), f"{sum(sizes) / 1e6:,.1f} MB") for kind, sizes in kinds.items()]
    parts = [source, table(("kind of file", "files", "size"), rows)]
    if sources.get("left"):
        parts.append("<h3>Files that are not read</h3>" + table(("reason", "files"), sources["left"].items()))
    crawl = read(root / "data/crawl/crawl.json")
    if counts := {name: value for name, value in crawl.items() if isinstance(value, int)}:
        parts.append("<h3>What the crawl met</h3>" + table(("what", "how often"), counts.items()))
    return "".join(parts)


def dropped(root: Path) -> str:
    """What curation dropped, with reasons and pictures."""
    report = read(root / "reports/curate.json")
    if not report:
        return missing("curate")
    links, kept = int(report["links"]), int(report["kept"])
    left = {name: report[name] for name in _LEFT_OUT if report.get(name)}
    return "".join(
        [
            f"<p>{links:,} image links were found. {kept:,} images were kept, and {links - kept:,} links were dropped. "
            f"{report.get('faces', 0):,} faces were found and {report.get('blurred', 0):,} blurred.</p>",
            _reasons(report.get("reasons", {})),
            table(("other counts", "how many"), left.items()) if left else "",
            picture(root / "data/curate/contact-sheet.png", "Samples of kept images and of every reason"),
            "<p class=soft>For the whole story of one image: <code>vitrail trace ADDRESS</code>.</p>",
        ]
    )


def copies(root: Path) -> str:
    """What dedup dropped and chose, with pictures."""
    report = read(root / "reports/dedup.json")
    if not report:
        return missing("dedup")
    images, selected, reasons = int(report["images"]), int(report["selected"]), dict(report.get("reasons", {}))
    out = {name: count for name, count in reasons.items() if not _is_selected(name)}
    chosen = {name: count for name, count in reasons.items() if _is_selected(name)}
    seldom = report.get("seldom_found") or {}
    review = root / "data/dedup/review.html"
    return "".join(
        [
            f"<p>{selected:,} of {images:,} images are selected for training. Copies are found at a cosine of "
            f"{text(report.get('threshold_self', '?'))}, copies of held-out images at "
            f"{text(report.get('threshold_relative', '?'))}.</p>",
            _reasons(out),
            "<h3>Selected</h3>" + table(("how", "images"), chosen.items()) if chosen else "",
            picture(root / "data/dedup/duplicates.jpg", "Groups of copies"),
            picture(root / "data/dedup/held-out.jpg", "Images that were removed, each beside its held-out image"),
            picture(root / "data/dedup/calibration.png", "Similarities of planted copies and of different images"),
            "<h3>Edits that this descriptor seldom finds</h3>" + table(("edit", "share of copies"), seldom.items())
            if seldom
            else "",
            f"<p>{link('../data/dedup/review.html', 'Review every decision')} with its pictures.</p>"
            if review.is_file()
            else "",
        ]
    )


def checks(root: Path) -> str:
    """Great Expectations' verdict on each table, with links to the Data Docs."""
    rows = []
    for path in sorted((root / "reports/gx").glob("*/*/result.json")):
        found = read(path)
        rules = found.get("rules", [])
        broken = sum(not rule["success"] for rule in rules)
        verdict = f"<span class=bad>{broken} broken</span>" if broken else "<span class=good>all hold</span>"
        place = path.parent.relative_to(root / "reports").as_posix()
        name = link(f"{place}/index.html", "/".join(path.parent.parts[-2:]))
        rows.append((name, found.get("rows", 0), len(rules), verdict))
    if not rows:
        return "<p class=soft>No table has been checked yet.</p>"
    return table(("table", "rows", "rules", "outcome"), rows, plain=(0, 3))


def _is_selected(reason: str) -> bool:
    return reason.startswith(("retrieved:", "as-is:")) or reason in ("pool", "balanced")


def _reasons(counts: Mapping[str, int]) -> str:
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    shown = [(name, count, bar(count / max(rows[0][1], 1)), meaning(name)) for name, count in rows]
    return table(("reason", "images", "", "why"), shown, plain=(2,)) if shown else "<p>Nothing was dropped.</p>"
