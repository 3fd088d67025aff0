from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import VitrailError
from components.params import Strict, fingerprint, load_params


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
