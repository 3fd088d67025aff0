"""Take results of a run's checkout into the shared one: ``python -m flows.bring_in RUN STAGE...``, in the shared one.

A result is taken if the code, parameters and data that made it are what the shared checkout has now. Then DVC's cache
gives the outputs, and ``dvc.lock`` records them, as if the stage had run here. Otherwise nothing is changed, and the
files that differ are named. It prints a line of JSON for each stage: its name, the files that differ, a fault.

DVC's own command for this, ``dvc repro``, would run the stage where a file differs. It would also take the newest
result that its run cache knows, which need not be this run's: of a stage that was forced, there are several.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from components.storage import atomic_file
from flows.checkouts import locked


def main(argv: list[str]) -> int:
    """See the module."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    run, *names = argv
    made = locked(Path(run) / "dvc.lock").get("stages") or {}
    with Repo() as repo, lock_repo(repo):
        for name in names:
            found: dict[str, Any] = {"stage": name, "differs": [], "fault": ""}
            try:
                found["differs"] = _take(repo, name, made[name], Path(run))
            except DvcException as fault:
                found["fault"] = " ".join(str(fault).split())
            print(json.dumps(found), flush=True)
    return 0


def _take(repo: Any, name: str, entry: dict[str, Any], run: Path) -> list[str]:
    """Check ``name`` out as ``entry`` of the run's dvc.lock has it; or the files that differ here."""
    from dvc.stage.loader import StageLoader
    from dvc.stage.serialize import to_single_stage_lockfile

    stage = repo.stage.load_one(name=name)
    stage.save_deps(allow_missing=True)
    here = to_single_stage_lockfile(stage)
    differs = _differs(here, entry)
    if differs:
        return differs
    StageLoader.fill_from_lock(stage, entry)
    failed = stage.checkout(force=False).get("failed")
    if failed:
        raise _incomplete(", ".join(map(str, failed)))
    for out in stage.outs:
        if not out.use_cache:  # a report: small, and not in DVC's cache
            path = Path(out.def_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file, open(run / path, "rb") as source:
                shutil.copyfileobj(source, file)
    stage.dump(update_pipeline=False)
    return []


def _incomplete(what: str) -> Exception:
    from dvc.exceptions import DvcException

    fault: Exception = DvcException(f"not in DVC's cache: {what}")
    return fault


def _differs(here: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """Names of what ``here`` has otherwise than ``made``: two stages as dvc.lock writes them."""
    found = [] if here.get("cmd") == made.get("cmd") else ["dvc.yaml"]
    for one, other in ((_by_path(here), _by_path(made)), (here.get("params") or {}, made.get("params") or {})):
        found += [path for path in {**one, **other} if one.get(path) != other.get(path)]
    return sorted(found)


def _by_path(stage: dict[str, Any]) -> dict[str, Any]:
    return {dep["path"]: {key: value for key, value in dep.items() if key != "path"} for dep in stage.get("deps") or []}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
