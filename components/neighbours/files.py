"""An index on disk, built in pieces that resume: trained once, a piece for each range of rows, merged, memory-mapped.

    folder/index.json          what it is an index of, and the trained, empty index with its SHA-256
    folder/trained.faiss
    folder/piece-START-STOP.faiss, .json   rows START..STOP, and the piece's SHA-256
    folder/merged/             lists.faiss, lists.ivfdata, merged.json with the SHA-256 of both

FAISS trusts the files it opens, and bugs in that reader are found still; so no file here is given to it before its
bytes were hashed and found to be those that were written. Files appear whole or not at all, and a piece that is there
and sound is not built again: a stopped build carries on. Pieces are independent, so processes can build them side by
side. Codes are kept in FAISS' plain layout, which can be memory-mapped; 4-bit codes are packed for scanning in
registers when the lists are read into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from components.errors import VitrailError
from components.neighbours import index as indexes
from components.neighbours.checks import check_descriptors
from components.neighbours.factory import factory_for, lists_of
from components.neighbours.params import NeighbourParams
from components.neighbours.search import Neighbours
from components.storage import atomic_dir, atomic_file

FORMAT = 1


@dataclass(frozen=True)
class IndexFolder:
    """The index in ``folder``."""

    folder: Path

    def train(self, base: NDArray[Any], digest: str, params: NeighbourParams) -> None:
        """Train an empty index on a sample of ``base`` [N, d]; ``digest`` says which descriptors these are.

        Nothing is done where the folder holds that index already; an index of other descriptors is replaced.

        Raises:
            VitrailError: bad rows, too few to train on, or a factory without inverted lists.
        """
        factory = factory_for(len(base), base.shape[1], params, gpu=indexes.gpus(params.device) > 0)
        if not lists_of(factory):
            raise VitrailError(f"neighbours: {factory!r} has no inverted lists; only an IVF index is built in pieces")
        what = {
            "format": FORMAT,
            "factory": factory,
            "rows": len(base),
            "dim": base.shape[1],
            "digest": digest,
            "seed": params.seed,
            "train_per_list": params.train_per_list,
        }
        if (self.folder / "index.json").exists():
            if {name: value for name, value in self._about().items() if name != "trained"} == what:
                return
            for path in self.folder.glob("piece-*"):
                path.unlink()
            _remove_folder(self.folder / "merged")
        index = indexes.to_device(indexes.make(factory, base.shape[1]), params.device)
        indexes.train(index, base, factory, params)
        _write(indexes.to_host(index), self.folder / "trained.faiss")
        _save(self.folder / "index.json", what | {"trained": _seal(self.folder / "trained.faiss")})

    def build_piece(self, base: NDArray[Any], start: int, stop: int, params: NeighbourParams) -> Path:
        """Fill the trained index with rows ``start`` to ``stop`` of ``base`` [N, d], unless that piece is there."""
        about = self._about()
        _match(self.folder, about, base)
        path = self.folder / f"piece-{start:012d}-{stop:012d}.faiss"
        seal = path.with_suffix(".json")
        if seal.exists() and _sound(path, json.loads(seal.read_text())):
            return path
        rows = base[start:stop]
        check_descriptors(rows, "base", start)
        _check_seal(self.folder / "trained.faiss", about["trained"])
        index = indexes.to_device(_read(self.folder / "trained.faiss"), params.device)
        indexes.fill(index, rows, start)
        _write(indexes.to_host(index), path)
        _save(seal, _seal(path))
        return path

    def merge(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Merge the pieces of ``ranges`` into one index, list by list from memory-mapped pieces; then remove them.

        Raises:
            VitrailError: a piece is missing or not as it was written, or the ranges do not cover the base.
        """
        from faiss.contrib.ondisk import merge_ondisk

        about = self._about()
        if self._merged_rows() == about["rows"]:
            return
        if [start for start, _ in ranges] != [0, *(stop for _, stop in ranges[:-1])] or ranges[-1][1] != about["rows"]:
            raise VitrailError(f"{self.folder}: pieces {list(ranges)} do not cover rows 0 to {about['rows']}")
        pieces = [self.folder / f"piece-{start:012d}-{stop:012d}.faiss" for start, stop in ranges]
        for path in pieces:
            if not path.with_suffix(".json").exists():
                raise VitrailError(f"{path}: this piece of the index was not built; build the index again")
            _check_seal(path, json.loads(path.with_suffix(".json").read_text()))
        _check_seal(self.folder / "trained.faiss", about["trained"])
        with atomic_dir(self.folder / "merged") as aside:
            index = _read(self.folder / "trained.faiss")
            merge_ondisk(index, [str(path) for path in pieces], str(aside / "lists.ivfdata"))
            _write(index, aside / "lists.faiss")
            seals = {name: _seal(aside / name) for name in ("lists.faiss", "lists.ivfdata")}
            _save(aside / "merged.json", {"rows": about["rows"], "files": seals})
        for path in pieces:
            path.unlink()
            path.with_suffix(".json").unlink()

    def verify(self) -> None:
        """Hash the merged index.

        Raises:
            VitrailError: it is missing, cut short, or not what was written.
        """
        for name, seal in self._merged()["files"].items():
            _check_seal(self.folder / "merged" / name, seal)

    def open(
        self, base: NDArray[Any], params: NeighbourParams, digest: str | None = None, *, verified: bool = False
    ) -> Neighbours:
        """The merged index over ``base`` [N, d], ready to search.

        ``digest``: of these descriptors, as given to :meth:`train`; None: only the shape is compared.
        ``verified``: :meth:`verify` was called in this run already, by the process that started this one; then only
        the files' lengths are looked at.

        Raises:
            VitrailError: as :meth:`verify`, or the index is of other descriptors than ``base``.
        """
        import faiss

        about = self._about()
        _match(self.folder, about, base)
        if digest is not None and digest != about["digest"]:
            raise VitrailError(
                f"{self.folder}: index and descriptors do not match: it was built from other descriptors; "
                "delete the folder and build the index again"
            )
        if verified:
            for name, seal in self._merged()["files"].items():
                _check_length(self.folder / "merged" / name, seal)
        else:
            self.verify()
        index = _read(self.folder / "merged/lists.faiss", faiss.IO_FLAG_ONDISK_SAME_DIR)
        if params.lists == "memory":
            index = indexes.to_device(indexes.in_memory(index), params.device)
        return Neighbours.over(base, params, index, about["factory"])

    def _about(self) -> dict[str, Any]:
        return _load(self.folder / "index.json")

    def _merged(self) -> dict[str, Any]:
        return _load(self.folder / "merged/merged.json")

    def _merged_rows(self) -> int:
        return int(self._merged()["rows"]) if (self.folder / "merged/merged.json").exists() else 0


