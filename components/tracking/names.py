"""Names and values as MLflow takes them: what it would refuse is changed, with a digest, never lost."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from components.params import Strict

LONGEST = 200  # characters of a name; MLflow takes 250
LONGEST_TAG = 5000  # MLflow takes 8,000 bytes
LONGEST_PARAM = 6000  # MLflow's limit


def metric_name(name: str, letters: str = r"/\w.\- :") -> str:
    """``name`` itself where MLflow takes it for a metric or param; else a name of its own without what it refuses."""
    parts = re.sub(f"[^{letters}]", "_", name).split("/")
    kept = "/".join(part for part in parts if part not in ("", ".", ".."))[:LONGEST] or "_"
    return kept if kept == name else f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def image_key(name: str) -> str:
    """:func:`metric_name` for pictures, whose keys hold fewer characters."""
    return metric_name(name, r"a-zA-Z0-9_\-./ ")


def model_name(name: str) -> str:
    """``name`` without the characters that MLflow refuses in a model's name."""
    return "".join("-" if character in "/:.%\"'" else character for character in name)


def tags_of(tags: Mapping[str, str]) -> dict[str, str]:
    """``tags`` in lengths that MLflow takes."""
    return {key: str(value)[:LONGEST_TAG] for key, value in tags.items()}


def flat(params: Mapping[str, Any] | Strict, prefix: str = "") -> dict[str, str]:
    """Dotted names and their values as text; lists as JSON."""
    plain = params.model_dump(mode="json") if isinstance(params, Strict) else params
    found: dict[str, str] = {}
    for key, value in plain.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping | Strict):
            found |= flat(value, name)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found[metric_name(name)] = text[:LONGEST_PARAM]
    return found
