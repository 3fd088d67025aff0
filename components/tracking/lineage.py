"""What a store knows of a data set: the runs that trained on it, and their models."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from components.tracking.params import TrackingParams
from components.tracking.spool import Spool, begun, left_behind
from components.tracking.store import database, explained, open_client, probe, resolve


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
