"""What a crawl of sites was answered, by address, on disk as it comes: a killed crawl finds it again and asks no more.

An entry is a line of JSON, the bodies it names, and a line feed. What follows the last whole entry is cut off
when the journal is opened. The places of the entries are in a file beside it (:mod:`components.crawl.met`).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from components.crawl.fetch import Fetched
from components.crawl.met import AddressTable, MetAddresses
from components.web.formats.warc import Hop


class Journal:
    """See the module; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._met = MetAddresses(path.with_name(f"{path.name}.met"))
        self._places: AddressTable
        self._file: BinaryIO

    def __contains__(self, url: str) -> bool:
        return url in self._places

    def __len__(self) -> int:
        return len(self._places)

    def table(self, name: str) -> AddressTable:
        """A table of addresses for as long as the journal is open."""
        return self._met.table(name)

    def add(self, url: str, fetched: Fetched) -> None:
        """Write how the address ``url`` ended."""
        robots = {site: None if hop is None else _told(hop) for site, hop in fetched.robots.items()}
        hops = [_told(hop) for hop in fetched.hops]
        bodies = [hop.body for hop in (*fetched.hops, *fetched.robots.values()) if hop is not None]
        head = {"url": url, "outcome": fetched.outcome, "bytes": sum(map(len, bodies)), "hops": hops, "robots": robots}
        at = self._file.seek(0, os.SEEK_END)
        self._file.write(b"".join([json.dumps(head).encode(), b"\n", *bodies, b"\n"]))
        self._file.flush()
        self._places.set(url, at)

    def get(self, url: str) -> Fetched:
        """How the address ``url`` ended."""
        at = self._places.get(url)
        if at is None:
            raise KeyError(url)
        self._file.seek(at)
        head = json.loads(self._file.readline())
        hops = [self._hop(told) for told in head["hops"]]
        robots = {site: None if told is None else self._hop(told) for site, told in head["robots"].items()}
        return Fetched(head["url"], head["outcome"], hops, robots)

    def __enter__(self) -> Journal:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(open(self._path, "a+b"))
            self._places = stack.enter_context(self._met).table("places")
            self._file.truncate(self._read())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, fault, trace)

    def _read(self) -> int:
        """Take over what an earlier run left; where its last whole entry ends."""
        size, kept = os.fstat(self._file.fileno()).st_size, 0
        while kept < size:
            self._file.seek(kept)
            try:
                head = json.loads(self._file.readline())
                end = self._file.tell() + int(head["bytes"])
                self._file.seek(end)
                if self._file.read(1) != b"\n":
                    break
                self._places.set(str(head["url"]), kept)
            except (ValueError, KeyError, TypeError):
                break
            kept = end + 1
        return kept

    def _hop(self, told: dict[str, Any]) -> Hop:
        size = told.pop("bytes")
        headers = [(name, value) for name, value in told.pop("headers")]
        return Hop(**told, headers=headers, body=self._file.read(size))


def _told(hop: Hop) -> dict[str, Any]:
    told = {"url": hop.url, "status": hop.status, "reason": hop.reason, "headers": hop.headers, "cut": hop.cut}
    return told | {"bytes": len(hop.body)}
