"""Three ranks whose main threads hang, as NCCL's collectives do: faults, silence and a killed rank are noticed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[4]


def scene(world: Any, silence: float, play: Any) -> dict[str, Any]:
    """Watch while rank 2 does ``play`` and the others hang; what the others printed, and after how long they left."""
    from components.training.ranks.watch import Watch

    left, printed, started = threading.Event(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(printed):
        watch = Watch(world, silence, "run again", leave=lambda code: left.set())
        watch.step = 6
        if world.rank == 2:
            play(watch)
            watch.close()  # done: nothing that the others would still notice
        else:
            assert left.wait(600)
            watch.close(follows=True)
    return {"printed": printed.getvalue(), "seconds": time.monotonic() - started}


def rank(folder: Path) -> None:
    """What one process does; the scenes follow each other."""
    from components.errors import VitrailError
    from components.training.ranks import watch as module
    from components.training.ranks.distributed import join, pick_device

    world = join(pick_device("cpu"))

    def fail(watch: Any) -> None:
        watch.close(VitrailError("the shard is gone"))

    def fall_silent(watch: Any) -> None:
        watch._say = lambda what: None
        time.sleep(12)

    def die(watch: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    found = {"fault": scene(world, 60, fail)}
    here, module.socket.gethostname = module.socket.gethostname, lambda: f"host-{world.rank}"  # type: ignore[assignment]
    found["silence"] = scene(world, 3, fall_silent)
    module.socket.gethostname = here
    with contextlib.suppress(BrokenPipeError):
        found["killed"] = scene(world, 60, die)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    os._exit(0)  # the process group cannot be taken down in order: a partner is gone


def unused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) != 0


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("watch")
    port = next(port for port in range(10_000 + os.getpid() % 10_000, 30_000) if unused(port))
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            cwd=ROOT,
            # as tasks of a Slurm step; the port where they meet follows from the job's number
            env=kept
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                "SLURM_PROCID": str(number),
                "SLURM_NTASKS": "3",
                "SLURM_STEP_NUM_TASKS": "3",
            }
            | {"SLURM_LOCALID": str(number), "SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(port - 10_000)}
            | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    texts = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, -signal.SIGKILL], texts
    return [json.loads((folder / f"rank-{number}.json").read_text()) for number in (0, 1)]


@pytest.mark.parametrize(
    ("kind", "message", "bound"),
    [
        ("fault", "ended: the shard is gone", 50),
        ("silence", "gave no sign for ", 120),
        ("killed", "ended without a word (killed, or out of memory?)", 50),
    ],
)
def test_each_other_rank_says_in_one_line_which_was_lost_and_leaves(
    scenes: list[dict[str, Any]], kind: str, message: str, bound: float
) -> None:
    for number, found in enumerate(scenes):
        lines = found[kind]["printed"].splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"error: rank {number} leaves in step 7: rank 2 (process ")
        assert message in lines[0]
        assert lines[0].endswith("; run again")
        assert found[kind]["seconds"] < bound


if __name__ == "__main__":
    rank(Path(sys.argv[1]))
