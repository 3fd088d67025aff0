"""What the flows share: run stages in a checkout of their own, or in this one; faults of input become one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from components.errors import VitrailError, nearest
from components.pipeline import is_watched
from flows.checkouts import RUNS, alone, noted, tracking_of
from flows.clusters import Cluster, Kubernetes, Slurm
from flows.settings import PipelineParams, PlatformParams, load_pipeline, load_platform
from flows.stages import stage_name
from flows.tasks import as_flow_state, check, command, gate, make_checkout, on_cluster, reproduce, take_result
from flows.workspace import Work, place_for, start_of, work_of_continued, work_of_families, work_of_preset

P = ParamSpec("P")


def _explained(function: Callable[P, State[Any]]) -> Callable[P, State[Any]]:
    """A failure is a state with one line; it is logged without the traceback of Prefect's own engine."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            state = function(*args, **kwargs)
        except VitrailError as fault:
            state = Failed(message=f"error: {fault}")
        if state.is_failed() and os.environ.get("PREFECT__FLOW_RUN_ID"):
            # This process was started for this one run, and ends with it. Its engine logs every failed state as an
            # exception, and a hundred lines about Prefect's inside would bury the one that says what to do.
            sys.tracebacklimit = 0
        return state

    return call


Step = Callable[[Path], State[Any]]  # given the folder that a run works in


def _work(
    work: Work,
    root: Path,
    platform: PlatformParams,
    do: Step,
    after: Step | None = None,
    first: Callable[[Path], None] = lambda folder: None,
) -> State[Any]:
    """``do`` the work in a checkout of its own, or in ``root`` where the params say so; if it went well, ``after``.

    Between them, what was made in a checkout of its own is taken into ``root``. ``first`` sees that checkout as an
    earlier run left it.
    """
    if work.listed and not platform.own_checkout:
        state = do(root)
        return after(root) if after and state.is_completed() else state
    folder = root / RUNS / work.name
    with alone(folder, platform.busy_retries * platform.busy_delay, get_run_logger().info):
        if noted(folder):  # an earlier run had it whole
            first(folder)
        ready = _patient(make_checkout, platform)(work, root, platform, return_state=True)
        if not ready.is_completed():
            return as_flow_state(ready)
        state = do(folder)
        if not state.is_completed():
            return state
        taken = _patient(take_result, platform)(work, root, platform, return_state=True)
        if not taken.is_completed():
            return as_flow_state(taken)
        return after(folder) if after else state


def _patient(step: Any, platform: PlatformParams) -> Any:
    return step.with_options(retries=platform.busy_retries, retry_delay_seconds=platform.busy_delay)


@_explained
def run_families(*families: str, anew: Sequence[str] = ()) -> State[Any]:
    """Run the stages of ``families`` (all, when none is given); ``anew`` in any case."""
    root = Path.cwd()
    platform = load_platform(root)
    work = work_of_families(families[-1] if families else "pipeline", families, load_pipeline(root))
    return _work(work, root, platform, lambda folder: reproduce(work.stages, folder, platform, anew))


@_explained
def run_benchmark(preset: str | None = None) -> State[Any]:
    """Run the stage benchmark, then its gate, for ``preset`` or for all checkpoints."""
    root = Path.cwd()
    pipeline, platform = load_pipeline(root), load_platform(root)
    only = None if preset is None else checkpoint_name(preset, pipeline)
    work = work_of_families("benchmark", ("benchmark",), pipeline)
    done = f"up to date: {', '.join(work.stages)}"

    def judge(folder: Path) -> State[Any]:
        passed = gate(folder, platform, only, return_state=True)
        return Completed(message=done) if passed.is_completed() else as_flow_state(passed)

    return _work(work, root, platform, lambda folder: reproduce(work.stages, folder, platform), judge)


def checkpoint_name(preset: str, pipeline: PipelineParams) -> str:
    """The name of a preset's checkpoint in the benchmark's tables: ``pretrain vitt``.

    Raises:
        VitrailError: params/pipeline.yaml reproduces no such preset.
    """
    families = {"pretrain": list(pipeline.pretrain), "distill": list(pipeline.distill)}
    for family, presets in families.items():
        if preset in presets:
            return f"{family} {preset}"
    known = [name for presets in families.values() for name in presets]
    raise VitrailError(f"params/pipeline.yaml reproduces no preset {preset!r}{nearest(preset, known)}; name it there")


@_explained
def run_on_cluster(preset: str, cluster: str, nodes: int, options: Sequence[str]) -> State[Any]:
    """Train ``preset`` on ``nodes`` of a cluster, then take the result into DVC's graph as if it had been made here.

    The check of the machine is the job's own: the nodes that train differ from the one that this runs on.
    """
    root = Path.cwd()
    platform = load_platform(root)
    if not (root / f"params/pretrain/{preset}.yaml").is_file():
        raise VitrailError(f"params/pretrain/{preset}.yaml: no such preset")
    if nodes < 1:
        raise VitrailError(f"nodes: {nodes}; a job needs at least 1")
    work = work_of_preset("pretrain", preset, root)
    stage = stage_name("pretrain", preset)

    def job_in(folder: Path) -> Cluster:
        if cluster == "slurm":
            variables = {"PRESET": preset, **tracking_of(root)}
            return Slurm(folder, "infra/slurm/pretrain.sbatch", nodes, variables, options)
        return Kubernetes(folder, "infra/kubernetes/training", preset, nodes, os.path.relpath(folder, root))

    def train(folder: Path) -> State[Any]:
        recorded = work.listed or folder != root
        if folder != root:
            digests = reproduce((), folder, platform)  # of what the stage's parameters name: dvc commit records them
            if not digests.is_completed():
                return digests
        return as_flow_state(on_cluster(stage, job_in(folder), folder, platform, recorded, return_state=True))

    if not platform.own_checkout:
        return train(root)
    return _work(work, root, platform, train, first=lambda folder: job_in(folder).refuse_second())


@_explained
def run_preset(family: str, preset: str, teacher: str | None = None) -> State[Any]:
    """Run ``family@preset``."""
    root = Path.cwd()
    platform = load_platform(root)
    if family == "pretrain":
        # First of all, and before any file is copied: a machine that cannot train the preset says so in seconds.
        fits = check(preset, root, platform, return_state=True)
        if not fits.is_completed():
            return as_flow_state(fits)
    work = work_of_preset(family, preset, root, teacher)
    return _work(work, root, platform, lambda folder: reproduce(work.stages, folder, platform))


@_explained
def run_command(room: str, arguments: Sequence[str]) -> State[Any]:
    """Run ``python -m components.ROOM`` with ``arguments`` in the current directory."""
    root = Path.cwd()
    action, *rest = arguments
    return as_flow_state(command(room, action, rest, root, load_platform(root), return_state=True))


@_explained
def run_continued(preset: str, start: str | None = None) -> State[Any]:
    """Run ``continue@preset``, then ``gain@preset``.

    A model that a URL or the registry names is imported first.
    """
    root = Path.cwd()
    platform = load_platform(root)
    fits = check(preset, root, platform, "continue", return_state=True)
    if not fits.is_completed():
        return as_flow_state(fits)
    named = start_of(preset, root, start)
    if not is_watched(named):
        # DVC watches files: so what a URL or the registry names becomes one, anew in each run, for an alias may move.
        start = place_for(named)
        taken = command("release", "import", [f"--out={start}", "--", named], root, platform, return_state=True)
        if not taken.is_completed():
            return as_flow_state(taken)
    work = work_of_continued(preset, root, start)
    return _work(work, root, platform, lambda folder: reproduce(work.stages, folder, platform))
