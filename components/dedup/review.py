"""One HTML file to look dedup's decisions over: what each threshold would drop, and the pictures behind decisions.

Everything is in the file, pictures as small JPEGs; addresses and names from the crawl are escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.dedup.decide import HELD_OUT
from components.dedup.extract import Pool
from components.dedup.pictures import duplicate_groups
from components.dedup.sweep import Outcome
from components.descriptors.views import RGB, Views, reduce
from components.evaluation.benchmarks import Benchmark
from components.storage import atomic_file

SIDE = 96  # pixels of a picture's short side
WIDE = 8  # pictures of a group
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; max-width: 80em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
td.in-force { font-weight: bold; }
.group { display: flex; flex-wrap: wrap; gap: .6em; margin: .6em 0; padding: .6em; background: #f4f4f4; }
figure { margin: 0; width: 9em; } figure img { max-width: 9em; max-height: 9em; }
figcaption { font-size: 11px; overflow-wrap: anywhere; color: #444; }
"""


@dataclass(frozen=True)
class Reviewed:
    """What a page is about."""

    pool: Pool  # where pictures and addresses come from
    decisions: Sequence[Mapping[str, Any]]  # rows of tables.DECISIONS, one a row of the pool, in its order
    sets: Mapping[str, Benchmark]  # for the held-out images and the queries
    views: Views  # that the decisions number


def write_review(
    path: Path, reviewed: Reviewed, outcomes: Sequence[Outcome], thresholds: tuple[float, float], limit: int
) -> None:
    """Write the page to ``path``.

    Args:
        path: of the HTML file.
        reviewed: what it shows.
        outcomes: of the threshold sweep.
        thresholds: in force, for self-dedup and against held-out images.
        limit: groups, and pairs, shown of each kind.
    """
    page, decisions = _Page(reviewed), reviewed.decisions
    parts = [
        "<!doctype html><meta charset=utf-8><title>Dedup review</title>",
        f"<style>{STYLE}</style><h1>Dedup review</h1>",
        f"<p>{len(reviewed.pool):,} images. {html.escape(_counts(decisions))}</p>",
        "<h2>What each threshold would drop</h2>",
        f"<p>In force: {thresholds[0]:.4f} for self-dedup, {thresholds[1]:.4f} against held-out images (bold).</p>",
        _sweep_table(outcomes, thresholds),
        f"<h2>Duplicate groups</h2><p>Up to {limit}, spread over the sizes; the kept image first, if one is. Each "
        "other shows the cosine that decided, of which views, and to which image.</p>",
        *page.groups(decisions, limit),
        f"<h2>Caught by relative dedup</h2><p>The {limit} least alike, each with the held-out image it resembles.</p>",
        *page.pairs([row for row in decisions if row["reason"] == HELD_OUT and "/" in row["match"]], limit),
        f"<h2>Queries and what they retrieved</h2><p>The {limit} least alike, the query second.</p>",
        *page.pairs([row for row in decisions if str(row["reason"]).startswith("retrieved:")], limit),
    ]
    with atomic_file(path, "w") as file:
        file.write("\n".join(parts))


class _Page:
    def __init__(self, reviewed: Reviewed) -> None:
        pool = reviewed.pool
        self._pool, self._store, self._views = pool, pool.store(), reviewed.views
        self._row = {key: row for row, key in enumerate(pool.keys)}
        self._labelled = {key: (one, i) for one in reviewed.sets.values() for i, key in enumerate(one.keys)}
        self._urls: list[str] = pool.rows["url"].to_pylist()

    def groups(self, decisions: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
        labels = np.array([row["component"] for row in decisions], np.int64)
        # Of a component that was dropped whole none is kept: its smallest row comes first.
        named = [self._row.get(row["representative"], row["component"]) for row in decisions]
        shown = []
        for group in duplicate_groups(labels, np.array(named, np.int64), limit):
            figures = [self._figure(row, decisions[row]) for row in group[:WIDE]]
            more = f"<p>and {len(group) - WIDE:,} more</p>" if len(group) > WIDE else ""
            whole = "" if decisions[group[0]]["representative"] else "<p>Dropped whole: none is kept.</p>"
            shown.append(f"<div class=group>{whole}{''.join(figures)}{more}</div>")
        return shown or ["<p>None.</p>"]

    def pairs(self, rows: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
        chosen = sorted(rows, key=lambda row: (row["similarity"], row["key"]))[:limit]
        shown = []
        for row in chosen:
            figures = [self._figure(self._row[row["key"]], row)]
            if row["match"] in self._labelled:
                one, number = self._labelled[row["match"]]
                figures.append(_picture(one.images.rgb(number), row["match"], f"{row['similarity']:.3f}"))
            shown.append(f"<div class=group>{''.join(figures)}</div>")
        return shown or ["<p>None.</p>"]

    def _figure(self, row: int, decision: Mapping[str, Any]) -> str:
        return _picture(self._pool.rgb(row, self._store), self._urls[row], self._note(decision))

    def _note(self, decision: Mapping[str, Any]) -> str:
        """The reason, and the comparison that decided."""
        note, similarity = str(decision["reason"]), decision["similarity"]
        if similarity != similarity:
            return note
        note += f" {similarity:.3f}"
        if decision["view"] > 0:
            note += f", its view: {self._views.name(decision['view'])}"
        if decision["match"] in self._row:
            note += f", to {self._urls[self._row[decision['match']]]}"
        if decision["match_view"] > 0:
            note += f", the other's view: {self._views.name(decision['match_view'])}"
        return note


def _picture(rgb: RGB, name: str, note: str) -> str:
    from components.images.decode import encode_jpeg

    data = base64.b64encode(encode_jpeg(reduce(rgb, SIDE), 75)).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{html.escape(note)}<br>'
        f"{html.escape(name)}</figcaption></figure>"
    )


def _sweep_table(outcomes: Sequence[Outcome], thresholds: tuple[float, float]) -> str:
    """Bold: what is in force, by the self-dedup threshold (the first columns) and the one against held-out images."""
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in Outcome._fields)
    of_self = {"duplicates", "groups", "largest"}
    lines = []
    for one in outcomes:
        cells = [f"<td>{one.threshold:.4f}</td>"]
        for name, value in zip(Outcome._fields[1:], one[1:], strict=True):
            force = one.threshold == thresholds[0 if name in of_self else 1]
            cells.append(f"<td{' class=in-force' if force else ''}>{value:,}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _counts(decisions: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for row in decisions:
        counts[str(row["reason"])] = counts.get(str(row["reason"]), 0) + 1
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))


def sweep_thresholds(floor: float, in_force: Sequence[float]) -> list[float]:
    """Every twentieth from ``floor`` up, and the thresholds in force, exactly as they are."""
    steps: NDArray[np.float64] = np.arange(np.ceil(floor * 20), 20) / 20
    return sorted({*steps.round(2).tolist(), *in_force})
