"""The contact sheet of a curation: which images it shows, and their pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.curate.links.places import Place, place_of, read_rows
from components.curate.pixels.examine import read_bytes
from components.curate.pixels.sandboxed_decode import SandboxedDecoder
from components.curate.results import contact_sheet
from components.curate.results.assemble import Tally, plain
from components.images.decode import DECODE_REASONS, RGB, DecodeError, DecodeLimits
from components.images.sandbox import SandboxParams
from components.storage import ObjectUnreadable, Store

Row = dict[str, Any]


@dataclass(frozen=True)
class PictureReader:
    """Where pictures are read from."""

    crawled: Store
    shards: Store
    limits: DecodeLimits
    sandbox: SandboxParams

    def show(self, row: Row, place: Place | None) -> RGB | None:
        """The stored picture of a row, or what was crawled where it was dropped; None where there is none to show."""
        if place is None or row["reason"] == "nsfw" or row["reason"] in DECODE_REASONS:
            return None
        try:
            if not row["reason"]:
                data = self.shards.read(row["shard"], row["offset"], row["length"])
            else:
                data = read_bytes(self.crawled, place, self.limits)
            return SandboxedDecoder(self.limits, self.sandbox).pixels(data)[0]
        except (DecodeError, ObjectUnreadable):
            return None


def draw(tallies: Sequence[Tally], places: Sequence[Path], part_rows: int, pictures: PictureReader) -> RGB:
    """The sheet of the index whose parts have these ``tallies`` and ``places`` of crawled bytes."""
    counts: Counter[str] = Counter()
    for tally in tallies:
        counts.update(tally.reasons)
    shown: dict[str, list[int]] = {"plain": _plain_rows(tallies, part_rows)}
    for reason in ("", *counts):
        rows = [row for tally in tallies for row in tally.shown.get(reason, ())]
        shown[reason or "blurred"] = rows[: contact_sheet.COLUMNS]

    def picture(number: int) -> RGB | None:
        part = number // part_rows
        names = ["key", "reason", "shard", "offset", "length"]
        row = pq.read_table(tallies[part].index, columns=names).slice(number - part * part_rows, 1).to_pylist()[0]
        found = read_rows(places[part], number, 1).to_pylist()
        return pictures.show(row, place_of(found[0]) if found else None)

    plain_count, blurred = sum(tally.plain for tally in tallies), sum(tally.blurred for tally in tallies)
    titles = contact_sheet.groups(dict(counts), plain_count, blurred)
    return contact_sheet.compose([(title, [picture(row) for row in shown[name]]) for name, title in titles])


def _plain_rows(tallies: Sequence[Tally], part_rows: int) -> list[int]:
    """Rows of kept images without a face, spread evenly over all of them."""
    ends = np.cumsum([tally.plain for tally in tallies])
    found = []
    for rank in contact_sheet.spread_over(int(ends[-1])):
        part = int(np.searchsorted(ends, rank, side="right"))
        table = pq.read_table(tallies[part].index, columns=["reason", "faces"])
        before = int(ends[part - 1]) if part else 0
        found.append(part * part_rows + int(np.flatnonzero(plain(table))[rank - before]))
    return found
