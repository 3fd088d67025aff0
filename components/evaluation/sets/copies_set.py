"""Queries, references and which query copies which reference (``params/benchmarks.yaml``): DISC21, and your own."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from components.errors import VitrailError, nearest
from components.evaluation.sets.dense_files import image_files
from components.evaluation.sets.labelled_set import Benchmark, ImageFiles
from components.input_paths import InputPath
from components.params import Strict, fingerprint
from components.text import read_text

HEADS = ("query_id", "query")


class CopiesParams(Strict):
    """Copy detection by a truth of its own, as DISC21 ships it."""

    kind: Literal["copies"]
    queries: InputPath  # folder
    references: InputPath  # folder
    truth: InputPath  # CSV, a line a pair: query, reference; without a reference the query is no copy


@dataclass(frozen=True)
class CopiesSet:
    """Q queries, R references, and the pairs that are copies."""

    pictures: Benchmark  # all queries, then all references; all held out
    queries: list[Path]
    references: list[Path]
    pairs: list[tuple[int, int]]  # numbers of a query and of its reference

    @property
    def name(self) -> str:
        """In the metrics' names."""
        return self.pictures.name

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over files and pairs. The first access reads every file."""
        return fingerprint([self.pictures.digest, len(self.queries), [list(pair) for pair in self.pairs]])

    def query_digests(self) -> list[str]:
        """SHA-256 (hex) of each query's file."""
        return self.pictures.digests[: len(self.queries)]

    def reference_digests(self) -> list[str]:
        """SHA-256 (hex) of each reference's file."""
        return self.pictures.digests[len(self.queries) :]


def load_copies(name: str, params: CopiesParams) -> CopiesSet:
    """The set, its images unread.

    Raises:
        VitrailError: a folder or the truth is missing, or the truth names what is not there, a pair twice, or no pair.
    """
    where = f"benchmark {name}: "
    queries, references = (_pictures(Path(folder), where) for folder in (params.queries, params.references))
    numbers = [_numbers(paths) for paths in (queries, references)]
    pairs: list[tuple[int, int]] = []
    for number, line in _lines(Path(params.truth), where):
        at = f"{where}{params.truth}: line {number}"
        query = _number(line[0], numbers[0], f"{at}: no query", params.queries)
        if len(line) > 1 and line[1]:
            pairs.append((query, _number(line[1], numbers[1], f"{at}: no reference", params.references)))
    if not pairs:
        raise VitrailError(f"{where}{params.truth}: names no pair of a query and its reference")
    if len(set(pairs)) < len(pairs):
        raise VitrailError(f"{where}{params.truth}: {len(pairs) - len(set(pairs))} pairs are there twice")
    files = [*queries, *references]
    keys = [f"{name}/{path.parent.name}/{path.stem}" for path in files]
    pictures = Benchmark(name, keys, ImageFiles(files), {}, {}, np.ones(len(files), bool), held_out_only=True)
    return CopiesSet(pictures, queries, references, pairs)


def _pictures(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        raise VitrailError(f"{where}{folder}: no such folder")
    found = image_files(folder)
    if not found:
        raise VitrailError(f"{where}{folder}: no images there")
    return found


def _numbers(paths: list[Path]) -> dict[str, int]:
    """By the file's name, and by its stem."""
    return {name: number for number, path in enumerate(paths) for name in (path.stem, path.name)}


def _lines(truth: Path, where: str) -> list[tuple[int, list[str]]]:
    try:
        text = read_text(truth)
    except FileNotFoundError:
        raise VitrailError(f"{where}{truth}: no such file") from None
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return [
        (number, row)
        for number, row in enumerate(rows, 1)
        if any(row) and not (number == 1 and row[0].lower() in HEADS)
    ]


def _number(name: str, known: dict[str, int], what: str, folder: str) -> int:
    if name not in known:
        raise VitrailError(f"{what} {name!r} in {folder}{nearest(name, list(known)[:10_000])}")
    return known[name]
