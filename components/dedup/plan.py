"""What deduplicating N images takes: index, memory, disk, hours, from rates measured on the machine at hand.

Every figure is a product of a count and a rate, so it can be checked by hand. The rates come from half a minute of the
same work on random descriptors, on all cores at once; what is planned for other cores is scaled by their number.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from components.dedup.disjoint import DisjointSet
from components.errors import VitrailError
from components.neighbours import NeighbourParams, Neighbours, factory_for, lists_of, probes_for
from components.params import Strict, parse_params
from components.progress import duration
from components.storage import atomic_file

if TYPE_CHECKING:
    from components.dedup.stage import DedupParams

LARGEST = 2_000_000_000  # images that a plan is made for
EDGES_PER_IMAGE = 2.0  # over the floor; on LVD-142M's scale one image in two is a copy (1.3e9 -> 744M)
RESCORED = 16  # candidates an image scored exactly, as a rule (FIRST_ROUND in components/neighbours/search.py)
ITERATIONS = 10  # of the k-means that trains the lists
HNSW_STEPS = 16.0  # centres that an HNSW graph compares a query with, for each list visited; FAISS' wiki: 10 to 20


class Rates(Strict):
    """Of one machine, all its cores together."""

    cores: int = Field(ge=1)
    gigaflops: float = Field(gt=0)  # of an fp32 matrix product
    codes: float = Field(gt=0)  # PQ codes scanned a second, by 16 bytes
    rescored: float = Field(gt=0)  # descriptors of 512 numbers, read from memory and compared, a second
    edges: float = Field(gt=0)  # joined in the disjoint set, a second, on one core
    megabytes: float = Field(gt=0)  # written to disk, a second


def load_rates(path: Path | None) -> Rates:
    """The rates in ``path``; measured now, and written there, where the file is missing or no path is given."""
    if path is not None and path.exists():
        try:
            return parse_params(json.loads(path.read_text()), Rates, str(path))
        except json.JSONDecodeError as fault:
            raise VitrailError(f"{path}: not JSON ({fault}); delete it to measure again") from None
    rates = measure()
    if path is not None:
        with atomic_file(path, "w") as file:
            json.dump(rates.model_dump(), file, indent=1)
    return rates


def measure(rows: int = 60_000, dim: int = 512) -> Rates:
    """Rates of this machine, in about half a minute."""
    generator = np.random.default_rng(0)
    base = generator.standard_normal((rows, dim), np.float32)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    began = time.perf_counter()
    base[:4096] @ base[:16384].T
    flops = 2 * 4096 * 16384 * dim / (time.perf_counter() - began)
    # One list: a search is then nothing but scanning every code, and scoring what is found.
    params = NeighbourParams(factory="IVF1,PQ32x4", nprobe=1)
    index = Neighbours(base.astype(np.float16), params)
    began = time.perf_counter()
    index.search(base[:2048], 4, floor=2.0)
    few = time.perf_counter() - began
    began = time.perf_counter()
    index.search(base[:2048], 64)  # the same scan, 256 candidates scored instead of 16
    rescored = 2048 * (256 - RESCORED) / max(time.perf_counter() - began - few, 1e-3)
    codes = 2048 * rows / max(few - 2048 * RESCORED / rescored, 1e-3)
    sets = DisjointSet(10 * rows)
    a, b = generator.integers(0, 10 * rows, (2, 1 << 20))
    began = time.perf_counter()
    sets.union(a, b)
    edges = len(a) / (time.perf_counter() - began)
    with tempfile.NamedTemporaryFile() as file:
        began = time.perf_counter()
        file.write(base.data)
        file.flush()
        os.fsync(file.fileno())
        written = base.nbytes / 1e6 / (time.perf_counter() - began)
    return Rates(
        cores=os.cpu_count() or 1,
        gigaflops=flops / 1e9,
        codes=codes,
        rescored=rescored,
        edges=edges,
        megabytes=written,
    )


def plan(
    images: float,
    dim: int,
    params: DedupParams,
    rates: Rates,
    cores: int | None = None,
    described: float | None = None,
) -> str:
    """The plan, to read. ``described``: images described a second; None: that line says what to measure.

    Raises:
        VitrailError: a number of images or cores that no plan is made for.
    """
    if not 1 <= images <= LARGEST:
        raise VitrailError(f"--images {images:g}: choose between 1 and {LARGEST:,}")
    if cores is not None and cores < 1:
        raise VitrailError(f"--cores {cores}: choose 1 or more")
    count, each = int(images), 1 + sum(side * side for _, side in params.windows)
    rows, near = count * each, params.neighbours
    cores = cores or rates.cores
    scale = cores / rates.cores
    factory = factory_for(rows, dim, near, gpu=False)
    lists, probes = lists_of(factory), probes_for(factory, near)
    coded = near.pq_bytes if lists else 4 * dim
    flops, train = rates.gigaflops * 1e9 * scale, near.train_per_list * lists
    coarse = probes * HNSW_STEPS if "HNSW" in factory else lists  # centres compared a query
    scanned = rows * (probes / lists if lists else 0)
    memory = {
        "codes and row numbers": rows * (coded + 8 if lists else coded),
        "centres of the lists": lists * dim * 4 * (1.25 if "HNSW" in factory else 1),
        "training sample": train * dim * 4,
        "disjoint set": count * 4,
        "labels, representatives, scores": count * 24,
    }
    disk = {
        "descriptors, fp16": rows * dim * 2,
        "index and its pieces while merging": 2 * rows * (coded + 8) if lists else 0,
        "edges": count * EDGES_PER_IMAGE * 20,
    }
    seconds = {
        **({"describe": images / described} if described else {}),
        "train the lists": 2 * train * lists * dim * ITERATIONS / flops,
        "fill the index": 2 * rows * coarse * dim / flops
        + disk["index and its pieces while merging"] / 1e6 / rates.megabytes,
        "search: centres": 2 * count * coarse * dim / flops,
        "search: codes": count * scanned * (coded / 16) / (rates.codes * scale),
        "search: exact scores": count * RESCORED / (rates.rescored * scale) if lists else 0,
        "search: exact": 0 if lists else 2 * count * rows * dim / flops,
        "components": count * EDGES_PER_IMAGE / rates.edges,
    }
    lines = [
        f"{count:,} images, {rows:,} descriptors of {dim}, on {cores} cores (rates of {rates.cores})",
        f"index: {factory}" + (f", {probes} of {lists:,} lists visited" if lists else " (exact)"),
        *_block("memory", {name: _bytes(value) for name, value in memory.items()}, _bytes(sum(memory.values()))),
        *_block("disk", {name: _bytes(value) for name, value in disk.items()}, _bytes(sum(disk.values()))),
        *_block("time", {name: duration(value) for name, value in seconds.items()}, duration(sum(seconds.values()))),
    ]
    if not described:
        lines.append("describing is left out: give --images-per-second of your descriptor and machines")
    return "\n".join(lines)


def _block(title: str, values: dict[str, str], total: str) -> list[str]:
    width = max(map(len, values))
    return [
        f"{title}:",
        *(f"  {name:{width}}  {value:>12}" for name, value in values.items()),
        f"  {'in all':{width}}  {total:>12}",
    ]


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
