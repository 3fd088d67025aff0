"""Suites catch planted faults in real tables, and say which rows."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from components.errors import VitrailError
from components.quality import QualityError, Rule, Suite, checked_together, validate, validate_files
from components.quality.suites import (
    components_suite,
    decisions_suite,
    descriptor_table,
    descriptors_suite,
    edges_suite,
    index_suite,
    manifest_suite,
)
from components.tables.database import MemoryParams, database
from components.tables.parts import parts, write_part, write_table
from components.tables.schemas import DECISIONS, INDEX, MANIFEST

REASONS = ["duplicate", "nsfw", "restricted"]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:20]


def row(number: int, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(f"bytes {number}".encode()).hexdigest()
    base: dict[str, Any] = {
        "key": key(number), "url": f"http://a.example/{number}.jpg", "page": "", "alt": "", "source": "w",
        "source_offset": 0, "status": "kept", "reason": "", "duplicate_of": "", "sha256": digest, "format": "jpeg",
        "width": 300, "height": 200, "pca_hash": "", "nsfw": 0.01, "faces": 0, "face_boxes": [],
        "shard": "00000.tar", "offset": 512 * number, "length": 100, "stored_sha256": digest,
    }  # fmt: skip
    return base | changes


def dropped(number: int, **changes: Any) -> dict[str, Any]:
    return (
        row(number, status="dropped", reason="duplicate", duplicate_of=key(0), shard="", offset=-1, length=0) | changes
    )


def index(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=INDEX)


def checked(table: pa.Table, schema: pa.Schema, checks: Suite, folder: Path) -> dict[str, Any]:
    """What is found of a table on disk."""
    write_table(folder / "checked", table, schema)
    with database(MemoryParams(), folder) as connection:
        return validate_files(connection, parts(folder / "checked", schema), checks, folder / "docs")


def on_disk(folder: Path, *rows: dict[str, Any]) -> list[Path]:
    """The parts of an index."""
    write_table(folder / "index", index(*rows), INDEX)
    return parts(folder / "index", INDEX)


def suite() -> Suite:
    return index_suite(REASONS, min_side=64, max_side=4096, nsfw_threshold=0.5, restricted=["closed.example"])


def test_a_sound_index_passes_and_leaves_docs(tmp_path: Path) -> None:
    summary = validate(index(row(0), row(1), dropped(2), dropped(3)), suite(), tmp_path / "docs")
    assert summary["success"]
    assert summary["rows"] == 4
    assert (tmp_path / "docs/index/index.html").is_file()
    assert json.loads((tmp_path / "docs/index/result.json").read_text()) | {"docs": summary["docs"]} == summary
    pages = list((tmp_path / "docs/index/validations").rglob("*.html"))
    assert any("every key appears once" in page.read_text() for page in pages)


FAULTS: list[tuple[dict[str, Any], str]] = [
    (row(0), "every key appears once"),
    (row(5, status="maybe"), "kept or dropped"),
    (row(6, reason="nsfw"), "no reason for dropping"),
    (dropped(7, reason="whim"), "known reason"),
    (dropped(8, duplicate_of=key(77)), "names a row"),
    (row(9, shard=""), "name their shard"),
    (row(10, offset=512), "share bytes"),
    (row(11, length=0), "have a length"),
    (row(12, stored_sha256="ab"), "what is stored"),
    (row(13, width=63), "widths"),
    (row(14, height=5000), "heights"),
    (row(15, nsfw=0.9), "NSFW threshold"),
    (row(16, nsfw=None), "NSFW score"),
    (row(17, url="https://img.closed.example/x.jpg"), "restricted domain"),
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> QualityError:
    """What is said of an index that holds every fault at once."""
    docs = tmp_path_factory.mktemp("faulty") / "docs"
    with pytest.raises(QualityError) as caught:
        validate(index(row(0), row(1), dropped(2), *[fault for fault, _ in FAULTS]), suite(), docs)
    assert (docs / "index/index.html").is_file()
    return caught.value


def test_the_message_is_one_line_about_the_table(faulty: QualityError) -> None:
    assert isinstance(faulty, VitrailError)
    assert "the table 'index' breaks its suite" in str(faulty)
    assert "\n" not in str(faulty)
    assert {rule["rule"] for rule in faulty.summary["rules"] if rule["success"]} == {
        "the index has the columns of its schema",
        "the index is not empty",
        "keys are 20 hex digits",
        "kept rows have the SHA-256 of what was crawled",
        "kept rows have an offset",
        "no negative number of faces",
    }


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[words for _, words in FAULTS])
def test_each_fault_of_an_index_is_named_with_its_row(faulty: QualityError, fault: dict[str, Any], words: str) -> None:
    (rule,) = [rule for rule in faulty.summary["rules"] if words in rule["rule"]]
    assert fault["key"] in rule["keys"]
    # Rows 0 and 0 again share key and bytes; row 10 was given the bytes of row 1.
    assert rule["broken"] == {"every key appears once": 2, "share bytes": 4}.get(words, 1)
    assert f"'{rule['rule']}' fails in {rule['broken']}" in str(faulty)
    assert fault["key"] in str(faulty)


def test_a_missing_column_is_said_not_raised(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match="columns of its schema"):
        validate(index(row(0)).drop_columns(["shard"]), suite(), tmp_path / "docs")


def test_docs_of_a_failure_are_there_to_be_read_and_tables_do_not_replace_each_other(tmp_path: Path) -> None:
    rule = Rule("x is 1", "expect_column_values_to_be_in_set", {"column": "x", "value_set": [1]})
    numbers, docs = Suite("numbers", "x", [rule]), tmp_path / "gx"
    with pytest.raises(QualityError, match=str(docs / "numbers/index.html")):
        validate(pd.DataFrame({"x": [1, 2]}), numbers, docs)
    assert not json.loads((docs / "numbers/result.json").read_text())["success"]
    validate(pd.DataFrame({"x": [1, 1]}), Suite("others", "x", [rule]), docs)
    validate(pd.DataFrame({"x": [1, 1]}), numbers, docs)
    assert json.loads((docs / "numbers/result.json").read_text())["success"]
    assert (docs / "others/index.html").is_file()


def test_a_message_names_only_the_first_rows_but_counts_all(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": [f"n{i}" for i in range(1000)], "x": np.arange(1000) - 990})
    rule = Rule("x is not negative", "expect_column_values_to_be_between", {"column": "x", "min_value": 0})
    with pytest.raises(QualityError, match=r"990 of 1,000 rows \(name n0, n1, n2, n3, n4, \.\.\.\)"):
        validate(table, Suite("numbers", "name", [rule]), tmp_path / "docs")


def manifest(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"weight": 1.0, "reason": "pool"} | r for r in rows], schema=MANIFEST)


MANIFEST_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"key": key(99), "offset": 0}, "kept row of the index"),
    ({"key": key(2), "offset": 0}, "kept row of the index"),  # it is there, but dropped
    ({"key": key(4), "offset": 1}, "shard, offset and length"),
    ({"key": key(5), "weight": 0.0}, "positive"),
    ({"key": key(6), "weight": None}, "has a weight"),
    ({"key": key(7), "reason": ""}, "why it was selected"),
    ({"key": key(3)}, "held-out"),  # copies one
    ({"key": key(8)}, "held-out"),  # has the bytes of one
]


def test_each_fault_of_a_manifest_is_named(tmp_path: Path) -> None:
    over = on_disk(tmp_path, row(0), row(1), dropped(2), *[row(i) for i in range(3, 9)])
    good = [
        {"key": key(i), "offset": 512 * i, "shard": "00000.tar", "length": 100, "width": 300, "height": 200}
        for i in range(9)
    ]
    checks = manifest_suite(over, [key(3)], [row(8)["sha256"], "of no image here"])
    assert checked(manifest(good[0], good[1]), MANIFEST, checks, tmp_path)["success"]
    by_key = {entry["key"]: entry for entry in good}
    rows = [by_key.get(changes["key"], good[0]) | changes for changes, _ in MANIFEST_FAULTS]
    with pytest.raises(QualityError) as caught:
        checked(manifest(good[0], *rows), MANIFEST, checks, tmp_path)
    for changes, words in MANIFEST_FAULTS:
        (rule,) = [rule for rule in caught.value.summary["rules"] if words in rule["rule"]]
        assert changes["key"] in rule["keys"]
        assert rule["broken"] == sum(words == others for _, others in MANIFEST_FAULTS)


def test_decisions_must_cover_the_kept_rows(tmp_path: Path) -> None:
    over = on_disk(tmp_path, row(0), row(1), dropped(2))
    entry = {
        "status": "selected",
        "reason": "pool",
        "component": 0,
        "representative": "",
        "match": "",
        "similarity": None,
        "view": -1,
        "match_view": -1,
    }
    whole = [entry | {"key": key(0)}, entry | {"key": key(1), "status": "dropped", "reason": "held-out"}]
    checks = decisions_suite(over, 2, ["held-out"])
    assert checked(pa.Table.from_pylist(whole, schema=DECISIONS), DECISIONS, checks, tmp_path)["success"]
    with pytest.raises(QualityError, match=rf"every kept row of the index \(2\) is decided' .*{key(1)}"):
        checked(pa.Table.from_pylist(whole[:1], schema=DECISIONS), DECISIONS, checks, tmp_path)
    more = [*whole, entry | {"key": key(2)}]
    with pytest.raises(QualityError, match=rf"only kept rows of the index are decided' fails in 1 .*{key(2)}"):
        checked(pa.Table.from_pylist(more, schema=DECISIONS), DECISIONS, checks, tmp_path)


def test_descriptors_of_half_precision_pass_and_faults_are_named(tmp_path: Path) -> None:
    made = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    made = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)
    keys = [key(i) for i in range(50)]
    checks = descriptors_suite(32)
    assert validate(descriptor_table(made, keys, keys, block=7), checks, tmp_path / "docs")["success"]
    broken = made.copy()
    broken[3] *= 2
    broken[4, 0] = np.nan
    with pytest.raises(QualityError) as caught:
        validate(descriptor_table(broken, keys, keys), checks, tmp_path / "docs")
    assert f"unit length' fails in 1 of 50 rows (key {key(3)})" in str(caught.value)
    assert f"NaN or infinity' fails in 1 of 50 rows (key {key(4)})" in str(caught.value)
    swapped = [keys[1], keys[0], *keys[2:]]
    with pytest.raises(QualityError, match="row i describes the image of row i' fails in 2"):
        validate(descriptor_table(made, swapped, keys), checks, tmp_path / "docs")
    with pytest.raises(QualityError, match="row i describes the image of row i' fails in 1"):
        validate(descriptor_table(made[:-1], keys[:-1], keys), checks, tmp_path / "docs")


def test_faults_of_edges_and_components_are_named(tmp_path: Path) -> None:
    edges = {"a": [0, 3, 2], "b": [1, 2, 9], "similarity": [0.7, 0.8, 0.2]}
    with pytest.raises(QualityError) as fault:
        validate(pd.DataFrame(edges), edges_suite(9, 0.5), tmp_path)
    for words in ("the smaller first' fails in 1", "rows of the pool' fails in 1", "(pair 2-9)", "over 0.5"):
        assert words in str(fault.value), words
    partition = {"images": [7], "components": [3], "largest": [5], "represented": [2]}
    with pytest.raises(QualityError) as fault:
        validate(pd.DataFrame(partition), components_suite(8, 4), tmp_path)
    for words in ("largest share' fails in 1", "every image once' fails", "of its own' fails in 1"):
        assert words in str(fault.value), words
    partition |= {"images": [8], "largest": [4], "represented": [3]}
    assert validate(pd.DataFrame(partition), components_suite(8, 4), tmp_path)["success"]


ROW_FAULTS: list[dict[str, Any]] = [
    row(9, key="not hex"), row(9, key=key(1)), row(9, status="lost"), row(9, reason="nsfw"), dropped(9, reason="odd"),
    dropped(9, duplicate_of=key(77)), row(9, sha256="x"), row(9, shard="00000.zip"), row(9, offset=-1),
    row(9, length=0), row(9, offset=512), row(9, width=63), row(9, height=4097), row(9, faces=-1),
    row(9, nsfw=0.51), row(9, nsfw=None), row(9, url="http://www.closed.example/x"),
    dropped(9, url="http://www.closed.example/x"), row(9, nsfw=float("nan")),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ROW_FAULTS)))
def test_counts_on_disk_are_those_of_great_expectations(tmp_path: Path, number: int) -> None:
    from components.quality import counts
    from components.quality.checks import _prepare
    from components.quality.project import Project

    table = index(row(0), row(1), dropped(2), row(3), ROW_FAULTS[number])
    write_part(tmp_path / "part.parquet", table, INDEX)
    checked = suite()
    with database(MemoryParams(), tmp_path) as connection:
        values = {"files": [str(tmp_path / "part.parquet")]}
        found = [counts._count(connection, rule, checked, "read_parquet($files)", values) for rule in checked.rules]
    with warnings.catch_warnings(action="ignore"):
        expected = Project(tmp_path / "gx").check(_prepare(table, checked), checked)
    compared = 0
    for counted, by_gx in zip(found, expected, strict=True):
        if counted is not None:
            assert (by_gx["rule"], counted[0], sorted(counted[2])) == (
                by_gx["rule"], by_gx["broken"], sorted(by_gx["keys"])
            )  # fmt: skip
            compared += 1
    assert compared == len(checked.rules) - 2  # all but the columns and the number of rows


def test_a_fault_far_behind_the_sample_is_found_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.quality.counts.SAMPLE", 3)
    rows = [row(number) for number in range(20)] + [dropped(20, reason="odd", duplicate_of=key(99))]
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for path, part in zip(files, (rows[:10], rows[10:]), strict=True):
        write_part(path, index(*part), INDEX)
    with database(MemoryParams(), tmp_path) as connection:
        with pytest.raises(QualityError) as caught:
            validate_files(connection, files, suite(), tmp_path / "gx")
        found = {one["rule"]: one for one in caught.value.summary["rules"] if not one["success"]}
        assert set(found) == {"dropped rows give a known reason", "a duplicate names a row of this index"}
        assert {(one["broken"], tuple(one["keys"])) for one in found.values()} == {(1, (key(20),))}
        assert caught.value.summary["rows"] == 21
        assert validate_files(connection, files[:1], suite(), tmp_path / "gx")["success"]


def test_tables_checked_together_have_their_own_pages_also_when_one_breaks_its_suite(tmp_path: Path) -> None:
    whole = Suite(
        "images", "x", [Rule("x is 1", "expect_column_values_to_be_in_set", {"column": "x", "value_set": [1]})]
    )
    other = Suite("links", "x", whole.rules)

    def both() -> None:
        with checked_together():
            validate(pd.DataFrame({"x": [1]}), whole, tmp_path)
            validate(pd.DataFrame({"x": [2]}), other, tmp_path)

    with pytest.raises(QualityError, match="links"):
        both()
    for table, word in (("images", "holds"), ("links", "broken")):
        assert f"<td>{word}</td>" in (tmp_path / table / "index.html").read_text().replace(" class=broken", "")
        assert json.loads((tmp_path / table / "result.json").read_text())["table"] == table
        pages = {page.relative_to(tmp_path / table) for page in (tmp_path / table).rglob("*.html")}
        assert len(pages) == 3  # the first, the suite's, the check's
        assert Path(f"expectations/{table}.html") in pages
        assert (tmp_path / table / "static/images/favicon.ico").is_file()


def test_a_table_checked_again_in_the_same_block_has_the_later_pages(tmp_path: Path) -> None:
    ones = Suite("x", "x", [Rule("x is 1", "expect_column_values_to_be_in_set", {"column": "x", "value_set": [1]})])
    twos = Suite("x", "x", [Rule("x is 2", "expect_column_values_to_be_in_set", {"column": "x", "value_set": [2]})])
    with checked_together():
        validate(pd.DataFrame({"x": [1]}), ones, tmp_path)
        validate(pd.DataFrame({"x": [2]}), twos, tmp_path)
    assert "x is 2" in (tmp_path / "x/expectations/x.html").read_text()
    assert len([*(tmp_path / "x/validations").rglob("*.html")]) == 1
