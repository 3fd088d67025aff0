"""The MLflow store behind a URI: reached or refused within seconds, created once, artifacts where a server finds them.

A local ``sqlite:///`` store keeps its artifacts in ``mlartifacts`` beside the database, where ``mlflow server
--backend-store-uri sqlite:///mlflow.db`` (whose own default is the folder of that name) shows them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.collector import imported_to_stay
from components.deferred_imports import absent, entry_points_read_once, later
from components.errors import VitrailError
from components.log_level import at_level
from components.loopback import spare_loopback
from components.tracking.params import known_scheme

# Tag of the experiment: the UI opens it with the tabs of model training, Models among them
KIND = {"mlflow.experimentKind": "custom_model_development"}
PROBE_TIMEOUT = 4.0  # seconds to wait for the first answer of a server
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "NOT_FOUND", "RESOURCE_DOES_NOT_EXIST",
             "RESOURCE_ALREADY_EXISTS", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "RESOURCE_CONFLICT")  # fmt: skip

_DENIALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")  # which its user can mend
# What MLflow does without, and nothing here uses: Polars' and SciPy's tables as data sets. Its gateway imports FastAPI.
_NOT_FOUND = ("mlflow.data.polars_dataset", "scipy.sparse")


class Away(VitrailError):
    """The store does not answer, or not well: the same request may succeed later."""


class Refused(VitrailError):
    """The store answers, and will never take this."""


def resolve(uri: str) -> str:
    """``uri`` with a relative SQLite path made absolute: later changes of folder must not move the store."""
    if not known_scheme(uri):
        raise VitrailError(f"MLFLOW_TRACKING_URI={uri}: expected sqlite:///FILE or http://HOST:PORT of a server")
    if urlsplit(uri).username is not None:
        raise VitrailError(
            f"MLFLOW_TRACKING_URI={uri}: an address is shown in logs and links, so a login is not part of it; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return f"sqlite:///{database(uri)}" if uri.startswith("sqlite") else uri


def database(uri: str) -> Path:
    """The file of a ``sqlite:///`` store."""
    return Path(uri.split(":///", 1)[-1]).absolute()


def probe(uri: str) -> None:
    """Fail now, in one line, when an HTTP server does not answer: MLflow itself would retry for minutes."""
    if not uri.startswith("http"):
        return
    spare_loopback()
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # it answers; what it thinks of the request shows below
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        raise Away(
            f"MLflow at {uri}: no answer ({reason}); start it (make platform), or set uri in params/tracking.yaml "
            "or MLFLOW_TRACKING_URI to sqlite:///mlflow.db"
        ) from None


def open_client(uri: str) -> Any:
    """An ``MlflowClient`` of the store; a local one is created if need be, by one process at a time."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # records wait in the spool, not in MLflow's back-off
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    spare_loopback()
    with imported_to_stay("mlflow"):
        return _client(uri)


def _client(uri: str) -> Any:
    unused = later(lambda name: name.startswith("mlflow.gateway"))
    with entry_points_read_once(), absent(*_NOT_FOUND), unused:
        from mlflow import MlflowClient
        from mlflow.store.artifact import artifact_repository_registry as registry

    registry._artifact_repository_registry.register("mlflow-artifacts", _artifacts_of_a_server)
    if not uri.startswith("sqlite"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    file = database(uri)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{file}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as fault:
        raise VitrailError(f"MLflow at {uri}: cannot write there ({fault.strerror}); set uri to another file") from None
    # Processes that create the tables at the same time would fail; each migration would print a line.
    with lock, at_level("mlflow.store.db.utils", logging.WARNING):
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _artifacts_of_a_server(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """Artifacts of an experiment that a server created: through it, or, without it, where it would put them."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if tracking_uri is None or not tracking_uri.startswith("sqlite"):
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    below = urlsplit(artifact_uri).path.lstrip("/")
    return LocalArtifactRepository(str(database(tracking_uri).parent / "mlartifacts" / below))


def open_experiment(client: Any, uri: str, name: str) -> str:
    """The id of the experiment ``name``, made if it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = str(database(uri).parent / "mlartifacts" / name) if uri.startswith("sqlite") else None
        tags = dict(KIND)
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException as fault:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise VitrailError(f"MLflow at {uri}: cannot create the experiment {name!r}: {fault}") from None
    if found.lifecycle_stage != "active":
        raise VitrailError(
            f"MLflow at {uri}: the experiment {name!r} was deleted; restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}) or set another `experiment` in params/tracking.yaml"
        )
    for key, value in KIND.items():
        if key not in found.tags:  # made by another program
            client.set_experiment_tag(found.experiment_id, key, value)
    location = found.artifact_location.removeprefix("file://")
    if uri.startswith("http") and location.startswith("/") and not Path(location).parent.parent.is_dir():
        raise VitrailError(
            f"MLflow at {uri}: the experiment {name!r} keeps its artifacts in {location}, not on this machine; "
            "set another `experiment` in params/tracking.yaml, which the server will then keep itself"
        )
    return str(found.experiment_id)


def existing_experiment(client: Any, name: str) -> str | None:
    """The id of the experiment ``name`` if the store has it."""
    found = client.get_experiment_by_name(name)
    return None if found is None else str(found.experiment_id)


def existing_run(client: Any, run_id: str | None) -> str | None:
    """``run_id`` if the store has it."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        return str(client.get_run(run_id).info.run_id)
    except MlflowException as fault:
        if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow and the layers below it raise into one line that names the store.

    Raises:
        Away: the same request may succeed later.
        Refused: it never will.
    """
    try:
        yield
    except VitrailError:
        raise
    except Exception as fault:
        # Not above: MLflow would then be imported whole, before `open_client` does it with less.
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        kind: type[VitrailError]
        line = f"MLflow at {uri}: {' '.join(str(fault).split())[:300] or type(fault).__name__}"
        if isinstance(fault, MlflowException):
            kind = Refused if fault.error_code in _REFUSALS else VitrailError if fault.error_code in _DENIALS else Away
        elif isinstance(fault, SQLAlchemyError):
            kind = Away if isinstance(fault, OperationalError) else Refused
        elif isinstance(fault, RequestException | OSError):
            kind = Away
        elif isinstance(fault, ValueError | TypeError | KeyError):  # how its client refuses names and values
            kind = Refused
        else:
            raise
        raise kind(line) from None
