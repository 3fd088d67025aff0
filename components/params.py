"""The one loader of params/*.yaml: typed, strict, and helpful when a key is wrong.

Each room keeps the model of its own parameters beside the code they configure, as a subclass of :class:`Strict`;
``load_params("params/dedup.yaml", DedupParams)`` reads a file into it. Keys that the model does not know are errors
that name the nearest key it does know.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from components.errors import VitrailError, nearest


@dataclass(frozen=True)
class Effect:
    """Whether a parameter changes what a run computes; stands beside it, as in ``Annotated[int, NEUTRAL]``.

    Rounding does not count: device, threads and compilation are neutral.
    """

    results: bool
    part: Callable[[Any], Any] | None = None  # of the value: what of it changes results


CHANGES, NEUTRAL = Effect(True), Effect(False)


class Strict(BaseModel):
    """Base of every parameter model: immutable, no unknown keys, no silent defaults for misspelt ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    effect: ClassVar[Effect | None] = None  # of all fields that have none of their own


Model = TypeVar("Model", bound=Strict)


def load_params(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read ``path`` into ``model``; ``overrides`` are ``dotted.key=yaml value`` strings laid over the file.

    Raises:
        VitrailError: the file is missing, is not YAML, or does not fit the model; the message names file and key.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise VitrailError(f"{path}: no such parameter file{nearest(path.name, beside)}") from None
    except yaml.YAMLError as fault:
        raise VitrailError(f"{path}: not valid YAML: {' '.join(str(fault).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise VitrailError(f"{path}: expected keys and values, found a {type(content).__name__}")
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise VitrailError(f"--set {override}: expected KEY=VALUE, as in --set optimizer.lr=1e-3")
        _assign(content, key.strip().split("."), yaml.safe_load(value), override)
    return parse_params(content, model, where=str(path))


def parse_params(content: Mapping[str, Any], model: type[Model], where: str) -> Model:
    """Check ``content`` against ``model``; every fault found is in one message that begins with ``where``."""
    try:
        return model.model_validate(content)
    except ValidationError as fault:
        lines = [_explain(error, model) for error in fault.errors()]
        raise VitrailError(f"{where}: " + "; also ".join(lines)) from None


def fingerprint(*parts: Strict | Mapping[str, Any] | Sequence[Any] | str) -> str:
    """SHA-256 (hex) of the canonical JSON of ``parts``: equal exactly when every value is equal."""
    plain = [part.model_dump(mode="json") if isinstance(part, Strict) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def results(params: Strict) -> dict[str, Any]:
    """The JSON values of all parameters that change what a run computes, by dotted name.

    A parameter that says nothing of itself counts as one that does.
    """
    found: dict[str, Any] = {}
    plain = params.model_dump(mode="json")
    for name in type(params).model_fields:
        effect = _effect(type(params), name)
        if effect is not None and not effect.results:
            continue
        value = getattr(params, name)
        if isinstance(value, Strict):
            found |= {f"{name}.{inner}": v for inner, v in results(value).items()}
        else:
            found[name] = effect.part(plain[name]) if effect and effect.part else plain[name]
    return found


def undeclared(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the parameters below ``model`` that do not say whether they change results."""
    for name, field in model.model_fields.items():
        if _effect(model, name) is not None:
            continue
        inner = _models_in(field.annotation)
        if not inner:
            yield prefix + name
        for each in inner:
            yield from undeclared(each, f"{prefix}{name}.")


def _effect(model: type[BaseModel], name: str) -> Effect | None:
    own = next((entry for entry in model.model_fields[name].metadata if isinstance(entry, Effect)), None)
    return own or getattr(model, "effect", None)


def _assign(content: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise VitrailError(f"--set {override}: {key!r} is a value, not a section")
        content = inner
    content[keys[-1]] = value


def _explain(error: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    dotted = ".".join(location) or "(top level)"
    if error["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}{nearest(location[-1], _keys_at(model, location[:-1]))}"
    if error["type"] == "missing":
        return f"the key {dotted!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{dotted}: {message}{shown}"


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that every model reachable at ``path`` below ``model`` knows."""
    found: list[type[BaseModel]] = [model]
    for part in path:
        annotations = [m.model_fields[part].annotation for m in found if part in m.model_fields]
        # A part that is no field is a list index, a mapping key or a union's tag: stay where we are.
        found = [inner for a in annotations for inner in _models_in(a)] if annotations else found
    return [name for m in found for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, typing.Annotated):
        return [inner for arg in get_args(annotation) for inner in _models_in(arg)]
    return []
