"""Tables as folders of parts: what outside readers see, what a fault is called, and that bytes depend on rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.tables.parts import (
    PartWriter,
    assemble,
    digest,
    iter_batches,
    part_name,
    part_rows,
    parts,
    read_table,
    sources,
    write_part,
    write_table,
)
from components.tables.schemas import INDEX, declared

NUMBERS = declared("numbers", 2, "curate", [("n", pa.int64()), ("text", pa.string())])


def numbers(count: int, start: int = 0) -> pa.Table:
    n = np.arange(start, start + count)
    return pa.table({"n": n, "text": [f"row {i}" for i in n]})


def written(folder: Path, count: int = 25, rows: int = 10) -> Path:
    with PartWriter(folder / "numbers", NUMBERS, rows) as writer:
        writer.write(numbers(count))
    return folder / "numbers"


@pytest.mark.parametrize(("count", "expected"), [(25, [10, 10, 5]), (20, [10, 10]), (1, [1]), (0, [0])])
def test_parts_hold_all_rows_in_order(tmp_path: Path, count: int, expected: list[int]) -> None:
    path = written(tmp_path, count)
    assert part_rows(path, NUMBERS) == expected
    assert [file.name for file in parts(path, NUMBERS)] == [part_name(i, len(expected)) for i in range(len(expected))]
    assert read_table(path, NUMBERS)["n"].to_pylist() == list(range(count))
    assert [n for batch in iter_batches(path, NUMBERS, ["n"], 7) for n in batch["n"].to_pylist()] == list(range(count))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_the_bytes_do_not_depend_on_how_rows_came(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    whole = written(folder, sum(cuts))
    with PartWriter(folder / "again", NUMBERS, 10) as writer:
        for number, count in enumerate(cuts):
            writer.write(numbers(count, sum(cuts[:number])))
    assert digest(folder / "again", NUMBERS) == digest(whole, NUMBERS)


def test_workers_parts_become_one_table(tmp_path: Path) -> None:
    files = [write_part(tmp_path / f"work-{i}", numbers(10, 10 * i), NUMBERS) for i in range(2)]
    assemble(tmp_path / "numbers", [*files, write_part(tmp_path / "work-2", numbers(5, 20), NUMBERS)], NUMBERS)
    assert digest(tmp_path / "numbers", NUMBERS) == digest(written(tmp_path / "other"), NUMBERS)


def test_readers_outside_see_one_table(tmp_path: Path) -> None:
    path = written(tmp_path)
    expected = list(range(25))
    import datasets
    import duckdb
    import polars

    assert [
        n for (n,) in duckdb.sql(f"SELECT n FROM read_parquet('{path}/*.parquet') ORDER BY n").fetchall()
    ] == expected
    assert pd.read_parquet(path)["n"].tolist() == expected
    assert ds.dataset(path).to_table()["n"].to_pylist() == expected
    assert polars.read_parquet(path)["n"].to_list() == expected
    loaded = datasets.load_dataset("parquet", data_dir=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["n"][:] == expected


def test_one_file_is_a_table_too(tmp_path: Path) -> None:
    path = write_part(tmp_path / "numbers.parquet", numbers(5), NUMBERS)
    assert read_table(path, NUMBERS, pa.compute.field("n") > 2, ["n"])["n"].to_pylist() == [3, 4]


def test_what_is_wrong_is_named_with_the_stage_that_mends_it(tmp_path: Path) -> None:
    def fault(path: Path, schema: pa.Schema = NUMBERS) -> str:
        said = []
        for read in (read_table, lambda *a: list(iter_batches(*a)), sources, part_rows):
            with pytest.raises(VitrailError) as caught:
                read(path, schema)
            said.append(str(caught.value))
        assert len(set(said)) == 1
        assert "\n" not in said[0]
        return said[0]

    assert fault(tmp_path / "none") == f"{tmp_path}/none: the numbers is not there; run the curate stage first"
    path = written(tmp_path)
    assert "expected a Vitrail index table, found 'numbers'" in fault(path, INDEX)
    newer = declared("numbers", 3, "curate", list(zip(NUMBERS.names, NUMBERS.types, strict=True)))
    assert "part-00000-of-00003.parquet: numbers version '2', this code reads '3'; run the curate" in fault(path, newer)
    file = parts(path, NUMBERS)[1]
    content = file.read_bytes()
    file.unlink()
    assert fault(path) == f"{file}: this part of the numbers is missing; run the curate stage again"
    file.write_bytes(content[: len(content) // 2])
    said = fault_of_late_part(path)
    assert said.startswith(f"{file}: not a readable numbers, cut short or damaged")
    assert said.endswith("run the curate stage again")
    file.write_bytes(content)
    (path / part_name(0, 2)).write_bytes(content)
    assert "two versions" in fault(path)
    (tmp_path / "empty").mkdir()
    assert "no parts of the numbers" in fault(tmp_path / "empty")


def fault_of_late_part(path: Path) -> str:
    with pytest.raises(VitrailError) as caught:
        list(iter_batches(path, NUMBERS))
    with pytest.raises(VitrailError, match="cut short"):
        sources(path, NUMBERS)
    return str(caught.value)


def test_a_table_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = digest(path, NUMBERS)

    def stopped() -> None:
        with PartWriter(path, NUMBERS, 10) as writer:
            writer.write(numbers(99))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert digest(path, NUMBERS) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers"]


def test_a_column_of_another_type_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        write_table(tmp_path / "numbers", pa.table({"n": ["x"], "text": ["y"]}), NUMBERS)
    assert not list(tmp_path.iterdir())
    assert pq.ParquetFile(write_part(tmp_path / "one", numbers(1), NUMBERS)).schema_arrow.metadata == NUMBERS.metadata


def test_a_value_that_is_no_number_is_found_among_equal_ones(tmp_path: Path) -> None:
    import duckdb

    scores = declared("scores", 1, "curate", [("score", pa.float32())])
    path = write_part(tmp_path / "scores.parquet", pa.table({"score": [0.5, float("nan"), 0.5]}), scores)
    assert duckdb.sql(f"SELECT count(*) FROM '{path}' WHERE isnan(score)").fetchall() == [(1,)]
