"""A run in a checkout of its own: edits beside it change nothing, and its result comes back where nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE

from components.errors import VitrailError
from components.lock import hold
from flows import checkouts, launch
from flows.settings import load_pipeline
from flows.tasks import _left
from flows.workspace import Work, prepare, work_of_continued, work_of_families, work_of_preset
from infra.local import checkouts as command

ROOT = Path(__file__).resolve().parents[2]
# The stage of a preset writes what it read at its start, and again at its end; between, it waits while HOLD is there.
STAGE = """
import os, pathlib, time
code, params = pathlib.Path("code.txt"), pathlib.Path("params/pretrain/small.yaml")
first = code.read_text() + params.read_text()
hold, state = pathlib.Path(os.environ.get("HOLD", "none")), pathlib.Path("scratch/state")
if hold.parent.is_dir():
    (hold.parent / "began").write_text("")
while hold.exists():
    time.sleep(0.05)
steps = int(state.read_text()) if state.exists() else 0
state.parent.mkdir(exist_ok=True)
state.write_text(str(steps + 1))
made = first + code.read_text() + params.read_text() + f"{steps} times before"
for name, content in (("data/pretrain/small", made), ("reports/pretrain-small.json", "{}")):
    pathlib.Path(name).parent.mkdir(exist_ok=True)
    pathlib.Path(name).write_text(content)
"""


def sh(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return sh(folder, sys.executable, "-m", "dvc", *arguments)


def commit(root: Path) -> None:
    sh(root, "git", "add", "-A")
    sh(root, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which every stage has run, and a run's own checkout with the same result."""
    root = tmp_path_factory.mktemp("made") / "checkout"
    (root / "params/pretrain").mkdir(parents=True)
    (root / "code.txt").write_text("old code\n")
    (root / "params/pretrain/small.yaml").write_text("lr: 1\n")
    (root / "params/pipeline.yaml").write_text("source: here\npretrain: [small]\ncontinued: {}\ndistill: {}\n")
    platform = yaml.safe_load((ROOT / "params/platform.yaml").read_text()) | {"own_checkout": True}
    (root / "params/platform.yaml").write_text(yaml.safe_dump(platform))
    (root / "stage.py").write_text(STAGE)
    first = "mkdir -p data && echo pictures > data"
    stages = {
        "inputs": {"cmd": f"{first}/inputs", "outs": ["data/inputs"], "always_changed": True},
        "crawl": {"cmd": f"{first}/crawl", "outs": ["data/crawl"]},
        "curate": {"cmd": "cp data/crawl data/curate", "deps": ["data/crawl"], "outs": ["data/curate"]},
        "dedup": {"cmd": "cp data/curate data/dedup", "deps": ["data/curate"], "outs": ["data/dedup"]},
        "pretrain": {
            "matrix": {"preset": ["small"]},
            "cmd": f"{sys.executable} stage.py",
            "deps": ["data/dedup", "code.txt", "params/pretrain/${item.preset}.yaml"],
            "outs": ["data/pretrain/${item.preset}"],
            "metrics": [{"reports/pretrain-${item.preset}.json": {"cache": False}}],
        },
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / ".gitignore").write_text("/data/\n/runs/\n/scratch/\n/reports/\n__pycache__/\n/photos/\n")
    for name in ("flows", "components"):
        (root / name).symlink_to(ROOT / name)
    sh(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "repro", "-q")
    commit(root)
    own, about = prepare(work_of_preset("pretrain", "small", root), root)
    assert about == f"works in runs/pretrain-small: commit {sh(root, 'git', 'rev-parse', 'HEAD')[:10]}"
    assert sh(own, "git", "status", "--porcelain").split() == ["M", "dvc.lock"]  # which names what it needs alone
    assert "is cached - skipping run" in dvc(own, "repro", "--single-item", "pretrain@small")
    return root


