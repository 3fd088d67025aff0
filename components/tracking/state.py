"""The code and parameters that a run comes from, kept among its artifacts: what `reproduce` brings back.

A commit alone does not say it: parameters are edited before a run and committed after it, or never. So the files that
differ from the commit are kept as they are, with ``dvc.lock``, in ``state/DIGEST/``:

    state.json     commit, digest of each file, files that the commit has and the run had not, the DVC stage
    files/...      the files that differ from the commit; dvc.lock
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from components.errors import VitrailError, redacted
from components.git import NEW_FILES, git

FOLDER, TAG = "state", "vitrail.state"  # of the artifacts; of the run's tag, which names the folder below it
FILE_BYTES, ALL_BYTES = 1_000_000, 20_000_000  # most that one file, and all of them, may hold
LOCK = "dvc.lock"
_SECRET = re.compile(r"secret|password|token|access_key|api_key", re.IGNORECASE)  # names of variables


@dataclass(frozen=True)
class RunState:
    """What a run came from."""

    commit: str  # 40 hex digits
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the content, by name from the checkout's root
    removed: list[str] = field(default_factory=list)  # files of the commit that were not there
    left_out: dict[str, str] = field(default_factory=dict)  # files that differ and are not kept: why
    stage: str = ""  # DVC's name of the stage; "" for a run by hand
    command: str = ""
    python: str = ""

    @property
    def digest(self) -> str:
        """16 hex digits of everything above."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def read_state(folder: Path) -> RunState:
    """The state that :func:`keep_state` wrote to ``folder``; every kept file is compared with its digest.

    Raises:
        VitrailError: it is damaged.
    """
    try:
        state = RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        for name, digest in state.files.items():
            if (
                ".." in Path(name).parts
                or os.path.isabs(name)
                or _sha256((folder / "files" / name).read_bytes()) != digest
            ):
                raise ValueError(f"{name} is not what was kept")
    except (OSError, ValueError, TypeError) as fault:
        raise VitrailError(f"{folder}: the state that the run kept is damaged ({fault})") from None
    return state


def keep_state(here: Path, into: Path) -> RunState | None:
    """Write the state of the checkout around ``here`` to the folder ``into``.

    ``here`` is the checkout, or a copy of its files below it (a run workspace of ``flows/``). None, and nothing
    written, where it belongs to no commit of a git repository.
    """
    try:
        top = git(here, "rev-parse", "--show-toplevel").strip()
        commit = git(here, "rev-parse", "HEAD").strip()
        listed = git(Path(top), "ls-tree", "-r", "-z", "HEAD")
        new = git(Path(top), "ls-files", "-z", "--others", "--exclude-standard", "--", *NEW_FILES)
    except (OSError, subprocess.SubprocessError):
        return None
    known = {}
    for entry in listed.split("\0"):
        about, _, name = entry.partition("\t")
        if about.split(" ", 1)[0] in ("100644", "100755"):  # neither links nor other repositories
            known[name] = about.split(" ")[2]
    files, removed, left_out, room = dict[str, str](), list[str](), dict[str, str](), ALL_BYTES
    for name in sorted({*known, *(word for word in new.split("\0") if word), LOCK}):
        path = here / name
        if not path.is_file():
            if name in known:
                removed.append(name)
            continue
        if path.stat().st_size > FILE_BYTES and name not in known:
            left_out[name] = f"{path.stat().st_size:,} bytes"
            continue
        data = path.read_bytes()
        if name != LOCK and known.get(name) == _blob(data):
            continue
        reason = _reason(data, room)
        if reason:
            left_out[name] = reason
            continue
        room -= len(data)
        files[name] = _sha256(data)
        target = into / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    state = RunState(
        commit,
        files,
        removed,
        left_out,
        os.environ.get("DVC_STAGE", ""),
        redacted(shlex.join(_command(sys.argv))),
        platform.python_version(),
    )
    into.mkdir(parents=True, exist_ok=True)
    (into / "state.json").write_text(json.dumps(asdict(state), indent=1, sort_keys=True), encoding="utf-8")
    return state


def _reason(data: bytes, room: int) -> str:
    """Why ``data`` must not be kept; "" when it may be."""
    if len(data) > min(FILE_BYTES, room):
        return f"{len(data):,} bytes"
    text = data.decode(errors="replace")
    if redacted(text) != text:
        return "holds an address that gives access"
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 8 and value in text:
            return f"holds the value of {name}"
    return ""


def _command(argv: list[str]) -> list[str]:
    """``argv`` of this process, with its file as the module that it is."""
    path = Path(argv[0]) if argv and argv[0] else Path("?")
    parts = list(path.with_suffix("").parts)
    start = next((at for at, part in enumerate(parts) if part in ("components", "flows", "infra", "perf")), None)
    if start is None:
        return [path.name, *argv[1:]]
    return ["python", "-m", ".".join(parts[start:]).removesuffix(".__main__"), *argv[1:]]


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
