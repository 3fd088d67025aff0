"""Edges among a million descriptors: time, recall and memory of the coded index against exact search.

    python -m perf neighbours          100 k and 1 M rows; with VITRAIL_PERF_LARGE=1 also 4 M, for the growth

Beside it: the index as the stage builds it (pieces on disk, merged, hashed, opened), and what the codes alone lose,
which says how many bytes a code should have.

Rows are uniform on the sphere, which is where inverted lists help least, and what SSCD's entropy term drives at; a
tenth of them copy another row at a cosine drawn from 0.46 to 1. Every other pair stays below 0.35, so the planted pairs
are all the edges there are. Exact time is that of a slice of queries over the whole base, times the number of slices;
both FAISS' own exact index and one plain matrix product with top-k are timed. So is ours, over whole query blocks
spread over the base: building is measured whole.
"""

from __future__ import annotations

import itertools
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.neighbours import IndexFolder, NeighbourParams, Neighbours, factory_for

DIM, K, FLOOR = 512, 64, 0.45
QUERIES = 8192  # of ours that are timed: sampled originals and their copies
EXACT_QUERIES = 256
BANDS = ((0.46, 0.6), (0.6, 0.65), (0.65, 0.75), (0.75, 0.9), (0.9, 1.0))


def main() -> dict[str, object]:
    """Figures for each size."""
    sizes = [100_000, 1_000_000] + ([4_000_000] if os.environ.get("VITRAIL_PERF_LARGE") else [])
    sizes_found: dict[str, object] = {f"{size:,} x {DIM}": measure(size) for size in sizes}
    return sizes_found | {"as the stage builds it": on_disk(100_000), "codes": codes()}


def on_disk(count: int, pieces: int = 4) -> dict[str, object]:
    """Recall and seconds of the index in memory and of the same built in pieces, merged and opened from disk."""
    rows, originals, cosine = plant(count)
    params = NeighbourParams(flat_up_to=count // 2)
    strong = np.flatnonzero(cosine >= 0.6)[:2048]
    copies = count - len(originals) + strong
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "rows.npy", rows)
        base = np.load(Path(name) / "rows.npy", mmap_mode="r")

        def built() -> Neighbours:
            folder = IndexFolder(Path(name) / "index")
            folder.train(base, "perf", params)
            bounds = np.linspace(0, count, pieces + 1).astype(int).tolist()
            ranges = list(itertools.pairwise(bounds))
            for start, stop in ranges:
                folder.build_piece(base, start, stop, params)
            folder.merge(ranges)
            return folder.open(base, params, "perf")

        for way, make in (("in memory", lambda: Neighbours(rows, params)), ("pieces, merged, opened", built)):
            began = time.perf_counter()
            index = make()
            ready = time.perf_counter()
            _, of_copies = index.search(rows[copies], K, FLOOR)
            _, of_originals = index.search(rows[originals[strong]], K, FLOOR)
            done = time.perf_counter()
            hit = (of_copies == originals[strong, None]).any(1) | (of_originals == copies[:, None]).any(1)
            found[way] = {
                "recall over 0.6": round(float(hit.mean()), 4),
                "build_seconds": round(ready - began, 1),
                "search_seconds": round(done - ready, 2),
            }
    return found


