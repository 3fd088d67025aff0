"""What lies at a source: every file of a folder, of an object store's prefix, or of a list, with what each is.

Nothing here ends a run but an unreadable source itself: what cannot be read is counted in :class:`Listing`.
"""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import cast

from components.errors import VitrailError
from components.progress import Progress
from components.storage import ObjectUnreadable, StorageParams, Store, is_remote, open_store
from components.web.sources.kinds import HEAD, KINDS, LEFT, Left, SourceKind, by_name, what_is

LIST_SUFFIXES = (".txt", ".txt.gz", ".paths", ".paths.gz", ".list")
_READERS = 32  # objects asked for their first bytes at a time


@dataclass
class Listing:
    """Files by kind, as names below ``root``, and what was left out: how many, and the first of each."""

    root: str
    found: dict[SourceKind, list[str]] = field(default_factory=dict)
    left: dict[Left, int] = field(default_factory=dict)
    first: dict[Left, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)  # of objects: size and ETag

    def add(self, name: str, what: SourceKind | Left) -> None:
        """Note that the file ``name`` is ``what``."""
        if what in KINDS:
            self.found.setdefault(cast(SourceKind, what), []).append(name)
        else:
            self.leave(name, cast(Left, what))

    def leave(self, name: str, why: Left) -> None:
        """Count ``name`` as left out."""
        self.left[why] = self.left.get(why, 0) + 1
        self.first.setdefault(why, name)

    def lines(self) -> list[str]:
        """A line for each reason why something was left out."""
        return [
            f"left out: {why} {count:,} ({shown(self.first[why])}{', ...' if count > 1 else ''}): {LEFT[why]}"
            for why, count in sorted(self.left.items())
        ]


def listing(source: str, storage: StorageParams) -> Listing:
    """Everything at ``source``: a folder, one file, ``s3://bucket/prefix``, or a list of files.

    Raises:
        VitrailError: no such source, or a list that cannot be read.
    """
    if is_remote(source):
        if by_name(source):
            root, _, name = source.rpartition("/")
            return _objects(root, [name], storage)
        return _objects(source.rstrip("/"), None, storage)
    if os.path.isfile(source):
        if source.lower().endswith(LIST_SUFFIXES):
            return _from_list(source, storage)
        root, name = os.path.split(source)
        return _files(Listing(root or "."), [name])
    if not os.path.isdir(source):
        raise VitrailError(
            f"source {shown(source)}: no such file or folder; set `source` in params/pipeline.yaml (or --source)"
        )
    found = Listing(source.rstrip("/") or "/")
    return _files(found, walk(source, found))


