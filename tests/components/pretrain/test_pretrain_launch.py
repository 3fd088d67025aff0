"""The command itself: two ranks under torchrun, one of them killed, and SIGTERM to a real process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from stage_worker import curate

from components.learning.checkpoint import load_backbone

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.e2e


def command(folder: Path, *more: str) -> list[str]:
    (folder / "storage.yaml").write_text(f"root: {folder}\n")
    return [
        *("-m", "components.pretrain", "run", "--params", str(folder / "params/teacher.yaml")),
        *("--curated", str(folder / "curate"), "--manifest", str(folder / "manifest.parquet")),
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
    deadline = time.monotonic() + 200
    while not list((tmp_path / "scratch").glob("model/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    victim = rank_process(psutil.Process(process.pid), 1)
    victim.kill()
    killed = time.monotonic()
    _, errors = process.communicate(timeout=90)
    assert time.monotonic() - killed < 60  # a second to notice, three to let connections fail; the rest is exits
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
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming after step" in done.stderr
    assert "1 ranks: 8 images a rank and micro-batch instead of 4" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["ranks"], report["images_seen"]) == (1, 60 * 16)


def test_two_ranks_under_torchrun_export_one_model(tmp_path: Path) -> None:
    curate(tmp_path)
    done = subprocess.run(
        torchrun(2) + command(tmp_path), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "report.json").read_text())["ranks"] == 2
    assert load_backbone(tmp_path / "model")[1].step == 6
    probes = json.loads((tmp_path / "model/curve.json").read_text())["probes"]
    assert [point["step"] for point in probes] == [0, 3, 6]  # every rank helps, one scores
    assert all("probe/toy/kind-mosaic/miou" in point for point in probes)
    assert done.stderr.count("pretrain model: 6/6 steps") == 1  # one rank talks


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
    deadline = time.monotonic() + 200
    while not list((tmp_path / "scratch").glob("model/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)  # as flows end a stage: the loader's workers get it, too
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - asked < 30  # the grace period of the flows
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: pretrain model: stopped by SIGTERM after step")
    assert errors.splitlines()[-1].endswith("run the same command again to resume")
