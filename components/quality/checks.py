"""Check a table against a suite, write Data Docs, and stop the stage when a rule is broken."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from components.collector import collector_paused
from components.errors import VitrailError
from components.log_level import at_level
from components.quality.offline import make_offline
from components.quality.project import Project
from components.quality.rules import Suite
from components.storage import atomic_dir

if TYPE_CHECKING:
    import pandas as pd


class QualityError(VitrailError):
    """A table breaks its suite. ``summary`` is what :func:`validate` would have returned."""

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


def validate(table: pa.Table | pd.DataFrame, suite: Suite, out: Path) -> dict[str, Any]:
    """Check ``table`` against ``suite``; Data Docs (``index.html``) and ``result.json`` replace ``out/<table's name>``.

    They carry the time of the check, so ``out`` belongs beside a stage's output, not inside: the output's digest would
    change with every run. And there a failure's docs outlive the output that the failure throws away.

    Returns:
        ``{"table", "rows", "success", "rules": [{"rule", "where", "success", "broken", "of", "keys"}], "docs"}``;
        ``broken`` counts offending rows, ``keys`` names the first of them.

    Raises:
        QualityError: a rule is broken.
    """
    return finish(_prepare(table, suite), suite, out, len(table))


@contextlib.contextmanager
def checked_together() -> Iterator[None]:
    """All checks inside the block share one context of Great Expectations; their Data Docs are written at its end.

    Each check still stops the stage at once when a rule is broken. Then, too, the pages of all tables are written. An
    inner block belongs to the outer one.
    """
    if _checks.get() is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vitrail-quality-") as folder:
        checks = _Checks(Path(folder))
        token = _checks.set(checks)
        try:
            yield
        finally:
            _checks.reset(token)
            checks.write_docs()


def finish(
    frame: pd.DataFrame,
    suite: Suite,
    out: Path,
    rows: int,
    counted: Mapping[int, tuple[int, int, list[str]]] | None = None,
) -> dict[str, Any]:
    """:func:`validate` for a prepared ``frame``, which may be a sample of a table of ``rows`` rows.

    ``counted``: for rules by number, what was found over the whole table: rows that break it, rows that it is about,
    and keys of the first that do.
    """
    with checked_together():
        checks = _checks.get()
        assert checks is not None
        results = checks.check(frame, suite)
        for number, (broken_rows, of, keys) in (counted or {}).items():
            if "problem" not in results[number] or broken_rows:
                results[number] |= {"broken": broken_rows, "of": of, "keys": keys, "success": not broken_rows}
        success = all(result["success"] for result in results)
        summary: dict[str, Any] = {"table": suite.table, "rows": rows, "success": success, "rules": results}
        target = out / suite.table
        checks.waiting.append((target, dict(summary)))
        summary["docs"] = str(target / "index.html")  # not in the file: the folder may be moved
        broken = [result for result in results if not result["success"]]
        if broken:
            raise QualityError(_explain(suite, broken, summary), summary)
    return summary


class _Checks:
    """The checks of one block."""

    def __init__(self, folder: Path) -> None:
        self.waiting: list[tuple[Path, dict[str, Any]]] = []  # folders for pages that are not written yet, summaries
        self._folder = folder
        self._project = Project(folder)

    def check(self, frame: pd.DataFrame, suite: Suite) -> list[dict[str, Any]]:
        """One row of the summary for each rule."""
        if suite.table in self._project.tables:  # checked again: its pages would be those of both checks
            self.write_docs()
            self._folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._project = Project(self._folder)
        with _quietly():
            return self._project.check(frame, suite)

    def write_docs(self) -> None:
        """Build the pages of all tables that were checked, and put each table's into its folder."""
        if not self.waiting:
            return
        with _quietly():
            self._project.build_docs()
        for target, summary in self.waiting:
            with atomic_dir(target) as folder:
                self._project.copy_docs(str(summary["table"]), folder)
                make_offline(folder, summary)
                (folder / "result.json").write_text(json.dumps(summary, indent=1) + "\n")
        self.waiting = []


_checks: ContextVar[_Checks | None] = ContextVar("checks", default=None)  # of the block that is open


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What matters of Great Expectations' words is in the summary."""
    with collector_paused(), at_level("great_expectations", logging.ERROR), warnings.catch_warnings(action="ignore"):
        yield


def _prepare(table: pa.Table | pd.DataFrame, suite: Suite) -> pd.DataFrame:
    """``table`` as a frame with the suite's computed columns; a table's nested columns take no part in rules."""
    if isinstance(table, pa.Table):
        flat = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
        frame: pd.DataFrame = table.select(flat).to_pandas()
    else:
        frame = table.copy(deep=False)
    for name, derive in suite.computed.items():
        # A derivation needs its columns; when one is missing, the rule about columns says so below.
        with contextlib.suppress(KeyError):
            frame[name] = derive(frame)
    return frame


def _explain(suite: Suite, broken: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    parts = []
    for row in broken:
        if "problem" in row:
            parts.append(f"'{row['rule']}' fails: {row['problem']}")
            continue
        more = ", ..." if row["broken"] > len(row["keys"]) else ""
        named = f" ({suite.key} {', '.join(row['keys'])}{more})" if row["keys"] else ""
        scope = f" with {row['where']}" if row["where"] else ""
        parts.append(f"'{row['rule']}' fails in {row['broken']:,} of {row['of']:,} rows{scope}{named}")
    return f"the table {suite.table!r} breaks its suite: {'; '.join(parts)}. See {summary['docs']}"
