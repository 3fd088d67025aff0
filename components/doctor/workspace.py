"""Checks of the checkout: parameters, source, store, servers, DVC, locks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from components.doctor.finding import CheckResult
from components.errors import VitrailError
from components.loopback import spare_loopback
from components.params import load_params
from components.pipeline import PIPELINE, load_pipeline
from components.status.run import held_folders
from components.storage import S3Store, StorageParams, is_remote, open_store
from components.text import read_text
from components.yaml_core import parse_yaml

_PATIENCE = 4.0  # seconds for an answer of a server
_DVC_PATIENCE = 120.0  # seconds for `dvc status`, which may hash a changed source


def parameters(root: Path) -> Iterator[CheckResult]:
    """``params/pipeline.yaml``, the presets it names, and where the images are."""
    try:
        pipeline = load_pipeline(root)
    except VitrailError as fault:
        yield CheckResult("bad", "parameters", str(fault), f"correct {PIPELINE}")
        return
    files = [f"pretrain/{name}" for name in pipeline.pretrain] + [f"distill/{name}" for name in pipeline.distill]
    for name in files:
        if not (root / f"params/{name}.yaml").is_file():
            yield CheckResult(
                "bad",
                "parameters",
                f"{PIPELINE} names {name}, and there is no params/{name}.yaml",
                "name another preset",
            )
    for name, student in pipeline.distill.items():
        if student.teacher not in pipeline.pretrain:
            yield CheckResult(
                "bad",
                "parameters",
                f"the teacher {student.teacher} of {name} is not under `pretrain`",
                f"add it to {PIPELINE}",
            )
    source = pipeline.source
    if is_remote(source):
        yield CheckResult("ok", "source", source)
    elif (root / source).exists():
        readable = os.access(root / source, os.R_OK)
        yield CheckResult("ok" if readable else "bad", "source", source, "" if readable else "change its owner or mode")
    else:
        yield CheckResult("bad", "source", f"{source}: no such file or folder", "vitrail init FOLDER")


def store(root: Path) -> Iterator[CheckResult]:
    """The store of ``params/storage.yaml``: reached, and listed."""
    try:
        params = load_params(root / "params/storage.yaml", StorageParams)
    except VitrailError as fault:
        yield CheckResult("bad", "storage", str(fault), "correct params/storage.yaml")
        return
    if not is_remote(params.root):
        yield CheckResult("ok", "storage", f"local: {params.root}")
        return
    place = open_store(params.model_copy(update={"max_attempts": 1}))
    try:
        place.exists("vitrail-doctor")
        safe = not isinstance(place, S3Store) or place.conditional()
    except VitrailError as fault:
        yield CheckResult(
            "bad", "storage", str(fault), "check root and endpoint_url in params/storage.yaml, and the AWS_* variables"
        )
        return
    yield CheckResult("ok", "storage", f"S3 answers: {params.root}")
    if not safe:
        yield CheckResult(
            "note",
            "storage",
            "the server has no conditional writes (If-None-Match)",
            "start one run at a time on one place: two that begin in the same second are not told apart",
        )


def servers(root: Path) -> Iterator[CheckResult]:
    """Prefect and MLflow at the addresses of ``params/platform.yaml``, and records that wait for MLflow."""
    path = root / "params/platform.yaml"
    try:
        platform = parse_yaml(read_text(path), str(path))
        places = {
            "Prefect": f"http://{platform['host']}:{platform['prefect_port']}/api/health",
            "MLflow": f"http://{platform['host']}:{platform['mlflow_port']}/health",
        }
    except (VitrailError, KeyError, TypeError) as fault:
        yield CheckResult("bad", "servers", f"{path}: {fault}", "correct the file")
        return
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        places["MLflow"] = os.environ["MLFLOW_TRACKING_URI"].rstrip("/") + "/health"
    spare_loopback()
    for name, url in places.items():
        yield _server(name, url)
    waiting = [folder for folder in (root / "scratch/tracking").glob("*") if folder.is_dir()]
    if waiting:
        yield CheckResult("note", "MLflow", f"records of {len(waiting)} runs wait in scratch/tracking", "vitrail sync")


def _server(name: str, url: str) -> CheckResult:
    where = url.rsplit("/health", 1)[0].removesuffix("/api")
    try:
        urllib.request.urlopen(url, timeout=_PATIENCE).close()
    except urllib.error.HTTPError as fault:
        return CheckResult(
            "bad",
            name,
            f"{where} answers with {fault.code}: another program?",
            "choose another port in params/platform.yaml",
        )
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        if isinstance(reason, ConnectionRefusedError):
            return CheckResult(
                "note", name, f"not running at {where}", "make platform, if you want it: nothing else needs it"
            )
        return CheckResult("bad", name, f"{where} does not answer ({reason})", "make down; make platform")
    return CheckResult("ok", name, f"runs at {where}")


def dvc(root: Path) -> Iterator[CheckResult]:
    """Git and DVC, and which stages are not up to date."""
    if shutil.which("git") is None:
        yield CheckResult("bad", "git", "not installed", "install git: DVC versions data beside a git checkout")
    if not (root / ".dvc/config").is_file():
        yield CheckResult("bad", "DVC", "no .dvc here", "run this in the folder that `git clone` made")
        return
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_DVC_PATIENCE)
    except subprocess.TimeoutExpired:
        yield CheckResult(
            "note", "DVC", f"`dvc status` took over {_DVC_PATIENCE:.0f} s: is a stage running?", "vitrail status"
        )
        return
    yield dvc_finding(done.returncode, done.stdout, done.stderr)


def dvc_finding(code: int, out: str, err: str) -> CheckResult:
    """What ``dvc status --json`` said, in a line."""
    try:
        changed = json.loads(out) if code == 0 else None
    except ValueError:
        changed = None
    if not isinstance(changed, dict):
        lines = [line for line in err.splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else f"code {code}")
        busy = "lock" in said.lower()
        return CheckResult(
            "note" if busy else "bad",
            "DVC",
            said,
            "wait for the stage that runs: vitrail status" if busy else "dvc status",
        )
    stale = [name for name in changed if name != "inputs"]  # `inputs` always runs
    if not stale:
        return CheckResult("ok", "DVC", "every stage is up to date")
    return CheckResult("note", "DVC", f"not up to date: {', '.join(stale)}", "vitrail run")


def locks(root: Path) -> Iterator[CheckResult]:
    """Runs at work here, and what killed ones left."""
    held = held_folders(root)
    for one in held:
        if one.alive:
            yield CheckResult(
                "note", "running", f"{one.folder} is in use by {one.holder}", "vitrail status shows how far it is"
            )
    dead = [one for one in held if not one.alive]
    if dead:
        names = ", ".join(str(one.folder) for one in dead)
        yield CheckResult("ok", "locks", f"left by runs that were killed, and taken over by the next: {names}")
