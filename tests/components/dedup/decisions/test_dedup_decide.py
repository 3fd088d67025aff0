"""Decisions by joins against decisions by plain Python, and under a limit of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.dedup import resolve
from components.dedup.copy_graph.edges import EdgeParts, Edges, part_path, write_part
from components.dedup.copy_graph.graph import components
from components.dedup.decisions import decide
from components.dedup.decisions.files import ColumnWriter, JoinFiles, fresh_folder
from components.dedup.params import DedupParams
from components.dedup.thresholds import Thresholds
from components.params import parse_params
from components.tables.database import MemoryParams, database
from components.tables.parts import read_table
from components.tables.schemas import DECISIONS, MANIFEST


class Rows:
    """A pool of rows that say nothing but their number: what `settle` asks of a pool."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        self.area = rng.integers(1, 4, count)
        self.digest = [f"{value:064x}" for value in rng.permutation(count)]
        self.keys = [f"k{row}" for row in range(count)]

    def __len__(self) -> int:
        return len(self.keys)

    def write_rows(self, path: Path) -> None:
        count = len(self)
        table = {"row": np.arange(count), "key": self.keys, "shard": ["0.tar"] * count, "offset": np.arange(count)}
        table |= {"length": np.ones(count, np.int64), "width": self.area, "height": np.ones(count, np.int64)}
        table |= {"source": ["w"] * count, "source_offset": np.arange(count), "stored_sha256": self.digest}
        pq.write_table(pa.table(table), path)


def given_params(relative: bool) -> DedupParams:
    content = {
        "descriptor": {"kind": "thumbnail"},
        "graph": {"threshold": 0.7, "keep": "largest"},
        "relative": {"threshold": 0.5, "within": "relative" if relative else "self"},
    }
    return parse_params(content, DedupParams, "test")


