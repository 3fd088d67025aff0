"""What a run makes, and where: in a checkout of its own (:mod:`flows.checkouts`), or in the one that the flow runs in.

``prefect deployment run pretrain/vitl`` must not ask anybody to edit a tracked file. So a preset that
params/pipeline.yaml does not list always gets its own checkout, with a pipeline.yaml that names it. Its result is in
the shared run cache, so listing the preset later brings it in without training.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from components.errors import VitrailError
from components.git import git, words_of
from components.lock import hold
from components.storage import is_remote
from flows.checkouts import RUNS, link, locked, renew, run_dvc, share_cache
from flows.settings import PIPELINE, Continued, PipelineParams, Student, load_pipeline
from flows.stages import stage_name, stage_names

_DATA = ("crawl", "curate", "dedup")
_BEFORE = {"crawl": (), "dedup": ("crawl", "curate")}  # of the first family that a flow runs; any other: all of _DATA
_MODELS = ("pretrain", "continue", "gain", "distill")  # families with a folder of several presets below data/


@dataclass(frozen=True)
class Work:
    """Stages to run, and what must be there for them."""

    name: str  # of the checkout below runs/
    stages: tuple[str, ...]
    before: tuple[str, ...] = ()  # stages that must have run in the checkout of the flow
    wanted: tuple[str, ...] = ()  # stages whose results are taken, if they have run there
    changed: PipelineParams | None = None  # in the place of params/pipeline.yaml, if it does not list the preset
    start: str | None = None  # a model to go on from

    @property
    def listed(self) -> bool:
        """Whether the checkout of the flow has these stages, too."""
        return self.changed is None


def work_of_families(name: str, families: tuple[str, ...], pipeline: PipelineParams) -> Work:
    """All stages of ``families``, every family where none is given."""
    first = families[0] if families else "crawl"
    models = stage_names(pipeline, "pretrain", "distill") if first == "benchmark" else []
    before = stage_names(pipeline, *before) if (before := _BEFORE.get(first, _DATA)) else []
    return Work(name, tuple(stage_names(pipeline, *families)), tuple(before), tuple(models))


def work_of_preset(family: str, preset: str, root: Path, teacher: str | None = None) -> Work:
    """``pretrain@preset`` or ``distill@preset``.

    Raises:
        VitrailError: the preset has no params file.
    """
    pipeline, changed = load_pipeline(root), None
    listed = preset in getattr(pipeline, family)
    if not listed:
        _preset_file(root, family, preset)
    if family == "pretrain":
        changed = None if listed else pipeline.model_copy(update={"pretrain": [preset], "distill": {}})
        before = stage_names(pipeline, *_DATA)
    else:
        teacher = pipeline.distill[preset].teacher if listed else teacher
        if teacher not in pipeline.pretrain:
            trained = ", ".join(pipeline.pretrain)
            raise VitrailError(f"distill {preset}: the teacher must be one of {PIPELINE}'s presets ({trained})")
        if not listed:
            changed = pipeline.model_copy(update={"pretrain": [teacher], "distill": {preset: Student(teacher=teacher)}})
        before = [*stage_names(pipeline, *_DATA), stage_name("pretrain", teacher)]
    return Work(f"{family}-{preset}", (stage_name(family, preset),), tuple(before), changed=changed)


def work_of_continued(preset: str, root: Path, start: str | None = None) -> Work:
    """Training on ``params/continue/PRESET.yaml`` from the model ``start`` (None: its ``init``), and its benchmark.

    Raises:
        VitrailError: there is no such preset, or no such model.
    """
    pipeline = load_pipeline(root)
    listed = pipeline.continued.get(preset)
    if listed is not None and start in (None, listed.start):
        start, changed = listed.start, None
    else:
        start = start_of(preset, root, start)
        if not is_remote(start) and not (root / start).exists():
            raise VitrailError(f"{start}: no such model in {root}; run: vitrail import SOURCE --out {_LOCAL}")
        changed = pipeline.model_copy(update={"distill": {}, "continued": {preset: Continued(start=start)}})
    stages = (stage_name("continue", preset), stage_name("gain", preset))
    before = stage_names(pipeline, *_DATA)
    return Work(f"continue-{preset}", stages, tuple(before), changed=changed, start=None if is_remote(start) else start)


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


def prepare(work: Work, root: Path) -> tuple[Path, str]:
    """Make the checkout for ``work`` ready below ``root``: its folder, and a line about what it holds.

    The results of the stages before come from DVC's cache, by the ``dvc.lock`` of ``root``. The last state in
    ``scratch/`` is kept.

    Raises:
        VitrailError: a stage before has not run in ``root``, or its result is not in the cache.
    """
    lock, target = locked(root / "dvc.lock"), root / RUNS / work.name
    known = lock.get("stages") or {}
    missing = [name for name in work.before if name not in known]
    if missing:
        raise VitrailError(
            f"{work.stages[0]}: {', '.join(missing)} has not run in {root}; run the stages before it first"
        )
    made = [*work.before, *(name for name in work.wanted if name in known)]
    if work.start is not None:  # a model that a stage made is taken as it is now, not as a later run leaves it
        made += [name for name, stage in known.items() if work.start in [out["path"] for out in stage.get("outs", [])]]
    commit, edited = renew(root, target)
    if work.changed is not None:
        # JSON is YAML 1.2; PyYAML would write 1.1, which leaves out quotes that 1.2 needs ("1e5")
        (target / PIPELINE).write_text(json.dumps(work.changed.model_dump(), indent=1), encoding="utf-8")
    own = locked(target / "dvc.lock").get("stages") or {}
    stages = {name: known[name] for name in made}
    stages |= {name: found for name in work.stages if (found := own.get(name) or known.get(name))}
    (target / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", **lock, "stages": stages}), encoding="utf-8")
    share_cache(root, target)
    _clear_models(root, target, work, {out["path"] for name in made for out in known[name].get("outs", [])})
    if made:
        run_dvc(target, "checkout", "--quiet", "--force", *made)
    if work.start is not None and not (target / work.start).exists():
        link(root / work.start, target / work.start)
    carried = _carry_on(root, target, work.stages)
    with_edits = f" with {len(edited)} files that are not committed yet ({_some(edited)})" if edited else ""
    return target, f"works in {RUNS / work.name}: commit {commit[:10]}{with_edits}{carried}"


def _carry_on(root: Path, target: Path, stages: tuple[str, ...]) -> str:
    """Move what ``dvc repro`` began in ``root``, and did not end, into ``target``; words on it for the log.

    Only where the run has nothing itself, and nobody works on it.
    """
    said = ""
    for stage in stages:
        family, _, preset = stage.partition("@")
        output = Path("scratch" if preset else "data", family, preset)  # whose lock a stage holds while it works
        state = output if preset else output.with_name(f".{family}.work")
        if not (root / state).is_dir() or (target / state).exists():
            continue
        try:
            with hold(root / output):
                (target / state).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(root / state, target / state)
            said += f"; goes on from {state}, which was moved here"
        except VitrailError as fault:
            said += f"; begins {stage} anew, because {fault}"
    return said


def _clear_models(root: Path, target: Path, work: Work, made: set[str]) -> None:
    """Of folders with a model a preset, leave those alone that this run reads or makes; a benchmark takes the rest.

    ``data/pretrain`` may hold models that no stage makes here any more. The stage benchmark compares all of them.
    """
    for family in _MODELS:
        folder = target / "data" / family
        for path in folder.iterdir() if folder.is_dir() else ():
            name = f"data/{family}/{path.name}"
            if name not in made and f"{family}@{path.name}" not in work.stages and not path.name.startswith("."):
                path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)
    if "benchmark" not in work.stages:
        return
    known = (locked(root / "dvc.lock").get("stages") or {}).values()
    outs = {out["path"] for stage in known for out in stage.get("outs", [])}
    for family in ("pretrain", "distill"):
        for path in (root / "data" / family).glob("*"):
            name = f"data/{family}/{path.name}"
            if name not in outs and f"{family}@{path.name}" not in work.stages and path.is_dir():
                shutil.copytree(path, target / name, dirs_exist_ok=True)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def checkout_files(root: Path) -> list[str]:
    """Relative paths of the files of the checkout at ``root``, whether committed yet or not."""
    try:
        listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except subprocess.CalledProcessError as fault:
        raise VitrailError(f"{root}: not a git checkout ({words_of(fault)})") from None
    return [name for name in listed.split("\0") if name and (root / name).is_file()]
