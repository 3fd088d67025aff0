"""The one loader of params/*.yaml: typed, strict, and helpful when a key is wrong.

Each room keeps the model of its own parameters beside the code they configure, as a subclass of :class:`Strict`;
``load_params("params/dedup.yaml", DedupParams)`` reads a file into it. Keys that the model does not know are errors
that name the nearest key it does know; so are keys written twice, and numbers outside of what makes sense.
"""

from __future__ import annotations

import functools
import hashlib
import json
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from components.errors import VitrailError, nearest
from components.layers import layer_over, merged
from components.text import read_text
from components.yaml_core import parse_yaml

# Numbers that mean the same in every room
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]  # what NumPy, torch, FAISS and DuckDB all take
Share = Annotated[float, Field(ge=0, le=1)]  # a part of a whole, or a probability
PositiveShare = Annotated[float, Field(gt=0, le=1)]  # a part of a whole that is not nothing
Cosine = Annotated[float, Field(ge=-1, le=1)]
Factor = Annotated[float, Field(gt=0, le=1000)]
Cost = Annotated[float, Field(gt=0, le=1e9)]  # inverse strength of an L2 penalty
# Of a benchmark or a mask set: a part of metrics' names in MLflow, and of files' names
Name = Annotated[str, Field(pattern=r"^\w[\w .-]*$", max_length=60)]
JpegQuality = Annotated[int, Field(ge=0, le=100)]  # of a JPEG


@dataclass(frozen=True)
class Effect:
    """Whether a parameter changes what a run computes, written beside its type, as in ``Annotated[int, NEUTRAL]``.

    Rounding does not count: device, threads and compilation are neutral.
    """

    results: bool
    part: Callable[[Any], Any] | None = None  # of the value: what of it changes results


CHANGES, NEUTRAL = Effect(True), Effect(False)


class Strict(BaseModel):
    """Base of every parameter model: immutable, no unknown keys, no silent defaults for misspelt ones.

    ``OFF`` holds what ``null`` (or ``false``) means for a section that can be switched off by a value of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    effect: ClassVar[Effect | None] = None  # of all fields that have none of their own
    OFF: ClassVar[Mapping[str, Any] | None] = None

    @model_validator(mode="before")
    @classmethod
    def _before(cls, content: Any) -> Any:
        if cls.OFF is not None and (content is None or content is False):
            return dict(cls.OFF)
        for name, value in content.items() if isinstance(content, Mapping) else ():
            # Python counts true as 1: `iterations: true` would train for one step
            if name in cls.model_fields and _holds_truth(value) and _numbers_only(cls, name):
                raise ValueError(f"{name}: expected a number, not true or false")
        return content


def _holds_truth(value: Any) -> bool:
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


@functools.cache
def _numbers_only(model: type[BaseModel], field: str) -> bool:
    """Whether a field of ``model`` takes a number, and neither a truth value nor a section."""
    found = set(_leaves(model.model_fields[field].annotation))
    return bool(found & {int, float}) and bool not in found and Any not in found


def _leaves(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, typing.Annotated):
        for argument in get_args(annotation):
            yield from _leaves(argument)
    elif isinstance(annotation, Hashable):
        yield annotation


Model = TypeVar("Model", bound=Strict)


def load_params(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read ``path`` into ``model``; ``overrides`` are ``dotted.key=yaml value`` strings that override the file.

    Below them come the demo's own values, where the pipeline's source is the demo (:mod:`components.layers`).

    Raises:
        VitrailError: the file is missing, is not YAML, or does not fit the model; the message names file and key.
    """
    path = Path(path)
    layer = layer_over(path)
    where = f"{path} with {layer}" if layer else str(path)
    try:
        content = parse_yaml(read_text(path), str(path))
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise VitrailError(f"{path}: no such parameter file{nearest(path.name, beside)}") from None
    content = _section(content, path)
    if layer is not None:
        content = merged(content, _section(parse_yaml(read_text(layer), str(layer)), layer))
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise VitrailError(f"--set {override}: expected KEY=VALUE, as in --set optimizer.lr=1e-3")
        _assign(content, key.strip().split("."), parse_yaml(value, f"--set {override}"), override)
    return parse_params(content, model, where)


def parse_params(content: Mapping[str, Any], model: type[Model], where: str) -> Model:
    """Check ``content`` against ``model``; every fault found is in one message that begins with ``where``."""
    try:
        return model.model_validate(content)
    except RecursionError:
        raise VitrailError(f"{where}: a section that holds itself (by *ANCHOR) is no parameter") from None
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

    A parameter that does not say whether it changes results counts as one that does.
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


def defaults(params: Strict) -> dict[str, Any]:
    """What :func:`results` would hold for the parameters of the sections of ``params`` that have a default value."""
    from pydantic_core import to_jsonable_python

    found: dict[str, Any] = {}
    for name, field in type(params).model_fields.items():
        value, effect = getattr(params, name), _effect(type(params), name)
        if isinstance(value, Strict):
            found |= {f"{name}.{inner}": v for inner, v in defaults(value).items()}
        elif not field.is_required():
            plain = to_jsonable_python(field.get_default(call_default_factory=True))
            found[name] = effect.part(plain) if effect and effect.part else plain
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


def _section(content: Any, path: Path) -> dict[str, Any]:
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise VitrailError(f"{path}: expected keys and values, found a {type(content).__name__}")
    return content


def _assign(content: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        inner = {} if content.get(key) is None else content[key]  # a section that is null is begun
        content[key] = inner
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
