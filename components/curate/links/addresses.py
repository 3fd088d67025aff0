"""What the first passes share: addresses of images as a table, and what was found about them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.executor import ExecutorParams
from components.images.sandbox import SandboxParams
from components.storage import Store
from components.tables.database import MemoryParams
from components.web.rules.policy import PolicyParams
from components.web.sources.kinds import SourceKind
from components.web.sources.listing import shown
from components.web.sources.scan import ScanResult

ADDRESSES = pa.schema(
    [
        ("row", pa.int64()),  # of the index; while a kind is gathered, a number that orders its addresses
        ("url", pa.string()),
        ("page", pa.string()),
        ("alt", pa.string()),
        ("licence", pa.string()),
        ("reason", pa.string()),  # a page's reason against it
        ("opt_out", pa.bool_()),
        ("said", pa.string()),  # a page's words with which it opts out
        ("of_web", pa.bool_()),  # policy has a say
        ("kind", pa.string()),  # of the file that holds the bytes: "warc", "tars" or "images"
        ("source", pa.string()),  # of the bytes, to show; "" where it is still to be found
        ("file", pa.binary()),  # whose name need not be UTF-8: os.fsencode
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


class NothingFound(VitrailError):
    """Files of one kind hold no image and name none; files of another kind may. ``counts`` say what was found."""

    def __init__(self, message: str, counts: Counter[str]) -> None:
        super().__init__(message)
        self.counts = counts


@dataclass(frozen=True)
class Met:
    """What the sources hold: parts of addresses, what was found about them, and counts for the report."""

    parts: Sequence[Path]  # of :data:`ADDRESSES`; once numbered, all but the last have PART_ROWS rows
    kind: SourceKind = "images"  # that is gathered, while there is one
    answers: Path | None = None  # by row and hop: the response to an address, and to what it redirects to
    robots: Path | None = None  # by part: robots.txt of the origins that are in it
    outcomes: Path | None = None  # by row: how a fetch ended
    links: Path | None = None  # every link met, a table; None where no page spoke of the images
    results: Sequence[ScanResult] | None = None  # of the WARC files
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Gathering:
    """How sources are read."""

    store: Store
    crawl: Path  # the folder of sources.json
    work: Path
    policy: PolicyParams
    max_page_bytes: int
    sandbox: SandboxParams
    memory: MemoryParams
    executor: ExecutorParams


def addresses(columns: Mapping[str, Any], count: int) -> pa.RecordBatch:
    """``count`` rows of :data:`ADDRESSES`; a column that is not given is empty."""
    blank: dict[pa.DataType, Any] = {pa.string(): "", pa.bool_(): False, pa.int64(): -1, pa.binary(): b""}
    arrays = []
    for one in ADDRESSES:
        known = columns.get(one.name)
        array = pa.repeat(pa.scalar(blank[one.type], one.type), count) if known is None else known
        arrays.append(array if isinstance(array, pa.Array) else pa.array(array, one.type))
    return pa.RecordBatch.from_arrays(arrays, schema=ADDRESSES)


def rows_of(parts: Sequence[Path]) -> int:
    """How many rows the Parquet files have together."""
    return sum(int(pq.read_metadata(part).num_rows) for part in parts)


def warn_of_damage(store: Store, name: str, counts: Mapping[str, int], used: str) -> None:
    """One line on stderr where the file ``name`` is damaged."""
    faults = {kind: n for kind, n in counts.items() if kind.startswith(("warc-", "tar-")) and n}
    if faults:
        listed = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
        print(f"warning: {store.root}/{shown(name)}: damaged ({listed}); {used} are used", file=sys.stderr, flush=True)