def expected(
    pool: Rows, edges: Edges, leaks: dict[int, float], found: dict[int, int] | None, over: tuple[float, float]
) -> list[dict[str, Any]]:
    """The rule in plain words: see docs/dedup.md."""
    count = len(pool)
    labels = components(count, [edges], over[0])
    tied = components(count, [edges], over[1])
    goes: dict[int, int] = {}
    for row in range(count):
        own = [leak for leak in sorted(leaks) if tied[leak] == tied[row]]
        if own:
            goes[row] = own[0]
    whole = dict(goes)
    for row in range(count):
        mates = [goes[mate] for mate in range(count) if labels[mate] == labels[row] and mate in goes]
        if row not in goes and mates:
            whole[row] = min(mates)
    rows = []
    for row in range(count):
        mates = [mate for mate in range(count) if labels[mate] == labels[row]]
        kept = min(mates, key=lambda mate: (-pool.area[mate], pool.digest[mate]))
        target = whole.get(row, kept)
        match, cosine, views, status = "", float("nan"), (-1, -1), "dropped"
        if row in leaks:
            match, cosine, views = "b/0", leaks[row], (3, 1)
        elif target != row:
            ends = {}
            for a, b, similarity, a_view, b_view in zip(*(column.tolist() for column in edges), strict=True):
                for own, other, of_own, of_other in ((a, b, a_view, b_view), (b, a, b_view, a_view)):
                    near = labels[own] == labels[other] and np.float32(similarity) > np.float32(over[0])
                    near |= own in whole and tied[own] == tied[other] and np.float32(similarity) > np.float32(over[1])
                    if own == row and near:
                        ends[other] = (similarity, (of_own, of_other))
            other = target if target in ends else min(ends, key=lambda end: (-ends[end][0], end))
            match, (cosine, views) = pool.keys[other], ends[other]
        if row in whole:
            reason = decide.HELD_OUT
        elif kept != row:
            reason = decide.SELF_DUPLICATE
        elif found is None:
            status, reason = "selected", "pool"
        elif row in found:
            status, reason, match, cosine, views = "selected", "retrieved:q", f"q/{found[row]}", 0.25, (0, 0)
        else:
            reason = decide.NOT_RETRIEVED
        entry = {"key": pool.keys[row], "status": status, "reason": reason, "component": int(labels[row])}
        entry |= {"representative": "" if row in whole else pool.keys[kept], "match": match, "similarity": cosine}
        rows.append(entry | {"view": views[0], "match_view": views[1]})
    return rows


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 25), st.integers(1, 60), st.booleans(), st.booleans(), st.integers(0, 999))
def test_decisions_are_those_of_the_rule(
    tmp_path: Path, count: int, number: int, relative: bool, retrieved: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, count, (2, number))
    apart = a != b
    drawn = Edges(
        a[apart],
        b[apart],
        rng.integers(40, 100, number)[apart].astype(np.float32) / 100,
        rng.integers(0, 9, number)[apart].astype(np.int16),
        np.zeros(apart.sum(), np.int16),
    ).canonical()
    files, pool, params = JoinFiles(fresh_folder(tmp_path / "joins")), Rows(count, rng), given_params(relative)
    parts = [part_path(files.folder, 0, 1), part_path(files.folder, 1, 2)]
    middle = len(drawn.a) // 2
    edges = EdgeParts(
        [write_part(parts[0], drawn.where(slice(middle))), write_part(parts[1], drawn.where(slice(middle, None)))]
    )
    leaks = {int(row): 0.75 for row in np.flatnonzero(rng.random(count) < 0.1)}
    pool.write_rows(files.rows)
    leaking = np.array([*leaks], np.int64)
    with ColumnWriter(files.leaks, ("row", "reference", "similarity", "view", "match_view", "identical")) as writer:
        similarity = np.full(len(leaking), 0.75, np.float32)
        same = np.zeros(len(leaking), bool)
        view = np.full(len(leaking), 3)
        writer.write(
            row=leaking, reference=0 * leaking, similarity=similarity, view=view, match_view=view - 2, identical=same
        )
    over = (0.7, 0.5 if relative else 0.7)
    any_pool: Any = pool
    labels = components(count, edges, 0.7)
    resolve.resolve_components(params, any_pool, labels, edges, Thresholds(0.7, 0.5, 0.4), files)
    state = pq.read_table(files.state).to_pandas()
    survivors = state[(state.leak < 0) & (state.kept == state.row)].row.to_numpy()
    found = {int(row): int(row) % 3 for row in survivors[::2]} if retrieved else None
    selection = decide.Selection()
    if found is not None:
        selection = decide.Selection("retrieved", ["q/0", "q/1", "q/2"], ["retrieved:q"] * 3)
        with ColumnWriter(files.found, ("row", "times", "query", "similarity")) as writer:
            rows = np.array([*found], np.int64)
            writer.write(row=rows, times=rows * 0 + 2, query=rows % 3, similarity=np.full(len(rows), 0.25, np.float32))
        with ColumnWriter(files.brought, ("row", "name", "place")) as writer:
            for place, name in enumerate("qa"):
                writer.write(row=rows, name=np.full(len(rows), name), place=np.full(len(rows), place))
    with database(MemoryParams(), tmp_path) as connection:
        reasons, selected = decide.decide(connection, files, ["b/0"], selection)
    table = read_table(files.decisions, DECISIONS).to_pylist()
    wanted = expected(pool, drawn, leaks, found, over)
    for row, want in zip(table, wanted, strict=True):
        assert row.pop("similarity") == pytest.approx(want.pop("similarity"), nan_ok=True)
        assert row == want
    manifest = read_table(files.manifest, MANIFEST).to_pylist()
    assert [row["key"] for row in manifest] == [row["key"] for row in wanted if row["status"] == "selected"]
    assert {row["weight"] for row in manifest} <= ({2.0} if retrieved else {1.0})
    assert all(row["sources"] == (["q", "a"] if retrieved else []) for row in manifest)
    assert sum(reasons.values()) == count
    assert selected == len(manifest)
