"""The one door to MLflow: runs, metrics, pictures, artifacts, and one LoggedModel a checkpoint.

    with tracking.run("pretrain", "pretrain vitt", params, config) as run:
        run.log_metrics({"loss/total": 7.2}, step=10)

Checkpoints are compared in the Models tab of the experiment, so every model's scores carry the same metric names and
the digest of the data set they were measured on. A local ``sqlite:///`` store keeps its artifacts in ``mlartifacts``
beside the database, where ``mlflow server --backend-store-uri sqlite:///mlflow.db`` (whose own default is the folder
of that name) shows them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from components.errors import VitrailError
from components.params import Strict, fingerprint

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
PROBE_TIMEOUT = 4.0  # seconds to wait for the first answer of a server
FLUSH_EVERY = 2.0  # seconds that metrics may wait for company before they are sent
FLUSH_SIZE = 500  # metrics sent at once; MLflow takes at most 1,000
KEEP_UNSENT = 100_000  # metrics held while a server is away


class TrackingParams(Strict):
    """``params/tracking.yaml``: where metrics, models and pictures go."""

    uri: str = Field(min_length=1)  # sqlite:///path or http://host:port; MLFLOW_TRACKING_URI goes before it
    experiment: str = Field(min_length=1)
    system_metrics: bool = True  # CPU, memory, disk, network and GPU of every run

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        if uri.split(":")[0].split("+")[0] not in SCHEMES:
            raise ValueError("an MLflow store is sqlite:///FILE, or http://HOST:PORT of a server")
        return uri


class Run:
    """A run that records nothing: for ranks above 0 and for tests. A recording run has the same methods."""

    id: str = ""
    url: str = ""  # of the run's page; "" where no server shows it

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each curve; sent within seconds, and before the run ends."""

    def log_params(self, params: Mapping[str, Any] | Strict, prefix: str = "") -> None:
        """Record (nested) parameters under dotted names, below ``prefix``."""

    def log_image(self, image: npt.NDArray[np.uint8], key: str, step: int = 0) -> None:
        """Show ``image`` ([H, W, 3] or [H, W] uint8) under ``key`` in the run's image grid."""

    def log_artifacts(self, path: Path, folder: str = "") -> None:
        """Copy a file, or what is in a folder, to ``folder`` among the run's artifacts."""

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record that the run read the data set ``name`` of content ``digest`` for ``context`` (training, ...)."""

    def log_checkpoint(
        self,
        name: str,
        params: Mapping[str, Any] | Strict,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> str | None:
        """Record a checkpoint as a LoggedModel (facts only; weights stay where they are) and return its id."""
        return None

    def ensure_model(
        self, model_id: str | None, name: str, params: Mapping[str, Any] | Strict, tags: Mapping[str, str] | None = None
    ) -> str | None:
        """``model_id`` if this store has it, else the id of a LoggedModel of equal name and params, else a new one."""
        return model_id

    def log_scores(
        self, model_id: str | None, metrics: Mapping[str, float], dataset: tuple[str, str], step: int = 0
    ) -> None:
        """Attach scores, measured on the data set (name, digest), to a LoggedModel."""


def null_run() -> Run:
    """A run that records nothing; usable as a context manager too."""
    return Run()


@contextlib.contextmanager
def run(
    stage: str,
    name: str,
    params: TrackingParams,
    config: Mapping[str, Any] | Strict,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """Record a run of ``stage`` and end it as FINISHED, FAILED (tag ``vitrail.error`` says why) or KILLED.

    Args:
        config: the stage's parameters, recorded as MLflow params.
        tags: more tags. Commit, ``dvc.lock`` digest and flow run are set here.
        run_id: continue this run, if the store has it, instead of starting one.

    Raises:
        VitrailError: the store cannot be reached (within 10 seconds) or refuses.
    """
    uri = _resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    _probe(uri)
    with _explained(uri):
        recording = _MlflowRun(uri, params, stage, name, config, tags or {}, run_id)
    restore = _end_on_sigterm()
    if recording.url:
        print(f"MLflow run: {recording.url}", file=sys.stderr, flush=True)  # flows link it
    try:
        yield recording
    except Exception as fault:
        recording.end("FAILED", " ".join(str(fault).split())[:500] or type(fault).__name__)
        raise
    except BaseException as fault:  # SystemExit, KeyboardInterrupt
        clean = isinstance(fault, SystemExit) and fault.code in (None, 0)
        recording.end("FINISHED" if clean else "KILLED")
        raise
    else:
        recording.end("FINISHED")
    finally:
        restore()


class _MlflowRun(Run):
    def __init__(
        self,
        uri: str,
        params: TrackingParams,
        stage: str,
        name: str,
        config: Mapping[str, Any] | Strict,
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> None:
        self._uri = uri
        self._client = _client(uri)
        self._experiment = _experiment(self._client, uri, params.experiment)
        self._unsent: list[Any] = []
        self._sent_at = time.monotonic()
        self._warned_at = -1e9
        self._dropped = 0
        found = _existing_run(self._client, run_id)
        if found is None:
            tags = {**_circumstances(stage), **tags}
            found = self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
            self.id = found
            self.log_params(config)
        else:
            self._client.update_run(found, status="RUNNING")
        self.id = found
        if uri.startswith("http"):
            self.url = f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.id}"
        self._monitor = _start_monitor(uri, self.id, run_id is not None) if params.system_metrics else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unsent += self._points(metrics, step or 0)
        if len(self._unsent) >= FLUSH_SIZE or time.monotonic() - self._sent_at >= FLUSH_EVERY:
            self._flush()

    def log_params(self, params: Mapping[str, Any] | Strict, prefix: str = "") -> None:
        from mlflow.entities import Param

        flat = [Param(key, value) for key, value in _flat(params, prefix).items()]
        with _explained(self._uri):
            for start in range(0, len(flat), 100):  # MLflow's limit
                self._client.log_batch(self.id, params=flat[start : start + 100])

    def log_image(self, image: npt.NDArray[np.uint8], key: str, step: int = 0) -> None:
        with _explained(self._uri):
            self._client.log_image(self.id, image, key=key, step=step, synchronous=True)

    def log_artifacts(self, path: Path, folder: str = "") -> None:
        with _explained(self._uri):
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), folder or None)
            else:
                self._client.log_artifact(self.id, str(path), folder or None)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = urlsplit(source).scheme or "local"
        dataset = Dataset(name, digest[:36], kind, json.dumps({"uri": source}))  # 36 characters are MLflow's limit
        with _explained(self._uri):
            self._client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_checkpoint(
        self,
        name: str,
        params: Mapping[str, Any] | Strict,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> str | None:
        facts = _flat(params) | ({"step": str(step)} if step is not None else {})
        with _explained(self._uri):
            model_id = self._new_model(_model_name(name), facts, tags or {})
        if metrics:
            self._flush()
            with _explained(self._uri):
                self._client.log_batch(self.id, metrics=self._points(metrics, step or 0, model_id, dataset))
        return model_id

    def ensure_model(
        self, model_id: str | None, name: str, params: Mapping[str, Any] | Strict, tags: Mapping[str, str] | None = None
    ) -> str | None:
        name, facts = _model_name(name), _flat(params)
        with _explained(self._uri):
            if model_id is not None and self._has_model(model_id):
                return model_id
            same = self._client.search_logged_models(
                [self._experiment], filter_string=f"name = '{name}' AND tags.`vitrail.facts` = '{fingerprint(facts)}'"
            )
            return str(same[0].model_id) if same else self._new_model(name, facts, tags or {})

    def log_scores(
        self, model_id: str | None, metrics: Mapping[str, float], dataset: tuple[str, str], step: int = 0
    ) -> None:
        with _explained(self._uri):
            self._client.log_batch(self.id, metrics=self._points(metrics, step, model_id, dataset))

    def end(self, status: str, reason: str = "") -> None:
        """Send what waits and close the run; a server gone by now costs a warning, not the stage's result."""
        if self._monitor is not None:
            self._monitor.finish()
        self._flush()
        try:
            with _explained(self._uri):
                if reason:
                    self._client.set_tag(self.id, "vitrail.error", reason)
                self._client.set_terminated(self.id, status)
        except VitrailError as fault:
            self._warn(f"the run {self.id} could not be closed: {fault}")
        if self._unsent or self._dropped:
            self._warn(f"{len(self._unsent) + self._dropped:,} metrics of the run {self.id} were never delivered")

    def _has_model(self, model_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_logged_model(model_id)
        except MlflowException as fault:
            if fault.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return False
            raise
        return True

    def _new_model(self, name: str, facts: dict[str, str], tags: Mapping[str, str]) -> str:
        model = self._client.create_logged_model(
            self._experiment,
            name=name,
            source_run_id=self.id,
            params=facts,
            tags={**tags, "vitrail.facts": fingerprint(facts)},
            model_type="checkpoint",
        )
        self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _points(
        self,
        metrics: Mapping[str, float],
        step: int,
        model_id: str | None = None,
        dataset: tuple[str, str] | None = None,
    ) -> list[Any]:
        from mlflow.entities import Metric

        name, digest = dataset or (None, None)
        now = int(time.time() * 1000)
        about: dict[str, Any] = {"model_id": model_id, "dataset_name": name, "run_id": self.id}
        about["dataset_digest"] = digest[:36] if digest else None
        return [Metric(key, float(value), now, step, **about) for key, value in metrics.items()]

    def _flush(self) -> None:
        """Send waiting metrics; those that a server away does not take wait for the next time."""
        self._sent_at = time.monotonic()
        try:
            while self._unsent:
                with _explained(self._uri):
                    self._client.log_batch(self.id, metrics=self._unsent[:FLUSH_SIZE])
                del self._unsent[:FLUSH_SIZE]
        except VitrailError as fault:
            self._warn(str(fault))
            surplus = max(0, len(self._unsent) - KEEP_UNSENT)
            self._dropped += surplus
            del self._unsent[:surplus]

    def _warn(self, message: str) -> None:
        if time.monotonic() - self._warned_at > 60:
            self._warned_at = time.monotonic()
            print(f"warning: {message}", file=sys.stderr, flush=True)


def _resolve(uri: str) -> str:
    """``uri`` with a relative SQLite path made absolute: later changes of folder must not move the store."""
    parsed = TrackingParams(uri=uri, experiment="-").uri if uri.split(":")[0].split("+")[0] in SCHEMES else ""
    if not parsed:
        raise VitrailError(f"MLFLOW_TRACKING_URI={uri}: expected sqlite:///FILE or http://HOST:PORT of a server")
    return f"sqlite:///{_database(uri)}" if uri.startswith("sqlite") else uri


def _database(uri: str) -> Path:
    return Path(uri.split(":///", 1)[-1]).absolute()


def _probe(uri: str) -> None:
    """Fail now, in one line, when an HTTP server does not answer: MLflow itself would retry for minutes."""
    if not uri.startswith("http"):
        return
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT).close()
    except urllib.error.HTTPError:
        pass  # it answers; what it thinks of the request shows below
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        raise VitrailError(
            f"MLflow at {uri}: no answer ({reason}); start it (make platform), or set uri in params/tracking.yaml "
            "or MLFLOW_TRACKING_URI to sqlite:///mlflow.db"
        ) from None


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # metrics wait here, not in MLflow's back-off
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient
    from mlflow.store.artifact import artifact_repository_registry as registry

    registry._artifact_repository_registry.register("mlflow-artifacts", _artifacts_of_a_server)
    if not uri.startswith("sqlite"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database = _database(uri)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{database}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as fault:
        raise VitrailError(f"MLflow at {uri}: cannot write there ({fault.strerror}); set uri to another file") from None
    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.WARNING)  # one line a migration otherwise
    try:
        with lock:  # processes that create the tables at the same time would fail
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    finally:
        logger.setLevel(level)
    return client


