"""Check a table against a suite, write Data Docs, and stop the stage when a rule is broken."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from components.collector import collector_paused
from components.deferred_imports import absent, deferred, later
from components.errors import VitrailError
from components.log_level import at_level
from components.quality.offline import make_offline
from components.quality.rules import Rule, Suite
from components.storage import atomic_dir

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # offending rows named in a message and in the Data Docs
# What Great Expectations imports for rules and stores that no suite of ours has: more than half of its start.
_UNUSED = ("altair", "jsonschema", "scipy.stats")
_NOT_FOUND = ("boto3", "botocore", "psycopg2", "snowflake")  # it does without clients of stores and warehouses
_DATA_SOURCES = ("pandas_datasource", "invalid_datasource")  # of its data sources, what a data frame needs
_RULES, _SOURCES = "great_expectations.expectations.core.", "great_expectations.datasource.fluent."


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
    with (
        collector_paused(),
        at_level("great_expectations", logging.ERROR),  # what matters is in the summary
        warnings.catch_warnings(action="ignore"),
        tempfile.TemporaryDirectory(prefix="vitrail-quality-") as project,
    ):
        results, site = _run(frame, suite, Path(project))
        for number, (broken_rows, of, keys) in (counted or {}).items():
            if "problem" not in results[number] or broken_rows:
                results[number] |= {"broken": broken_rows, "of": of, "keys": keys, "success": not broken_rows}
        success = all(result["success"] for result in results)
        target = out / suite.table
        summary: dict[str, Any] = {
            "table": suite.table,
            "rows": rows,
            "success": success,
            "rules": results,
        }
        with atomic_dir(target) as folder:
            shutil.copytree(site, folder, dirs_exist_ok=True)
            make_offline(folder, summary)
            (folder / "result.json").write_text(json.dumps(summary, indent=1) + "\n")
    summary["docs"] = str(target / "index.html")  # not in the file: the folder may be moved
    broken = [result for result in results if not result["success"]]
    if broken:
        raise QualityError(_explain(suite, broken, summary), summary)
    return summary


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


def _run(frame: pd.DataFrame, suite: Suite, project: Path) -> tuple[list[dict[str, Any]], Path]:
    """One row of the summary for each rule, in order, and the folder of the rendered Data Docs."""
    import_with({rule.expectation for rule in suite.rules})
    import great_expectations as gx
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="file", project_root_dir=str(project))
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = context.data_sources.add_pandas("vitrail").add_dataframe_asset(suite.table)
    expectations = gx.ExpectationSuite(name=suite.table)
    for position, rule in enumerate(suite.rules):
        expectations.add_expectation_configuration(_configuration(rule, position))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=suite.table,
            data=batch.add_batch_definition_whole_dataframe("whole"),
            suite=context.suites.add(expectations),
        )
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=suite.table,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name="docs")],
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": [suite.key] if suite.key in frame else [],
                "partial_unexpected_count": SHOWN,
            },
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": frame})
    (validation,) = outcome.run_results.values()
    found: dict[int, dict[str, Any]] = {}
    for result in validation.results:
        plain: dict[str, Any] = result.to_json_dict()
        found[plain["expectation_config"]["meta"]["position"]] = plain
    rows = [_row(rule, found[position], suite.key) for position, rule in enumerate(suite.rules)]
    return rows, project / "gx/uncommitted/data_docs/local_site"


def import_with(expectations: Collection[str]) -> None:
    """Import Great Expectations with the classes of ``expectations``, and without its other rules and data sources."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

    def unused(name: str) -> bool:
        if name.startswith(_RULES + "expect_"):
            return name.removeprefix(_RULES) not in expectations
        return name.startswith(_SOURCES) and name.endswith("_datasource") and not name.endswith(_DATA_SOURCES)

    with deferred(*_UNUSED), absent(*_NOT_FOUND), later(unused):
        import great_expectations.checkpoint.actions  # noqa: F401
    for expectation in expectations:  # a later table has others; a class adds itself to the register when it is loaded
        importlib.import_module(_RULES + expectation)


def _configuration(rule: Rule, position: int) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    arguments = dict(rule.arguments)
    if rule.where:
        arguments |= {"row_condition": rule.where, "condition_parser": "pandas"}
    return ExpectationConfiguration(
        type=rule.expectation, kwargs=arguments, description=rule.words, meta={"position": position}
    )


def _row(rule: Rule, result: dict[str, Any], key: str) -> dict[str, Any]:
    detail = result.get("result") or {}
    rows = detail.get("partial_unexpected_index_list") or []
    keys = [str(row[key]) for row in rows if isinstance(row, dict) and key in row][:SHOWN]
    row = {
        "rule": rule.words,
        "where": rule.where,
        "success": bool(result["success"]),
        "broken": int(detail.get("unexpected_count") or 0),
        "of": int(detail.get("element_count") or 0),
        "keys": keys,
    }
    problem = _problem(result)
    if problem:
        row["problem"] = problem
    elif not row["success"] and not row["broken"]:
        row["problem"] = f"found {detail.get('observed_value')}"
    return row


def _problem(result: dict[str, Any]) -> str:
    """Why a rule could not be evaluated at all (a missing column, say), or ``""``."""
    info = result.get("exception_info") or {}
    parts = [info] if "raised_exception" in info else list(info.values())
    messages = [str(part.get("exception_message")) for part in parts if part.get("raised_exception")]
    return " ".join(messages[0].split())[:200] if messages else ""


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
