"""Every parameter model of the house is walked: no number without bounds, and what lies outside of them is refused."""

from __future__ import annotations

import importlib
import math
import pkgutil
import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import annotated_types
import pytest
from pydantic import TypeAdapter, ValidationError

from components.params import Strict

UNBOUNDED: dict[str, str] = {}  # "Model.field": why any number makes sense there


@cache
def models() -> list[type[Strict]]:
    """All parameter models, of whatever room."""
    for root in ("components", "flows"):
        package = importlib.import_module(root)
        for module in pkgutil.walk_packages(package.__path__, f"{root}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: set[type[Strict]] = set()
    waiting = [Strict]
    while waiting:
        for model in waiting.pop().__subclasses__():
            if model not in found and model.__module__.startswith(("components.", "flows.")):
                found.add(model)
                waiting.append(model)
    return sorted(found, key=lambda model: (model.__module__, model.__name__))


def numbers(annotation: Any, bounds: tuple[Any, ...] = ()) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """(int or float, its constraints) of every number within ``annotation``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *about = typing.get_args(annotation)
        yield from numbers(inner, (*bounds, *(part for one in about for part in getattr(one, "metadata", [one]))))
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from numbers(part, bounds)
    elif origin in (list, tuple, dict, set, frozenset):
        for part in typing.get_args(annotation):
            yield from numbers(part)
    elif annotation in (int, float):
        yield annotation, bounds


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    missing = []
    count = 0
    for model in models():
        for name, field in model.model_fields.items():
            for _, bounds in numbers(field.annotation, tuple(field.metadata)):
                count += 1
                low = any(isinstance(bound, annotated_types.Ge | annotated_types.Gt) for bound in bounds)
                high = any(isinstance(bound, annotated_types.Le | annotated_types.Lt) for bound in bounds)
                if not (low and high) and f"{model.__name__}.{name}" not in UNBOUNDED:
                    missing.append(f"{model.__module__}.{model.__name__}.{name}")
    assert missing == []
    assert count > 300  # the walk found the models


@pytest.mark.parametrize("value", [-1e9, 1e300, 10**400, math.nan, math.inf, -math.inf, "6e1x", True])
def test_no_plain_number_field_takes_what_makes_no_sense(value: Any) -> None:
    taken = []
    for model in models():
        for name, field in model.model_fields.items():
            if field.annotation not in (int, float):
                continue
            try:
                model.__pydantic_validator__.validate_assignment(model.model_construct(), name, value)
            except (ValidationError, ValueError, AttributeError):
                continue
            taken.append(f"{model.__name__}.{name}")
    assert taken == []


def test_the_walk_sees_numbers_within_unions_lists_and_aliases() -> None:
    from components.params import Cosine, Share

    assert len(list(numbers(list[tuple[Share, Share]] | None))) == 2
    assert [kind for kind, _ in numbers(Cosine | typing.Literal["auto"])] == [float]
    assert TypeAdapter(Share).validate_python(0.5) == 0.5
