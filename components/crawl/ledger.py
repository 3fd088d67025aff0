"""The ledger of a fetch: a line an address, written after its records, so that a killed run carries on by image.

Records go to plain WARC files (images do not compress) that are begun anew above a size. A line says how the address
ended and where the records of all addresses so far end. On resuming, what follows the last whole line is cut off:
records without a line, and lines whose records did not reach the disk.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, OrderedDict
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from components.crawl.fetch import OUTCOMES, Fetched
from components.web.formats.warc import Hop, WarcWriter

_ROBOTS_REMEMBERED = 100_000  # origins whose robots.txt is not written again


class Ledger:
    """Addresses 0 to ``count`` - 1 of one partition, their outcomes, and the WARC files that hold their answers.

    Memory: three bytes an address. Use as a context manager.
    """

    def __init__(self, folder: Path, prefix: str, count: int, warc_bytes: int, info: dict[str, str]) -> None:
        self._folder, self._prefix, self._warc_bytes, self._info = folder, prefix, warc_bytes, info
        self._codes = bytearray(count)  # 0: not done; else 1 + index of the outcome
        self._statuses = array("h", bytes(2 * count))
        self._robots: OrderedDict[str, None] = OrderedDict()
        self._path = folder / f"{prefix}.ledger"
        self._part = 0
        self._file: BinaryIO
        self._writer: WarcWriter

    def done(self, number: int) -> bool:
        """Whether address ``number`` has its line."""
        return self._codes[number] > 0

    def outcome(self, number: int) -> tuple[str, int]:
        """How address ``number`` ended, and the last HTTP status (0: none)."""
        return OUTCOMES[self._codes[number] - 1], self._statuses[number]

    def counts(self) -> Counter[str]:
        """Addresses by outcome."""
        return Counter({name: n for i, name in enumerate(OUTCOMES, 1) if (n := self._codes.count(i))})

    def warcs(self) -> list[Path]:
        """The WARC files so far."""
        return [path for part in range(self._part + 1) if (path := self._warc(part)).exists()]

    def write(self, number: int, fetched: Fetched) -> None:
        """Write the answers for address ``number``, then its line."""
        for site, answer in fetched.robots.items():
            if answer is None or site in self._robots:
                continue
            self._robots[site] = None
            if len(self._robots) > _ROBOTS_REMEMBERED:
                self._robots.popitem(last=False)
            self._writer.hop(answer)
        for hop in fetched.hops:
            # What is no image is not stored: the answer's head says all there is to say.
            good = fetched.outcome == "ok" and hop.status == 200
            self._writer.hop(hop if good else Hop(hop.url, hop.status, hop.reason, hop.headers, b"", hop.cut))
        self._file.flush()
        status = fetched.hops[-1].status if fetched.hops else 0
        end = self._file.tell()
        self._lines.write(f"{number} {fetched.outcome} {status} {self._part} {end}\n".encode())
        self._codes[number], self._statuses[number] = 1 + OUTCOMES.index(fetched.outcome), status
        if end > self._warc_bytes:
            self._sync()
            self._file.close()
            self._part += 1
            self._open(0)

    def __enter__(self) -> Ledger:
        end, kept = self._read()
        with open(self._path, "ab"):
            pass
        os.truncate(self._path, kept)
        for path in self._folder.glob(f"{self._prefix}-*.warc"):
            if path > self._warc(self._part):
                path.unlink()
        self._lines = open(self._path, "ab", buffering=0)
        self._open(end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._sync()
        self._file.close()
        self._lines.close()

    def _read(self) -> tuple[int, int]:
        """Take over what an earlier run left; where its last WARC file ends, and its ledger, in bytes."""
        end = kept = 0
        if not self._path.exists():
            return 0, 0
        sizes: dict[int, int] = {}
        with open(self._path, "rb") as lines:
            for line in lines:
                words = line.split()
                if len(words) != 5 or not line.endswith(b"\n"):
                    break
                number, status, part, at = (int(words[i]) for i in (0, 2, 3, 4))
                if part not in sizes:
                    path = self._warc(part)
                    sizes[part] = path.stat().st_size if path.exists() else -1
                if at > sizes[part]:
                    break
                self._codes[number], self._statuses[number] = 1 + OUTCOMES.index(words[1].decode()), status
                self._part, end, kept = part, at, kept + len(line)
        return end, kept

    def _open(self, end: int) -> None:
        path = self._warc(self._part)
        self._file = open(path, "ab")  # noqa: SIM115 - closed by write or __exit__
        self._file.truncate(end)
        self._file.seek(end)
        self._writer = WarcWriter(self._file, gzip=False)
        if not end:
            self._writer.info(self._info)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        os.fsync(self._lines.fileno())

    def _warc(self, part: int) -> Path:
        return self._folder / f"{self._prefix}-{part:05d}.warc"
