"""A git checkout of its own for each run: ``runs/NAME/``, whose files nobody edits while the run works.

It is the commit that the checkout is at when the run begins, with the edits that are not committed yet: changed files,
removed ones, and new ones where code and parameters are. So a clean checkout gives a clean one. DVC's cache is shared.
What git does not have and no stage makes (pictures, benchmark sets, ``data/models``) is linked to, not copied.

The folder is named after what runs, not after the flow run: a run that was interrupted is carried on by its retry, or
by the next run, from the state in ``scratch/``.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from components.errors import VitrailError
from components.git import NEW_FILES, git, take_commit, words_of
from components.lock import hold, look
from components.params import load_params
from components.storage import atomic_file
from components.tracking import TrackingParams
from flows.stages import FAMILIES

RUNS = Path("runs")
# What a run makes in its checkout, and keeps from one run to the next. Everything else is made anew.
_KEPT = ("data", "scratch", "reports", "dvc.lock", ".dvc/tmp", ".dvc/config.local")
# What is in the checkout and no input of a run: what tools and servers keep there.
_OURS = {"data", "scratch", "reports", "runs", "mlartifacts", "backups", "site", "dvc.lock", *NEW_FILES}
_CACHES = ("scratch/models", "scratch/weights")  # pinned downloads, each under its digest
_IN_USE = "in use by"  # what components/lock.py says


def renew(root: Path, target: Path) -> tuple[str, list[str]]:
    """Make ``target`` hold the files of the checkout ``root`` as they are now; returns the commit and the edited files.

    Raises:
        VitrailError: ``root`` is no git checkout with a commit.
    """
    commit, edited = _state_of(root)
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / ".git", ignore_errors=True)  # whatever a killed run left of it
    try:
        take_commit(root, target, commit, history=False)
        git(target, "clean", "-ffdxq", *(f"--exclude=/{name}" for name in _KEPT))
    except (OSError, subprocess.SubprocessError) as fault:
        raise VitrailError(f"{target}: cannot check {commit[:10]} out of {root}: {words_of(fault)}") from None
    for name in edited:
        if name == "dvc.lock":
            continue  # the run's own: see flows/workspace.py
        path = target / name
        path.unlink(missing_ok=True)
        if (root / name).is_symlink() or (root / name).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, path, follow_symlinks=False)
    _link_inputs(root, target)
    return commit, edited


def _state_of(root: Path) -> tuple[str, list[str]]:
    """The commit of ``root``, and its files that differ: changed, removed, or new where code and parameters are."""
    try:
        top = git(root, "rev-parse", "--show-toplevel").rstrip("\n")
        if not os.path.samefile(top, root):
            raise VitrailError(f"{root}: is a folder of the git checkout {top}; a run needs one whose top it is")
        commit = git(root, "rev-parse", "--verify", "HEAD").strip()
        changed = git(root, "diff", "--name-only", "--no-renames", "-z", commit)
        new = git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *NEW_FILES)
    except (OSError, subprocess.SubprocessError) as fault:
        raise VitrailError(
            f"{root}: not a git checkout with a commit, so no run can have one of its own ({words_of(fault)}); commit "
            "its files, or set own_checkout: false in params/platform.yaml"
        ) from None
    return commit, sorted({name for name in (changed + new).split("\0") if name})


def _link_inputs(root: Path, target: Path) -> None:
    """Lead to what git does not have and no stage makes: pictures, benchmark sets, models that were imported."""
    listed = git(root, "ls-files", "-z", "--others", "--directory").split("\0")
    names = [name.rstrip("/") for name in listed if name]
    names = [name for name in names if name.split("/")[0] not in _OURS and not _hidden(name)]
    if (root / "data").is_dir():
        names += [f"data/{path.name}" for path in (root / "data").iterdir() if path.name not in FAMILIES]
    spool = load_params(root / "params/tracking.yaml", TrackingParams).spool if _tracks(root) else Path("/")
    for name in (*_CACHES, *(() if spool.is_absolute() else (spool.as_posix(),))):
        (root / name).mkdir(parents=True, exist_ok=True)
        names.append(name)
    for path in (target / "data").glob("*"):
        if path.is_symlink():  # of what is no longer there, perhaps
            path.unlink()
    for name in names:
        if not (name.startswith("data/.") or _holds_something(target / name)):
            link(root / name, target / name)
    (target / ".git/info").mkdir(exist_ok=True)
    (target / ".git/info/exclude").write_text("".join(f"/{name}\n" for name in names), encoding="utf-8")


def _hidden(name: str) -> bool:
    """Caches of tools and compiled Python; the virtual environment is what jobs of a cluster start from."""
    top, last = name.split("/")[0], name.rsplit("/", 1)[-1]
    ours = last == "__pycache__" or last.endswith(".pyc") or last.startswith("mlflow.db")
    return ours or (top.startswith(".") and top != ".venv")


def _holds_something(folder: Path) -> bool:
    """Whether the run keeps something of its own there, such as records that were not sent."""
    return not folder.is_symlink() and folder.is_dir() and any(folder.iterdir())


def link(there: Path, here: Path) -> None:
    """Let ``here`` lead to ``there``, in place of what is here; nothing happens if both are one path."""
    if here == there:
        return
    here.parent.mkdir(parents=True, exist_ok=True)
    if here.is_symlink() or here.is_file():
        here.unlink()
    elif here.is_dir():
        shutil.rmtree(here)
    # Relative: in a container, the same files may lie under another path.
    here.symlink_to(os.path.relpath(there.parent.resolve() / there.name, here.parent.resolve()))


def _tracks(root: Path) -> bool:
    return (root / "params/tracking.yaml").is_file()


def tracking_of(root: Path) -> dict[str, str]:
    """The variable that leads runs elsewhere to the SQLite store of ``root``; none where the store is a server."""
    if os.environ.get("MLFLOW_TRACKING_URI") or not _tracks(root):
        return {}
    uri = load_params(root / "params/tracking.yaml", TrackingParams).uri
    path = uri.partition(":///")[2]
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{(root / path).resolve()}"} if uri.startswith("sqlite") else {}


def share_cache(root: Path, target: Path) -> None:
    """Let DVC in ``target`` use the remotes and the cache of ``root``, without copies where the disk allows it."""
    config, known = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    config.read(root / ".dvc/config.local", encoding="utf-8")
    known.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
    values = {"core": {"no_scm": "true"}, "cache": {"dir": run_dvc(root, "cache", "dir").strip().splitlines()[-1]}}
    if not known.has_option("cache", "type"):
        # A run replaces its files whole, and changes none; the cache's own are read-only.
        values["cache"]["type"] = "reflink,hardlink,copy"
    config.read_dict(values)
    (target / ".dvc").mkdir(exist_ok=True)
    if (root / ".dvc/config").is_file() and not (target / ".dvc/config").is_file():
        shutil.copy2(root / ".dvc/config", target / ".dvc/config")
    with atomic_file(target / ".dvc/config.local", "w") as file:
        config.write(file)


def run_dvc(folder: Path, *arguments: str) -> str:
    """What ``dvc`` prints when it runs in ``folder``.

    Raises:
        VitrailError: it failed; with its own words.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise VitrailError(f"dvc {' '.join(arguments)} in {folder} failed: {said}")
    return done.stdout


