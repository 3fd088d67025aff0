"""One context of Great Expectations for all tables of a stage: what is checked in it, and their Data Docs in one go."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.collector import imported_to_stay
from components.deferred_imports import absent, deferred, later
from components.quality.rules import Rule, Suite

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # offending rows named in a message and in the Data Docs
# What Great Expectations imports for rules and stores that no suite of ours has: more than half of its start.
_UNUSED = ("altair", "jsonschema", "scipy.stats")
_NOT_FOUND = ("boto3", "botocore", "psycopg2", "snowflake")  # it does without clients of stores and warehouses
_DATA_SOURCES = ("pandas_datasource", "invalid_datasource")  # of its data sources, what a data frame needs
_RULES, _SOURCES = "great_expectations.expectations.core.", "great_expectations.datasource.fluent."


class Project:
    """A context whose files lie in ``folder``. It is made at the first check; a table's name is checked once."""

    def __init__(self, folder: Path) -> None:
        self.tables: set[str] = set()  # checked so far
        self._folder = folder
        self._context: Any = None
        self._source: Any = None

    def check(self, frame: pd.DataFrame, suite: Suite) -> list[dict[str, Any]]:
        """One row of the summary for each rule, in order."""
        import_with({rule.expectation for rule in suite.rules})
        import great_expectations as gx

        self.tables.add(suite.table)
        if self._context is None:
            self._open()
        asset = self._source.add_dataframe_asset(suite.table)
        expectations = gx.ExpectationSuite(name=suite.table)
        for position, rule in enumerate(suite.rules):
            expectations.add_expectation_configuration(_configuration(rule, position))
        definition = self._context.validation_definitions.add(
            gx.ValidationDefinition(
                name=suite.table,
                data=asset.add_batch_definition_whole_dataframe("whole"),
                suite=self._context.suites.add(expectations),
            )
        )
        # Without a checkpoint, whose action would build the pages of one table at a time, and an index for each.
        validation = definition.run(
            batch_parameters={"dataframe": frame},
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": [suite.key] if suite.key in frame else [],
                "partial_unexpected_count": SHOWN,
            },
        )
        found: dict[int, dict[str, Any]] = {}
        for result in validation.results:
            plain: dict[str, Any] = result.to_json_dict()
            found[plain["expectation_config"]["meta"]["position"]] = plain
        return [_row(rule, found[position], suite.key) for position, rule in enumerate(suite.rules)]

    def build_docs(self) -> None:
        """Render the pages of every table, but no first page: :mod:`components.quality.offline` writes that."""
        if self._context is not None:
            self._context.build_data_docs(build_index=False)

    def copy_docs(self, table: str, folder: Path) -> None:
        """The rendered pages of ``table``, and what they show, into ``folder``."""
        site = self._folder / "gx/uncommitted/data_docs/local_site"
        others = {name for other in self.tables - {table} for name in (other, f"{other}.html")}
        pages = (site / "expectations", site / "validations")

        def of_others(inside: str, names: list[str]) -> set[str]:
            return others & {*names} if Path(inside) in pages else set()

        shutil.copytree(site, folder, ignore=of_others, dirs_exist_ok=True)

    def _open(self) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self._context = gx.get_context(mode="file", project_root_dir=str(self._folder))
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False)
        self._source = self._context.data_sources.add_pandas("vitrail")


def import_with(expectations: Collection[str]) -> None:
    """Import Great Expectations with the classes of ``expectations``, and without its other rules and data sources."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

    def unused(name: str) -> bool:
        if name.startswith(_RULES + "expect_"):
            return name.removeprefix(_RULES) not in expectations
        return name.startswith(_SOURCES) and name.endswith("_datasource") and not name.endswith(_DATA_SOURCES)

    with imported_to_stay("great_expectations"), deferred(*_UNUSED), absent(*_NOT_FOUND), later(unused):
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
