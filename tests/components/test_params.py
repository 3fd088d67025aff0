from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import VitrailError
from components.layers import merged
from components.params import Strict, fingerprint, load_params
from components.yaml_core import parse_yaml


class Optimizer(Strict):
    lr: float
    weight_decay: float = 0.04


class Blocks(Strict):
    optimizer: Optimizer
    groups: list[Optimizer] = []
    named: dict[str, Optimizer] = {}


def write(folder: Path, text: str) -> Path:
    path = folder / "blocks.yaml"
    path.write_text(text)
    return path


def test_reads_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 1.0e-3}\n")
    assert load_params(path, Blocks).optimizer.lr == 1e-3
    assert load_params(path, Blocks, ["optimizer.weight_decay=0.2"]).optimizer.weight_decay == 0.2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimiser: {lr: 1}", r"unknown key 'optimiser'; did you mean 'optimizer'\?"),
        ("optimizer: {lr: 1, weigth_decay: 0}", r"unknown key 'optimizer.weigth_decay'; did you mean 'weight_decay'\?"),
        ("optimizer: {lr: 1}\ngroups: [{lr: 1, wd: 2}]", r"unknown key 'groups.0.wd'"),
        (
            "optimizer: {lr: 1}\nnamed: {head: {lr: 1, weight_deca: 2}}",
            r"'named.head.weight_deca'; did you mean 'weight_",
        ),
        ("optimizer: {lr: fast}", r"optimizer.lr: .*given: 'fast'"),
        ("optimizer: {}", r"the key 'optimizer.lr' is missing"),
        ("- 1", "expected keys and values, found a list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_faults_are_one_line_that_names_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(VitrailError, match=expected) as caught:
        load_params(write(tmp_path, text), Blocks)
    assert "blocks.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "")
    with pytest.raises(VitrailError, match=r"did you mean 'blocks.yaml'"):
        load_params(tmp_path / "block.yaml", Blocks)


def test_fingerprint_sees_every_value() -> None:
    one = Blocks(optimizer=Optimizer(lr=1e-3))
    assert fingerprint(one) == fingerprint(Blocks(optimizer=Optimizer(lr=1e-3)))
    assert fingerprint(one) != fingerprint(Blocks(optimizer=Optimizer(lr=1.1e-3)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6e1", 60.0), ("1e1", 10.0), ("6E+1", 60.0), ("-2.5e-3", -0.0025), (".5", 0.5), ("1.", 1.0), ("+5", 5),
        ("0777", 777), ("0o17", 15), ("0x1F", 31), ("1:30", "1:30"), ("22:22:22", "22:22:22"), ("no", "no"),
        ("on", "on"),
        ("y", "y"), ("NO", "NO"), ("true", True), ("False", False), ("2024-01-01", "2024-01-01"), ("1_000", "1_000"),
        ("0b11", "0b11"), ("~", None), ("null", None), ("", None), ("=", "="), ("'6e1'", "6e1"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_words_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}\n", "here")["key"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is written twice, in line 1 and in line 3"),
        ("x:\n  lr: 1\n  decay: 2\n\n  lr: 3\n", "the key 'lr' is written twice, in line 2 and in line 5"),
        ("x: {lr: 1, lr: 2}", "the key 'lr' is written twice, in line 1 and in line 1"),
        ("x: [{a: 1}, {b: 1, b: 1}]", "the key 'b'"),
        ("1: 1\n0x1: 2", "the key 1 is"),
    ],
)
def test_a_key_written_twice_is_an_error_that_names_both_lines(text: str, lines: str) -> None:
    with pytest.raises(VitrailError, match=lines):
        parse_yaml(text, "here")


def test_a_merged_section_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}", "here") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5000, "a: " + "9" * 5000, "a: !!python/name:os.system", "a: \x07", "--- 1\n--- 2", "? [a]\n: 1"],
)
def test_hostile_yaml_is_one_line(text: str) -> None:
    with pytest.raises(VitrailError, match=r"^here: not valid YAML") as caught:
        parse_yaml(text, "here")
    assert "\n" not in str(caught.value)


def test_a_section_that_holds_itself_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match=r"blocks\.yaml"):
        load_params(write(tmp_path, "optimizer: &o {lr: *o}\n"), Blocks)