def locked(path: Path) -> dict[str, Any]:
    """The content of a ``dvc.lock``; empty where there is none."""
    content: dict[str, Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
    return content


@contextlib.contextmanager
def alone(folder: Path, patience: float, say: Callable[[str], None], every: float = 1.0) -> Iterator[None]:
    """Wait until no other run works in ``folder``, and hold it for the block; ``say`` is told who holds it.

    Raises:
        VitrailError: another run still holds it after ``patience`` seconds; names that run.
    """
    with contextlib.ExitStack() as stack:
        told, until = "", time.monotonic() + patience
        while True:
            try:
                stack.enter_context(hold(folder))
                break
            except VitrailError as fault:
                if time.monotonic() >= until or _IN_USE not in str(fault):
                    raise
                if str(fault) != told:
                    told = str(fault)
                    say(f"waits: {told}")
            time.sleep(every)
        yield


def note(folder: Path, **about: Any) -> None:
    """Keep what is known of the last run in ``folder``, beside it."""
    with atomic_file(_note(folder), "w") as file:
        json.dump({"at": time.time(), **about}, file)


def noted(folder: Path) -> dict[str, Any]:
    """What :func:`note` kept; empty where no run has begun."""
    try:
        found: dict[str, Any] = json.loads(_note(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _note(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.json")


def remove(folder: Path) -> None:
    """Delete the checkout of a run, with its state in ``scratch/``.

    Raises:
        VitrailError: there is none, or a run works in it.
    """
    if not folder.is_dir():
        there = ", ".join(path.name for path in kept_checkouts(folder.parent)) or "none"
        raise VitrailError(f"{folder}: no such checkout; there are: {there}")
    with hold(folder):
        shutil.rmtree(folder)
        _note(folder).unlink(missing_ok=True)


def kept_checkouts(runs: Path) -> list[Path]:
    """The checkouts below ``runs``."""
    return sorted(path for path in runs.glob("*") if path.is_dir()) if runs.is_dir() else []


def remove_old(runs: Path, days: float) -> list[str]:
    """Delete the checkouts whose run ended well ``days`` ago or earlier, and whose result is elsewhere, too."""
    gone = []
    for folder in kept_checkouts(runs):
        about = noted(folder)
        held = look(folder.with_name(f".{folder.name}.lock"))
        if about.get("done") and time.time() - about["at"] > days * 86_400 and not (held and held.alive):
            with contextlib.suppress(VitrailError):  # a run took it just now
                remove(folder)
                gone.append(folder.name)
    return gone
