"""Files beside an image that describe it: its address, caption and licence.

In tar shards and folders alike: a JSON, ``.txt`` or ``.caption`` of the same name, as WebDataset and img2dataset write
them, and in folders the tables of Hugging Face's image folders (``metadata.csv``, ``.jsonl``, ``.parquet``).
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from components.web.formats.urls import resolve
from components.web.sources.kinds import TEXT_SUFFIXES
from components.web.sources.link_table import storable

MAX_TEXT = 65_536  # bytes of a caption or JSON that are read
TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_ALT = ("caption", "text", "alt")
_LICENCE = ("license", "licence")


@dataclass(frozen=True)
class Said:
    """What is said of an image; "" for what is not."""

    url: str = ""
    alt: str = ""
    licence: str = ""

    def filled_by(self, other: Said) -> Said:
        """This, and what ``other`` says where this says nothing."""
        return Said(self.url or other.url, self.alt or other.alt, self.licence or other.licence)


def stems(name: str) -> tuple[str, str, str]:
    """The names under which texts may speak of the file ``name``, closest first.

    Of ``d/a.b.jpg``: ``d/a.b.jpg`` (its JSON is ``d/a.b.jpg.json``), ``d/a.b``, and WebDataset's key ``d/a``.
    """
    path = PurePosixPath(name)
    base = path.name.lstrip(".")
    dots = path.name[: len(path.name) - len(base)]
    folder = "" if str(path.parent) == "." else f"{path.parent}/"
    return name, folder + dots + (base.rpartition(".")[0] or base), folder + dots + base.partition(".")[0]


@dataclass(frozen=True)
class Beside:
    """The texts that speak of an image, by name, and whether they speak of other images too."""

    texts: tuple[str, ...]
    shared: bool


def beside(images: Sequence[str], texts: Iterable[str]) -> dict[str, Beside]:
    """Which of ``texts`` speak of which of ``images``, all by name; images without any are not in it.

    A text that has an image's own name speaks of that one. Any other of the same WebDataset key speaks of all the
    images of the key.
    """
    owns = {stem for image in images for stem in stems(image)[:2]}
    known: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        if text.lower().endswith(TEXT_SUFFIXES):
            _, stem, key = stems(text)
            known.setdefault(stem if stem in owns else key, []).append(text)
    found: dict[str, list[str]] = {}
    for image in images if known else ():
        if (said := next((known[stem] for stem in stems(image) if stem in known), None)) is not None:
            found[image] = said
    spoken = Counter(text for own in found.values() for text in own)
    return {image: Beside(tuple(own), any(spoken[text] > 1 for text in own)) for image, own in found.items()}


def said_of(texts: Mapping[str, bytes], shared: bool) -> Said:
    """What ``texts`` (bytes by name) say of an image; where they are ``shared`` with others, they give no address."""
    written = next((data for name, data in texts.items() if name.lower().endswith((".txt", ".caption"))), b"")
    facts = next((_json(data) for name, data in texts.items() if name.lower().endswith(".json")), Said())
    alt = written.decode("utf-8", "replace").removeprefix("\ufeff").strip() or facts.alt
    return Said("" if shared else facts.url, alt, facts.licence)


def said_by(facts: Mapping[str, Any]) -> Said:
    """What a JSON object or a table's row says."""
    texts = {key: storable(value) for key, value in facts.items() if isinstance(value, str)}
    alt = next((texts[key] for key in _ALT if texts.get(key)), "")
    licence = next((texts[key] for key in _LICENCE if texts.get(key)), "")
    return Said(resolve("", texts.get("url", "")), alt, licence)


def is_table(name: str) -> bool:
    """Whether a file of this name is the metadata table of an image folder."""
    return PurePosixPath(name).name.lower() in TABLE_NAMES


def read_table(name: str, data: bytes) -> Iterator[tuple[str, Said]]:
    """The rows of the metadata table ``name``: the file each is about, below the table's folder, and what it says.

    Rows that are damaged or name no file are passed over.

    Raises:
        ValueError: not a table of its kind.
    """
    folder = PurePosixPath(name).parent
    for row in _rows(name.lower(), data):
        about = row.get("file_name")
        if isinstance(about, str) and about:
            yield posixpath.normpath(str(folder / about)), said_by(row)


def _rows(name: str, data: bytes) -> Iterator[Mapping[str, Any]]:
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
                wanted = [c for c in ("file_name", "url", *_ALT, *_LICENCE) if c in file.schema_arrow.names]
                for batch in file.iter_batches(8192, columns=wanted):
                    yield from batch.to_pylist()
        except pa.ArrowException as fault:
            raise ValueError(str(fault)) from None
    elif name.endswith(".csv"):
        try:
            yield from csv.DictReader(io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline=""))
        except csv.Error as fault:
            raise ValueError(str(fault)) from None
    else:
        for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            content = _loaded(line)
            if isinstance(content, dict):
                yield content


def _json(data: bytes) -> Said:
    content = _loaded(data)
    return said_by(content) if isinstance(content, dict) else Said()


def _loaded(data: bytes) -> Any:
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return None
