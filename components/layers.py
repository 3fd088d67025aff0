"""Whose values a parameter file holds: everybody's in ``params/``, the demo's own in ``params/demo/``.

What suits the demo (its benchmark, queries, calibration, gray crops, quarter turns) would ruin other people's pictures.
So ``params/demo/NAME.yaml`` overrides ``params/NAME.yaml`` as long as ``source`` in ``params/pipeline.yaml`` is the
demo's site, and never else. Sections are merged key by key; a section of another ``kind`` replaces the one below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.text import read_text
from components.yaml_core import parse_yaml

PIPELINE, DEMO = "pipeline.yaml", "demo"
_DEPTH = 2  # folders below params/ that hold presets


def layer_over(path: Path) -> Path | None:
    """The demo's file that overrides ``path`` (``params/dedup.yaml``); None: there is none, or it does not apply."""
    for root in list(path.parents)[:_DEPTH]:
        if (root / PIPELINE).is_file():
            layer = root / DEMO / path.relative_to(root)
            return layer if layer.is_file() and is_demo(root / PIPELINE) else None
    return None


def is_demo(pipeline: Path) -> bool:
    """Whether ``source`` of the file ``pipeline`` is the demo's site. What is wrong there, its own stage says."""
    source = _value(pipeline, "source")
    if not isinstance(source, str) or not source.endswith((".yaml", ".yml")):
        return False
    site = Path(source) if Path(source).is_file() else pipeline.absolute().parent.parent / source
    return site.is_file() and _value(site, "kind") == DEMO


def merged(below: Any, above: Any) -> Any:
    """``below`` with the values of ``above`` in place of its own: sections key by key, anything else as a whole."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if "kind" in above and above["kind"] != below.get("kind"):
        return above
    return {**below, **{key: merged(below[key], value) if key in below else value for key, value in above.items()}}


def _value(path: Path, key: str) -> Any:
    try:
        content = parse_yaml(read_text(path), str(path))
    except (VitrailError, OSError):
        return None
    return content.get(key) if isinstance(content, dict) else None