def _artifacts_of_a_server(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """Artifacts of an experiment that a server created: through it, or, without it, where it would put them."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    if tracking_uri is None or not tracking_uri.startswith("sqlite"):
        return MlflowArtifactsRepository(artifact_uri, tracking_uri, registry_uri)
    below = urlsplit(artifact_uri).path.lstrip("/")
    return LocalArtifactRepository(str(_database(tracking_uri).parent / "mlartifacts" / below))


def _experiment(client: Any, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = str(_database(uri).parent / "mlartifacts" / name) if uri.startswith("sqlite") else None
        # The kind makes the UI open with the tabs of model training, Models among them.
        tags = {"mlflow.experimentKind": "custom_model_development"}
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
    return str(found.experiment_id)


def _existing_run(client: Any, run_id: str | None) -> str | None:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        return str(client.get_run(run_id).info.run_id)
    except MlflowException as fault:
        if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _circumstances(stage: str) -> dict[str, str]:
    """The tags that say where a run comes from."""
    import getpass
    import hashlib

    tags = {"vitrail.stage": stage, "mlflow.source.name": f"components.{stage}", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    with contextlib.suppress(FileNotFoundError):
        tags["dvc.lock.md5"] = hashlib.md5(Path("dvc.lock").read_bytes(), usedforsecurity=False).hexdigest()
    if flow_run := os.environ.get("VITRAIL_FLOW_RUN_ID"):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def _start_monitor(uri: str, run_id: str, resume: bool) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
    monitor = SystemMetricsMonitor(run_id, resume_logging=resume, tracking_uri=uri)
    monitor.start()
    return monitor


def _end_on_sigterm() -> Callable[[], object]:
    """Make SIGTERM (a cancelled flow, a preempted node) raise SystemExit, so that the run is closed; unless handled."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        return lambda: None

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    return lambda: signal.signal(signal.SIGTERM, before)


def _flat(params: Mapping[str, Any] | Strict, prefix: str = "") -> dict[str, str]:
    """Dotted names and their values as text; lists as JSON."""
    plain = params.model_dump(mode="json") if isinstance(params, Strict) else params
    flat: dict[str, str] = {}
    for key, value in plain.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping | Strict):
            flat |= _flat(value, name)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[name] = text[:6000]  # MLflow's limit
    return flat


def _model_name(name: str) -> str:
    """``name`` without the characters that MLflow refuses in a model's name."""
    return "".join("-" if character in "/:.%\"'" else character for character in name)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as fault:
        raise VitrailError(f"MLflow at {uri}: {' '.join(str(fault).split())[:300]}") from None
