from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import VitrailError
from components.params import load_params
from components.training.checkpoints.checkpoint import VERSION, Checkpoint, Checkpoints, sealed
from components.training.mismatch import resolve_mismatch
from components.training.params import RunParams, TrainingParams
from components.training.ranks.distributed import World
from components.training.session import keep_global_batch
from components.training.sharded.zero import cut

VITT = Path(__file__).resolve().parents[4] / "params/pretrain/vitt.yaml"
ALONE = World(0, 1, 0, torch.device("cpu"))


def state(step: int) -> Checkpoint:
    shards = {"master/a.b": torch.full((5,), float(step)), "ema/a.b": torch.arange(5.0) + step}
    return Checkpoint(step, shards, {"loader": {"position": step}}, {"dino": torch.ones(3) * step})


def how(**run: Any) -> RunParams:
    return RunParams(iterations=10, batch=4, **run)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run", "print-1", ALONE, keep=2)


def test_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    assert checkpoints.load({"a.b": 5}) is None
    checkpoints.save(state(3))
    found = checkpoints.load({"a.b": 5})
    assert found is not None
    assert (found.step, found.shared) == (3, {"loader": {"position": 3}})
    for name, shard in state(3).shards.items():
        assert torch.equal(found.shards[name], shard)
    assert torch.equal(found.whole["dino"], torch.full((3,), 3.0))