def _match(folder: Path, about: dict[str, Any], base: NDArray[Any]) -> None:
    if base.shape != (about["rows"], about["dim"]):
        raise VitrailError(
            f"{folder}: index and descriptors do not match: it holds {about['rows']:,} rows of {about['dim']}, they "
            f"are {len(base):,} of {base.shape[-1]}; delete the folder and build the index again"
        )


def _read(path: Path, flags: int = 0) -> Any:
    import faiss

    return faiss.read_index(str(path), flags)


def _write(index: Any, path: Path) -> None:
    import faiss

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        faiss.write_index(index, str(aside))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sound(path: Path, seal: dict[str, Any]) -> bool:
    return path.exists() and path.stat().st_size == seal["bytes"] and _seal(path) == seal


def _check_length(path: Path, seal: dict[str, Any]) -> None:
    if not path.exists():
        raise VitrailError(f"{path}: this part of the index is missing; delete its folder and build it again")
    if path.stat().st_size != seal["bytes"]:
        raise VitrailError(
            f"{path}: {path.stat().st_size:,} bytes, written were {seal['bytes']:,}: the index is cut short or "
            "changed; delete its folder and build it again"
        )


def _check_seal(path: Path, seal: dict[str, Any]) -> None:
    _check_length(path, seal)
    if _seal(path)["sha256"] != seal["sha256"]:
        raise VitrailError(f"{path}: not the bytes that were written (SHA-256 differs); build the index again")


def _save(path: Path, content: object) -> None:
    with atomic_file(path, "w") as file:
        json.dump(content, file, indent=1)


def _load(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise VitrailError(f"{path}: no index here; build it first") from None
    except json.JSONDecodeError:
        raise VitrailError(f"{path}: not JSON; delete the folder and build the index again") from None
    return content


def _remove_folder(path: Path) -> None:
    import shutil

    if path.exists():
        shutil.rmtree(path)
