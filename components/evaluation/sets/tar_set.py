"""Images with a class each in tar shards, as WebDataset has them; read in place, by offset."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import NamedTuple

from components.errors import VitrailError
from components.evaluation.sets.labelled_set import decoded
from components.images.decode import RGB

ENDINGS = ("jpg", "jpeg", "png", "webp")
MOST = 10_000  # bytes of a class name


class Span(NamedTuple):
    """Where an image lies."""

    path: Path
    offset: int
    length: int
    name: str


class Spans:
    """Images in parts of files."""

    def __init__(self, spans: list[Span]) -> None:
        self._spans = spans

    def __len__(self) -> int:
        return len(self._spans)

    def bytes(self, row: int) -> bytes:
        """The file of picture ``row``."""
        span = self._spans[row]
        with span.path.open("rb") as file:
            file.seek(span.offset)
            return file.read(span.length)

    def rgb(self, row: int) -> RGB:
        """Picture ``row``, uint8 [H, W, 3]."""
        return decoded(self.bytes(row), f"{self._spans[row].path}: {self._spans[row].name}")

    def part(self, start: int, stop: int) -> Spans:
        """The spans ``start`` to ``stop``."""
        return Spans(self._spans[start:stop])

    def with_more(self, others: Spans) -> Spans:
        """These, then ``others``."""
        return Spans([*self._spans, *others._spans])


def read_tar(folder: Path, name: str) -> tuple[Spans, list[str]]:
    """The images of all ``*.tar`` in ``folder`` and their classes, in the order of the shards.

    Raises:
        VitrailError: no shards, a damaged one, or an image without a class.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise VitrailError(f"benchmark {name}: {folder}: no *.tar there")
    spans, classes = [], []
    for shard in shards:
        images: dict[str, Span] = {}
        known: dict[str, str] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    key, _, ending = member.name.rpartition(".")
                    if member.isfile() and ending.lower() in ENDINGS:
                        images[key] = Span(shard, member.offset_data, member.size, member.name)
                    elif member.isfile() and ending == "cls" and member.size < MOST:
                        file = tar.extractfile(member)
                        known[key] = file.read().decode("utf-8", "replace").strip() if file else ""
        except (OSError, tarfile.TarError) as fault:
            raise VitrailError(f"benchmark {name}: {shard}: not a readable tar ({fault})") from None
        if missing := [key for key in images if not known.get(key)]:
            raise VitrailError(f"benchmark {name}: {shard}: no {missing[0]}.cls ({len(missing)} are missing)")
        spans += list(images.values())
        classes += [known[key] for key in images]
    if not spans:
        raise VitrailError(f"benchmark {name}: {folder}: no image in its shards")
    return Spans(spans), classes
