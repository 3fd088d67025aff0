"""A run that MLflow records."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.params import Strict, fingerprint
from components.tracking.interface import Run
from components.tracking.params import TrackingParams
from components.tracking.store import existing_run, explained, open_client, open_experiment

FLUSH_EVERY = 2.0  # seconds that metrics may wait for company before they are sent
FLUSH_SIZE = 500  # metrics sent at once; MLflow takes at most 1,000
KEEP_UNSENT = 100_000  # metrics held while a server is away
_ERROR = "vitrail.error"
_SUPERSEDES, _SUPERSEDED = "vitrail.supersedes", "vitrail.superseded_by"  # tags of models measured anew


class MlflowRun(Run):
    """See :func:`components.tracking.run`, which opens and ends one."""

    def __init__(
        self,
        uri: str,
        params: TrackingParams,
        name: str,
        config: Mapping[str, Any] | Strict,
        tags: Mapping[str, str],
        run_id: str | None,
    ) -> None:
        from mlflow.entities import RunTag

        self._uri = uri
        self._client = open_client(uri)
        self._experiment = open_experiment(self._client, uri, params.experiment)
        self._unsent: list[Any] = []
        self._sent_at = time.monotonic()
        self._warned_at = -1e9
        self._dropped = 0
        found = existing_run(self._client, run_id)
        self._continued = found is not None
        if found is None:
            self.id = str(self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)
            self.log_params(config)
        else:
            self.id = found
            self._client.update_run(found, status="RUNNING")
            self._client.log_batch(found, tags=[RunTag(key, value) for key, value in tags.items()])
            if _ERROR in self._client.get_run(found).data.tags:
                self._client.delete_tag(found, _ERROR)  # what ended it then is overcome
        if uri.startswith("http"):
            self.url = f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self.id}"
        self._monitor = start_monitor(uri, self.id, self._continued) if params.system_metrics else None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unsent += self._points(metrics, step or 0)
        if len(self._unsent) >= FLUSH_SIZE or time.monotonic() - self._sent_at >= FLUSH_EVERY:
            self._flush()

    def log_params(self, params: Mapping[str, Any] | Strict, prefix: str = "") -> None:
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in flat(params, prefix).items()]
        with explained(self._uri):
            for start in range(0, len(entries), 100):  # MLflow's limit
                self._client.log_batch(self.id, params=entries[start : start + 100])

    def log_image(self, image: npt.NDArray[np.uint8], key: str, step: int = 0) -> None:
        with explained(self._uri):
            self._client.log_image(self.id, image, key=key, step=step, synchronous=True)

    def log_artifacts(self, path: Path, folder: str = "") -> None:
        with explained(self._uri):
            if path.is_dir():
                self._client.log_artifacts(self.id, str(path), folder or None)
            else:
                self._client.log_artifact(self.id, str(path), folder or None)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = urlsplit(source).scheme or "local"
        dataset = Dataset(name, digest[:36], kind, json.dumps({"uri": source}))  # 36 characters are MLflow's limit
        with explained(self._uri):
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
        facts = flat(params) | ({"step": str(step)} if step is not None else {})
        name = model_name(name)
        with explained(self._uri):
            own = [m for m in self._same(name, facts) if m.source_run_id == self.id] if self._continued else []
            model_id = str(own[0].model_id) if own else self._new_model(name, facts, tags or {})
        if metrics:
            self._flush()
            with explained(self._uri):
                self._client.log_batch(self.id, metrics=self._points(metrics, step or 0, model_id, dataset))
        return model_id

    def ensure_model(
        self, model_id: str | None, name: str, params: Mapping[str, Any] | Strict, tags: Mapping[str, str] | None = None
    ) -> str | None:
        name, facts = model_name(name), flat(params)
        with explained(self._uri):
            if model_id is not None and self._has_model(model_id):
                return model_id
            same = self._same(name, facts)
            return str(same[0].model_id) if same else self._new_model(name, facts, tags or {})

    def log_scores(
        self, model_id: str | None, metrics: Mapping[str, float], dataset: tuple[str, str], step: int = 0
    ) -> str | None:
        if model_id is None:
            return None
        with explained(self._uri):
            model = self._client.get_logged_model(model_id)
            while _SUPERSEDED in model.tags:
                model = self._client.get_logged_model(model.tags[_SUPERSEDED])
            known = {point.key: point.value for point in model.metrics or [] if point.dataset_digest == dataset[1][:36]}
            if any(abs(known[key] - value) > 1e-9 for key, value in metrics.items() if key in known):
                # The UI goes on showing a metric's first value, so a model measured anew is a new row.
                new = self._new_model(model.name, model.params, {_SUPERSEDES: model.model_id} | _own(model.tags))
                self._client.set_logged_model_tags(model.model_id, {_SUPERSEDED: new})
                model, known = self._client.get_logged_model(new), {}
            fresh = {key: value for key, value in metrics.items() if key not in known}
            if fresh:
                self._client.log_batch(self.id, metrics=self._points(fresh, step, model.model_id, dataset))
            return str(model.model_id)

    def tag_model(self, model_id: str | None, tags: Mapping[str, str]) -> None:
        if model_id is not None:
            with explained(self._uri):
                self._client.set_logged_model_tags(model_id, dict(tags))

    def end(self, status: str, reason: str = "") -> None:
        """Send what waits and close the run; a server gone by now costs a warning, not the stage's result."""
        if self._monitor is not None:
            self._monitor.finish()
        self._flush()
        try:
            with explained(self._uri):
                if reason:
                    self._client.set_tag(self.id, _ERROR, reason)
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

    def _same(self, name: str, facts: dict[str, str]) -> list[Any]:
        """Models of this name and these facts, the oldest first."""
        found = self._client.search_logged_models(
            [self._experiment],
            filter_string=f"name = '{name}' AND tags.`vitrail.facts` = '{fingerprint(facts)}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        )
        return list(found)

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
                with explained(self._uri):
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


def start_monitor(uri: str, run_id: str, resume: bool) -> Any:
    """Sample system metrics into the run until ``finish()``."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.WARNING)
    monitor = SystemMetricsMonitor(run_id, resume_logging=resume, tracking_uri=uri)
    monitor.start()
    return monitor


def flat(params: Mapping[str, Any] | Strict, prefix: str = "") -> dict[str, str]:
    """Dotted names and their values as text; lists as JSON."""
    plain = params.model_dump(mode="json") if isinstance(params, Strict) else params
    found: dict[str, str] = {}
    for key, value in plain.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping | Strict):
            found |= flat(value, name)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found[name] = text[:6000]  # MLflow's limit
    return found


def model_name(name: str) -> str:
    """``name`` without the characters that MLflow refuses in a model's name."""
    return "".join("-" if character in "/:.%\"'" else character for character in name)


def _own(tags: Mapping[str, str]) -> dict[str, str]:
    """``tags`` without those that MLflow, or a former measurement, put there."""
    return {key: value for key, value in tags.items() if not key.startswith("mlflow.") and key != _SUPERSEDES}
