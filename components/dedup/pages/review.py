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

from components.dedup.decisions.decide import HELD_OUT, IDENTICAL
from components.dedup.pages.sweep import SweepPoint
from components.dedup.pool.extract import read_picture
from components.dedup.pool.images import INDEX_NAME
from components.descriptors.views import Views, reduce
from components.evaluation.sets.benchmarks import Benchmark
from components.images.samples import RGB
from components.images.shards import Shards
from components.storage import StorageParams, atomic_file
from components.tables.parts import parts as table_parts
from components.tables.schemas import DECISIONS, INDEX

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

    curated: Path  # where pictures and addresses come from
    storage: StorageParams
    decisions: Path  # tables.DECISIONS
    sets: Mapping[str, Benchmark]  # for the held-out images and the queries
    views: Views  # that the decisions number


def write_review(
    connection: Any,
    path: Path,
    reviewed: Reviewed,
    outcomes: Sequence[SweepPoint],
    thresholds: tuple[float, float],
    limit: int,
) -> None:
    """Write the page to ``path``.

    Args:
        connection: of components.tables.database, which the few rows that are shown are picked by.
        path: of the HTML file.
        reviewed: what it shows.
        outcomes: of the threshold sweep.
        thresholds: in force, for self-dedup and against held-out images.
        limit: groups, and pairs, shown of each kind.
    """
    page = _Page(connection, reviewed)
    caught, retrieved = f"reason IN ('{HELD_OUT}', '{IDENTICAL}') AND contains(match, '/')", "reason LIKE 'retrieved:%'"
    parts = [
        "<!doctype html><meta charset=utf-8><title>Dedup review</title>",
        f"<style>{STYLE}</style><h1>Dedup review</h1>",
        f"<p>{html.escape(page.counts())}</p>",
        "<h2>What each threshold would drop</h2>",
        f"<p>In force: {thresholds[0]:.4f} for self-dedup, {thresholds[1]:.4f} against held-out images (bold).</p>",
        _sweep_table(outcomes, thresholds),
        f"<h2>Duplicate groups</h2><p>Up to {limit}, spread over the sizes; the kept image first, if one is. Each "
        "other shows the cosine that decided, of which views, and to which image.</p>",
        *page.groups(limit),
        f"<h2>Caught by relative dedup</h2><p>The {limit} least alike, each with the held-out image it resembles.</p>",
        *page.pairs(caught, limit),
        f"<h2>Queries and what they retrieved</h2><p>The {limit} least alike, the query second.</p>",
        *page.pairs(retrieved, limit),
    ]
    with atomic_file(path, "w") as file:
        file.write("\n".join(parts))


