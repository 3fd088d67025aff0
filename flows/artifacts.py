"""What a stage leaves in Prefect's UI: a progress bar while it runs, then its metrics and the link to MLflow."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_logger

from components.progress import share_done

P = ParamSpec("P")

_EVERY = 5.0  # seconds between updates of the progress bar: each is a request to the server
_TRACKED = re.compile(r"https?://\S+/#/experiments/\S+/runs/\w+(?:\?[\w=&]+)?")


def _spared(function: Callable[P, None]) -> Callable[P, None]:
    """``function``, but a server that is away costs what it would have shown, not the stage."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (httpx.HTTPError, PrefectException) as fault:
            get_logger("vitrail").warning(f"not shown, for Prefect's server did not take it: {fault}")

    return call


class ProgressArtifact:
    """Follows the counts in a stage's lines (``pretrain: 120/400 steps, ...``) as a progress bar in the UI."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._id: UUID | None = None
        self._last = 0.0

    def line(self, line: str) -> None:
        """Take one line of output; one that holds no count changes nothing."""
        percent = percent_done(line)
        now = time.monotonic()
        if percent is None or now - self._last < _EVERY:
            return
        self._last = now
        self._show(percent, line)

    def close(self, done: bool) -> None:
        """Fill the bar, if the stage showed one and ended well."""
        if done and self._id is not None:
            self._show(100.0, f"{self._stage}: done")

    @_spared
    def _show(self, percent: float, text: str) -> None:
        if self._id is None:
            key = f"{artifact_key(self._stage)}-progress"
            made = create_progress_artifact(progress=percent, key=key, description=text)
            assert isinstance(made, UUID)  # a coroutine only where an event loop runs, and tasks are plain functions
            self._id = made
        else:
            update_progress_artifact(artifact_id=self._id, progress=percent, description=text)


@_spared
def publish_outcome(stage: str, report: Path, tracked: str | None) -> None:
    """Publish the numbers of ``report`` (the stage's metrics file) and the link to its MLflow run, where there are."""
    key = artifact_key(stage)
    if tracked is not None:
        create_link_artifact(link=tracked, link_text=f"{stage} in MLflow", key=f"{key}-mlflow")
    if report.is_file():
        rows = [{"metric": name, "value": value} for name, value in flatten(json.loads(report.read_text()))]
        create_table_artifact(table=rows, key=f"{key}-metrics", description=f"`{report.name}` of stage {stage}")
    table = report.parents[1] / "data" / stage / "table.md"
    if table.is_file():
        create_markdown_artifact(markdown=table.read_text(encoding="utf-8"), key=f"{key}-table")


@_spared
def publish_scores(scores: Path, only: str | None = None) -> None:
    """The benchmark's figures as a table, a row a model and metric; of the model ``only`` where it is named."""
    if not scores.is_file():
        return
    content = json.loads(scores.read_text())
    found = [*content["scores"], *content.get("ranking", []), *content.get("dense", [])]
    rows = [
        {
            "model": one["model"],
            "benchmark": one["benchmark"],
            "task": one["task"],
            "method": one["method"],
            "value": one["accuracy"] if "accuracy" in one else one["value"],
            "low": one["low"],
            "high": one["high"],
            "unit": one.get("unit", "%"),
            "protocol": one["protocol"],
        }
        for one in found
        if only in (None, one["model"])
    ]
    if rows:
        create_table_artifact(table=rows, key="benchmark-scores", description=f"Scores of {only or 'all contenders'}")


def artifact_key(stage: str) -> str:
    """``stage`` in the letters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")


def percent_done(line: str) -> float | None:
    """The share (0 to 100) that a line of components.progress reports, or None."""
    share = share_done(line)
    return None if share is None else 100 * share


def tracking_link(lines: Iterable[str]) -> str | None:
    """The last MLflow run URL in ``lines``, or None."""
    found = [match.group() for line in lines if (match := _TRACKED.search(line))]
    return found[-1] if found else None


def flatten(content: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``[("a.b", 1)]``; lists stay whole."""
    rows: list[tuple[str, Any]] = []
    for name, value in content.items():
        dotted = f"{above}{name}"
        rows += flatten(value, f"{dotted}.") if isinstance(value, Mapping) else [(dotted, value)]
    return rows
