"""Addresses that a crawl of sites has met, on disk: tables in one SQLite file, which look an address up as it comes.

A crawl asks for every link whether it was met before, so a join at the end would not do. Memory is SQLite's cache,
however many addresses there are. The file is made anew by each run, from the journal of what was answered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from components.errors import VitrailError

CACHE_KIB = 32_768  # of the file that SQLite keeps in memory
_PAGE = 1_000  # addresses in memory while a table is read


class MetAddresses:
    """The file ``path`` with tables of addresses; it is removed at the end. Use as a context manager.

    Raises:
        VitrailError: at the end of the block, where the file could not be written: a full disk, say.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection

    def table(self, name: str) -> AddressTable:
        """The table ``name`` (an identifier), empty at first."""
        return AddressTable(self._connection, name)

    def __enter__(self) -> MetAddresses:
        self._path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(self._path, isolation_level=None)
        # One transaction that is never committed: nobody reads the file after this run.
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._path.unlink(missing_ok=True)
        if isinstance(fault, sqlite3.OperationalError):
            raise VitrailError(
                f"{self._path}: the addresses that were met could not be kept ({fault}); free some space there and run"
                " the same command again: what was fetched is kept"
            ) from None


class AddressTable:
    """Addresses in the order in which they were added, numbered from 1, each once and with a number of its own.

    Addresses may be read while others are added.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._do, self._name, self._count = connection.execute, name, 0
        self._do(f"CREATE TABLE {name} (number INTEGER PRIMARY KEY, url BLOB UNIQUE, value INTEGER NOT NULL)")

    def __len__(self) -> int:
        return self._count

    def __contains__(self, url: str) -> bool:
        return self.get(url) is not None

    def get(self, url: str) -> int | None:
        """The value of ``url``; None: it was not added."""
        found = self._do(f"SELECT value FROM {self._name} WHERE url = ?", (_bytes(url),)).fetchone()
        return None if found is None else int(found[0])

    def add(self, url: str, value: int = 0) -> bool:
        """Add ``url`` unless it is there; whether it was added."""
        added = self._do(
            f"INSERT OR IGNORE INTO {self._name} (url, value) VALUES (?, ?)", (_bytes(url), value)
        ).rowcount
        self._count += added
        return added > 0

    def add_all(self, urls: Iterable[str]) -> None:
        """Add all ``urls`` that are not there."""
        for url in urls:
            self.add(url)

    def set(self, url: str, value: int) -> None:
        """Give ``url``, which is added if need be, the value ``value``."""
        if not self.add(url, value):
            self._do(f"UPDATE {self._name} SET value = ? WHERE url = ?", (value, _bytes(url)))

    def valued(self, value: int) -> int:
        """How many addresses have the value ``value``."""
        (count,) = self._do(f"SELECT count(*) FROM {self._name} WHERE value = ?", (value,)).fetchone()
        return int(count)

    def between(self, after: int = 0, last: int | None = None) -> Iterator[tuple[str, int]]:
        """(address, value) of the numbers above ``after`` up to ``last`` (of all that are there then), in order."""
        last = self._count if last is None else last
        query = f"SELECT number, url, value FROM {self._name} WHERE number > ? AND number <= ? ORDER BY number LIMIT ?"
        while rows := self._do(query, (after, last, _PAGE)).fetchall():
            yield from ((_text(url), value) for _, url, value in rows)
            after = rows[-1][0]

    def cut(self, last: int) -> None:
        """Take out the addresses with numbers above ``last``."""
        self._count -= self._do(f"DELETE FROM {self._name} WHERE number > ?", (last,)).rowcount


def _bytes(url: str) -> bytes:
    return url.encode("utf-8", "surrogatepass")  # a seed is what a user wrote


def _text(url: bytes) -> str:
    return url.decode("utf-8", "surrogatepass")
