"""Which of an original and its scripted copy ``graph.keep: quality`` keeps, beside ``largest``: shares by edit.

    python -m perf keep

120 photographs of the development data, every third as PNG, the others as the JPEG files that they are; each against
each of the copies of perf/keep_edits.py, two files a component. ``largest`` alone is what was kept before: the larger
area, and of equal areas neither, which is counted as a half.
"""

from __future__ import annotations

import numpy as np

from perf.copies import SHARED
from perf.keep_edits import decoded, edits, png

PHOTOGRAPHS, STRANGERS, SEED = 120, 40, 1


def main() -> dict[str, object]:
    """Percent of originals kept."""
    if not SHARED.exists():
        return {"left out": f"no {SHARED.name} beside the checkout"}
    import pyarrow.parquet as pq

    files = pq.read_table(SHARED, columns=["image"])["image"].to_pylist()
    order = np.random.default_rng(SEED).permutation(len(files))
    others = [decoded(files[row]) for row in order[-STRANGERS:]]
    originals = [files[row] if n % 3 else png(decoded(files[row])) for n, row in enumerate(order[:PHOTOGRAPHS])]
    return shares(originals, others)


def shares(originals: list[bytes], others: list[np.ndarray]) -> dict[str, object]:
    """The shares for files of ``originals``; ``others`` are pictures that fill collages."""
    from components.dedup.pool.quality import measure, ranks

    generator = np.random.default_rng(SEED)
    names, measured, areas = [], [], []
    for data in originals:
        picture = decoded(data)
        own = measure(data, picture)
        for name, make in edits(picture, others, generator):
            copy = make()
            shown = decoded(copy)
            names.append(name)
            measured += [[*own], [*measure(copy, shown)]]
            areas.append((picture.shape[0] * picture.shape[1], shown.shape[0] * shown.shape[1]))
    groups = np.repeat(np.arange(len(names)), 2)
    scores = ranks(np.asarray(measured), groups).reshape(-1, 2)
    kept = scores[:, 0] > scores[:, 1]
    by_area = np.array([(a > b) + 0.5 * (a == b) for a, b in areas])
    of = np.array(names)
    found = {name: round(100 * float(kept[of == name].mean()), 1) for name in dict.fromkeys(names)}
    return {
        "originals": len(originals),
        "kept, %": round(100 * float(kept.mean()), 1),
        "kept by largest, %": round(100 * float(by_area.mean()), 1),
        "kept, % by edit": found,
    }
