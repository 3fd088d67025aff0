"""PCA hashes of a pool: fitted on a sample, then computed part by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.curate.duplicates.facts import left_of
from components.curate.duplicates.near import HASHED
from components.curate.duplicates.pca_hash import SIDE, Bytes, PcaHash, load
from components.storage import atomic_file


@dataclass(frozen=True)
class HashItem:
    """One part of rows, with what decoding found and what was dropped since."""

    facts: Path
    copies: Path  # exact ones
    examined: tuple[Path, ...]
    out: Path
    artifact: Path | None = None  # the hash
    sample: npt.NDArray[np.int64] | None = None  # which of the part's images are wanted, ascending; None: all


def sample_thumbnails(item: HashItem) -> Path:
    """Write the thumbnails ``[n, 1024]`` (uint8, .npy) of the part's sample; skipped if the file is there."""
    if not item.out.exists():
        left = left_of(item.facts, [item.copies])
        rows = left["row"].to_numpy()[item.sample if item.sample is not None else slice(None)]
        with atomic_file(item.out) as file:
            np.save(file, _thumbnails(item.examined, rows))
    return item.out


def hash_part(item: HashItem) -> Path:
    """Write the hashes (:data:`HASHED`) of the part's images that have one; skipped if the file is there."""
    from threadpoolctl import threadpool_limits

    if item.out.exists() or item.artifact is None:
        return item.out
    left = left_of(item.facts, [item.copies])
    thumbnails = _thumbnails(item.examined, left["row"].to_numpy())
    with threadpool_limits(1):  # in however many threads: the last bit of a product must not depend on it
        codes, usable = load(item.artifact)(thumbnails)
    area = pc.multiply(left["width"].cast(pa.int64()), left["height"].cast(pa.int64()))
    table = pa.table({"row": left["row"], "area": area}).filter(pa.array(usable))
    table = table.append_column("hash", pa.array([code.tobytes().hex() for code in codes[usable]], pa.string()))
    with atomic_file(item.out) as file:
        pq.write_table(table.select(HASHED.names), file)
    return item.out


def _thumbnails(examined: Iterable[Path], rows: npt.NDArray[np.int64]) -> Bytes:
    """uint8 ``[n, 1024]``: the thumbnails of ``rows``, ascending."""
    found = [np.zeros((0, SIDE**2), np.uint8)]
    wanted = pa.array(rows)
    for path in examined:
        table = pq.read_table(path, columns=["row", "thumbnail"])
        blobs = table.filter(pc.is_in(table["row"], wanted))["thumbnail"]
        joined = b"".join(blobs.to_pylist())
        found.append(np.frombuffer(joined, np.uint8).reshape(-1, SIDE**2))
    return np.concatenate(found)


def fitted(samples: Sequence[Path]) -> Bytes:
    """The thumbnails of all ``samples``, in their order."""
    return np.concatenate([np.zeros((0, SIDE**2), np.uint8), *(np.load(path) for path in samples)])


def saved(hashing: PcaHash | None, path: Path) -> None:
    """Keep a hash in the work folder, and that there is none as well."""
    if hashing is not None:
        hashing.save(path.parent, {})
    with atomic_file(path.with_suffix(".done"), "w") as file:
        file.write("fitted" if hashing is not None else "none")
