"""Where a flow works: in this checkout for the presets that params/pipeline.yaml lists, else in a copy of its own.

``prefect deployment run pretrain/vitl`` must not ask anybody to edit a tracked file. So a preset that the checkout
does not reproduce gets ``runs/<stage>-<preset>/``: the checkout's files, a pipeline.yaml that names this preset, the
same DVC cache, and the outputs of the stages before it, checked out of that cache. The folder carries the preset's
name, not the flow run's: a run that was interrupted is carried on by the next one, from its scratch state. The result
is in the shared run cache, so listing the preset in params/pipeline.yaml later brings it in without training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from components.errors import VitrailError
from components.git import git
from components.storage import is_remote
from flows.settings import PIPELINE, Continued, PipelineParams, Student, load_pipeline
from flows.stages import stage_name, stage_names

RUNS = Path("runs")
# What a run workspace makes itself, and keeps from one run to the next; everything else is renewed.
_KEPT = {"data", "scratch", "reports", "dvc.lock", ".dvc"}
_BEFORE = {"pretrain": ("crawl", "curate", "dedup"), "distill": ("crawl", "curate", "dedup", "pretrain")}
_BEFORE["continue"] = _BEFORE["pretrain"]


def workspace_for(family: str, preset: str, root: Path, teacher: str | None = None) -> Path:
    """The folder in which to run ``family@preset``: ``root`` itself, or a run workspace made ready below it.

    Raises:
        VitrailError: the preset has no params file, or a stage before it has not run here yet.
    """
    pipeline = load_pipeline(root)
    if preset in getattr(pipeline, family):
        return root
    _preset_file(root, family, preset)
    if family == "distill":
        if teacher not in pipeline.pretrain:
            trained = ", ".join(pipeline.pretrain)
            raise VitrailError(f"distill {preset}: the teacher must be one of {PIPELINE}'s presets ({trained})")
        changed = pipeline.model_copy(update={"pretrain": [teacher], "distill": {preset: Student(teacher=teacher)}})
    else:
        changed = pipeline.model_copy(update={"pretrain": [preset], "distill": {}})
    return _prepare(root, root / RUNS / f"{family}-{preset}", family, [stage_name(family, preset)], changed)


def workspace_to_continue(preset: str, root: Path, start: str | None = None) -> Path:
    """The folder in which to train on ``params/continue/PRESET.yaml`` from the model ``start`` (None: its ``init``).

    A run workspace reads the model where it is, in ``root``.

    Raises:
        VitrailError: as :func:`workspace_for`, or there is no such model.
    """
    pipeline = load_pipeline(root)
    listed = pipeline.continued.get(preset)
    if listed is not None and start in (None, listed.start):
        return root
    start = start_of(preset, root, start)
    if not is_remote(start) and not (root / start).exists():
        raise VitrailError(f"{start}: no such model in {root}; run: vitrail import SOURCE --out {_LOCAL}")
    changed = pipeline.model_copy(update={"distill": {}, "continued": {preset: Continued(start=start)}})
    stages = [stage_name("continue", preset), stage_name("gain", preset)]
    target = _prepare(root, root / RUNS / f"continue-{preset}", "continue", stages, changed)
    if not is_remote(start):
        _link(root / start, target / start)
    return target


_LOCAL = "data/models/NAME"


def start_of(preset: str, root: Path, start: str | None = None) -> str:
    """The name of the model that ``params/continue/PRESET.yaml`` goes on from: ``start``, or else the pipeline's or its
    ``init``.

    Raises:
        VitrailError: there is no such preset, or nothing names a model.
    """
    listed = load_pipeline(root).continued.get(preset)
    if start is None and listed is not None:
        return listed.start
    params = _preset_file(root, "continue", preset)
    start = start or (yaml.safe_load(params.read_text(encoding="utf-8")) or {}).get("init")
    if not isinstance(start, str):
        raise VitrailError(f"{params}: names no init; give the model to start from: --param start=FOLDER")
    return start


def place_for(model: str) -> str:
    """The folder of the checkout that takes the model of a URL or registry: its name, and a mark of the whole."""
    name = re.sub(r"\W+", "-", model.partition("#")[0].rstrip("/").rpartition("/")[2].partition("?")[0]).strip("-")
    return f"data/models/{name[:60]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _preset_file(root: Path, family: str, preset: str) -> Path:
    params = root / "params" / family / f"{preset}.yaml"
    if not params.is_file():
        known = ", ".join(sorted(path.stem for path in params.parent.glob("*.yaml"))) or "none"
        raise VitrailError(f"{params}: no such preset; there are: {known}")
    return params


def _link(there: Path, here: Path) -> None:
    """Let ``here`` lead to ``there``, unless both are one, as of an absolute path."""
    if here == there:
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    if here.is_symlink() or here.is_file():
        here.unlink()
    elif here.is_dir():
        shutil.rmtree(here)
    here.symlink_to(there.resolve())


def _prepare(root: Path, target: Path, family: str, made: list[str], pipeline: PipelineParams) -> Path:
    before = stage_names(pipeline, *_BEFORE[family])
    lock = _locked(root / "dvc.lock")
    missing = [name for name in before if name not in lock.get("stages", {})]
    if missing:
        raise VitrailError(f"{made[0]}: {', '.join(missing)} has not run in {root}; run the stages before it first")
    _renew_files(root, target)
    # JSON is YAML 1.2; PyYAML would write 1.1, which leaves out quotes that 1.2 needs ("1e5")
    (target / PIPELINE).write_text(json.dumps(pipeline.model_dump(), indent=1), encoding="utf-8")
    own = _locked(target / "dvc.lock").get("stages", {})
    stages = {name: lock["stages"][name] for name in before}
    stages |= {stage: own[stage] for stage in made if stage in own}
    (target / "dvc.lock").write_text(yaml.safe_dump({**lock, "stages": stages}), encoding="utf-8")
    config = f"[core]\n    no_scm = true\n[cache]\n    dir = {_cache_dir(root)}\n"
    (target / ".dvc").mkdir(exist_ok=True)
    shutil.copy2(root / ".dvc/config", target / ".dvc/config")
    (target / ".dvc/config.local").write_text(config, encoding="utf-8")
    _dvc(target, "checkout", "--quiet", *before)
    return target


def _renew_files(root: Path, target: Path) -> None:
    """Make ``target`` hold the checkout's files (tracked, and new ones that git does not ignore) as they are now."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in target.iterdir():
        if entry.name not in _KEPT:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in checkout_files(root):
        if name.split("/", 1)[0] in _KEPT:
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, path)


def checkout_files(root: Path) -> list[str]:
    """Relative paths of the files of the checkout at ``root``, whether committed yet or not."""
    try:
        listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except subprocess.CalledProcessError as fault:
        raise VitrailError(f"{root}: not a git checkout ({' '.join(os.fsdecode(fault.stderr).split())})") from None
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def _cache_dir(root: Path) -> str:
    return _dvc(root, "cache", "dir").strip().splitlines()[-1]


def _dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise VitrailError(f"dvc {' '.join(arguments)} in {folder} failed: {said}")
    return done.stdout


def _locked(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
