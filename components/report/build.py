"""Write the report of a workspace from its stages' outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from components.report import data_parts, model_parts
from components.report.data_parts import read
from components.report.markup import cards, link, page, table, text
from components.storage import atomic_file

REPORT = Path("reports/index.html")


def write(root: Path, links: Mapping[str, str]) -> Path:
    """Write ``reports/index.html`` below ``root``, one file with everything inside; returns its path.

    Stages that have not run are named in their sections, so the page can be written at any time.

    Args:
        root: of the checkout.
        links: addresses of other pages (MLflow, Prefect) by what they show.
    """
    out = root / REPORT
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as file:
        file.write(render(root, links).encode())
    return out


_PARTS: Mapping[str, Callable[[Path], str]] = {
    "What came in": data_parts.came_in,
    "What was dropped, and why": data_parts.dropped,
    "Copies and the training set": data_parts.copies,
    "Training": model_parts.training,
    "Scores": model_parts.scores,
    "What the models see": model_parts.pictures,
    "Use the models": model_parts.models,
    "Checks of every table": data_parts.checks,
}


def _part(part: Callable[[Path], str], root: Path) -> str:
    """A section; outputs of another version of a stage do not keep the other sections from being shown."""
    from components.images.decode import DecodeError

    try:
        return part(root)
    except (KeyError, TypeError, ValueError, AttributeError, DecodeError) as fault:
        return f"<p class=bad>These outputs have another form than this version writes ({text(repr(fault))}): run " \
               "<code>vitrail run</code>.</p>"  # fmt: skip


def render(root: Path, links: Mapping[str, str]) -> str:
    """The page's HTML."""
    sections = {heading: _part(part, root) for heading, part in _PARTS.items()}
    addresses = [(name, link(address, address)) for name, address in links.items()]
    servers = "<p>These are pages of the local servers. <code>make platform</code> starts them.</p>"
    sections["Other pages"] = servers + table(("page", "address"), addresses, plain=(1,))
    intro = f"<p class=soft>{time.strftime('%Y-%m-%d %H:%M')}</p>{cards(headline(root))}"
    return page("Vitrail: report of this run", intro, sections)


def headline(root: Path) -> dict[str, object]:
    """The few figures that say how the run went."""
    curate, dedup = read(root / "reports/curate.json"), read(root / "reports/dedup.json")
    figures: dict[str, object] = {}
    if "links" in curate and "kept" in curate:
        figures |= {"image links found": curate["links"], "images kept": curate["kept"]}
    if "selected" in dedup:
        figures["training images"] = dedup["selected"]
    return figures | model_parts.best(root)