@pytest.fixture
def checkout(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    root = tmp_path / "checkout"
    shutil.copytree(made, root, symlinks=True)
    config = root / "runs/pretrain-small/.dvc/config.local"
    config.write_text(config.read_text().replace(str(made), str(root)))
    monkeypatch.chdir(root)
    return root


@pytest.mark.e2e
def test_edits_while_a_run_works_change_nothing_for_it_and_its_result_comes_back(
    checkout: Path, prefect_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pretrain import pretrain

    own, hold, ended = checkout / "runs/pretrain-small", checkout.parent / "hold", list[Any]()
    monkeypatch.setenv("HOLD", str(hold))
    monkeypatch.setattr(launch, "check", lambda *_, **__: launch.Completed())  # of a machine that trains
    hold.write_text("")
    (checkout / "params/pretrain/small.yaml").write_text("lr: 2\n")  # not committed: it belongs to the run
    running = threading.Thread(target=lambda: ended.append(pretrain("small", return_state=True)))
    running.start()
    until = time.monotonic() + PATIENCE
    while not hold.with_name("began").exists() and running.is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    (checkout / "code.txt").write_text("new code\n")
    (checkout / "params/pretrain/small.yaml").write_text("lr: 3\n")
    commit(checkout)
    hold.unlink()
    running.join(PATIENCE)
    [state] = ended
    assert state.is_completed(), state.message
    made = "old code\nlr: 2\nold code\nlr: 2\n0 times before"
    assert (own / "data/pretrain/small").read_text() == made
    assert "lr: 2" in sh(own, "git", "diff")  # the commit that it began with, and the edits
    assert sh(own, "git", "show", "HEAD:code.txt") == "old code\n"
    # Of other files than those that are here now: it stays there until they are back.
    assert (checkout / "data/pretrain/small").read_text().startswith("old code\nlr: 1\n")
    assert not checkouts.noted(own)["done"]
    sh(checkout, "git", "checkout", "-q", "HEAD~1", ".")
    (checkout / "params/pretrain/small.yaml").write_text("lr: 2\n")
    assert pretrain("small", return_state=True).is_completed()
    assert (checkout / "data/pretrain/small").read_text() == made
    assert checkouts.noted(own)["done"]


@pytest.mark.e2e
def test_a_job_of_a_cluster_works_in_the_runs_checkout_and_its_result_comes_back(
    checkout: Path, cluster: Path, prefect_api: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.pretrain import pretrain

    (checkout / "code.txt").write_text("newer code\n")
    commit(checkout)
    sbatch = (cluster / "tools/sbatch").read_text()
    job = f'{sys.executable} stage.py && echo COMPLETED > "$STATE/job"; echo "trained in $PWD" > "$(cat $STATE/out)"'
    (cluster / "tools/sbatch").write_text(f"{sbatch}\n{job}\n")
    (cluster / "job").write_text("RUNNING\n")
    (checkout / "runs/pretrain-small/scratch").mkdir(exist_ok=True)
    (checkout / "runs/pretrain-small/scratch/slurm-small.job").write_text("76")  # of a run that was killed
    checkouts.note(checkout / "runs/pretrain-small", done=False)
    state = pretrain("small", cluster="slurm", nodes=2, return_state=True)
    assert "job 76 of an earlier run still works" in state.message
    assert (checkout / "runs/pretrain-small/code.txt").read_text() == "old code\n"  # under its feet nothing changed

    (cluster / "job").unlink()
    (cluster / "forgotten").touch()
    (cluster / "tools/sacct").write_text('#!/bin/bash\necho "COMPLETED|0:0"\n')
    state = pretrain("small", cluster="slurm", nodes=2, return_state=True)
    assert state.is_completed(), state.message
    assert (checkout / "data/pretrain/small").read_text().startswith("newer code\n")
    assert f"trained in {checkout}/runs/pretrain-small" in Path((cluster / "out").read_text().strip()).read_text()
    assert "didn't change, skipping" in dvc(checkout, "repro", "--single-item", "pretrain@small")


def test_a_run_goes_on_from_the_training_that_was_begun_in_the_checkout(checkout: Path) -> None:
    state, work = Path("scratch/pretrain/small"), work_of_preset("pretrain", "small", checkout)
    (checkout / state).mkdir(parents=True)
    (checkout / state / "step").write_text("500")
    with hold(checkout / state):  # by `dvc repro`, say
        own, about = prepare(work, checkout)
    assert "begins pretrain@small anew, because" in about
    assert "in use by" in about
    assert not (own / state).exists()
    _, about = prepare(work, checkout)
    assert about.endswith("goes on from scratch/pretrain/small, which was moved here")
    assert (own / state / "step").read_text() == "500"
    (checkout / "data/.crawl.work/1f").mkdir(parents=True)  # pages that were fetched need not be asked for again
    crawl, about = prepare(work_of_families("crawl", ("crawl",), load_pipeline(checkout)), checkout)
    assert about.endswith("goes on from data/.crawl.work, which was moved here")
    assert (crawl / "data/.crawl.work/1f").is_dir()
    (checkout / state).mkdir()  # an older one never takes the place of the run's own
    prepare(work, checkout)
    assert (own / state / "step").read_text() == "500"


def brought(own: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "flows.bring_in", str(own), "pretrain@small"]
    said: dict[str, Any] = json.loads(sh(own.parents[1], *words).splitlines()[-1])  # DVC may say something before
    return said


def test_a_result_stays_where_files_differ_and_the_line_says_how_to_have_it(checkout: Path) -> None:
    (checkout / "code.txt").write_text("new code\n")
    (checkout / "data/dedup").unlink()
    (checkout / "data/dedup").write_text("other pictures\n")
    lock = (checkout / "dvc.lock").read_bytes()
    said = brought(checkout / "runs/pretrain-small")
    assert said["differs"] == ["code.txt", "data/dedup"]
    assert (checkout / "dvc.lock").read_bytes() == lock
    line = _left(json.dumps(said), Path("runs/pretrain-small"))
    assert line.startswith(
        "pretrain@small: the result is in runs/pretrain-small, and not here, because code.txt, data/dedup"
    )
    assert "then: dvc repro --single-item pretrain@small" in line


def test_a_result_never_replaces_what_dvc_does_not_have(checkout: Path) -> None:
    (checkout / "data/pretrain/small").unlink()
    (checkout / "data/pretrain/small").write_text("made by hand")
    said = brought(checkout / "runs/pretrain-small")
    assert "data/pretrain/small" in said["fault"]
    assert (checkout / "data/pretrain/small").read_text() == "made by hand"


def test_of_several_results_of_a_forced_stage_the_runs_own_comes_back_with_its_report(checkout: Path) -> None:
    own = checkout / "runs/pretrain-small"
    older = [path for path in (checkout / ".dvc/cache/runs").rglob("*") if path.is_file()]
    (own / "scratch").mkdir(exist_ok=True)
    (own / "scratch/state").write_text("7")
    dvc(own, "repro", "-q", "--force", "--single-item", "pretrain@small")
    for path in older:
        os.utime(path, (time.time() + 1000, time.time() + 1000))  # what `dvc repro` would take: the newest
    (checkout / "reports/pretrain-small.json").unlink()
    assert brought(own) == {"stage": "pretrain@small", "differs": [], "fault": ""}
    assert (checkout / "data/pretrain/small").read_text().endswith("7 times before")
    assert (checkout / "reports/pretrain-small.json").read_text() == "{}"
    assert sh(checkout, "git", "status", "--porcelain").split() == ["M", "dvc.lock"]
    assert "didn't change, skipping" in dvc(checkout, "repro", "--single-item", "pretrain@small")


def test_a_checkout_holds_the_commit_its_edits_and_links_to_what_git_has_not(checkout: Path) -> None:
    (checkout / "photos").mkdir()
    (checkout / "photos/a.jpg").write_bytes(b"a")
    (checkout / "notes").mkdir()
    (checkout / "notes/private.txt").write_text("mine")
    (checkout / "data/models").mkdir()
    (checkout / "params/new.yaml").write_text("a: 1\n")
    (checkout / "code.txt").unlink()
    (checkout / "mlflow.db").write_bytes(b"")
    (checkout / ".env").write_text("PASSWORD=x")
    own, about = prepare(work_of_preset("pretrain", "small", checkout), checkout)
    assert about.endswith("with 2 files that are not committed yet (code.txt, params/new.yaml)")
    for name in ("photos", "notes", "data/models"):
        assert (own / name).is_symlink()
        assert (own / name).resolve() == checkout / name
    assert not (own / "data/dedup").is_symlink()
    assert (own / "params/new.yaml").is_file()
    for name in ("code.txt", "mlflow.db", ".env", "runs"):
        assert not (own / name).exists()
    assert sorted(sh(own, "git", "status", "--porcelain").split()) == ["??", "D", "M", "code.txt",
                                                                      "dvc.lock", "params/new.yaml"]  # fmt: skip
    (checkout / "photos/a.jpg").unlink()
    (checkout / "photos").rmdir()
    (own / "scratch/tracking").mkdir(parents=True, exist_ok=True)
    (own / "scratch/tracking/unsent").write_text("")
    again, _ = prepare(work_of_preset("pretrain", "small", checkout), checkout)
    assert not (again / "photos").is_symlink()
    assert (again / "scratch/tracking/unsent").exists()


def test_a_model_that_a_stage_made_is_taken_as_it_is_when_the_run_begins(checkout: Path) -> None:
    (checkout / "params/continue").mkdir()
    (checkout / "params/continue/small.yaml").write_text("init: data/pretrain/small\n")
    own, _ = prepare(work_of_continued("small", checkout), checkout)
    before = (own / "data/pretrain/small").read_text()
    (checkout / "data/pretrain/small").unlink()
    assert not (own / "data/pretrain/small").is_symlink()
    assert before.startswith("old code")


def test_a_benchmark_sees_every_model_that_is_here_and_no_other(checkout: Path) -> None:
    (checkout / "data/pretrain/by-hand").mkdir()
    (checkout / "data/pretrain/by-hand/weights").write_text("w")
    work = work_of_families("benchmark", ("benchmark",), launch.load_pipeline(checkout))
    own, _ = prepare(work, checkout)
    (own / "data/pretrain/gone").mkdir()
    assert prepare(work, checkout)[0] == own
    assert sorted(path.name for path in (own / "data/pretrain").iterdir()) == ["by-hand", "small"]
    assert (own / "data/pretrain/by-hand/weights").read_text() == "w"


def test_two_runs_of_one_checkout_wait_for_each_other_and_say_for_whom(tmp_path: Path) -> None:
    folder, said = tmp_path / "runs/dedup", list[str]()
    with (
        hold(folder),
        pytest.raises(VitrailError, match=r"dedup: in use by process \d+ on "),
        checkouts.alone(folder, 0.05, said.append, every=0.01),
    ):
        pass
    [line] = said  # told once, not at every try
    assert line.startswith("waits: ")
    assert "in use by process" in line
    with checkouts.alone(folder, 0, said.append):  # at once
        pass


def test_old_checkouts_go_by_themselves_when_their_run_ended_well_and_others_when_asked(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = in_tmp / "runs"
    for name in ("done", "failed", "young", "working"):
        (runs / name / "scratch").mkdir(parents=True)
        checkouts.note(runs / name, done=name != "failed")
    for name in ("done", "failed", "working"):
        path = runs / f".{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"at": time.time() - 15 * 86_400}))
    with hold(runs / "working"):
        assert checkouts.remove_old(runs, 14.0) == ["done"]
        with pytest.raises(VitrailError, match="in use by"):
            checkouts.remove(runs / "working")
    assert [path.name for path in checkouts.kept_checkouts(runs)] == ["failed", "working", "young"]
    command.show()
    said = capsys.readouterr().out
    for name, state in (("failed", "not finished"), ("working", "ended well 15 d"), ("young", "ended well")):
        assert any(line.startswith(name) and state in line for line in said.splitlines()), said
    command.remove_named("failed")
    assert sorted(path.name for path in runs.iterdir()) == [".working.json", ".young.json", "working", "young"]
    with pytest.raises(VitrailError, match="no such checkout; there are: working, young"):
        checkouts.remove(runs / "failed")


@pytest.mark.parametrize("kind", ["no git", "no commit", "a folder of it"])
def test_what_is_no_checkout_with_a_commit_is_one_line(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "here"
    root.mkdir()
    if kind != "no git":
        sh(tmp_path if kind == "a folder of it" else root, "git", "init", "-q")
    asked = Work("dedup", ("dedup",))
    with pytest.raises(
        VitrailError, match=r"a run needs one whose top|not a git checkout with a commit, so no run"
    ) as said:
        prepare(asked, root)
    assert "\n" not in str(said.value)


def test_the_store_of_a_run_is_the_one_of_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert checkouts.tracking_of(checkout) == {}
    (checkout / "params/tracking.yaml").write_text((ROOT / "params/tracking.yaml").read_text())
    assert checkouts.tracking_of(checkout) == {"MLFLOW_TRACKING_URI": f"sqlite:///{checkout}/mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert checkouts.tracking_of(checkout) == {}
    own, _ = prepare(work_of_preset("pretrain", "small", checkout), checkout)
    assert (own / "scratch/tracking").resolve() == checkout / "scratch/tracking"  # what was not sent is sent from here
