"""The table of images that training could not read: a line each, appended by every process to its own file."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NamedTuple


class QuarantineEntry(NamedTuple):
    """One unreadable image."""

    key: str
    shard: str
    offset: int
    length: int
    reason: str


class Quarantine:
    """Writes entries below ``folder`` (None: nowhere), each image once a process, each line in one write."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._seen: set[str] = set()

    def add(self, entry: QuarantineEntry) -> None:
        """Append ``entry`` unless this process has reported its key."""
        if entry.key in self._seen:
            return
        self._seen.add(entry.key)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(entry._asdict()) + "\n").encode()
        path = self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
        # One write to a file opened for appending: a killed process leaves whole lines.
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)


def read_quarantine(folder: Path) -> list[QuarantineEntry]:
    """Every image reported below ``folder`` by any process, once, by key."""
    entries: dict[str, QuarantineEntry] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = QuarantineEntry(**json.loads(line))
            entries.setdefault(entry.key, entry)
    return [entries[key] for key in sorted(entries)]