def test_keeps_the_newest_and_every_mth(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", "p", ALONE, keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(state(step))
    assert [path.name for path in checkpoints.found()] == ["step-00000004", "step-00000006", "step-00000007"]


@pytest.mark.parametrize("fault", ["cut", "flipped", "no manifest", "half a manifest", "edited manifest", "gone"])
def test_a_damaged_newest_gives_way_to_the_one_before(
    checkpoints: Checkpoints, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.save(state(1))
    newest = checkpoints.save(state(2))
    file, manifest = newest / "rank-00000.safetensors", newest / "manifest.json"
    data = bytearray(file.read_bytes())
    if fault == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif fault == "flipped":
        data[-1] ^= 1
        file.write_bytes(data)
    elif fault == "no manifest":
        manifest.unlink()
    elif fault == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif fault == "edited manifest":  # one number of its small state
        text = manifest.read_text()
        assert text.count('"position": 2') == 1
        manifest.write_text(text.replace('"position": 2', '"position": 3'))
    else:
        file.unlink()
    found = checkpoints.load({"a.b": 5})
    assert found is not None
    assert found.step == 1
    assert "step-00000002: damaged, trying the one before" in capsys.readouterr().out


@pytest.mark.parametrize("keep", [1, 2])
def test_what_is_saved_after_falling_back_past_damaged_ones_stays(tmp_path: Path, keep: int) -> None:
    before = Checkpoints(tmp_path / "run", "p", ALONE, keep=3)
    for step in (100, 200, 300):
        path = before.save(state(step))
        if step > 100:
            (path / "rank-00000.safetensors").write_bytes(b"")
    checkpoints = Checkpoints(tmp_path / "run", "p", ALONE, keep=keep)
    found = checkpoints.load({"a.b": 5})
    assert found is not None
    assert found.step == 100
    newest = checkpoints.save(state(150))
    assert newest in checkpoints.found()
    assert [path.name for path in checkpoints.found()] == ["step-00000100", "step-00000150"][-keep:]
    again = Checkpoints(tmp_path / "run", "p", ALONE, keep=keep).load({"a.b": 5})
    assert again is not None
    assert (again.step, float(again.shards["master/a.b"][0])) == (150, 150.0)
    aside = ["damaged-step-00000200", "damaged-step-00000300"]
    assert sorted(path.name for path in (tmp_path / "run").glob("damaged-*")) == aside
    checkpoints.save(state(200))  # past it: nobody will want it any more
    assert [path.name for path in (tmp_path / "run").glob("damaged-*")] == aside[1:]


def test_one_of_a_later_step_never_pushes_out_the_one_just_written(checkpoints: Checkpoints) -> None:
    for step in (200, 300):
        checkpoints.save(state(step))
    checkpoints.save(state(150))  # without having looked at the others
    assert [path.name for path in checkpoints.found()] == ["step-00000150", "step-00000200", "step-00000300"]


def test_only_damaged_ones_are_an_error(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(state(1))
    (path / "rank-00000.safetensors").write_bytes(b"")
    with pytest.raises(VitrailError, match="every checkpoint is damaged; remove the folder to start anew"):
        checkpoints.load({"a.b": 5})


def test_other_params_or_data_are_refused_or_set_aside(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(1))
    other = Checkpoints(checkpoints.folder, "print-2", ALONE)
    with pytest.raises(VitrailError, match=r"was trained with other params or data .*run\.on_mismatch: fresh"):
        resolve_mismatch(other, how(disposable_minutes=0), ALONE)
    with pytest.raises(VitrailError, match="of a run with other params or data"):
        other.load({"a.b": 5})  # whoever did not ask is told at the latest here
    assert other.found()
    assert resolve_mismatch(checkpoints, how(), ALONE) == ""
    assert "moved aside" in resolve_mismatch(other, how(on_mismatch="fresh", disposable_minutes=0), ALONE)
    assert other.load({"a.b": 5}) is None
    aside = [path for path in checkpoints.folder.parent.iterdir() if path.name.startswith("run.")]
    assert len(aside) == 1
    assert (aside[0] / "step-00000001").is_dir()


@pytest.mark.parametrize(
    ("ranks", "batch", "accumulation"),
    [(1, 8, 2), (2, 4, 2), (4, 2, 2), (8, 1, 2), (16, 1, 1)],
)
def test_a_step_keeps_its_images_on_any_ranks_that_divide_them(
    tmp_path: Path, ranks: int, batch: int, accumulation: int
) -> None:
    params = load_params(VITT, TrainingParams, ["run.batch=8", "engine.accumulation=2"])
    before = Checkpoints(tmp_path / "run", "p", ALONE)
    assert keep_global_batch([params], [before], ALONE) == [params]  # nothing to go on from
    before.save(replace(state(1), shared={"global_batch": 16}))
    world = World(0, ranks, 0, torch.device("cpu"))
    later = Checkpoints(tmp_path / "run" / "later", "p", ALONE)
    next_phase = load_params(VITT, TrainingParams, ["run.batch=16", "engine.accumulation=1"])
    [kept, to_come] = keep_global_batch([params, next_phase], [before, later], world)
    assert (kept.run.batch, kept.engine.accumulation) == (batch, accumulation)
    assert kept.run.batch * kept.engine.accumulation * ranks == 16
    assert to_come.run.batch * ranks == 16  # which has not begun, but was to run on one rank, too


def test_ranks_that_do_not_divide_the_images_of_a_step_are_refused(tmp_path: Path) -> None:
    params = load_params(VITT, TrainingParams, ["run.batch=8"])
    before = Checkpoints(tmp_path / "run", "p", ALONE)
    before.save(replace(state(1), shared={"global_batch": 16}))
    three = World(0, 3, 0, torch.device("cpu"))
    with pytest.raises(VitrailError, match=r"trained with 16 images a step, which 3 ranks do not divide; .*follow"):
        keep_global_batch([params], [before], three)
    follow = load_params(VITT, TrainingParams, ["run.batch=8", "run.global_batch=follow"])
    assert keep_global_batch([follow], [before], three) == [follow]


def test_what_a_killed_run_left_half_written_is_cleared_away(checkpoints: Checkpoints) -> None:
    checkpoints.save(state(1))
    left = checkpoints.folder / ".step-00000002.partial"
    left.mkdir()
    (left / "rank-00000.safetensors").write_bytes(b"half")
    found = checkpoints.load({"a.b": 5})
    assert found is not None
    assert found.step == 1
    checkpoints.save(state(3))
    assert [path.name for path in checkpoints.found()] == ["step-00000001", "step-00000003"]
    assert not left.exists()


def test_a_folder_that_cannot_be_made_or_named_is_one_line_on_every_rank(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(state(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("components.training.checkpoints.checkpoint.os.replace", full)
    with pytest.raises(VitrailError, match=r"step 2 not written: rank 0: the disk is full while writing"):
        checkpoints.save(state(2))
    monkeypatch.undo()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


def test_a_failed_write_leaves_the_older_ones(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(state(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        VitrailError, match=r"step 2 not written: .*the disk is full while writing .*older checkpoints are kept"
    ):
        checkpoints.save(state(2))
    monkeypatch.undo()
    found = checkpoints.load({"a.b": 5})
    assert found is not None
    assert found.step == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 7))
def test_shards_cut_for_one_number_of_ranks_can_be_cut_for_another(size: int, before: int, after: int) -> None:
    whole = torch.arange(float(size))
    old = -(-size // before)
    joined = torch.cat([cut(whole, old, rank) for rank in range(before)])
    new = -(-size // after)
    again = torch.cat([cut(joined[:size], new, rank) for rank in range(after)])
    assert torch.equal(again[:size], whole)
    assert not again[size:].any()
    # what load does: the padding of the old cut is only ever zeros, whatever lies behind the end
    assert torch.equal(torch.cat([cut(joined, new, rank) for rank in range(after)])[:size], whole)


def test_reads_the_files_of_another_number_of_ranks(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from components.training.checkpoints.checkpoint import _digest

    folder = tmp_path / "run" / "step-00000009"
    folder.mkdir(parents=True)
    whole, files = torch.arange(5.0), {}
    for rank in range(2):
        path = folder / f"rank-0000{rank}.safetensors"
        save_file({"ema/w": cut(whole, 3, rank).clone()}, path)
        files[path.name] = {"sha256": _digest(path), "bytes": path.stat().st_size}
    own = Checkpoints(tmp_path / "run", "p", ALONE)
    manifest = {"version": VERSION, "step": 9, "fingerprint": own.fingerprint, "identity": own.identity.plain()}
    manifest |= {"world": 2, "files": files, "shared": {}}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    found = Checkpoints(tmp_path / "run", "p", ALONE).load({"w": 5})
    assert found is not None
    assert torch.equal(found.shards["ema/w"], whole)
    with pytest.raises(VitrailError, match="holds ema/w, which this model does not have"):
        Checkpoints(tmp_path / "run", "p", ALONE).load({"v": 5})
