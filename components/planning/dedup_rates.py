"""How fast one machine does what dedup is made of: what :mod:`components.planning.dedup` multiplies counts by."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import Field

from components.dedup.copy_graph.disjoint import DisjointSet
from components.errors import VitrailError
from components.neighbours import NeighbourParams, Neighbours
from components.params import Strict, parse_params
from components.storage import atomic_file
from components.text import read_text

RESCORED = 16  # candidates an image scored exactly, as a rule (FIRST_ROUND in components/neighbours/search.py)


class DedupRates(Strict):
    """Of one machine, all its cores together."""

    cores: int = Field(ge=1, le=4096)
    gigaflops: float = Field(gt=0, le=1e15)  # of an fp32 matrix product
    codes: float = Field(gt=0, le=1e15)  # PQ codes of 16 bytes scanned a second
    rescored: float = Field(gt=0, le=1e15)  # descriptors read from memory, in no order, and compared, a second
    edges: float = Field(gt=0, le=10**12)  # joined in the disjoint set, a second, on one core
    megabytes: float = Field(gt=0, le=10_000_000)  # written to disk, a second
    memory: float = Field(64e9, gt=0, le=1e15)  # bytes
    # Descriptors read from disk in no order, a second. Not measured: caches would answer. An NVMe drive's data sheet
    # says 100,000 to 1,000,000 reads of 4 kB, a network volume's often 16,000.
    reads: float = Field(200_000, gt=0, le=1e15)


def load_rates(path: Path | None) -> DedupRates:
    """The rates in ``path``; measured now, and written there, where the file is missing or no path is given."""
    if path is not None and path.exists():
        try:
            return parse_params(json.loads(read_text(path)), DedupRates, str(path))
        except json.JSONDecodeError as fault:
            raise VitrailError(f"{path}: not JSON ({fault}); delete it to measure again") from None
    rates = measure()
    if path is not None:
        with atomic_file(path, "w") as file:
            json.dump(rates.model_dump(), file, indent=1)
    return rates


def measure(rows: int = 60_000, dim: int = 512, clock: Callable[[], float] = time.perf_counter) -> DedupRates:
    """Rates of this machine's processors, in about half a minute. ``clock``: seconds."""
    import psutil

    def seconds(work: Callable[[], object]) -> float:
        began = clock()
        work()
        return clock() - began

    generator = np.random.default_rng(0)
    base = generator.standard_normal((rows, dim), np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    few, many = base[:4096], base[:16384]
    product = seconds(lambda: few @ many.T)
    # One list: a search is then nothing but scanning every code, and scoring what is found.
    params = NeighbourParams(factory="IVF1,PQ32x4", nprobe=1, device="cpu")
    index, asked = Neighbours(base.astype(np.float16), params), base[:2048]
    short = seconds(lambda: index.search(asked, 4, floor=2.0))  # RESCORED candidates scored
    long = seconds(lambda: index.search(asked, 64))  # the same scan, 64 x 4 candidates scored
    rescored = len(asked) * (64 * params.candidates - RESCORED) / max(long - short, 1e-3)
    codes = len(asked) * rows / max(short - len(asked) * RESCORED / rescored, 1e-3)
    sets = DisjointSet(10 * rows)
    a, b = generator.integers(0, 10 * rows, (2, 1 << 20))
    union = seconds(lambda: sets.union(a, b))
    with tempfile.NamedTemporaryFile() as file:

        def write() -> None:
            file.write(base.data)
            file.flush()
            os.fsync(file.fileno())

        written = seconds(write)
    return DedupRates(
        cores=os.cpu_count() or 1,
        gigaflops=2 * len(few) * len(many) * dim / product / 1e9,
        codes=codes,
        rescored=rescored,
        edges=len(a) / union,
        megabytes=base.nbytes / 1e6 / written,
        memory=psutil.virtual_memory().total,
    )
