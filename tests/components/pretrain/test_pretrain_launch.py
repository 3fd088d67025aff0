"""The command itself: ranks that torchrun or the command starts; one, the first or the launcher killed; SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from patience import PATIENCE
from stage_worker import curate

from components.training.checkpoints.checkpoint import load_backbone

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.e2e


def command(folder: Path, *more: str) -> list[str]:
    (folder / "storage.yaml").write_text(f"root: {folder}\n")
    return [
        *("-m", "components.pretrain", "run", "--params", str(folder / "params/teacher.yaml")),
        *("--curated", str(folder / "curate"), "--manifest", str(folder / "manifest")),
        *(
            "--out",
            str(folder / "model"),
            "--report",
            str(folder / "report.json"),
            "--scratch",
            str(folder / "scratch"),
        ),
        *("--storage", str(folder / "storage.yaml"), "--no-tracking", "--benchmarks", str(folder / "benchmarks.yaml")),
        *more,
    ]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return kept | {"OMP_NUM_THREADS": "1"}


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def rank_process(launcher: psutil.Process, rank: int) -> psutil.Process:
    return next(child for child in launcher.children() if child.environ().get("RANK") == str(rank))


def test_a_killed_rank_is_named_the_other_leaves_and_one_process_carries_on(tmp_path: Path) -> None:
    curate(tmp_path)
    more = ("--set", "run.iterations=60", "--set", "probe.benchmark=null")
    process = subprocess.Popen(
        torchrun(2) + command(tmp_path, *more, "--set", "run.checkpoint_every=1"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / "scratch").glob("model/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    survivor, victim = (rank_process(psutil.Process(process.pid), rank) for rank in (0, 1))
    victim.kill()
    killed = time.monotonic()
    while survivor.is_running() and survivor.status() != psutil.STATUS_ZOMBIE and time.monotonic() < killed + PATIENCE:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.terminate()  # as the launcher does when it notices; at any moment, so here at all of them
        time.sleep(0.02)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors[-3000:]
    assert lines[0].startswith("error: rank 0 leaves in step ")
    assert f"rank 1 (process {victim.pid} on {socket.gethostname()}) ended without a word" in lines[0]
    assert lines[0].endswith("run the same command again to resume from the newest")
    assert "[rank0]: Traceback" not in errors

    done = subprocess.run(
        [sys.executable, *command(tmp_path, *more, "--set", "run.checkpoint_every=50")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming after step" in done.stderr
    assert "1 ranks: 8 images a rank and micro-batch instead of 4" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["ranks"], report["images_seen"]) == (1, 60 * 16)


def start_and_wait(folder: Path, more: Sequence[str]) -> subprocess.Popen[str]:
    """The command on its way, when it has written a checkpoint that was not there before."""
    before = set((folder / "scratch").glob("model/step-*"))
    process = subprocess.Popen(
        [sys.executable, *command(folder, *more)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not set((folder / "scratch").glob("model/step-*")) - before and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    return process


def errors_of(process: subprocess.Popen[str], ranks: Sequence[psutil.Process]) -> list[str]:
    """The one-line faults of a run that ends now; none of its processes is left."""
    _, text = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert psutil.wait_procs(ranks, timeout=PATIENCE)[1] == []
    assert "]: Traceback" not in text  # which begins with [rank0] or [rank1]
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_ranks_that_run_starts_itself_obey_sigterm_outlive_no_loss_and_export_one_model(tmp_path: Path) -> None:
    curate(tmp_path)
    more = ("--set", "run.processes=2", "--set", "run.iterations=60")
    often = (*more, "--set", "run.checkpoint_every=1")

    process = start_and_wait(tmp_path, often)
    launcher = psutil.Process(process.pid)  # the command became torchrun
    ranks = [rank_process(launcher, rank) for rank in (0, 1)]
    launcher.terminate()
    lines = errors_of(process, ranks)
    assert all(line.startswith("error: pretrain model: stopped by SIGTERM after step ") for line in lines)
    assert all(line.endswith("run the same command again to resume") for line in lines)
    assert lines

    process = start_and_wait(tmp_path, often)
    ranks = [rank_process(psutil.Process(process.pid), rank) for rank in (0, 1)]
    ranks[0].kill()
    [line] = errors_of(process, ranks)
    assert line.startswith("error: rank 1 leaves in step ")
    assert f"rank 0 (process {ranks[0].pid} on {socket.gethostname()}) ended without a word" in line

    process = start_and_wait(tmp_path, often)
    ranks = [rank_process(psutil.Process(process.pid), rank) for rank in (0, 1)]
    process.kill()
    lines = errors_of(process, ranks)
    assert all(re.search(r"^error: rank [01] leaves in step \d+: ", line) for line in lines)
    assert lines

    done = subprocess.run(
        [sys.executable, *command(tmp_path, *more, "--set", "run.checkpoint_every=50")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("resuming after step") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["ranks"], report["images_seen"]) == (2, 60 * 16)
    assert load_backbone(tmp_path / "model")[1].step == 60
    curve = json.loads((tmp_path / "model/curve.json").read_text())
    assert [point["step"] for point in curve["points"]] == list(range(2, 61, 2))
    assert [point["step"] for point in curve["probes"]] == [0, 30, 60]  # every rank helps, one scores
    assert all("probe/toy/kind-mosaic/miou" in point for point in curve["probes"])
    assert done.stderr.count("pretrain model: 60/60 steps") == 1  # one rank talks


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_to_the_group_ends_the_command_with_a_line_that_says_how_to_go_on(tmp_path: Path, workers: int) -> None:
    curate(tmp_path)
    longer = ("--set", "run.iterations=100000", "--set", "run.checkpoint_every=1", "--set", "probe.benchmark=null")
    longer += ("--set", f"loader.workers={workers}")
    process = subprocess.Popen(
        [sys.executable, *command(tmp_path, *longer)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not list((tmp_path / "scratch").glob("model/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # as flows end a stage: the loader's workers get it, too
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: pretrain model: stopped by SIGTERM after step")
    assert errors.splitlines()[-1].endswith("run the same command again to resume")
