"""The Prefect tasks: one DVC stage each, and the check that a machine can do what a preset asks.

A task launches a subprocess and says how it went; the work, its caching and its order among files are DVC's.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from components.errors import VitrailError
from components.json_lines import plain
from components.loopback import spare_loopback
from flows.artifacts import ProgressArtifact, publish_outcome, publish_scores, tracking_link
from flows.checkouts import RUNS, note, remove_old, tracking_of
from flows.clusters import Cluster, follow
from flows.limits import held
from flows.process import run_streaming
from flows.settings import PIPELINE, PlatformParams
from flows.stages import report_path
from flows.workspace import Work, prepare

BENCHMARK, GATE = "data/benchmark", "params/gate.yaml"
# What DVC prints when another DVC process works on the same workspace or the same outputs.
_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
# What Prefect's client says when its server is away while a stage waits for its limits.
_NO_SLOTS = ("Unable to acquire concurrency slots", "exception ConnectError")


def is_busy(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again makes sense: another process holds DVC's lock, or the server of the limits was away."""
    return any(sign in (state.message or "") for sign in (*_BUSY, *_NO_SLOTS))


@task(name="check", task_run_name="check {preset}", cache_policy=NO_CACHE, persist_result=False)
def check(preset: str, workspace: Path, platform: PlatformParams, family: str = "pretrain") -> State[Any]:
    """Whether this machine can train ``preset``: fails with what is needed, what was found and which preset fits."""
    command = ["-m", "components.pretrain", "check", "--params", f"params/{family}/{preset}.yaml"]
    return _outcome(f"check {preset}", *_run([sys.executable, *command], workspace, platform))


@task(
    name="checkout",
    task_run_name="checkout {work.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,  # as of a stage
    retry_condition_fn=is_busy,
)
def make_checkout(work: Work, root: Path, platform: PlatformParams) -> State[Any]:
    """Make the run's own checkout ready: the files as they are now, and the results of the stages before.

    First, checkouts that nobody needs any more are deleted.
    """
    logger = get_run_logger()
    for name in remove_old(root / RUNS, platform.checkouts_kept):
        logger.info(f"deleted {RUNS / name}: its run ended well more than {platform.checkouts_kept:g} days ago")
    try:
        folder, about = prepare(work, root)
    except VitrailError as fault:
        return Failed(message=f"error: {fault}")
    note(folder, done=False)
    logger.info(about)
    return Completed(message=about)


@task(name="result", cache_policy=NO_CACHE, persist_result=False, retries=1, retry_condition_fn=is_busy)
def take_result(work: Work, root: Path, platform: PlatformParams) -> State[Any]:
    """Take what ``work`` made in the run's checkout into ``root``, where the same files would make the same.

    The state's message has a line for each result that stays in the run's checkout: why, and how to have it here.
    """
    folder, logger = root / RUNS / work.name, get_run_logger()
    stages = ["inputs", *(stage for stage in work.stages if stage != "inputs")]
    if not work.listed:
        left = [f"list the preset in {PIPELINE}, and dvc repro takes {', '.join(work.stages)} from DVC's cache"]
    else:
        words = [sys.executable, "-m", "flows.bring_in", str(folder), *stages]
        with held("result", root):
            code, lines = _run(words, root, platform, shown=False)
        if code != 0:
            return Failed(message=f"result: {failure_message(lines, code)}")
        left = [told for line in lines if (told := _left(line, folder.relative_to(root)))]
    note(folder, done=not left or not work.listed)
    for line in left:
        logger.warning(line) if work.listed else logger.info(line)
    return Completed(message="; ".join(left) or f"taken from {RUNS / work.name}: {', '.join(work.stages)}")


def _left(line: str, folder: Path) -> str:
    """What to say of a result that was not taken; "" if it was, or if the line tells of none."""
    try:
        found = json.loads(line)
        stage, differs, fault = found["stage"], found["differs"], found["fault"]
    except (ValueError, TypeError, KeyError):
        return ""
    again = f"dvc repro --single-item {stage}"
    if fault:
        return f"{stage}: the result is in {folder}, and not here: {fault}; then: {again}"
    if not differs:
        return ""
    named = ", ".join(differs[:3]) + (f" and {len(differs) - 3} more" if len(differs) > 3 else "")
    return (
        f"{stage}: the result is in {folder}, and not here, because {named} changed while the run worked; to have it "
        f"here, bring the old files back, then: {again} (it takes the result from DVC's cache)"
    )


@task(
    name="stage",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,  # the number and the delay come from params/platform.yaml: see `reproduce`
    retry_condition_fn=is_busy,
)
def reproduce_stage(stage: str, workspace: Path, platform: PlatformParams, anew: bool = False) -> State[Any]:
    """``dvc repro --single-item STAGE``: skips the stage where nothing changed, unless ``anew``; runs nothing upstream.

    It waits for the workspace, and for the GPUs that the stage takes.
    """
    progress = ProgressArtifact(stage)
    words = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if anew else []), stage]
    with held(stage, workspace):
        code, lines = _run(words, workspace, platform, progress.line)
    progress.close(done=code == 0)
    if code == 0:
        publish_outcome(stage, workspace / report_path(stage), tracking_link(lines))
    return _outcome(stage, code, lines)


