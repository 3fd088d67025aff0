"""What the flows share: run stages here, or one preset in its own workspace; faults of input become one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from prefect.client.schemas.objects import State
from prefect.states import Failed

from components.errors import VitrailError, nearest
from components.pipeline import is_watched
from flows.clusters import Cluster, Kubernetes, Slurm
from flows.settings import PipelineParams, load_pipeline, load_platform
from flows.stages import stage_name, stage_names
from flows.tasks import as_flow_state, check, command, gate, on_cluster, reproduce
from flows.workspace import place_for, start_of, workspace_for, workspace_to_continue

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


@_explained
def run_families(*families: str, anew: Sequence[str] = ()) -> State[Any]:
    """Run the stages of ``families`` (all, when none is given) in the current directory; ``anew`` in any case."""
    root = Path.cwd()
    return reproduce(stage_names(load_pipeline(root), *families), root, load_platform(root), anew)


@_explained
def run_benchmark(preset: str | None = None) -> State[Any]:
    """Run the stage benchmark in the current directory, then its gate, for ``preset`` or for all checkpoints."""
    root = Path.cwd()
    pipeline, platform = load_pipeline(root), load_platform(root)
    only = None if preset is None else checkpoint_name(preset, pipeline)
    state = reproduce(stage_names(pipeline, "benchmark"), root, platform)
    if not state.is_completed():
        return state
    passed = gate(root, platform, only, return_state=True)
    return state if passed.is_completed() else as_flow_state(passed)


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
    platform, pipeline = load_platform(root), load_pipeline(root)
    if not (root / f"params/pretrain/{preset}.yaml").is_file():
        raise VitrailError(f"params/pretrain/{preset}.yaml: no such preset")
    if nodes < 1:
        raise VitrailError(f"nodes: {nodes}; a job needs at least 1")
    job: Cluster = Kubernetes(root, "infra/kubernetes/training", preset, nodes)
    if cluster == "slurm":
        job = Slurm(root, "infra/slurm/pretrain.sbatch", nodes, {"PRESET": preset}, options)
    stage = stage_name("pretrain", preset)
    state = on_cluster(stage, job, root, platform, preset in pipeline.pretrain, return_state=True)
    return as_flow_state(state)


@_explained
def run_preset(family: str, preset: str, teacher: str | None = None) -> State[Any]:
    """Run ``family@preset``, in the current directory or in a workspace of its own."""
    root = Path.cwd()
    platform = load_platform(root)
    if family == "pretrain":
        # First of all, and before any file is copied: a machine that cannot train the preset says so in seconds.
        fits = check(preset, root, platform, return_state=True)
        if not fits.is_completed():
            return as_flow_state(fits)
    workspace = workspace_for(family, preset, root, teacher)
    return reproduce([stage_name(family, preset)], workspace, platform)


@_explained
def run_command(room: str, arguments: Sequence[str]) -> State[Any]:
    """Run ``python -m components.ROOM`` with ``arguments`` in the current directory."""
    root = Path.cwd()
    action, *rest = arguments
    return as_flow_state(command(room, action, rest, root, load_platform(root), return_state=True))


@_explained
def run_continued(preset: str, start: str | None = None) -> State[Any]:
    """Run ``continue@preset``, then ``gain@preset``, in the current directory or in a workspace of their own.

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
    workspace = workspace_to_continue(preset, root, start)
    return reproduce([stage_name("continue", preset), stage_name("gain", preset)], workspace, platform)
