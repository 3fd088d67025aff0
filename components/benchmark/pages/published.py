"""``params/published.yaml``: what released models reached, each with source and protocol, to read beside own scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.params import Strict, load_params

PUBLISHED = "published.yaml"


class Published(Strict):
    """One row: a metric of one data set, as one source reports it by one protocol."""

    dataset: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    protocol: str = Field(min_length=1)
    source: str = Field(min_length=1)
    scores: dict[str, Annotated[float, Field(ge=0, le=1000)]] = Field(min_length=1)  # by model


class PublishedFile(Strict):
    """The file."""

    rows: list[Published] = []


def load_published(params_folder: Path) -> list[Published]:
    """The rows of ``params_folder/published.yaml``; none where there is no such file."""
    path = params_folder / PUBLISHED
    return load_params(path, PublishedFile).rows if path.is_file() else []


def published_table(rows: Sequence[Published], dataset: str | None = None) -> str:
    """The rows of ``dataset``, or all, in Markdown; nothing where there are none."""
    shown = [row for row in rows if dataset is None or row.dataset == dataset]
    if not shown:
        return ""
    lines = ["| data | metric | protocol | scores | source |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.dataset} | {row.metric} | {row.protocol} | "
        f"{', '.join(f'{model} {value:g}' for model, value in row.scores.items())} | {row.source} |"
        for row in shown
    ]
    return "Published scores, each by its own protocol:\n\n" + "\n".join(lines) + "\n"
