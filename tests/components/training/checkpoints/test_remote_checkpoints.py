"""Copies of checkpoints on S3, over real HTTP: another machine (an empty folder) goes on from them."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.errors import VitrailError
from components.storage import StorageParams, Store, open_store
from components.training.checkpoints.checkpoint import Checkpoint, Checkpoints
from components.training.mismatch import resolve_mismatch
from components.training.params import RunParams
from components.training.ranks.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))


def state(step: int, elements: int = 5) -> Checkpoint:
    return Checkpoint(step, {"master/a.b": torch.full((elements,), float(step))}, {"position": step})


@pytest.fixture
def store(s3_endpoint: str) -> Store:
    root = f"s3://vitrail-test/{uuid.uuid4().hex}/vitt"
    return open_store(StorageParams(root=root, endpoint_url=s3_endpoint, max_attempts=1, connect_timeout=2))


def on_machine(folder: Path, store: Store, identity: str = "p", **keeping: int) -> Checkpoints:
    return Checkpoints(folder / "vitt", identity, ALONE, store=store, **keeping)


def step_there(store: Store) -> int:
    return int(json.loads(store.read("latest.json"))["step"])


def folders(store: Store) -> set[str]:
    return {name.partition(".")[0] for name in store.list() if name.startswith("step-")}


def test_another_machine_goes_on_where_the_first_one_stopped(tmp_path: Path, store: Store) -> None:
    first = on_machine(tmp_path / "a", store)
    first.fetch()  # nothing there yet
    first.save(state(1))
    (first.folder / "mlflow-run").write_text("run 7\n")
    first.save(state(2))
    second = on_machine(tmp_path / "b", store)
    second.fetch()
    found = second.load({"a.b": 5})
    assert found is not None
    assert (found.step, found.shared, found.shards["master/a.b"].tolist()) == (2, {"position": 2}, [2.0] * 5)
    assert (second.folder / "mlflow-run").read_text() == "run 7\n"
    second.save(state(3))
    first.fetch()  # the first machine is back
    assert [path.name for path in first.found()][-1] == "step-00000003"


def test_files_of_many_parts_come_back_whole(tmp_path: Path, store: Store) -> None:
    elements = 3_000_000  # 12 MB: boto3 cuts at 8
    on_machine(tmp_path / "a", store).save(state(1, elements))
    [name] = [name for name in store.list() if name.endswith(".safetensors")]
    assert "-2" in store.version(name)  # the ETag of an upload in two parts
    second = on_machine(tmp_path / "b", store)
    second.fetch()
    found = second.load({"a.b": elements})
    assert found is not None
    assert float(found.shards["master/a.b"].sum()) == elements


def test_the_store_keeps_what_the_folder_keeps(tmp_path: Path, store: Store) -> None:
    checkpoints = on_machine(tmp_path, store, keep=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(state(step))
    checkpoints.save(replace(state(7), shared={"position": 70}))  # the same step anew
    assert folders(store) == {"step-00000004", "step-00000006", "step-00000007"}
    assert len([name for name in store.list() if name.endswith("manifest.json")]) == 3


@pytest.mark.parametrize("fault", ["flipped", "cut", "gone", "no manifest", "half a manifest"])
def test_a_damaged_copy_gives_way_to_the_one_before(
    tmp_path: Path, store: Store, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = on_machine(tmp_path / "a", store)
    first.save(state(1))
    first.save(state(2))
    newest = json.loads(store.read("latest.json"))["folder"]
    file, manifest = f"{newest}/rank-00000.safetensors", f"{newest}/manifest.json"
    data = bytearray(store.read(file))
    if fault == "flipped":
        data[-1] ^= 1
        store.write(file, data)
    elif fault == "cut":
        store.write(file, bytes(data[:-4]))
    elif fault == "gone":
        store.delete(file)
    elif fault == "no manifest":
        store.delete(manifest)
    else:
        store.write(manifest, store.read(manifest)[:40])
    second = on_machine(tmp_path / "b", store)
    second.fetch()
    found = second.load({"a.b": 5})
    assert found is not None
    assert found.step == 1
    assert "damaged" in capsys.readouterr().out
    assert not list(second.folder.glob(".step-*"))


def test_only_damaged_copies_are_an_error_not_a_new_start(tmp_path: Path, store: Store) -> None:
    on_machine(tmp_path / "a", store).save(state(1))
    for name in [name for name in store.list() if name.endswith(".safetensors")]:
        store.delete(name)
    with pytest.raises(VitrailError, match="every checkpoint is damaged"):
        on_machine(tmp_path / "b", store).fetch()


def test_a_run_killed_between_upload_and_pointer_leaves_the_older_one_in_charge(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = on_machine(tmp_path / "a", store)
    first.save(state(1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(first.remote, "_publish", killed)
    with pytest.raises(KeyboardInterrupt):
        first.save(state(2))
    assert step_there(store) == 1
    second = on_machine(tmp_path / "b", store)
    second.fetch()
    assert [path.name for path in second.found()] == ["step-00000001"]
    second.save(state(2))
    second.save(state(3))
    assert folders(store) == {"step-00000002", "step-00000003"}
    halves = {name.partition("/")[0] for name in store.list() if name.startswith("step-")}
    assert len(halves) == 2  # what was half uploaded is gone


def test_a_store_that_is_away_costs_a_warning_and_the_next_checkpoint_makes_up_for_it(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = on_machine(tmp_path / "a", store)
    with monkeypatch.context() as away:
        away.setattr(store, "_made", None)
        away.setattr(store, "_params", StorageParams(
            root=store.root, endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout=1
        ))  # fmt: skip
        checkpoints.save(state(1))
        said = capsys.readouterr().out
        assert "warning: the checkpoint of step 1 is in " in said
        assert "cannot reach S3 at http://127.0.0.1:9" in said
        with pytest.raises(VitrailError, match="nothing is trained without it"):
            on_machine(tmp_path / "b", store).fetch()  # beginning anew would be the worst answer
    checkpoints.save(state(2))
    assert step_there(store) == 2


def test_two_runs_at_once_do_not_write_over_each_other(tmp_path: Path, store: Store) -> None:
    first, second = on_machine(tmp_path / "a", store), on_machine(tmp_path / "b", store)
    first.save(state(1))
    second.fetch()
    second.save(state(2))
    with pytest.raises(VitrailError, match=r"another run, on \S+, has written step 2 there since this one began"):
        first.save(state(3))
    assert step_there(store) == 2
    second.save(state(3))


def test_what_is_set_aside_here_is_set_aside_there(tmp_path: Path, store: Store) -> None:
    on_machine(tmp_path / "a", store).save(state(1))
    other = on_machine(tmp_path / "b", store, "q")
    other.fetch()
    run = RunParams(iterations=10, batch=4, disposable_minutes=0, on_mismatch="fresh")
    assert "moved aside" in resolve_mismatch(other, run, ALONE)
    third = on_machine(tmp_path / "c", store, "q")
    third.fetch()
    assert third.found() == []
    aside = [name for name in store.list() if name.startswith("aside-")]
    assert any(name.endswith("rank-00000.safetensors") for name in aside)
    third.save(state(1))
    third.remove()
    assert [name for name in store.list() if not name.startswith("aside-")] == []
    assert aside == list(store.list())


def test_a_damaged_pointer_is_one_line(tmp_path: Path, store: Store) -> None:
    for text in (b"", b"[]", b'{"step": 1, "folder": "../x"}', b'{"step": "1", "folder": 3}'):
        store.write("latest.json", text)
        with pytest.raises(VitrailError, match=r"latest\.json: damaged; remove it to start anew"):
            on_machine(tmp_path, store).fetch()