def test_a_byte_order_mark_and_windows_lines_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blocks.yaml"
    path.write_bytes(b"\xef\xbb\xbfoptimizer:\r\n  lr: 6e1\r\n")
    assert load_params(path, Blocks).optimizer.lr == 60.0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("optimizer: {lr: 1}".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("optimizer: {lr: 1}".encode("utf-16-le"), "zero byte in line 1"),
        ("optimizer: {lr: 1}".encode("utf-32"), "is UTF-32"),
        ("# gr\u00fc\u00dfe\noptimizer: {lr: 1}".encode("latin-1"), "0xfc in line 1"),
    ],
)
def test_another_encoding_is_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "blocks.yaml"
    path.write_bytes(data)
    with pytest.raises(VitrailError, match=said) as caught:
        load_params(path, Blocks)
    assert "\n" not in str(caught.value)
    assert "blocks.yaml" in str(caught.value)


def test_a_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match="is a folder"):
        load_params(tmp_path, Blocks)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A params folder with a file of everybody's, one of the demo's, and a pipeline."""
    (tmp_path / "params/demo/deep").mkdir(parents=True)
    (tmp_path / "params/deep").mkdir()
    (tmp_path / "params/site").mkdir()
    (tmp_path / "params/site/demo.yaml").write_text("kind: demo\n")
    (tmp_path / "params/site/web.yaml").write_text("kind: web\n")
    for folder in ("", "deep/"):
        (tmp_path / f"params/{folder}blocks.yaml").write_text("optimizer: {lr: 1}\ngroups: [{lr: 1}]\n")
        (tmp_path / f"params/demo/{folder}blocks.yaml").write_text(
            "optimizer: {weight_decay: 0.5}\ngroups: [{lr: 2}, {lr: 3}]\n"
        )
    return tmp_path / "params"


@pytest.mark.parametrize(
    ("source", "demo"),
    [
        ("params/site/demo.yaml", True), ("params/site/web.yaml", False), ("/data/photos", False), ("a b; c", False),
        ("params/site/none.yaml", False), ("s3://bucket/x.yaml", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["", "deep/"])
def test_the_demos_values_are_laid_over_for_the_demo_alone(house: Path, source: str, demo: bool, folder: str) -> None:
    (house / "pipeline.yaml").write_text(f"source: {source!r}\n")
    found = load_params(house / f"{folder}blocks.yaml", Blocks)
    assert found.optimizer == Optimizer(lr=1, weight_decay=0.5 if demo else 0.04)
    assert [one.lr for one in found.groups] == ([2.0, 3.0] if demo else [1.0])
    assert load_params(house / f"{folder}blocks.yaml", Blocks, ["optimizer.weight_decay=2"]).optimizer.weight_decay == 2


def test_without_a_pipeline_nothing_is_laid_over(house: Path) -> None:
    assert load_params(house / "blocks.yaml", Blocks).optimizer.weight_decay == 0.04


def test_an_unknown_key_of_the_demos_file_names_that_file(house: Path) -> None:
    (house / "pipeline.yaml").write_text("source: params/site/demo.yaml\n")
    (house / "demo/blocks.yaml").write_text("optimiser: {}\n")
    with pytest.raises(VitrailError, match=r"demo/blocks\.yaml: unknown key \'optimiser\'; did you mean"):
        load_params(house / "blocks.yaml", Blocks)


def test_a_section_of_another_kind_replaces_the_one_below() -> None:
    assert merged({"x": {"kind": "a", "p": 1}}, {"x": {"kind": "b"}}) == {"x": {"kind": "b"}}
    assert merged({"x": {"kind": "a", "p": 1}}, {"x": {"q": 2}}) == {"x": {"kind": "a", "p": 1, "q": 2}}
    assert merged({"x": {"p": 1}}, {"x": None}) == {"x": None}


def test_overrides_are_read_as_the_file_is(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {lr: 1}\n")
    assert load_params(path, Blocks, ["optimizer.lr=6e1"]).optimizer.lr == 60.0
    for override, said in (
        ("optimizer={lr: 1, lr: 2}", "written twice"), ("optimizer.lr=[", "--set .*not valid YAML"),
        ("optimizer.lr=true", "expected a number, not true or false"), ("optimizer.lr=.nan", "finite"),
        ("optimizer.lr=1:30", "given: '1:30'"), ("optimizer.lr=no", "given: 'no'"),
    ):  # fmt: skip
        with pytest.raises(VitrailError, match=said) as caught:
            load_params(path, Blocks, [override])
        assert "\n" not in str(caught.value)