def shown(name: str) -> str:
    """A file's name as text for tables and messages: bytes that are not UTF-8, and control characters, as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or ord(c) > 0x9F else c.encode("unicode_escape").decode() for c in text)


def walk(root: str, found: Listing) -> Iterator[str]:
    """The names of all files below ``root``, sorted folder by folder; linked folders are read after real ones.

    A folder is read once, however many links lead to it, and none that holds ``root`` is read through a link.
    """
    above = [str(folder) for folder in Path(os.path.realpath(root)).parents]
    seen = {_identity(folder) for folder in (root, *above)}
    waiting, linked = [""], deque[str]()
    while waiting or linked:
        below = waiting.pop() if waiting else linked.popleft()
        try:
            if below and not _is_new(os.path.join(root, below), seen):
                found.leave(below, "linked-twice")
                continue
            entries = sorted(os.scandir(os.path.join(root, below)), key=lambda entry: entry.name)
        except OSError as fault:
            if not below:
                raise VitrailError(f"source {shown(root)}: {fault.strerror}; mend its permissions") from None
            found.leave(below, "unreadable-folder")
            continue
        inner: list[str] = []
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith(".") and not entry.name.startswith("._"):
                found.leave(name, "hidden")
            elif not _is_folder(entry):
                yield name
            elif entry.is_symlink():
                linked.append(name)
            else:
                inner.append(name)
        waiting += reversed(inner)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # told when it is opened


def _is_new(path: str, seen: set[tuple[int, int]]) -> bool:
    """Whether the folder at ``path`` was not met before; it is noted."""
    identity = _identity(path)
    known = identity in seen and identity[1] != 0  # a file system that numbers nothing
    seen.add(identity)
    return not known


def _identity(path: str) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_dev, facts.st_ino


def _files(found: Listing, names: Sequence[str] | Iterator[str]) -> Listing:
    """``found`` with the local files ``names``, each opened for its first bytes."""
    progress = Progress("look", None, unit="files")
    for name in names:
        found.add(name, _what(found.root, name))
        progress.advance()
    return found


def _what(root: str, name: str) -> SourceKind | Left:
    """What a local file is; one that is no regular file is not opened."""
    path = os.path.join(root, name)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "special"
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            head = file.read(HEAD)
    except OSError as fault:
        if fault.errno == errno.ELOOP:
            return "looping-link"
        return "dangling-link" if fault.errno in (errno.ENOENT, errno.ENOTDIR) else "unreadable"
    what = what_is(name, head)
    return "hidden" if os.path.basename(name).startswith(".") and what not in ("appledouble", "empty") else what


def _objects(root: str, names: list[str] | None, storage: StorageParams) -> Listing:
    """The objects ``names`` below ``root``, or all of them.

    A request an object is dear, so names of images are believed (the decoder looks at their bytes); the first bytes of
    all others are asked for.
    """
    store = open_store(storage.model_copy(update={"root": root}))
    found = Listing(root)
    usable: list[str] = []
    if names is None:
        found.versions = store.versions()
    for name in found.versions if names is None else names:
        if name.endswith("/") or not name:
            continue  # what consoles write for an empty folder
        if name.startswith("/") or ".." in name.split("/"):
            found.leave(name, "unsafe-name")
        elif PurePosixPath(name).name.startswith(".") and not PurePosixPath(name).name.startswith("._"):
            found.leave(name, "hidden")
        else:
            usable.append(name)
    with ThreadPoolExecutor(_READERS) as pool:
        for name, what in zip(usable, pool.map(lambda name: _object(store, name), usable), strict=True):
            found.add(name, what)
        if names is not None:
            found.versions = dict(zip(usable, pool.map(lambda name: version_of(store, name), usable), strict=True))
    return found


def version_of(store: Store, name: str) -> str:
    """The version of ``name``, or why it has none: its reader counts it by that reason."""
    try:
        return store.version(name)
    except ObjectUnreadable as fault:
        return "missing" if fault.missing else "unreadable"


def _object(store: Store, name: str) -> SourceKind | Left:
    if by_name(name) in ("images", "text") and not PurePosixPath(name).name.startswith("._"):
        return by_name(name) or "other"
    try:
        return what_is(name, store.read(name, 0, HEAD))
    except ObjectUnreadable as fault:
        return "archived" if fault.archived else "missing" if fault.missing else "unreadable"


def _from_list(source: str, storage: StorageParams) -> Listing:
    """Files named by a list, as the deepest folder that holds them all and their paths below it."""
    folder = os.path.dirname(os.path.abspath(source))
    try:
        with gzip.open(source) if source.lower().endswith(".gz") else open(source, "rb") as file:
            data = file.read().removeprefix(b"\xef\xbb\xbf")
    except (OSError, EOFError) as fault:
        raise VitrailError(f"source {shown(source)}: not a readable list of files ({fault})") from None
    if b"\0" in data:
        raise VitrailError(f"source {shown(source)}: not a readable list of files (UTF-16?); write it as UTF-8")
    lines = [line.decode("utf-8", "surrogateescape").strip() for line in data.split(b"\n")]
    paths = [line if is_remote(line) else os.path.join(folder, line) for line in lines if line and line[0] != "#"]
    if not paths:
        raise VitrailError(f"source {shown(source)}: an empty list; write a path or s3:// address a line")
    if len({is_remote(path) for path in paths}) > 1:
        raise VitrailError(f"source {shown(source)}: local paths and s3:// addresses mixed; make two lists")
    unique = list(dict.fromkeys(paths))
    if is_remote(paths[0]):
        split = [path.removeprefix("s3://").split("/") for path in unique]
        together = zip(*(parts[:-1] for parts in split), strict=False)
        common = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, together)]
        if not common:
            raise VitrailError(f"source {shown(source)}: several buckets; make a list for each")
        found = _objects("s3://" + "/".join(common), ["/".join(parts[len(common) :]) for parts in split], storage)
    else:
        root = os.path.commonpath([os.path.dirname(path) for path in unique])
        found = _files(Listing(root), [Path(path).relative_to(root).as_posix() for path in unique])
    if "dangling-link" in found.left:  # of what a list names
        found.left["missing"] = found.left.pop("dangling-link")
        found.first["missing"] = found.first.pop("dangling-link")
    if len(unique) < len(paths):
        found.left["listed-twice"] = len(paths) - len(unique)
        found.first["listed-twice"] = next(path for path, times in Counter(paths).items() if times > 1)
    return found
