"""The parameters that name a file or folder which their stage reads, or the code of a plug-in.

The stage ``inputs`` (:mod:`components.inputs`) digests what is there, so that DVC sees it change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel


class _Input:
    """Marks a field."""


class _Plugin(_Input):
    """Marks a field that names a plug-in: its file is what DVC watches."""


InputPath = Annotated[str, _Input()]  # a file or folder, or s3://bucket/prefix
InputFile = Annotated[Path, _Input()]  # a local file
PluginName = Annotated[str, _Plugin()]  # package.module:name


def plugin_file(name: str) -> Path | None:
    """The file of the plug-in ``package.module:name``, relative to the current folder; None for an installed one."""
    module, colon, _ = name.partition(":")
    if not colon:
        return None
    base = Path(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def input_paths(model: BaseModel) -> Iterator[tuple[str, str]]:
    """Dotted key and value of every field below ``model`` of these types; those that are null are left out."""
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        marked = any(isinstance(one, _Input) for one in field.metadata) or _is_input(field.annotation)
        if any(isinstance(one, _Plugin) for one in field.metadata):
            if (file := plugin_file(value)) is not None:
                yield name, str(file)
            continue
        yield from ((f"{name}{key}", path) for key, path in _paths_in(value, marked))


def _paths_in(value: Any, marked: bool) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from ((f".{key}", path) for key, path in input_paths(value))
    elif isinstance(value, Mapping):
        yield from ((f".{name}{key}", path) for name, one in value.items() for key, path in _paths_in(one, marked))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from ((f".{number}{key}", path) for key, path in _paths_in(one, marked))
    elif marked and isinstance(value, str | Path):
        yield "", str(value)


def _is_input(annotation: Any) -> bool:
    """Whether ``annotation`` holds a marked type outside of models."""
    return any(isinstance(one, _Input) or _is_input(one) for one in get_args(annotation))
