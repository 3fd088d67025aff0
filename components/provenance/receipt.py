"""What a take-down found and did, to read and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.storage import atomic_file

SHOWN = 20  # lines of a list


@dataclass
class Receipt:
    """What was found and done."""

    keys: list[str]  # the images taken down
    stored: int  # of them, those whose bytes were in shards
    also_copies: int  # of them, those that came in as copies of what was named
    other_copies: list[str]  # kept images that dedup calls copies of them, and that stay
    blocked: int  # new entries on the block list
    manifests: list[str]
    versions: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    models: list[tuple[str, str]]
    sources: list[str]  # crawled files that still hold the bytes
    published: str | None = None  # where the new manifest was published
    done: list[str] = field(default_factory=list)


def told(receipt: Receipt, curated: Path, block: Path, dry: bool) -> str:
    """``receipt`` to read, with what is left to do: ``curated`` and ``block`` are the outputs that were changed."""
    count = len(receipt.keys)
    lines = [
        f"{count:,} images, {receipt.stored:,} of them in shards"
        + (f"; {receipt.also_copies:,} of them as copies of what was named" if receipt.also_copies else "")
    ]
    lines += _listed("images", receipt.keys)
    if receipt.other_copies:
        lines += _listed("dedup calls these their copies; --copies dedup takes them too", receipt.other_copies)
    lines += _listed("manifests that held them", receipt.manifests)
    lines += _listed("versions of the data that held them, or may", [_version(one) for one in receipt.versions])
    runs = [f"run {r['name']} ({r['run_id']}, {r['status']})" for r in receipt.runs]
    lines += _listed("MLflow runs that trained on them", runs)
    lines += _listed("MLflow models of those runs", [model for run in receipt.runs for model in run["models"]])
    lines += _listed("exported models", [f"{folder}: {why}" for folder, why in receipt.models])
    lines += _listed("crawled files that still hold their bytes", receipt.sources)
    if dry:
        return "\n".join([*lines, "nothing was changed (--dry-run)"])
    lines.append(f"done: {receipt.blocked:,} entries added to {block}")
    lines += [f"  {line}" for line in receipt.done]
    if receipt.published:
        lines.append(f"  published: {receipt.published}")
    if count:
        lines.append(
            f"to do: `dvc commit --force` accepts these outputs as they are; `dvc gc --workspace` (with --cloud for"
            f" remotes) then removes older versions; train again what is listed; pictures in MLflow's curate and dedup"
            f" runs may show them; `dvc repro` instead makes {curated} anew from the crawl, without them"
        )
    return "\n".join(lines)


def _version(one: dict[str, Any]) -> str:
    held = "not in this cache: dvc fetch it to know" if one["held"] is None else f"{one['held']} of them"
    where = ", ".join(one["where"]) or "named by no lock (run cache)"
    return f"{one['out']} {one['digest']} ({where}): {held}"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - SHOWN:,} more (--report has all)"] if len(lines) > SHOWN else []
    return [f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *more] if lines else [f"{title}: none"]


def save(receipt: Receipt, path: Path) -> None:
    """Write ``receipt`` as JSON."""
    with atomic_file(path, "w") as file:
        json.dump(asdict(receipt), file, indent=1)
