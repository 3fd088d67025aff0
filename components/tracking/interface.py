"""What a stage may do with a run; this one records nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.params import Strict


class Run:
    """A run that records nothing: for ranks above 0 and for tests. A recording run has the same methods."""

    key: str = ""  # the run's own name, known at once; continue it by this
    id: str = ""  # MLflow's name of it
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
        """Record a checkpoint as a LoggedModel (facts only; weights stay where they are) and return its handle.

        A handle names the model in this run's other methods, and in those of later runs. Its id is :meth:`stored`'s.
        """
        return None

    def ensure_model(
        self, model_id: str | None, name: str, params: Mapping[str, Any] | Strict, tags: Mapping[str, str] | None = None
    ) -> str | None:
        """The handle of a LoggedModel: of ``model_id`` (an id or a handle) if the store has it, else of equal name and
        params, else of a new one.
        """
        return model_id

    def log_scores(
        self,
        model_id: str | None,
        metrics: Mapping[str, float],
        dataset: tuple[str, str],
        step: int = 0,
        tags: Mapping[str, str] | None = None,
    ) -> str | None:
        """Attach scores, measured on the data set (name, digest), to a LoggedModel, and return its handle.

        Scores it has already are not repeated. Where they differ, another LoggedModel of the same name takes the new
        ones, tagged ``vitrail.supersedes``: the UI would go on showing the old. The same where ``tags`` (of the
        protocol) differ from those that its scores were measured under.
        """
        return model_id

    def tag_model(self, model_id: str | None, tags: Mapping[str, str]) -> None:
        """Set tags of a LoggedModel."""

    def stored(self, model_id: str | None, seconds: float = 0.0) -> str | None:
        """The store's id of the LoggedModel with this handle; None where it is not known after ``seconds``."""
        return None


def null_run() -> Run:
    """A run that records nothing; usable as a context manager too."""
    return Run()