@task(name="gate", cache_policy=NO_CACHE, persist_result=False)
def gate(workspace: Path, platform: PlatformParams, only: str | None = None) -> State[Any]:
    """Whether the benchmark's checkpoints reach what ``params/gate.yaml`` asks; fails with the rows that fall short."""
    words = ["-m", "components.benchmark", "compare", BENCHMARK, "--gate", GATE]
    more = [] if only is None else ["--only", only]
    publish_scores(workspace / BENCHMARK / "scores.json", only)
    return _outcome("gate", *_run([sys.executable, *words, *more], workspace, platform))


@task(name="command", task_run_name="{room} {action}", cache_policy=NO_CACHE, persist_result=False)
def command(room: str, action: str, arguments: Sequence[str], workspace: Path, platform: PlatformParams) -> State[Any]:
    """``python -m components.ROOM ACTION ...``: work whose result no DVC stage keeps."""
    words = [sys.executable, "-m", f"components.{room}", action, *arguments]
    with held(f"{room} {action}", workspace, alone=False):
        return _outcome(f"{room} {action}", *_run(words, workspace, platform))


@task(name="cluster", task_run_name="{stage} on a cluster", cache_policy=NO_CACHE, persist_result=False)
def on_cluster(stage: str, job: Cluster, workspace: Path, platform: PlatformParams, recorded: bool) -> State[Any]:
    """Run ``stage`` as a job of several nodes; if ``recorded``, ``dvc commit`` takes the result into DVC's graph."""
    logger, progress = get_run_logger(), ProgressArtifact(stage)
    lines: list[str] = []

    def take(line: str) -> None:
        line = plain(line)
        lines.append(line)
        progress.line(line)
        logger.info(line)

    failed = follow(job, take, platform.cluster_poll, platform.cluster_grace)
    progress.close(done=not failed)
    if failed:
        return Failed(message=f"{stage}: {failed}; {failure_message(lines, 1)}")
    if recorded:
        with held("commit", workspace):
            code, said = _run([sys.executable, "-m", "dvc", "commit", "--force", stage], workspace, platform)
        if code != 0:
            return Failed(message=f"{stage}: trained, but not recorded: {failure_message(said, code)}")
    publish_outcome(stage, workspace / report_path(stage), tracking_link(lines))
    return Completed(message=f"{stage}: done")


def reproduce(stages: Sequence[str], workspace: Path, platform: PlatformParams, anew: Sequence[str] = ()) -> State[Any]:
    """Run ``stages`` one after another, those in ``anew`` though nothing changed here.

    The first that fails ends the flow run, with its message.
    """
    launch = reproduce_stage.with_options(retries=platform.busy_retries, retry_delay_seconds=platform.busy_delay)
    # First, always: what parameters name may have changed, and the stages depend on what this one writes.
    for stage in ("inputs", *(stage for stage in stages if stage != "inputs")):
        state = launch(stage, workspace, platform, stage in anew, return_state=True)
        if not state.is_completed():
            return as_flow_state(state)
    return Completed(message=f"up to date: {', '.join(stages)}")


def as_flow_state(state: State[Any]) -> State[Any]:
    """A task's failure as the flow run's own, with its message; a state passed on as it is becomes "1/1 failed"."""
    return State(type=state.type, name=state.name, message=state.message)


def stage_environment(workspace: Path) -> dict[str, str]:
    """The environment of a stage: this Python's tools first, and the flow run's id for the tags of MLflow's runs."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    env["PYTHONUNBUFFERED"] = "1"
    env["VITRAIL_FLOW_RUN_ID"] = str(flow_run.id or "")
    if workspace.resolve() != Path.cwd().resolve():  # a flow runs in the checkout whose store counts
        env |= tracking_of(Path.cwd())
    spare_loopback(env)
    return env


def failure_message(lines: Sequence[str], code: int) -> str:
    """The one line that says why a command failed: the stage's own ``error:``, else DVC's, else its last words."""
    for sign in ("error: ", "ERROR: "):
        found = [line for line in lines if line.startswith(sign)]
        if found:
            return found[-1]
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"error: {ended}; its last line: {last}"


def _run(
    command: Sequence[str], workspace: Path, platform: PlatformParams, on_line: Any = None, shown: bool = True
) -> tuple[int, list[str]]:
    """Run ``command`` in ``workspace``; its lines go to the flow run's log if ``shown``, and are returned."""
    logger = get_run_logger()
    lines: list[str] = []

    def take(line: str) -> None:
        line = plain(line)
        lines.append(line)
        if on_line is not None:
            on_line(line)
        if shown and line.strip():
            logger.info(line)

    environment = stage_environment(workspace)
    code = run_streaming(command, cwd=workspace, env=environment, on_line=take, grace=platform.stage_grace)
    return code, lines


def _outcome(what: str, code: int, lines: Sequence[str]) -> State[Any]:
    if code == 0:
        return Completed(message=f"{what}: done")
    return Failed(message=f"{what}: {failure_message(lines, code)}")
