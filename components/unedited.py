"""Whether code or parameters of a stage were edited while it ran.

DVC records the files that a stage depends on after the command has ended. A training takes days, and people edit
files meanwhile. dvc.lock would then name the new files as what made the result. So the command fails, and DVC records
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from components.errors import VitrailError

WATCHED = ("components/", "params/")  # data is guarded by locks, and of a size that is not read twice
PIPELINE = Path("dvc.yaml")


@contextlib.contextmanager
def unedited(stage: str | None = None) -> Iterator[None]:
    """Fail at the end if code or parameters of ``stage`` were edited inside; nothing is checked for None.

    Raises:
        VitrailError: it was; names the files.
    """
    if stage is None or not PIPELINE.is_file():
        yield
        return
    files = dependencies(stage, PIPELINE)
    before = _digests(files)
    yield
    after = _digests(files)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise VitrailError(
            f"{stage}: edited while it ran: {named}; DVC would record the new files as what made this result. Run it "
            "again, with the old files or the new ones: a training goes on from its last checkpoint"
        )


def running_stage() -> str | None:
    """The stage that DVC runs in this process, such as ``pretrain@vitt``."""
    return os.environ.get("DVC_STAGE") or None


def dependencies(stage: str, pipeline: Path) -> list[Path]:
    """Files and folders of :data:`WATCHED` that ``stage`` depends on by ``pipeline``; none of a stage it has not."""
    import yaml

    name, _, item = stage.rpartition(":")[2].partition("@")
    content = yaml.safe_load(pipeline.read_text(encoding="utf-8")) or {}
    given = (content.get("stages") or {}).get(name)
    if not isinstance(given, dict):
        return []
    given = given.get("do", given)
    # Of a file that is given with keys, only these count, and a team edits the rest while a run goes on.
    named = [
        next(iter(entry)) if isinstance(entry, Mapping) else str(entry)
        for entry in [*given.get("deps", []), *given.get("params", [])]
        if not isinstance(entry, Mapping) or not next(iter(entry.values()))
    ]
    paths = [re.sub(r"\$\{(item\.preset|item|key)\}", item, each) for each in named]
    return [pipeline.parent / path for path in paths if path.startswith(WATCHED) and "${" not in path]


def _digests(places: list[Path]) -> dict[str, str]:
    """SHA-256 (hex) of each file, of a folder of each below it that Python has not compiled there."""
    inside = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    files = {path for path in inside if path.is_file() and path.suffix != ".pyc"}
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
