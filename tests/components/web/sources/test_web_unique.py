"""Links made unique on disk: the same as a dictionary makes them, and within a memory far below their size."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.tables.database import MemoryParams, database
from components.tables.schemas import LINKS
from components.web.sources.link_table import RowWriter, first_position, iter_rows, link_batches
from components.web.sources.unique import shuffled, unique_links

SMALL = MemoryParams(megabytes=64, threads=1)
Row = dict[str, object]


def link(position: int, url: str, opt_out: bool, alt: str = "") -> Row:
    return {"position": position, "url": url, "page": f"p{position}", "alt": alt, "licence": "", "reason": "",
            "opt_out": opt_out, "said": "", "source": "w", "source_offset": position}  # fmt: skip


def by_dictionary(tables: list[list[Row]]) -> list[Row]:
    found: dict[object, Row] = {}
    for row in (row for table in tables for row in table):
        known = found.setdefault(row["url"], dict(row))
        known["opt_out"] = known["opt_out"] or row["opt_out"]
    return list(found.values())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.text("aé\0\U0001f600", max_size=3), st.booleans()), max_size=12), min_size=1,
                max_size=4))  # fmt: skip
def test_as_a_dictionary_makes_them(tmp_path: Path, tables: list[list[tuple[str, bool]]]) -> None:
    rows = [
        [link(first_position(n) + i, f"http://h.test/{name}", out) for i, (name, out) in enumerate(table)]
        for n, table in enumerate(tables)
    ]
    paths = []
    for number, table in enumerate(rows):
        paths.append(tmp_path / f"{number}.parquet")
        with RowWriter(paths[-1], LINKS) as writer:
            for row in table:
                writer.add(row)
    expected = by_dictionary(rows)
    assert unique_links(paths[::-1], tmp_path / "out.parquet", SMALL) == len(expected)  # whatever the files' order
    assert list(iter_rows(tmp_path / "out.parquet")) == expected
    batches = link_batches(paths)
    assert [row for batch in batches for row in batch.to_pylist()] == [row for table in rows for row in table]


def test_far_more_links_than_memory_are_spilled_and_still_exact(tmp_path: Path) -> None:
    count, distinct = 400_000, 250_000
    which = np.random.default_rng(0).integers(0, distinct, count)
    urls = pa.array([f"http://host{w % 997}.test/a/path/as/long/as/those/of/real/sites/are/{w:09d}.jpg" for w in which])
    texts = pa.array([f"an alternative text of some length for number {i}" for i in range(count)])
    table = pa.table({"position": np.arange(count), "url": urls, "page": texts, "alt": texts, "licence": texts,
                      "reason": pa.array([""] * count), "opt_out": which % 7 == 0,
                      "said": pa.array([""] * count), "source": pa.array(["a.warc.gz"] * count),
                      "source_offset": np.arange(count)}, schema=LINKS)  # fmt: skip
    assert table.nbytes > 1.4 * SMALL.megabytes * 1e6
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=8192)
    assert unique_links([tmp_path / "in.parquet"], tmp_path / "out.parquet", SMALL) == len(np.unique(which))
    found = pq.read_table(tmp_path / "out.parquet")
    firsts = np.sort(np.unique(which, return_index=True)[1])
    assert np.array_equal(found["position"].to_numpy(), firsts)
    assert np.array_equal(found["opt_out"].to_numpy(zero_copy_only=False), which[firsts] % 7 == 0)
    assert found["url"].equals(pa.chunked_array([urls]).take(pa.array(firsts)))
    assert not [name for name in os.listdir(tmp_path) if "spill" in name]


def test_partitions_come_in_the_order_of_their_hashes(tmp_path: Path) -> None:
    table = pa.table({"url": ["c", "a", "b", "d"], "partition": [0, 0, 1, 0], "shuffle": [5, -3, 0, 5]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert shuffled(tmp_path / "t.parquet", 0, tmp_path / "o.parquet", SMALL) == 3
    assert pq.read_table(tmp_path / "o.parquet")["url"].to_pylist() == ["a", "c", "d"]
    assert shuffled(tmp_path / "t.parquet", 5, tmp_path / "o.parquet", SMALL) == 0


def test_memory_is_what_the_params_say(tmp_path: Path) -> None:
    with database(SMALL, tmp_path) as connection:
        ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    assert limit.startswith(("61.0", "64"))  # MiB or MB
