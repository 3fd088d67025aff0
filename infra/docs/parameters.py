"""The reference of all parameters as Markdown: value, default, range, unit and source, from models and files.

python -m infra.docs.parameters > parameters.md
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import annotated_types

from components.params import Strict
from components.text import read_text
from components.yaml_core import parse_yaml
from infra.docs import comments
from infra.docs.words import WORDS

# File below params/, and the model that reads it. A preset stands for all of its folder: they have the same keys.
FILES: tuple[tuple[str, str], ...] = (
    ("pipeline.yaml", "components.pipeline:PipelineParams"),
    ("crawl.yaml", "components.crawl.spider:CrawlParams"),
    ("curate.yaml", "components.curate.params:CurateParams"),
    ("dedup.yaml", "components.dedup.params:DedupParams"),
    ("pretrain/vitt.yaml", "components.training.params:TrainingParams"),
    ("distill/vitxt.yaml", "components.distill.method:DistillParams"),
    ("benchmark.yaml", "components.benchmark.stage:BenchmarkStageParams"),
    ("benchmarks.yaml", "components.evaluation.sets.benchmarks:BenchmarksFile"),
    ("protocols/quick.yaml", "components.benchmark.methods.protocol:ProtocolParams"),
    ("gate.yaml", "components.evaluation.statistics.gate:GateParams"),
    ("serve.yaml", "components.release.serve.serving:ServeParams"),
    ("sscd/small.yaml", "components.descriptors.kinds:TrainedParams"),
    ("storage.yaml", "components.storage:StorageParams"),
    ("tracking.yaml", "components.tracking:TrackingParams"),
    ("platform.yaml", "flows.settings:PlatformParams"),
    ("site/demo.yaml", "components.crawl.demo.site:DemoSite"),
    ("rates/curate.yaml", "components.planning.crawl:CrawlRates"),
    ("rates/training.yaml", "components.planning.training_rates:TrainingRates"),
)
_NONE = object()


@dataclass(frozen=True)
class ParameterRow:
    """One parameter."""

    key: str  # dotted
    kind: str  # type and range
    default: Any  # _NONE: it must be given
    shipped: Any  # in the file; _NONE: not there
    words: str  # unit, meaning and source

    def cells(self) -> list[str]:
        """As cells of the table: key, type, default, shipped value, words."""
        default = "*must be given*" if self.default is _NONE else _value(self.default)
        return [f"`{self.key}`", self.kind, default, "" if self.shipped is _NONE else _value(self.shipped), self.words]


class _Place(NamedTuple):
    """Where in a file the walk is."""

    key: str  # before the names of the fields: "fetch."
    shown: str  # the same as it is shown, with kinds
    said: dict[str, str]  # the file's comments by key
    siblings: dict[str, str]  # those of the other files of its folder: of sections that this one leaves out
    unions: dict[tuple[type[Strict], ...], str]  # sections of several kinds, and where they were shown in full


def markdown(root: Path) -> str:
    """The page."""
    parts = [
        "# Parameters\n\nThis page is made from the parameter models and the comments of the files below `params/`. "
        "*Default* holds if a file does not name the key. *Shipped* is the value in the file. An unknown key is an "
        "error that names the nearest known one. The files of one folder have the same keys. Where a key has several "
        "kinds, the kind is in brackets.\n"
    ]
    for name, where in FILES:
        parts.append(f"## params/{name}\n")
        parts.append("| parameter | type and range | default | shipped | meaning |\n|---|---|---|---|---|")
        parts += ["| " + " | ".join(_cell(cell) for cell in row.cells()) + " |" for row in rows(root, name, where)]
        parts.append("")
    return "\n".join(parts)


def rows(root: Path, name: str, where: str) -> list[ParameterRow]:
    """The parameters of the file ``params/NAME``; ``where`` is ``module:class`` of its model."""
    module, _, cls = where.partition(":")
    path = root / "params" / name
    content = parse_yaml(read_text(path), str(path))
    said: dict[str, str] = {}
    for sibling in sorted(path.parent.glob("*.yaml")) if "/" in name else ():  # they have the same keys
        said |= {key: words for key, words in comments.of_file(sibling).items() if key not in said}
    place = _Place("", "", comments.of_file(path), said, {})
    return list(_rows(getattr(importlib.import_module(module), cls), place, content or {}))


def _rows(model: type[Strict], place: _Place, content: Any) -> Iterator[ParameterRow]:
    beside = comments.of_model(model)
    for name, field in model.model_fields.items():
        key = f"{place.key}{field.alias or name}"
        shown = f"{place.shown}{field.alias or name}"
        value = content.get(field.alias or name, _NONE) if isinstance(content, dict) else _NONE
        words = place.said.get(key) or beside.get(name) or (value is _NONE and place.siblings.get(key)) or _known(key)
        default = _NONE if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        inner = tuple(_models(field.annotation))
        if not inner:
            yield ParameterRow(shown, _kind(field.annotation, field.metadata), default, value, words)
            continue
        if len(inner) > 1 and (first := place.unions.setdefault(inner, shown)) != shown:
            yield ParameterRow(shown, f"as `{first}`", default, None if value is None else _NONE, words)
            continue
        if default is None or value is None or words:
            plain = None if default is None else _NONE
            yield ParameterRow(shown, "section", plain, None if value is None else _NONE, words)
        for one in inner:
            many = f" ({_literal(one)})" if len(inner) > 1 and "kind" in one.model_fields else ""
            yield from _rows(one, place._replace(key=f"{key}.", shown=f"{shown}{many}."), value)


def _known(key: str) -> str:
    """The words of the longest ending of ``key`` that :data:`WORDS` has."""
    parts = key.split(".")
    return next((WORDS[end] for end in (".".join(parts[at:]) for at in range(len(parts))) if end in WORDS), "")


def _models(annotation: Any) -> Iterator[type[Strict]]:
    """The models that a section may be; none for a plain value or a collection."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _models(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models(part)
    elif isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation


