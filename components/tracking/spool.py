"""What a run records, on disk and in order, until the store has it.

A spool is a folder: ``records-N.jsonl`` (a JSON object a line), ``files/`` (pictures and artifacts that records name),
``state.json`` (what the store has and what it calls things) and ``lock`` (held by the process that works on it; a dead
one holds nothing). A line is one write, so a process that is killed loses nothing it had recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEGMENT = 1_000_000  # bytes of records after which another file is begun, so that sent ones can go
SHARE = 0.9  # of the limit, for metrics, pictures and artifacts; facts (models, tags, the end) may use the rest
BULK = ("metrics", "system", "image", "artifacts")
_HELD: set[Path] = set()  # by this process: its locks do not shut out itself


@dataclass
class DeliveryState:
    """What the store has, and what it calls things."""

    segment: int = 1  # file of the first record that was not sent
    offset: int = 0  # bytes of that file that were
    run: str | None = None  # MLflow's id
    models: dict[str, str] = field(default_factory=dict)  # handle -> MLflow's id
    ended: bool = False  # whether the last record that was sent closed the run
    system_step: int = 0  # of the first system metrics of this session
    dropped: dict[str, int] = field(default_factory=dict)  # what was not kept or not taken, by kind


@dataclass(frozen=True)
class Position:
    """Where a record ends."""

    segment: int
    offset: int


class Spool:
    """The spool in ``folder``; :func:`hold` opens one. Safe for one thread that writes and one that sends.

    Args:
        limit: most bytes that records and files may take; what is more is dropped and counted.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self._limit = folder, limit
        self._files = folder / "files"
        self._files.mkdir(parents=True, exist_ok=True)
        self.state = self._load()
        self._mutex, self._saving = threading.Lock(), threading.Lock()
        segments = sorted(int(path.stem.partition("-")[2]) for path in folder.glob("records-*.jsonl"))
        self._last = max([*segments, self.state.segment])
        if _cut_off(self._segment(self._last)):
            self._last += 1  # a record that its process did not finish stays alone
        self._bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self._number = max((int(path.name.partition("-")[0]) for path in self._files.iterdir()), default=0)

    def append(self, kind: str, **content: Any) -> bool:
        """Record ``content`` under ``kind``; False when it was dropped (no room, or the disk refused it)."""
        line = json.dumps({"kind": kind, **content}).encode() + b"\n"
        with self._mutex:
            if not self._room(kind, len(line)):
                return False
            path = self._segment(self._last)
            try:
                if path.exists() and path.stat().st_size >= SEGMENT:
                    self._last += 1
                    path = self._segment(self._last)
                handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    written = os.write(handle, line)
                finally:
                    os.close(handle)
            except OSError:
                written = 0
            self._bytes += written
            if written != len(line):
                self._drop(kind)
                return False
            return True

    def keep_file(self, kind: str, name: str, source: Path | bytes) -> str | None:
        """Keep a copy of a file or folder (or bytes) as ``name``; what to call it in a record; None when dropped."""
        size = len(source) if isinstance(source, bytes) else _size(source)
        with self._mutex:
            if not self._room(kind, size):
                return None
            self._number += 1
            folder = self._files / f"{self._number:08d}-{kind}"
            self._bytes += size
        try:
            folder.mkdir()
            if isinstance(source, bytes):
                (folder / name).write_bytes(source)
            elif source.is_dir():
                shutil.copytree(source, folder, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, folder / name)
        except (OSError, shutil.Error):
            shutil.rmtree(folder, ignore_errors=True)
            with self._mutex:
                self._bytes -= size
                self._drop(kind)
            return None
        return folder.name

    def file(self, name: str) -> Path:
        """The folder that :meth:`keep_file` called ``name``."""
        return self._files / name

    def pending(self) -> Iterator[tuple[dict[str, Any], Position]]:
        """Records that were not sent, in order, each with where it ends; damaged lines are counted and left out."""
        segment, offset = self.state.segment, self.state.offset
        while True:
            path = self._segment(segment)
            if path.exists():
                with open(path, "rb") as file:
                    file.seek(offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break  # being written, or cut off by the end of its process
                        offset += len(line)
                        try:
                            record = json.loads(line)
                        except ValueError:
                            record = {"kind": "damaged"}
                        yield record, Position(segment, offset)
            with self._mutex:
                if segment >= self._last:
                    return
            segment, offset = segment + 1, 0

    def waiting(self) -> int:
        """How many records were not sent."""
        return sum(1 for _ in self.pending())

    def sent(self, position: Position, files: list[str]) -> None:
        """Note that the store has all up to ``position``; ``files`` are no longer needed."""
        with self._mutex:
            before = self.state.segment
            self.state.segment, self.state.offset = position.segment, position.offset
        self.save()  # outside: recording does not wait for it
        with self._mutex:
            gone = [self._segment(number) for number in range(before, position.segment)]
            for path in [*gone, *(self._files / name for name in files)]:
                self._bytes -= _size(path)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def drop(self, kind: str) -> None:
        """Count a record that the store does not take."""
        with self._mutex:
            self._drop(kind)

    def remove(self) -> None:
        """Delete the spool."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _room(self, kind: str, size: int) -> bool:
        limit = self._limit * SHARE if kind in BULK else self._limit
        if self._bytes + size <= limit:
            return True
        self._drop(kind)
        return False

    def _drop(self, kind: str) -> None:
        self.state.dropped = dict(Counter(self.state.dropped) + Counter({kind: 1}))

    def _segment(self, number: int) -> Path:
        return self.folder / f"records-{number:06d}.jsonl"

    def _load(self) -> DeliveryState:
        try:
            return DeliveryState(**json.loads((self.folder / "state.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return DeliveryState()

    def save(self) -> None:
        """Write down what the store has; a full disk loses only that, and records are then sent twice."""
        content = json.dumps({**vars(self.state), "models": dict(self.state.models)})
        with self._saving, contextlib.suppress(OSError):
            (self.folder / "state.partial").write_text(content)
            os.replace(self.folder / "state.partial", self.folder / "state.json")

    def ended(self) -> bool:
        """Whether the last record closes the run."""
        kinds = [record["kind"] for record, _ in self.pending()]
        return kinds[-1] == "end" if kinds else self.state.ended


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold the lock of the spool in ``folder`` while the block runs; False when another process does.

    The lock is the process's own (POSIX): it ends with it, children do not inherit it, and it holds across hosts where
    the file system does.
    """
    folder = folder.absolute()
    if folder in _HELD:
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        _HELD.add(folder)
        try:
            yield True
        finally:
            _HELD.discard(folder)


def left_behind(folder: Path) -> list[Path]:
    """The spools below ``folder``, the oldest first; those that processes work on are among them."""
    found = [path.parent for path in folder.glob("*/begun.json")] if folder.is_dir() else []
    return sorted(found, key=lambda one: (one / "begun.json").stat().st_mtime)


def begun(folder: Path) -> Mapping[str, Any]:
    """What is known of the run whose spool is ``folder``: ``uri``, ``experiment``, ``stage``, ``name``, ``tags``."""
    found: dict[str, Any] = json.loads((folder / "begun.json").read_text())
    return found


def _cut_off(path: Path) -> bool:
    """Whether the file ends within a line."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size if path.is_file() else 0
