"""Advice is a preset that loads, changes what depends on the data and says why; what cannot work is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.params import load_params
from components.planning import run
from components.planning.advice import LEAST_STEPS, MOST_PASSES, DataAndMachine, advise
from components.planning.facts import images_of
from components.tables.parts import write_table
from components.tables.schemas import MANIFEST
from components.training.params import TrainingParams

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def facts(
    images: int = 500, side: int = 256, minutes: float = 30, flops: float = 3.8e10, gpu: bool = False
) -> DataAndMachine:
    return DataAndMachine(images, side, minutes, flops, "measured: a test", gpu)


def loaded(text: str, folder: Path) -> TrainingParams:
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_params(path, TrainingParams)


def test_the_demos_budget_gives_about_the_demos_preset(tmp_path: Path) -> None:
    text, told = advise(facts(1311, 300, 600 / 54))
    shipped = load_params(Path(shutil.copy("params/pretrain/vitt.yaml", tmp_path / "shipped.yaml")), TrainingParams)
    params = loaded(text, tmp_path)
    assert params.run.iterations == pytest.approx(600, rel=0.03)
    assert (params.vit, params.augment, params.schedule) == (shipped.vit, shipped.augment, shipped.schedule)
    assert params.heads.dino.prototypes == 256
    assert "passes" in told[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(50, 10**7), st.integers(16, 4000), st.floats(1, 1e5), st.booleans())
def test_any_advice_loads_and_keeps_its_promises(images: int, side: int, minutes: float, gpu: bool) -> None:
    given = facts(images, side, minutes, 1e14 if gpu else 3.8e10, gpu)
    try:
        text, _ = advise(given)
    except VitrailError:
        return  # refused in one line: the next test
    params = TrainingParams.model_validate(yaml.safe_load(text))
    batch = params.run.batch * params.engine.accumulation
    assert params.run.iterations >= LEAST_STEPS
    assert params.run.iterations * batch <= MOST_PASSES * images + batch
    assert batch <= max(8, images // 4)
    assert params.augment.global_size <= max(side, 2 * params.vit.patch_size)
    assert params.augment.global_size % params.vit.patch_size == params.augment.local_size % params.vit.patch_size == 0
    assert params.heads.dino.prototypes <= params.run.iterations


def test_every_changed_value_has_its_reason_and_no_other_has_one() -> None:
    text, _ = advise(facts(100, 40, 60))
    shipped = yaml.safe_load(Path("params/pretrain/vitt.yaml").read_text())
    for line in text.splitlines()[3:]:
        name, _, rest = line.strip().partition(": ")
        if "   # " in rest:
            assert name in ("image_size", "global_size", "local_size", "batch", "peak", "iterations", "prototypes",
                            "checkpoint_every", "log_every")  # fmt: skip
    assert yaml.safe_load(text)["masks"] == shipped["masks"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (facts(10), "10 images: too few to learn from"),
        (facts(side=12), "images of 12 px: vitt has patches of 8 px"),
        (facts(side=20, gpu=True, flops=1e14), "images of 20 px: vits_1gpu has patches of 16 px"),
        (facts(minutes=0.5), "27 steps fit into 0.5 minutes"),
        (facts(minutes=0), "--minutes 0: choose more than 0"),
        (facts(minutes=float("nan")), "--minutes nan"),
    ],
)
def test_what_cannot_work_is_one_line(given: DataAndMachine, said: str) -> None:
    with pytest.raises(VitrailError, match=said) as fault:
        advise(given)
    assert "\n" not in str(fault.value)


def test_the_command_writes_a_preset_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"key": f"k{n}", "shard": "s", "offset": n, "length": 1, "width": 60 + n, "height": 300, "weight": 1.0,
             "reason": "pool", "sources": []} for n in range(101)]  # fmt: skip
    write_table(tmp_path / "manifest", pa.Table.from_pylist(rows, MANIFEST), MANIFEST)
    assert images_of(tmp_path / "manifest") == (101, 110)
    past = tmp_path / "pretrain/vitt"
    past.mkdir(parents=True)
    (past / "curve.json").write_text(json.dumps({"points": [{"step": 9}], "images": 64_000, "seconds": 1000.0}))
    out = tmp_path / "mine.yaml"
    asked = [
        "advise",
        "--manifest",
        str(tmp_path / "manifest"),
        "--minutes",
        "60",
        "--like",
        str(past),
        "--out",
        str(out),
    ]
    assert run.main(asked) == 0
    assert "measured: 64.0 images/s" in capsys.readouterr().out
    assert load_params(out, TrainingParams).run.batch == 16
    with pytest.raises(VitrailError, match="there already"):
        run.main(asked)
