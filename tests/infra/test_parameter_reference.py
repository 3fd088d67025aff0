"""The reference of parameters: each has its words, its default and its range, and the files' own comments win."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from components.params import Strict
from infra.docs import comments, parameters
from infra.docs.words import WORDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[parameters.ParameterRow]]:
    return {name: parameters.rows(ROOT, name, model) for name, model in parameters.FILES}


def test_every_parameter_says_what_it_is(rows: dict[str, list[parameters.ParameterRow]]) -> None:
    silent = [f"params/{name}: {row.key}" for name, found in rows.items() for row in found if not row.words]
    assert silent == [], "write a comment in the file or beside the field: unit, meaning, source"
    assert sum(map(len, rows.values())) > 500


def test_no_words_are_left_over(rows: dict[str, list[parameters.ParameterRow]]) -> None:
    used = {row.words for found in rows.values() for row in found}
    assert sorted(key for key, words in WORDS.items() if words not in used) == []


def test_every_file_that_a_stage_reads_is_in_the_reference() -> None:
    shown = {Path(name) for name, _ in parameters.FILES}
    folders = {path.parent for path in shown if path.parent != Path()} | {Path("continue")}  # with pretrain's keys
    there = {path.relative_to(ROOT / "params") for path in (ROOT / "params").rglob("*.yaml")}
    like_another = {Path("dedup_lvd.yaml"), Path("published.yaml")}  # dedup.yaml's keys; figures, not parameters
    missing = {path for path in there - shown - like_another if path.parts[0] != "demo" and path.parent not in folders}
    assert missing == set()


def test_values_ranges_and_comments_are_those_of_file_and_model(rows: dict[str, list[parameters.ParameterRow]]) -> None:
    by_key = {row.key: row for row in rows["crawl.yaml"]}
    delay = by_key["fetch.delay"].cells()
    assert delay[:4] == ["`fetch.delay`", "number, 0 to 1e+06", "`0.0`", "`1.0`"]
    assert delay[4].startswith("seconds between requests to one host")
    assert by_key["fetch.contact"].cells()[2] == "*must be given*"
    kinds = {row.key for row in rows["dedup.yaml"]}
    assert "descriptor (thumbnail).side" in kinds
    assert "PydanticUndefined" not in parameters.markdown(ROOT)


def test_values_and_lists_in_comments_read_well(rows: dict[str, list[parameters.ParameterRow]]) -> None:
    by_key = {row.key: row.cells() for row in rows["pipeline.yaml"]}
    assert by_key["distill"][3] == "`{vitxt: {teacher: vitt}}`"
    assert "s3:// addresses; s3://bucket/prefix: the same" in by_key["source"][4]


def test_the_page_is_made_of_whole_tables(rows: dict[str, list[parameters.ParameterRow]]) -> None:
    lines = [line for line in parameters.markdown(ROOT).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}


class Example(Strict):
    """For the test below."""

    # above one
    one: int = 1  # beside one
    two: dict[str, int] = {
        "a": 1,
    }  # behind two
    three: str = "# no comment"


def test_comments_above_and_beside_belong_to_their_field(tmp_path: Path) -> None:
    assert comments.of_model(Example) == {"one": "above one beside one", "two": "behind two"}
    file = tmp_path / "x.yaml"
    file.write_text(
        "# of the file\n\n# above a\na: '# none'  # beside a\nb:  # section\n  # above c\n  c: 1\nd: {e: 1}  # of d\n"
    )
    assert comments.of_file(file) == {"a": "above a beside a", "b": "section", "b.c": "above c", "d": "of d"}
