"""One process a GPU without a launcher on the command line: ``run`` turns itself into torchrun where that is needed.

So a stage that DVC or Prefect starts, always one process, uses the whole machine, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from components.training.costs.capability import Machine, on_gpu, this_machine
from components.training.params import TrainingParams
from components.training.ranks.distributed import launched_rank

SHUTDOWN = 240  # seconds that ranks get to write a checkpoint after SIGTERM; torchrun's own default is 30


def processes(params: TrainingParams, machine: Machine) -> int:
    """How many processes ``run`` starts on ``machine``."""
    if params.run.processes != "auto":
        return params.run.processes
    return max(1, machine.gpus) if on_gpu(params, machine) else 1


def launched() -> bool:
    """Whether a launcher started this process as one of its ranks (of which there may be one).

    Raises:
        VitrailError: see :func:`components.training.ranks.distributed.launched_rank`.
    """
    return launched_rank().size > 1 or "WORLD_SIZE" in os.environ


def start_ranks(module: str, argv: Sequence[str], params: TrainingParams) -> None:
    """Nothing for a rank, or where one process is wanted; else this process goes on as torchrun."""
    if not launched():
        count = processes(params, this_machine())
        if count > 1:
            relaunch(module, argv, count)


def relaunch(module: str, argv: Sequence[str], count: int) -> NoReturn:
    """Become torchrun, which runs ``python -m module argv`` as ``count`` ranks: signals reach it under this id."""
    own = ["--standalone", f"--nproc-per-node={count}", f"--shutdown-timeout={SHUTDOWN}"]
    command = [sys.executable, "-m", "torch.distributed.run", *own, "-m", module, *argv]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)
