"""Check a table of any size: every rule is counted over all rows in SQL, Data Docs show a sample with the offenders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.quality.rules import Rule, Suite

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 10_000  # rows that Great Expectations itself sees, beside the first offenders of each rule
SHOWN = 5  # offending rows named


def validate_files(
    connection: Any, files: Sequence[Path], suite: Suite, out: Path, only: str = "true"
) -> dict[str, Any]:
    """As :func:`components.quality.validate`, for the Parquet ``files`` of one table, in the memory of ``connection``.

    Rules are counted over all rows where SQL can say them (:func:`condition`); the others, and the Data Docs, see the
    first :data:`SAMPLE` rows and the first offenders. ``connection`` is one of ``components.tables.database``; ``only``
    is an SQL condition on the rows that are looked at.

    Raises:
        QualityError: a rule is broken.
    """
    from components.quality.checks import finish

    table = f"(FROM read_parquet($files) WHERE {only})"
    values: dict[str, Any] = {"files": [str(path) for path in files]}
    (rows,) = connection.execute(f"SELECT count(*) FROM {table}", values).fetchall()[0]
    counted = {}
    for number, rule in enumerate(suite.rules):
        found = _count(connection, rule, suite, table, values)
        if found is not None:
            counted[number] = found
    frame = _sample(connection, suite, table, values, {key for found in counted.values() for key in found[2]})
    for rule, found in ((suite.rules[number], found) for number, found in counted.items()):
        name = str(rule.arguments.get("column", ""))
        if name in suite.queries and name not in frame:
            frame[name] = ~frame[suite.key].isin(found[2])
    return finish(frame, suite, out, rows, counted)


def condition(rule: Rule) -> str | None:
    """A rule about single rows as an SQL condition that holds where it is kept; None where SQL cannot say it."""
    given = rule.arguments
    column = f'"{given["column"]}"' if "column" in given else ""
    if rule.expectation == "expect_column_values_to_not_be_null":
        return f"({column} IS NOT NULL AND {_not_nan(column)})"
    if rule.expectation == "expect_column_values_to_be_in_set":
        held = f"{column} IN ({', '.join(_literal(value) for value in given['value_set'])})"
    elif rule.expectation == "expect_column_values_to_match_regex":
        held = f"regexp_matches({column}, {_literal(given['regex'])})"
    elif rule.expectation == "expect_column_values_to_be_between":
        sides = [("min_value", ">", given.get("strict_min")), ("max_value", "<", given.get("strict_max"))]
        held = " AND ".join(
            f"{column} {sign}{'' if strict else '='} {_literal(given[name])}"
            for name, sign, strict in sides
            if name in given
        )
        held = f"({held or 'true'} OR NOT {_not_nan(column)})"
    else:
        return None
    return f"coalesce({held}, true)"  # as Great Expectations: what is missing breaks `present` alone


def where(query: str) -> str:
    """A rule's pandas query, of equalities and ``in`` lists, as SQL."""
    text = re.sub(r'"([^"]*)"', r"'\1'", query).replace("==", "=")
    return text.replace("[", "(").replace("]", ")") or "true"


def _count(
    connection: Any, rule: Rule, suite: Suite, table: str, values: dict[str, Any]
) -> tuple[int, int, list[str]] | None:
    """(rows that break the rule, rows that it is about, keys of the first of them)."""
    column, scope = str(rule.arguments.get("column", "")), where(rule.where)
    key = f'"{suite.key}"'
    text = suite.queries.get(column, "")
    source = f'(SELECT *, {text} AS "{column}" FROM {table})' if text and not _whole(text) else table
    if _whole(text):
        broken = text.format(table=table)
        values = values | dict(suite.values)
    elif rule.expectation == "expect_column_values_to_be_unique":
        broken = (
            f'SELECT {key} FROM {source} SEMI JOIN (SELECT "{column}" FROM {source} WHERE {scope} GROUP BY "{column}" '
            f'HAVING count(*) > 1) AS twice USING ("{column}") WHERE {scope}'
        )
    elif (held := condition(rule)) is not None and not (column in suite.computed and not text):
        broken = f"SELECT {key} FROM {source} WHERE ({scope}) AND NOT {held}"
    else:
        return None
    used = {name: value for name, value in values.items() if f"${name}" in broken}  # DuckDB takes no other
    (count,) = connection.execute(f"SELECT count(*) FROM ({broken})", used).fetchall()[0]
    (of,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {scope}", {"files": values["files"]}).fetchall()[0]
    keys = connection.execute(f"SELECT * FROM ({broken}) ORDER BY 1 LIMIT {SHOWN}", used).fetchall() if count else []
    return int(count), int(of), [str(row[0]) for row in keys]


def _sample(connection: Any, suite: Suite, table: str, values: dict[str, Any], offenders: set[str]) -> pd.DataFrame:
    """The first rows of the table and the offenders, with the suite's computed columns; nested columns left out."""
    import pyarrow as pa

    computed = "".join(f', {text} AS "{name}"' for name, text in suite.queries.items() if not _whole(text))
    schema = connection.sql(f"SELECT * FROM {table} LIMIT 0", params=values).to_arrow_table().schema
    flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
    chosen = ", ".join(f'"{name}"' for name in flat)
    query = f"SELECT {chosen}{computed} FROM (FROM {table} LIMIT {SAMPLE})"
    if offenders:
        query += f' UNION SELECT {chosen}{computed} FROM {table} WHERE "{suite.key}"::VARCHAR IN (SELECT unnest($keys))'
        values = values | {"keys": sorted(offenders)}
    frame: pd.DataFrame = connection.sql(query, params=values).to_arrow_table().to_pandas()
    for name, derive in suite.computed.items():
        if name not in suite.queries:
            frame[name] = derive(frame)
    return frame


def _whole(text: str) -> bool:
    """Whether a suite's query gives the keys of broken rows itself, rather than a column."""
    return text.lstrip().upper().startswith("SELECT")


def _not_nan(column: str) -> str:
    return f"lower({column}::VARCHAR) <> 'nan'"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"
