"""A checkout in exactly the state that a run of MLflow came from: commit, changed files, parameters, dvc.lock, data."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from components.errors import VitrailError
from components.git import take_commit, words_of
from components.params import load_params
from components.pipeline import PIPELINE, load_pipeline
from components.storage import atomic_dir, is_remote
from components.text import read_text
from components.tracking import RecordedRun, TrackingParams, fetch_state
from components.tracking.state import LOCK, RunState
from components.yaml_core import parse_yaml


def reproduce(run: str, out: Path, root: Path, tracking: Path, start: bool = False) -> RecordedRun:
    """Make the folder ``out`` what the checkout was when ``run`` began; with ``start``, run its stage there.

    The commit comes from the repository of the checkout ``root``, the changed files from MLflow, and the inputs of the
    run's stage from DVC's cache. The stage itself is not repeated where DVC's run cache has its result.

    Raises:
        VitrailError: ``out`` is there, or something of the state cannot be had.
    """
    if out.exists():
        raise VitrailError(f"{out}: is there already; name a new folder")
    with tempfile.TemporaryDirectory(prefix="vitrail-reproduce-") as aside:
        origin = fetch_state(load_params(tracking, TrackingParams), run, Path(aside))
        state = origin.state
        if state.left_out:
            named = ", ".join(f"{name} ({why})" for name, why in sorted(state.left_out.items()))
            raise VitrailError(
                f"run {run}: files that differ from its commit were not kept, so it cannot be had: {named}"
            )
        with atomic_dir(out) as checkout:
            _take_commit(root, checkout, state)
            _take_files(origin, checkout)
            _lead_to_data(root, checkout)
            _check_out(checkout, state)
    if start:
        if not state.stage:
            raise VitrailError(f"run {run} was no stage of DVC; run it by hand in {out}: {state.command}")
        _dvc(out, "repro", "--single-item", state.stage, shown=True)
    return origin


def told(origin: RecordedRun, out: Path, started: bool) -> str:
    """What :func:`reproduce` did, and what to do next."""
    state = origin.state
    changed = sorted(name for name in state.files if name != LOCK)
    lines = [f"{out}: run {origin.run_id} ({origin.name}), commit {state.commit}"]
    if changed or state.removed:
        lines.append(
            f"  changed against the commit: {', '.join([*changed, *(f'no {name}' for name in state.removed)])}"
        )
    if origin.states > 1:
        lines.append(
            f"  the run went on with other code or parameters {origin.states - 1} times; this is the last state"
        )
    if state.python != platform.python_version():
        lines.append(f"  it ran on Python {state.python}, this is {platform.python_version()}")
    if started:
        lines.append(f"  {state.stage} is as the run left it")
    else:
        then = f"dvc repro --single-item {state.stage}" if state.stage else state.command
        lines.append(f"  next: cd {out} && {then}")
    return "\n".join(lines)


def _take_commit(root: Path, checkout: Path, state: RunState) -> None:
    try:
        take_commit(root, checkout, state.commit)
    except (OSError, subprocess.SubprocessError) as fault:
        raise VitrailError(f"{root}: has no commit {state.commit}; git fetch it first ({words_of(fault)})") from None


def _take_files(origin: RecordedRun, checkout: Path) -> None:
    for name in origin.state.files:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin.folder / "files" / name, path)
    for name in origin.state.removed:
        (checkout / name).unlink(missing_ok=True)


def _lead_to_data(root: Path, checkout: Path) -> None:
    """Use the cache of ``root``, and what parameters name by a path within the checkout that git does not have."""
    cache = _dvc(root, "cache", "dir").strip().splitlines()[-1]
    (checkout / ".dvc").mkdir(exist_ok=True)
    (checkout / ".dvc/config.local").write_text(f"[cache]\n    dir = {(root / cache).resolve()}\n", encoding="utf-8")
    if not (checkout / PIPELINE).is_file():
        return
    pipeline = load_pipeline(checkout)
    for name in (pipeline.source, *(continued.start for continued in pipeline.continued.values())):
        there, here = root / name, checkout / name
        if not is_remote(name) and not os.path.isabs(name) and there.exists() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there.resolve())


def _check_out(checkout: Path, state: RunState) -> None:
    if not (checkout / LOCK).is_file() or not state.stage:
        return
    # The stage's own result was another run's, or none: it is made anew, from the run cache where that has it.
    stages = parse_yaml(read_text(checkout / LOCK), LOCK).get("stages") or {}
    before = set(re.findall(r'^"([^"]+)";$', _dvc(checkout, "dag", "--dot", state.stage), re.MULTILINE)) - {state.stage}
    unmade = sorted(before - set(stages))
    if unmade:
        raise VitrailError(f"{state.stage}: the run's dvc.lock does not know {', '.join(unmade)}, which come before it")
    if not before:
        return
    try:
        _dvc(checkout, "checkout", "--quiet", *sorted(before))
    except VitrailError as fault:
        raise VitrailError(
            f"{state.stage}: its inputs are not all in DVC's cache; dvc pull them first ({fault})"
        ) from None


def _dvc(folder: Path, *arguments: str, shown: bool = False) -> str:
    """What the command printed; ``shown``, its lines go to the terminal instead.

    Raises:
        VitrailError: it failed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder, env={**os.environ, "PATH": path}, capture_output=not shown, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = " ".join((done.stderr or done.stdout or "its lines above say why").split())
        raise VitrailError(f"dvc {arguments[0]} in {folder} failed: {said[:500]}")
    return done.stdout or ""
