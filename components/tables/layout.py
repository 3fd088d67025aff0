"""Every file of a stage's output, and how it knows its images: so that a take-down touches what it must, and no more.

A stage that writes a new file declares it here. ``forget`` refuses a folder with a file that is not declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from components.errors import VitrailError, nearest

Role = Literal[
    "table",  # has a column that names the image: its rows go
    "rows",  # an array (.npy) or table whose row i is row i of the table `of`: the same rows go
    "pairs",  # a folder of Parquet files whose columns `a` and `b` number rows of `of`: rows go, numbers change
    "shards",  # image bytes, blanked in place
    "list",  # names and digests of the shards
    "shows",  # a picture or page that may show an image: it goes, and a new run makes it again
    "derived",  # made from the rows, and made again by a run: it goes
    "carried",  # knows no image: it stays as it is
]


@dataclass(frozen=True)
class File:
    """A file or folder of an output, by its name there (``*`` stands for any letters)."""

    name: str
    role: Role
    of: str = ""  # of "rows" and "pairs": the table that they are aligned with
    key: str = "key"  # of "table": the column that names the image


CURATE: tuple[File, ...] = (
    File("index", "table"),
    File("links", "table", key="url"),
    File("audit", "table"),
    File("shards", "shards"),
    File("shards.json", "list"),
    File("contact-sheet.png", "shows"),
    File("pca_hash.npz", "carried"),
    File("pca_hash.json", "carried"),
)

DEDUP: tuple[File, ...] = (
    File("decisions", "table"),
    File("manifest", "table"),
    File("keys", "rows", of="decisions"),
    File("descriptors.npy", "rows", of="decisions"),
    File("to-held-out.npy", "rows", of="decisions"),
    File("edges", "pairs", of="decisions"),
    File("index", "derived"),  # the nearest-neighbour index numbers rows that move
    File("duplicates.jpg", "shows"),
    File("held-out.jpg", "shows"),
    File("review.html", "shows"),
    File("calibration.png", "carried"),
    File("params.json", "carried"),
    File("descriptor.safetensors", "carried"),
    File("calibration.json", "carried"),
    File("thresholds.json", "carried"),
    File("sources.json", "carried"),
)


def declared_file(name: str, files: Sequence[File], where: str) -> File:
    """The declaration of the file ``name`` of an output.

    Raises:
        VitrailError: there is none; ``where`` names the output.
    """
    for file in files:
        if fnmatchcase(name, file.name):
            return file
    raise VitrailError(
        f"{where}/{name}: no stage declares this file, so whether it holds an image is not known"
        f"{nearest(name, [file.name for file in files])}; move it elsewhere and run the command again"
    )
