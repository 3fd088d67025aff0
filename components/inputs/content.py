"""The digest of what lies at a path: a file, a folder, an object or a prefix on S3."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType

from components.errors import VitrailError
from components.release.weights.fetch import PIN
from components.storage import StorageParams, atomic_file, is_remote, open_store
from components.tracking.registry import Registry, is_registered


class Contents:
    """Digests, remembered in ``cache`` for files whose size, times and inode are as they were.

    Use as a context manager; leaving it writes the cache, of the files that were asked for.
    """

    def __init__(self, cache: Path, storage: StorageParams) -> None:
        self._cache, self._storage = cache, storage
        self._known: dict[str, list[object]] = {}
        self._asked: dict[str, list[object]] = {}

    def digest(self, path: str) -> str:
        """SHA-256 (hex) of the file at ``path``, or over the names and digests of a folder's files.

        On S3 over names, sizes and ETags. "missing" where nothing is, for the stage that needs it says so. The path
        itself of an address on the web and of what ``#sha256=`` pins: their digests are parameters. Of a registered
        model the version that its alias means now.
        """
        if PIN in path:
            return path
        if is_registered(path):
            return _version(path)
        if is_remote(path):
            return self._remote(path)
        if "://" in path:
            return path
        if os.path.isdir(path):
            lines = []
            for folder, inside, files in os.walk(path, followlinks=True):
                inside.sort()
                names = sorted(os.path.relpath(os.path.join(folder, name), path) for name in files)
                lines += [f"{name}\0{self._file(os.path.join(path, name))}\n" for name in names]
            return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        return self._file(path)

    def _file(self, path: str) -> str:
        try:
            stat = os.stat(path)
            facts: list[object] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            where = os.path.abspath(path)
            known = self._known.get(where)
            if known is None or known[:-1] != facts:
                if not os.path.isfile(path):
                    return "no file"
                with open(path, "rb") as file:
                    known = [*facts, hashlib.file_digest(file, "sha256").hexdigest()]
            self._asked[where] = known
            return str(known[-1])
        except FileNotFoundError:
            return "missing"
        except OSError as fault:
            return f"unreadable: {fault.strerror}"

    def _remote(self, path: str) -> str:
        above, _, name = path.rstrip("/").rpartition("/")
        store = open_store(self._storage.model_copy(update={"root": path.rstrip("/")}))
        try:
            found = store.versions()
            if not found and not above.endswith("/"):
                found = {name: open_store(self._storage.model_copy(update={"root": above})).version(name)}
        except VitrailError as fault:
            return f"unreachable: {fault}"
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def __enter__(self) -> Contents:
        try:
            self._known = json.loads(self._cache.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # no cache, or a damaged one: everything is read again
            self._known = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        with atomic_file(self._cache, "w") as file:
            json.dump(self._asked, file)


def _version(source: str) -> str:
    try:
        return Registry().version(source).source
    except VitrailError as fault:
        return f"unreachable: {fault}"
