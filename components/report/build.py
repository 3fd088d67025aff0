"""Write the report of a workspace from its stages' outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from components.report import data_parts, model_parts
from components.report.data_parts import read
from components.report.markup import cards, link, page, table
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


def render(root: Path, links: Mapping[str, str]) -> str:
    """The page's HTML."""
    sections = {
        "What came in": data_parts.came_in(root),
        "What was dropped, and why": data_parts.dropped(root),
        "Copies and the training set": data_parts.copies(root),
        "Training": model_parts.training(root),
        "Scores": model_parts.scores(root),
        "What the models see": model_parts.pictures(root),
        "Use the models": model_parts.models(root),
        "Checks of every table": data_parts.checks(root),
        "Other pages": table(
            ("page", "address"), [(name, link(address, address)) for name, address in links.items()], plain=(1,)
        ),
    }
    intro = f"<p class=soft>{time.strftime('%Y-%m-%d %H:%M')}</p>{cards(headline(root))}"
    return page("Vitrail: report of this run", intro, sections)


def headline(root: Path) -> dict[str, object]:
    """The few figures that say how the run went."""
    curate, dedup = read(root / "reports/curate.json"), read(root / "reports/dedup.json")
    figures: dict[str, object] = {}
    if curate:
        figures |= {"image links found": curate["links"], "images kept": curate["kept"]}
    if dedup:
        figures["training images"] = dedup["selected"]
    return figures | model_parts.best(root)
