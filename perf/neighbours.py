"""Edges among a million descriptors: time, recall and memory of the coded index against exact search.

    python -m perf neighbours          100 k and 1 M rows; with VITRAIL_PERF_LARGE=1 also 4 M, for the growth

Rows are uniform on the sphere, which is where inverted lists help least, and what SSCD's entropy term drives at; a
tenth of them copy another row at a cosine drawn from 0.46 to 1. Every other pair stays below 0.35, so the planted pairs
are all the edges there are. Exact time is that of a slice of queries over the whole base, times the number of slices;
both FAISS' own exact index and one plain matrix product with top-k are timed. So is ours, over whole query blocks
spread over the base: building is measured whole.
"""

from __future__ import annotations

import os
import resource
import time

import numpy as np
from numpy.typing import NDArray

from components.neighbours import NeighbourParams, Neighbours, factory_for

DIM, K, FLOOR = 512, 64, 0.45
QUERIES = 8192  # of ours that are timed: sampled originals and their copies
EXACT_QUERIES = 256
BANDS = ((0.46, 0.6), (0.6, 0.65), (0.65, 0.75), (0.75, 0.9), (0.9, 1.0))


def main() -> dict[str, object]:
    """Figures for each size."""
    sizes = [100_000, 1_000_000] + ([4_000_000] if os.environ.get("VITRAIL_PERF_LARGE") else [])
    return {f"{size:,} x {DIM}": measure(size) for size in sizes}


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
