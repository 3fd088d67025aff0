"""YAML as version 1.2 means it: the core schema, over PyYAML's parser, which speaks 1.1.

In 1.1 ``6e1`` is a text, ``1:30`` is ninety, ``no`` is false, ``0777`` is 511 and ``2024-01-01`` a date. Here ``6e1``
is sixty, ``0777`` is 777, and the others are texts. A key written twice is an error, for the second would replace the
first without a word.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from components.errors import VitrailError

if TYPE_CHECKING:
    import yaml

_TAG = "tag:yaml.org,2002:"
# YAML 1.2.2, section 10.3.2, in its order
_CORE = (
    ("null", r"null|Null|NULL|~|", "nN~\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)  # fmt: skip
_DEEPEST = 100  # sections within sections


def parse_yaml(text: str, where: str) -> Any:
    """The value of ``text``, which was read from ``where``.

    Raises:
        VitrailError: not valid YAML, or a key written twice; the message begins with ``where`` and names the lines.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as fault:
        raise VitrailError(f"{where}: not valid YAML: {' '.join(str(fault).split())}") from None
    except RecursionError:
        raise VitrailError(f"{where}: not valid YAML: more than {_DEEPEST} sections within each other") from None
    except ValueError as fault:  # a number of more digits than Python reads
        raise VitrailError(f"{where}: not valid YAML: {' '.join(str(fault).split())}") from None


@functools.cache
def _loader() -> type[yaml.SafeLoader]:
    import yaml

    class Core(yaml.SafeLoader):
        """The core schema."""

        yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            self._depth = getattr(self, "_depth", 0) + 1
            if self._depth > _DEEPEST:
                raise RecursionError
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[Any, int] = {}
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key_node.tag == _TAG + "merge":
                    continue
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if not isinstance(key, Hashable):
                    continue  # refused below
                if key in lines:
                    twice = f"the key {key!r} is written twice, in line {lines[key]} and in line {line}; keep one"
                    raise yaml.constructor.ConstructorError(None, None, twice, None)
                lines[key] = line
            return super().construct_mapping(node, deep)

    for tag, pattern, firsts in _CORE:
        for first in firsts:
            Core.add_implicit_resolver(_TAG + tag, re.compile(f"(?:{pattern})$"), [first if first != "\0" else ""])
    Core.add_constructor(_TAG + "int", _integer)
    Core.add_constructor(_TAG + "float", _number)
    return Core


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))