def _literal(model: type[Strict]) -> str:
    return " or ".join(map(str, typing.get_args(model.model_fields["kind"].annotation)))


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """Type and range in words: ``int, 1 to 64``."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        more = [part for one in inside[1:] for part in getattr(one, "metadata", [one])]
        return _kind(inside[0], [*metadata, *more])
    if origin is typing.Literal:
        return " or ".join(f"`{_plain(value)}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        parts = [_kind(part, metadata) for part in inside if part is not type(None)]
        return " or ".join(dict.fromkeys([*parts, *(["null"] if type(None) in inside else [])]))
    if origin in (list, tuple, set, frozenset):
        return f"list of {_kind(inside[0])}" if inside else "list"
    if origin is dict:
        return f"{_kind(inside[0])} to {_kind(inside[1])}"
    name = {str: "text", int: "int", float: "number", bool: "true or false"}.get(
        annotation, getattr(annotation, "__name__", "any")
    )
    return ", ".join([name, *_range(metadata)])


def _range(metadata: Any) -> list[str]:
    low = next(
        (
            f"{b.ge:,g}" if isinstance(b, annotated_types.Ge) else f"above {b.gt:,g}"
            for b in metadata
            if isinstance(b, annotated_types.Ge | annotated_types.Gt)
        ),
        "",
    )
    high = next(
        (
            f"{b.le:,g}" if isinstance(b, annotated_types.Le) else f"below {b.lt:,g}"
            for b in metadata
            if isinstance(b, annotated_types.Le | annotated_types.Lt)
        ),
        "",
    )
    return [" to ".join(part for part in (low, high) if part)] if low or high else []


def _plain(value: Any) -> str:
    """``value`` as YAML would have it in one line."""
    if isinstance(value, Strict):
        return _plain(value.model_dump())
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_plain(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(value: Any) -> str:
    return "section" if isinstance(value, Strict) else f"`{_plain(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    print(markdown(Path.cwd()))
