"""A run that is written to its spool at once, and brought to MLflow by a thread."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.params import Strict, fingerprint
from components.tracking.interface import Run
from components.tracking.monitor import Monitor
from components.tracking.names import flat, image_key, metric_name, model_name, tags_of
from components.tracking.pages import run_page
from components.tracking.sender import Sender, lost, tell
from components.tracking.spool import Spool


class MlflowRun(Run):
    """See :func:`components.tracking.run`, which opens and ends one. No method waits for the store."""

    def __init__(self, key: str, uri: str, spool: Spool, sender: Sender) -> None:
        self.key, self.uri = key, uri
        self._spool, self._sender = spool, sender
        self._monitor: Monitor | None = None
        self._full = False
        self._scored_at = 0

    @property
    def id(self) -> str:  # type: ignore[override]
        """MLflow's id of the run; "" until it is known."""
        return self._spool.state.run or ""

    @property
    def url(self) -> str:  # type: ignore[override]
        """Of the run's page; "" where no server shows it, or not yet."""
        if not self.id or not self.uri.startswith("http"):
            return ""
        return run_page(self.uri, self._sender.experiment, self.id)

    def begin(self, name: str, config: Mapping[str, Any] | Strict, tags: Mapping[str, str]) -> None:
        """Record that the run begins, or goes on."""
        self._append("begin", key=self.key, name=name, config=flat(config), tags=tags_of(tags))

    def watch_system(self) -> None:
        """Sample system metrics until the end."""
        self._monitor = Monitor(lambda values, step: self._append("system", values=_finite(values), step=step))
        self._monitor.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if metrics:
            self._append("metrics", values=_finite(metrics), step=step or 0)

    def log_params(self, params: Mapping[str, Any] | Strict, prefix: str = "") -> None:
        self._append("params", values=flat(params, prefix))

    def log_image(self, image: npt.NDArray[np.uint8], key: str, step: int = 0) -> None:
        from PIL import Image

        try:
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(image)).save(png, "PNG", compress_level=1)
        except (TypeError, ValueError, OSError) as fault:
            tell(f"the picture {key!r} could not be logged: {fault}")
            return
        self._append_file("image", "image.png", png.getvalue(), key=image_key(key), step=step)

    def log_artifacts(self, path: Path, folder: str = "") -> None:
        if not path.exists():
            tell(f"{path} could not be logged: it is not there")
            return
        self._append_file("artifacts", path.name, path, folder=folder)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        self._append("dataset", name=name, digest=digest, source=source, context=context)

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
        about = {"name": model_name(name), "facts": facts, "tags": tags_of(tags or {}), "step": step or 0}
        handle = self._handle(model_name(name), facts)
        scored = {"metrics": _finite(metrics or {}), "dataset": list(dataset) if dataset else None}
        self._append("checkpoint", handle=handle, **about, **scored)
        return handle

    def ensure_model(
        self, model_id: str | None, name: str, params: Mapping[str, Any] | Strict, tags: Mapping[str, str] | None = None
    ) -> str | None:
        name, facts = model_name(name), flat(params)
        handle = model_id or self._handle(name, facts)
        self._append("ensure", handle=handle, name=name, facts=facts, tags=tags_of(tags or {}))
        return handle

    def log_scores(
        self,
        model_id: str | None,
        metrics: Mapping[str, float],
        dataset: tuple[str, str],
        step: int = 0,
        tags: Mapping[str, str] | None = None,
    ) -> str | None:
        if model_id is not None and metrics:
            about = {"dataset": list(dataset), "step": step, "tags": tags_of(tags or {})}
            self._append("scores", handle=model_id, values=_finite(metrics), **about)
        return model_id

    def tag_model(self, model_id: str | None, tags: Mapping[str, str]) -> None:
        if model_id is not None:
            self._append("tag_model", handle=model_id, tags=tags_of(tags))

    def stored(self, model_id: str | None, seconds: float = 0.0) -> str | None:
        if model_id is None:
            return None
        if seconds and model_id not in self._spool.state.models:
            self._sender.caught_up(seconds)
        return self._spool.state.models.get(model_id)

    def end(self, status: str, reason: str, stalled: float, longest: float) -> bool:
        """Close the run; whether the store has all of it. What it has not stays in the spool."""
        if self._monitor is not None:
            self._monitor.finish()
        self._append("end", status=status, reason=reason)
        if self._sender.close(stalled, longest):
            if lost(self._spool):
                tell(f"the run {self.id} of MLflow at {self.uri}{lost(self._spool)}")
            return True
        self._spool.save()
        tell(
            f"{self._spool.waiting():,} records of the run wait in {self._spool.folder}{lost(self._spool)}; the next "
            f"run of a stage sends them to MLflow at {self.uri}, or: python -m components.tracking sync"
        )
        return False

    def _handle(self, name: str, facts: Mapping[str, str]) -> str:
        """What a LoggedModel is called until, and after, the store has an id for it."""
        return f"{self.key}-{fingerprint({'name': name, **facts})[:16]}"

    def _append(self, kind: str, **content: Any) -> None:
        at = int(time.time() * 1000)
        if kind in ("checkpoint", "scores"):  # MLflow takes one score of a name, model and run a millisecond
            at = self._scored_at = max(at, self._scored_at + 1)
        if not self._spool.append(kind, at=at, **content):
            self._say_full()

    def _append_file(self, kind: str, name: str, source: Path | bytes, **content: Any) -> None:
        kept = self._spool.keep_file(kind, name, source)
        if kept is None:
            self._say_full()
        else:
            self._append(kind, file=kept, **content)

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            tell(
                f"{self._spool.folder} takes no more (spool_megabytes of params/tracking.yaml, or the disk): from here "
                "on some of what MLflow should show is dropped, and counted"
            )


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Names that MLflow takes, and plain floats."""
    return {metric_name(name): float(value) for name, value in metrics.items()}