def codes(count: int = 1 << 17, pairs: int = 1000) -> dict[str, object]:
    """What codes alone lose: the place of the only near row among ``count``, by its code, every code looked at.

    Place r of n rows is about place r N / n of N: the first among 131,072 is within the 256 candidates (4 x k) of 33
    million looked at; of 1.3 billion in 2^20 lists a query looks at 14 million.
    """
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((count, DIM), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found: dict[str, object] = {}
    for name in ("PQ32x4", "PQ64x4", "PQ128x4", "PQ32", "PQ64"):
        params = NeighbourParams(factory=f"IVF1,{name}", nprobe=1, train_per_list=10_000)
        index = Neighbours(rows, params)._candidates  # before exact scores mend the order
        lines: dict[str, object] = {}
        for cosine in (0.45, 0.6):
            other = generator.standard_normal((pairs, DIM)).astype(np.float32)
            other -= (other * rows[:pairs]).sum(1, keepdims=True) * rows[:pairs]
            other /= np.linalg.norm(other, axis=1, keepdims=True)
            queries = cosine * rows[:pairs] + np.sqrt(1 - cosine**2) * other
            began = time.perf_counter()
            _, ids = index(queries.astype(np.float32), 16)
            spent = time.perf_counter() - began
            place = np.where(ids == np.arange(pairs)[:, None], np.arange(16), 99).min(1)
            lines[f"first, at {cosine}"] = round(float((place == 0).mean()), 4)
            lines[f"among 16, at {cosine}"] = round(float((place < 16).mean()), 4)
            lines["nanoseconds a code"] = round(1e9 * spent / pairs / count, 2)
        found[name] = lines
        print(name, lines, flush=True)
    return found


def plant(count: int) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.float32]]:
    """Descriptors [count, DIM] fp16; the planted copies' rows are the last tenth; originals [copies], cosines."""
    generator = np.random.default_rng(0)
    copies = count // 10
    rows = np.empty((count, DIM), np.float16)
    for start in range(0, count, 1 << 16):
        block = generator.standard_normal((min(1 << 16, count - start), DIM), np.float32)
        rows[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    originals = generator.permutation(count - copies)[:copies]
    cosine = generator.uniform(0.46, 1, copies).astype(np.float32)
    for start in range(0, copies, 1 << 16):
        part = slice(start, min(start + (1 << 16), copies))
        source = rows[originals[part]].astype(np.float32)
        other = rows[count - copies :][part].astype(np.float32)
        other -= (other * source).sum(1, keepdims=True) * source
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        c = cosine[part, None]
        rows[count - copies :][part] = c * source + np.sqrt(1 - c * c) * other
    return rows, originals, cosine


def measure(count: int) -> dict[str, object]:
    """Recall by band of cosine, seconds, the ratio to exact search and this process's peak memory."""
    rows, originals, cosine = plant(count)
    params = NeighbourParams(flat_up_to=50_000)
    began = time.perf_counter()
    index = Neighbours(rows, params)
    built = time.perf_counter() - began
    # Both ends of the same edges are asked, for a self-join asks every row.
    pairs = np.sort(np.random.default_rng(1).permutation(len(originals))[: QUERIES // 2])
    copies = count - len(originals) + pairs
    began = time.perf_counter()
    _, of_copies = index.search(rows[copies], K, FLOOR)
    _, of_originals = index.search(rows[originals[pairs]], K, FLOOR)
    asked = (time.perf_counter() - began) / (2 * len(pairs)) * count
    found = (of_copies == originals[pairs, None]).any(1) | (of_originals == copies[:, None]).any(1)
    recall = {
        f"{low} to {high}": round(float(found[(cosine[pairs] >= low) & (cosine[pairs] < high)].mean()), 4)
        for low, high in BANDS
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    del index
    faiss_exact, plain = (exact(rows) * count / EXACT_QUERIES for exact in (_faiss_exact, _plain_exact))
    whole = built + asked
    return {
        "index": factory_for(count, DIM, params, gpu=False),
        "recall over 0.6": round(float(found[cosine[pairs] >= 0.6].mean()), 4),
        "recall over 0.45": round(float(found.mean()), 4),
        "recall by cosine": recall,
        "build_seconds": round(built, 1),
        "search_seconds (from a slice)": round(asked, 1),
        "microseconds_a_row": round(whole / count * 1e6, 1),
        "faiss_exact_seconds (from a slice)": round(faiss_exact),
        "plain_product_seconds (from a slice)": round(plain),
        "of faiss exact": f"1/{faiss_exact / whole:.0f}",
        "of plain product": f"1/{plain / whole:.0f}",
        "peak_gigabytes": round(peak, 2),
    }


def _faiss_exact(rows: NDArray[np.float16]) -> float:
    """Seconds for :data:`EXACT_QUERIES` of FAISS' exact index over all rows, which it is given in blocks."""
    spent = 0.0
    queries = rows[:EXACT_QUERIES]
    for start in range(0, len(rows), 1 << 18):
        index = Neighbours(rows[start : start + (1 << 18)], NeighbourParams(flat_up_to=1 << 18))
        began = time.perf_counter()
        index.search(queries, K)
        spent += time.perf_counter() - began
    return spent


def _plain_exact(rows: NDArray[np.float16]) -> float:
    """Seconds for the same by one matrix product and top-k a block of the base."""
    import torch

    spent = 0.0
    queries = torch.from_numpy(rows[:EXACT_QUERIES]).float()
    for start in range(0, len(rows), 1 << 18):
        block = torch.from_numpy(rows[start : start + (1 << 18)]).float()
        began = time.perf_counter()
        (queries @ block.T).topk(K, dim=1)
        spent += time.perf_counter() - began
    return spent