class _Page:
    """The rows of a page: a few, picked by queries."""

    def __init__(self, connection: Any, reviewed: Reviewed) -> None:
        self._connection, self._views = connection, reviewed.views
        self._store = Shards.load(reviewed.curated).store(reviewed.curated, reviewed.storage)
        self._decisions = [str(path) for path in table_parts(reviewed.decisions, DECISIONS)]
        self._index = [str(path) for path in table_parts(reviewed.curated / INDEX_NAME, INDEX)]
        self._labelled = {key: (one, i) for one in reviewed.sets.values() for i, key in enumerate(one.keys)}

    def _ask(self, query: str, **values: object) -> list[dict[str, Any]]:
        given = {"decisions": self._decisions} | values
        used = {name: value for name, value in given.items() if f"${name}" in query}
        found: list[dict[str, Any]] = self._connection.sql(query, params=used).to_arrow_table().to_pylist()
        return found

    def counts(self) -> str:
        """How many images there are, and of each reason."""
        rows = self._ask("SELECT reason, count(*) AS n FROM read_parquet($decisions) GROUP BY reason ORDER BY reason")
        total = sum(row["n"] for row in rows)
        return f"{total:,} images. " + ", ".join(f"{row['reason']} {row['n']:,}" for row in rows)

    def groups(self, limit: int) -> list[str]:
        """Components of two and more, as figures."""
        counted = "SELECT component, count(*) AS size FROM read_parquet($decisions) GROUP BY component HAVING size > 1"
        (total,) = (row["n"] for row in self._ask(f"SELECT count(*) AS n FROM ({counted})"))
        places = sorted({round(i) for i in np.linspace(0, total - 1, min(limit, total))})
        chosen = self._ask(
            f"""SELECT component, size FROM (SELECT *, row_number() OVER (ORDER BY size DESC, component) - 1 AS place
                FROM ({counted})) WHERE place IN (SELECT unnest($places)) ORDER BY size DESC, component""",
            places=places,
        )
        shown = []
        for group in chosen:
            rows = self._ask(
                f"""SELECT * FROM read_parquet($decisions) WHERE component = $component
                    ORDER BY representative <> key, key LIMIT {WIDE}""",
                component=group["component"],
            )
            figures = self._figures(rows)
            more = f"<p>and {group['size'] - WIDE:,} more</p>" if group["size"] > WIDE else ""
            whole = "" if rows[0]["representative"] else "<p>Dropped whole: none is kept.</p>"
            shown.append(f"<div class=group>{whole}{''.join(figures)}{more}</div>")
        return shown or ["<p>None.</p>"]

    def pairs(self, condition: str, limit: int) -> list[str]:
        """The least alike of the decisions of that ``condition``, each with what it was compared with."""
        rows = self._ask(
            f"SELECT * FROM read_parquet($decisions) WHERE {condition} ORDER BY similarity, key LIMIT {limit}"
        )
        shown = []
        for row, figure in zip(rows, self._figures(rows), strict=True):
            figures = [figure]
            if row["match"] in self._labelled:
                one, number = self._labelled[row["match"]]
                figures.append(_picture(one.images.rgb(number), row["match"], f"{row['similarity']:.3f}"))
            shown.append(f"<div class=group>{''.join(figures)}</div>")
        return shown or ["<p>None.</p>"]

    def _figures(self, decisions: Sequence[Mapping[str, Any]]) -> list[str]:
        keys = sorted({row["key"] for row in decisions} | {row["match"] for row in decisions})
        query = """SELECT key, url, shard, "offset", length FROM read_parquet($index)
            WHERE status = 'kept' AND key IN (SELECT unnest($keys))"""
        places = {place["key"]: place for place in self._ask(query, index=self._index, keys=keys)}
        return [
            _picture(read_picture(self._store, places[row["key"]]), places[row["key"]]["url"], self._note(row, places))
            for row in decisions
        ]

    def _note(self, decision: Mapping[str, Any], places: Mapping[str, Mapping[str, Any]]) -> str:
        """The reason, and the comparison that decided."""
        note, similarity = str(decision["reason"]), decision["similarity"]
        if similarity != similarity:
            return note
        note += f" {similarity:.3f}"
        if decision["view"] > 0:
            note += f", its view: {self._views.name(decision['view'])}"
        if decision["match"] in places:
            note += f", to {places[decision['match']]['url']}"
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


def _sweep_table(outcomes: Sequence[SweepPoint], thresholds: tuple[float, float]) -> str:
    """Bold: what is in force, by the self-dedup threshold (the first columns) and the one against held-out images."""
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in SweepPoint._fields)
    of_self = {"duplicates", "groups", "largest"}
    lines = []
    for one in outcomes:
        cells = [f"<td>{one.threshold:.4f}</td>"]
        for name, value in zip(SweepPoint._fields[1:], one[1:], strict=True):
            force = one.threshold == thresholds[0 if name in of_self else 1]
            cells.append(f"<td{' class=in-force' if force else ''}>{value:,}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def sweep_thresholds(floor: float, in_force: Sequence[float]) -> list[float]:
    """Every twentieth from ``floor`` up, and the thresholds in force, exactly as they are."""
    steps: NDArray[np.float64] = np.arange(np.ceil(floor * 20), 20) / 20
    return sorted({*steps.round(2).tolist(), *in_force})
