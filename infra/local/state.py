"""What the servers of the platform keep, and copies of it: both databases and MLflow's artifacts, in one folder.

``manifest.json`` of a backup names every file with its SHA-256; a backup that lacks a byte is refused before anything
is replaced. Data and models are DVC's: ``dvc push`` keeps those.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.params import load_params
from components.progress import Progress
from components.storage import StorageParams, Store, atomic_dir, atomic_file, is_remote, open_store
from infra.local.databases import Database, database_at

VERSION = 1
PREFECT_URL = "PREFECT_API_DATABASE_CONNECTION_URL"  # Prefect's own name
MLFLOW_URL = "MLFLOW_BACKEND_STORE_URI"  # MLflow's own names
ARTIFACTS = "MLFLOW_ARTIFACTS_DESTINATION"


@dataclass(frozen=True)
class ServerState:
    """Where the servers of one platform keep what they know."""

    prefect: Database
    mlflow: Database
    artifacts: Store


def state_of(root: Path, env: Mapping[str, str]) -> ServerState:
    """Of the checkout ``root``: SQLite files and ``mlartifacts/``, unless the servers' own variables say otherwise."""
    prefect = env.get(PREFECT_URL) or f"sqlite:///{root / '.prefect/prefect.db'}"
    mlflow = env.get(MLFLOW_URL) or f"sqlite:///{root / 'mlflow.db'}"
    place = env.get(ARTIFACTS) or str(root / "mlartifacts")
    params = load_params(root / "params/storage.yaml", StorageParams)
    if is_remote(place) and env.get("MLFLOW_S3_ENDPOINT_URL"):
        params = params.model_copy(update={"endpoint_url": env["MLFLOW_S3_ENDPOINT_URL"]})
    artifacts = open_store(params.model_copy(update={"root": place.removeprefix("file://")}))
    return ServerState(database_at(prefect, PREFECT_URL), database_at(mlflow, MLFLOW_URL), artifacts)


def back_up(state: ServerState, folder: Path, with_artifacts: bool = True) -> dict[str, Any]:
    """Write ``folder`` whole, or not at all; returns its manifest.

    The databases come first: every artifact that they name is there when artifacts are copied.

    Raises:
        VitrailError: ``folder`` is there already, or something cannot be read.
    """
    if folder.exists():
        raise VitrailError(f"{folder}: is there already; name another folder")
    with atomic_dir(folder) as aside:
        names = {}
        for name, database in (("prefect", state.prefect), ("mlflow", state.mlflow)):
            names[name] = f"{name}.{database.suffix}"
            database.dump(aside / names[name])
        if with_artifacts:
            artifacts = list(state.artifacts.list())
            progress = Progress("back up artifacts", len(artifacts), unit="files")
            for artifact in artifacts:
                state.artifacts.get_file(artifact, aside / "artifacts" / artifact)
                progress.advance()
            progress.close()
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {
            "version": VERSION,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "packages": {name: importlib.metadata.version(name) for name in ("prefect", "mlflow")},
            "databases": names,
            "artifacts": with_artifacts,
            "files": {path.relative_to(aside).as_posix(): _described(path) for path in files},
        }
        with atomic_file(aside / "manifest.json", "w") as file:
            json.dump(manifest, file, indent=1)
    return manifest


def restore(state: ServerState, folder: Path, replace: bool = False) -> dict[str, Any]:
    """Put the backup ``folder`` in place; returns its manifest. No server may run.

    Raises:
        VitrailError: the backup is not whole, is of another kind of database, or something is there that ``replace``
            does not allow to be lost.
    """
    manifest = _checked(folder)
    there = {"prefect": state.prefect, "mlflow": state.mlflow}
    for name, database in there.items():
        file = manifest["databases"][name]
        if not file.endswith(f".{database.suffix}"):
            raise VitrailError(f"{folder / file}: of another kind of database than {database}")
        if not replace and not database.empty():
            raise VitrailError(f"{database}: is not empty; give --replace to lose what it holds, or back it up first")
    for name, database in there.items():
        database.restore(folder / manifest["databases"][name])
    artifacts = [name for name in manifest["files"] if name.startswith("artifacts/")]
    progress = Progress("restore artifacts", len(artifacts), unit="files")
    for name in artifacts:
        state.artifacts.put_file(name.removeprefix("artifacts/"), folder / name)
        progress.advance()
    progress.close()
    return manifest


def _checked(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        files = dict(manifest["files"])
    except FileNotFoundError:
        raise VitrailError(f"{folder}: no manifest.json, so no backup") from None
    except (ValueError, KeyError, TypeError) as fault:
        raise VitrailError(f"{folder / 'manifest.json'}: damaged ({fault}); nothing was restored") from None
    if manifest.get("version") != VERSION:
        raise VitrailError(f"{folder}: of version {manifest.get('version')}, this program reads {VERSION}")
    for name, said in files.items():
        path = folder / name
        if ".." in Path(name).parts or os.path.isabs(name) or not path.is_file() or _described(path) != said:
            raise VitrailError(f"{path}: missing, or not what was backed up; nothing was restored")
    return manifest


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def remove(folder: Path, keep: int) -> list[Path]:
    """Delete all but the ``keep`` newest backups below ``folder``; returns those that are gone."""
    found = sorted(path.parent for path in folder.glob("*/manifest.json"))
    gone = found[:-keep] if keep else []
    for path in gone:
        shutil.rmtree(path)
    return gone
