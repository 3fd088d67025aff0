"""Whose checkpoints may be gone on with: identities, and what becomes of those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.distill.method import DistillParams
from components.errors import VitrailError
from components.params import load_params, undeclared
from components.training.checkpoints.checkpoint import Checkpoint, Checkpoints
from components.training.checkpoints.identity import Identity
from components.training.mismatch import resolve_mismatch
from components.training.params import TrainingParams
from components.training.ranks.distributed import World
from components.training.session import keep_global_batch

VITT = Path(__file__).resolve().parents[3] / "params/pretrain/vitt.yaml"
ALONE = World(0, 1, 0, torch.device("cpu"))
HOURS = 5 * 3600.0


def preset(*changes: str) -> TrainingParams:
    return load_params(VITT, TrainingParams, ["run.batch=8", "engine.accumulation=2", *changes])


def store(folder: Path, params: TrainingParams, data: str = "d") -> Checkpoints:
    return Checkpoints(folder / "run", params.identity(data), ALONE)


def trained(folder: Path, seconds: float = HOURS) -> Checkpoints:
    """The checkpoint of a run of ``preset()``."""
    made = store(folder, preset())
    shared = {"curves": {"seconds": seconds}, "global_batch": 16}
    made.save(Checkpoint(1, {"master/w": torch.ones(4)}, shared))
    return made


def test_every_parameter_says_whether_it_changes_results() -> None:
    assert list(undeclared(DistillParams)) == []
    assert list(undeclared(TrainingParams)) == []


NEUTRAL = [
    ("run.activation_checkpointing=true",),
    ("run.batch=4", "engine.accumulation=4"),
    ("run.batch=16", "engine.accumulation=1"),
    ("run.log_every=3", "run.keep=5", "run.checkpoint_every=7", "run.threads=1", "run.compile=true"),
    ("loader.workers=2", "loader.prefetch=1", "engine.device=cpu", "engine.silence=9", "engine.max_skipped=3"),
    ("probe={}", "collapse.patience=9", "engine.zero.overlap_comm=false"),
    ("high_resolution={size: 96, learning_rate: 1e-4}",),
]


@pytest.mark.parametrize("changes", NEUTRAL)
def test_what_changes_no_result_is_gone_on_with(tmp_path: Path, changes: tuple[str, ...]) -> None:
    trained(tmp_path)
    now = preset(*changes)
    again = store(tmp_path, now)
    assert resolve_mismatch(again, now.run, ALONE) == ""
    assert again.load({"w": 4}) is not None
    assert keep_global_batch([now], [again], ALONE) == [now]


OTHER = [
    ("run.iterations=1200", "run.iterations 600 -> 1200"),
    ("run.seed=1", "run.seed 0 -> 1"),
    ("objective.koleo_weight=0.3", "objective.koleo_weight 0.1 -> 0.3"),
    ("run.batch=4", "images a step 16 -> 8"),
    ("engine.zero.zero_quantized_gradients=true", "engine.zero {} -> {'zero_quantized_gradients': True}"),
]


@pytest.mark.parametrize(("change", "line"), OTHER)
def test_other_results_stop_a_run_of_hours_and_name_the_ways_to_go_on(tmp_path: Path, change: str, line: str) -> None:
    trained(tmp_path)
    now = preset(change)
    with pytest.raises(VitrailError) as caught:
        resolve_mismatch(store(tmp_path, now), now.run, ALONE)
    said = str(caught.value)
    assert f"({line}), 300 minutes of training" in said
    assert "run.on_mismatch: continue" in said
    assert "run.on_mismatch: fresh" in said
    assert "\n" not in said
    assert (tmp_path / "run/step-00000001").is_dir()


@pytest.mark.parametrize(("change", "line"), OTHER)
def test_continuing_is_printed_kept_and_holds_for_later_starts(tmp_path: Path, change: str, line: str) -> None:
    trained(tmp_path)
    asked, now = preset(change, "run.on_mismatch=continue"), preset(change)
    going = store(tmp_path, asked)
    assert f"({line}): continuing after step 1 under the new ones" in resolve_mismatch(going, asked.run, ALONE)
    assert going.changes
    assert keep_global_batch([asked], [going], ALONE) == [asked]
    assert going.load({"w": 4}) is not None
    images = now.run.batch * now.engine.accumulation
    shared = {"curves": {"seconds": HOURS}, "global_batch": images}
    going.save(Checkpoint(2, {"master/w": torch.ones(4)}, shared))
    later = store(tmp_path, now)  # without being asked again
    assert resolve_mismatch(later, now.run, ALONE) == ""
    assert later.changes == {}
    (tmp_path / "run/step-00000002/rank-00000.safetensors").write_bytes(b"")
    found = later.load({"w": 4})  # falls back to what was there before the change
    assert found is not None
    assert found.step == 1


def test_parameters_added_since_a_checkpoint_count_by_their_defaults(tmp_path: Path) -> None:
    now = preset().identity("d")
    added = ("objective.kind", "heads.dino.batch_norm", "vit.stem_extra", "gram")
    older = {name: value for name, value in now.params.items() if name not in added}
    assert len(older) == len(now.params) - len(added)
    made = Checkpoints(tmp_path / "run", Identity(older, now.inputs, now.images), ALONE)
    made.save(Checkpoint(1, {"master/w": torch.ones(4)}, {"curves": {"seconds": HOURS}, "global_batch": 16}))
    assert made.fingerprint != now.fingerprint
    same = store(tmp_path, preset())
    assert resolve_mismatch(same, preset().run, ALONE) == ""
    found = same.load({"w": 4})
    assert found is not None
    assert found.changes == {}
    other = preset("vit.stem=convolutional", "vit.stem_extra=1")
    with pytest.raises(VitrailError, match=r"vit\.stem patch -> convolutional, vit\.stem_extra 0 -> 1"):
        resolve_mismatch(store(tmp_path, other), other.run, ALONE)


def test_other_data_are_named(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(VitrailError, match=r"\(data d -> e\)"):
        resolve_mismatch(store(tmp_path, preset(), "e"), preset().run, ALONE)


def test_state_of_a_few_minutes_is_set_aside_and_none_with_a_threshold_of_0(tmp_path: Path) -> None:
    trained(tmp_path, seconds=60.0)
    careful, now = preset("run.seed=1", "run.disposable_minutes=0"), preset("run.seed=1")
    with pytest.raises(VitrailError, match="1 minutes of training"):
        resolve_mismatch(store(tmp_path, careful), careful.run, ALONE)
    said = resolve_mismatch(store(tmp_path, now), now.run, ALONE)
    assert "moved aside to" in said
    assert "less than 10 minutes of training" in said
    [aside] = tmp_path.glob("run.*")
    assert (aside / "step-00000001").is_dir()


def test_another_network_cannot_be_continued(tmp_path: Path) -> None:
    trained(tmp_path)
    wider = preset("vit.depth=6", "run.on_mismatch=continue")
    with pytest.raises(VitrailError, match=r"continue cannot: vit\.depth make it another network"):
        resolve_mismatch(store(tmp_path, wider), wider.run, ALONE)
    with pytest.raises(VitrailError, match="master/w has another size in this model"):
        store(tmp_path, preset()).load({"w": 9})
    with pytest.raises(VitrailError, match="holds no v, which this model has"):
        store(tmp_path, preset()).load({"w": 4, "v": 1})


def test_checkpoints_of_another_format_are_not_called_damaged(tmp_path: Path) -> None:
    trained(tmp_path)
    manifest = tmp_path / "run/step-00000001/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(VitrailError, match="written by another version of this program"):
        resolve_mismatch(store(tmp_path, preset()), preset().run, ALONE)


def test_a_kill_while_a_step_is_written_anew_loses_nothing(tmp_path: Path) -> None:
    made = trained(tmp_path)
    folder = tmp_path / "run"
    (folder / "step-00000001").rename(folder / ".step-00000001.replaced")  # killed between the two renames
    found: Any = store(tmp_path, preset()).load({"w": 4})
    assert found.step == 1
    made.save(Checkpoint(1, {"master/w": torch.zeros(4)}, {}))
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
