"""What a suite is: rules in words, each backed by one expectation of Great Expectations, plus derived columns.

Rules are plain data, so that a suite can be built, read and compared without loading Great Expectations (seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rule:
    """One statement about a table.

    ``words`` is what a person reads when it is broken; ``expectation`` the name in the gallery
    (https://greatexpectations.io/expectations); ``where`` a pandas query that picks the rows it is about.
    """

    words: str
    expectation: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def columns(self) -> list[str]:
        """The columns that the rule reads (those of ``where`` not among them)."""
        if "column" in self.arguments:
            return [str(self.arguments["column"])]
        return [str(self.arguments[name]) for name in ("column_A", "column_B") if name in self.arguments]


@dataclass(frozen=True)
class Suite:
    """The rules of one table. ``key`` names a row in messages; ``computed`` adds columns before rules are checked.

    For tables of any size ``queries`` says a computed column in SQL: an expression, or, where other rows are needed,
    ``SELECT key FROM {table} ...`` for the rows in which it is false, which may use the parameters ``values``.
    """

    table: str
    key: str
    rules: Sequence[Rule]
    computed: Mapping[str, Callable[[pd.DataFrame], Any]] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def unique(column: str, words: str, where: str = "") -> Rule:
    """Every value of ``column`` appears once."""
    return Rule(words, "expect_column_values_to_be_unique", {"column": column}, where)


def present(column: str, words: str, where: str = "") -> Rule:
    """No value of ``column`` is missing (None or NaN)."""
    return Rule(words, "expect_column_values_to_not_be_null", {"column": column}, where)


def one_of(column: str, values: Collection[Any], words: str, where: str = "") -> Rule:
    """Every value of ``column`` is among ``values``."""
    arguments = {"column": column, "value_set": sorted(values)}
    return Rule(words, "expect_column_values_to_be_in_set", arguments, where)


def matches(column: str, regex: str, words: str, where: str = "") -> Rule:
    """Every value of ``column`` matches ``regex``, which should be anchored."""
    return Rule(words, "expect_column_values_to_match_regex", {"column": column, "regex": regex}, where)


def between(
    column: str,
    words: str,
    low: float | None = None,
    high: float | None = None,
    *,
    where: str = "",
    strict: bool = False,
) -> Rule:
    """Every value of ``column`` is in [low, high]; in (low, high) when ``strict``."""
    arguments: dict[str, Any] = {"column": column, "strict_min": strict, "strict_max": strict}
    arguments |= {"min_value": low} if low is not None else {}
    arguments |= {"max_value": high} if high is not None else {}
    return Rule(words, "expect_column_values_to_be_between", arguments, where)


def holds(column: str, words: str, where: str = "") -> Rule:
    """The boolean column ``column`` (a computed one, as a rule) is true in every row."""
    return Rule(words, "expect_column_values_to_be_in_set", {"column": column, "value_set": [True]}, where)


def has_rows(words: str, at_least: int = 1) -> Rule:
    """The table has ``at_least`` rows."""
    return Rule(words, "expect_table_row_count_to_be_between", {"min_value": at_least})


def has_columns(names: Collection[str], words: str) -> Rule:
    """The table has exactly the columns ``names``, besides computed ones."""
    arguments = {"column_set": sorted(names), "exact_match": False}
    return Rule(words, "expect_table_columns_to_match_set", arguments)
