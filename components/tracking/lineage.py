"""What a store knows of where runs come from: the data set that they trained on, and the state of the checkout."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.tracking.delivery import KEY
from components.tracking.params import TrackingParams
from components.tracking.spool import Spool, begun, left_behind
from components.tracking.state import FOLDER, TAG, RunState, read_state
from components.tracking.store import database, existing_run, explained, open_client, probe, resolve


@dataclass(frozen=True)
class Trained:
    """A run that read a data set for training, and the LoggedModels (checkpoints) it made."""

    run_id: str  # MLflow's; the run's key where that is not known yet
    name: str
    status: str
    digest: str  # of the data set
    models: tuple[str, ...]  # "name (id)", in order of creation


def trained_on(params: TrackingParams, digests: Iterable[str]) -> list[Trained]:
    """The runs, in order of their start, that trained on the data sets of content ``digests`` (SHA-256, hex).

    Runs whose records wait to be sent come last, with the status WAITING. A local store that is not there holds
    none, and none is made.

    Raises:
        VitrailError: the store cannot be reached or refuses.
    """
    uri = resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    wanted = list(dict.fromkeys(digests))
    found: list[Trained] = []
    if not uri.startswith("sqlite") or database(uri).exists():
        probe(uri)
        found = _in_store(params, uri, wanted)
    return found + _waiting(params, wanted, {run.run_id for run in found})


def _in_store(params: TrackingParams, uri: str, digests: list[str]) -> list[Trained]:
    found: list[Trained] = []
    with explained(uri):
        client = open_client(uri)
        experiment = client.get_experiment_by_name(params.experiment)
        if experiment is None:
            return []
        ids = [experiment.experiment_id]
        for digest in digests:
            wanted = f"tags.data_digest = '{digest}'"
            models = _all(client.search_logged_models, ids, filter_string=wanted, order_by=_OLDEST_MODEL)
            for run in _all(client.search_runs, ids, filter_string=wanted, order_by=["attributes.start_time ASC"]):
                own = tuple(f"{m.name} ({m.model_id})" for m in models if m.source_run_id == run.info.run_id)
                found.append(Trained(run.info.run_id, str(run.info.run_name), run.info.status, digest, own))
    return found


def _waiting(params: TrackingParams, digests: list[str], known: set[str]) -> list[Trained]:
    """Runs in the spool, whichever store they are for, that are not among the ``known`` ones."""
    found = []
    for folder in left_behind(params.spool):
        about = begun(folder)
        digest = about["tags"].get("data_digest")
        if digest in digests:
            spool = Spool(folder, 0)
            run = spool.state.run or folder.name
            records = [record for record, _ in spool.pending() if record["kind"] == "checkpoint"]
            if run not in known:
                models = tuple(f"{record['name']} ({record['handle']})" for record in records)
                found.append(Trained(run, str(about["name"]), "WAITING", str(digest), models))
    return found


@dataclass(frozen=True)
class RecordedRun:
    """What a run came from, and what the store calls it."""

    run_id: str
    name: str
    folder: Path  # of the kept files
    state: RunState
    states: int  # how many the run has: one more for each time that it went on with other code or parameters


def fetch_state(params: TrackingParams, run: str, into: Path) -> RecordedRun:
    """Bring the state that ``run`` (an id, a key, or the id of a model that it made) kept to the folder ``into``.

    Raises:
        VitrailError: the store cannot be reached, has no such run, or the run kept no state.
    """
    uri = resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    if uri.startswith("sqlite") and not database(uri).exists():
        raise VitrailError(f"MLflow at {uri}: no such file; set MLFLOW_TRACKING_URI to the store that has the run")
    probe(uri)
    with explained(uri):
        client = open_client(uri)
        found = _run_of(client, params.experiment, run)
        if found is None:
            waits = (params.spool / run).is_dir()
            raise VitrailError(
                f"MLflow at {uri}: no run {run}" + ("; its records wait here: vitrail sync" if waits else "")
            )
        digest = found.data.tags.get(TAG)
        if digest is None:
            raise VitrailError(
                f"run {run} kept no state: it is older than that, or its code was in no git repository; its commit: "
                f"{found.data.tags.get('mlflow.source.git.commit', 'unknown')}"
            )
        into.mkdir(parents=True, exist_ok=True)
        folder = Path(client.download_artifacts(found.info.run_id, f"{FOLDER}/{digest}", str(into)))
        states = len(client.list_artifacts(found.info.run_id, FOLDER))
    return RecordedRun(found.info.run_id, str(found.info.run_name), folder, read_state(folder), states)


def _run_of(client: Any, experiment: str, run: str) -> Any:
    from mlflow.exceptions import MlflowException

    if run.startswith("m-"):
        with contextlib.suppress(MlflowException):
            run = client.get_logged_model(run).source_run_id or run
    known = existing_run(client, run)
    if known is not None:
        return client.get_run(known)
    held = client.get_experiment_by_name(experiment)
    if held is None or not re.fullmatch(r"[\w-]+", run):
        return None
    return next(iter(client.search_runs([held.experiment_id], f"tags.`{KEY}` = '{run}'", max_results=1)), None)


_OLDEST_MODEL = [{"field_name": "creation_timestamp", "ascending": True}]


def _all(search: Any, *given: Any, **options: Any) -> list[Any]:
    """Every page of a search."""
    found: list[Any] = []
    token = None
    while True:
        page = search(*given, **options, **({"page_token": token} if token else {}))
        found += page
        token = page.token
        if not token:
            return found
