"""MLflow's registry of models: versions of a name, and the aliases (candidate, champion) that point to one of them.

``models:/NAME@ALIAS`` and ``models:/NAME/VERSION`` name a registered model wherever a model is named by value.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import VitrailError, nearest
from components.params import load_params
from components.tracking.names import model_name
from components.tracking.params import TrackingParams
from components.tracking.store import database, explained, open_client, open_experiment, probe, resolve

PREFIX = "models:/"
WEIGHTS = "artifacts/model"  # the folder of the weights within a version, an export of ours
CANDIDATE, CHAMPION = "candidate", "champion"
PARAMS = Path("params/tracking.yaml")
HISTORY = "vitrail.champions"  # tag of a registered model: its champions' versions, the present one last
_KEPT = 200  # of them
_NAMED = re.compile(r"^models:/+(?P<name>[^/@]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))$")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model."""

    name: str
    number: int
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Its name by value, which always means this version."""
        return f"{PREFIX}{self.name}/{self.number}"


def is_registered(source: str | Path) -> bool:
    """Whether ``source`` names a model of the registry."""
    return str(source).startswith(PREFIX)


class Registry:
    """The registry of the store that ``uri`` names."""

    def __init__(self, uri: str | None = None, params: Path = PARAMS) -> None:
        """The store: ``uri``, else MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI, else that of ``params``."""
        known = load_params(params, TrackingParams) if params.is_file() else None
        named = uri or os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = resolve(named or (known.uri if known else "sqlite:///mlflow.db"))
        self._experiment = known.experiment if known else "vitrail"
        self._opened: Any = None

    def client(self, create: bool = False) -> Any:
        """MLflow's client.

        Raises:
            VitrailError: the store cannot be reached, or is a file that is not there and not to be created.
        """
        if self._opened is None:
            if self.uri.startswith("sqlite") and not create and not database(self.uri).is_file():
                raise VitrailError(
                    f"MLflow at {self.uri}: no such store, so no registered models; set uri in params/tracking.yaml or "
                    "MLFLOW_TRACKING_URI"
                )
            probe(self.uri)
            with explained(self.uri):
                self._opened = open_client(self.uri)
        return self._opened

    def version(self, source: str) -> ModelVersion:
        """The version that ``source`` names now.

        Raises:
            VitrailError: not of that form, no such model, alias or version, or the store cannot be reached.
        """
        named = _NAMED.match(source)
        if named is None:
            raise VitrailError(f"{source}: a registered model is models:/NAME@ALIAS or models:/NAME/VERSION")
        name = named["name"]
        known = self._model(name)
        aliases = {str(alias): int(number) for alias, number in known.aliases.items()}
        if named["alias"] is not None and named["alias"] not in aliases:
            there = ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items()))
            near = nearest(named["alias"], list(aliases))
            raise VitrailError(f"{source}: no alias {named['alias']!r}{near}; there is {there or 'none'}")
        number = aliases[named["alias"]] if named["alias"] is not None else int(named["version"])
        return self._version(name, number, source)

    def pinned(self, source: str) -> str:
        """``source`` as a name that always means the version it means now."""
        return self.version(source).source

    def register(self, folder: Path, name: str, tags: Mapping[str, str]) -> ModelVersion:
        """Put the files of ``folder`` into the store as a new version of ``name``; no alias moves.

        Raises:
            VitrailError: the store cannot be reached, or refuses the name.
        """
        from mlflow.exceptions import MlflowException

        if model_name(name) != name or "@" in name or not name.strip():
            raise VitrailError(f"--name {name!r}: a model's name has none of / : . % @ and quotes, and is not empty")
        client = self.client(create=True)
        with explained(self.uri):
            run = client.create_run(open_experiment(client, self.uri, self._experiment), run_name=f"register {name}")
            status = "FAILED"
            try:
                client.log_artifacts(run.info.run_id, str(folder), "served")
                with contextlib.suppress(MlflowException):  # it is there: the next call says what else it could be
                    client.create_registered_model(name)
                made = client.create_model_version(
                    name, f"{run.info.artifact_uri}/served", run_id=run.info.run_id, tags=dict(tags)
                )
                status = "FINISHED"
            finally:
                client.set_terminated(run.info.run_id, status)
        return ModelVersion(name, int(made.version), dict(tags))

    def point(self, alias: str, version: ModelVersion, tags: Mapping[str, str] | None = None) -> None:
        """Let ``alias`` mean ``version``, and set ``tags`` of it."""
        client = self.client()
        with explained(self.uri):
            for key, value in (tags or {}).items():
                client.set_model_version_tag(version.name, str(version.number), key, value)
            client.set_registered_model_alias(version.name, alias, str(version.number))

    def champions(self, name: str) -> list[int]:
        """The versions that were champion, the present one last; none: there was no promotion."""
        try:
            found = json.loads(self._model(name).tags.get(HISTORY, "[]"))
            return [int(number) for number in found]
        except (ValueError, TypeError):
            raise VitrailError(f"{PREFIX}{name}: its tag {HISTORY} is no list of versions; remove the tag") from None

    def crown(self, version: ModelVersion, history: list[int], tags: Mapping[str, str] | None = None) -> None:
        """Make ``version`` the champion, and keep ``history`` as :meth:`champions`."""
        self.point(CHAMPION, version, tags)
        with explained(self.uri):
            self.client().set_registered_model_tag(version.name, HISTORY, json.dumps(history[-_KEPT:]))

    @contextlib.contextmanager
    def files(self, version: ModelVersion, below: str = "") -> Iterator[Path]:
        """The files of ``version``, or its folder ``below``, as a local folder that lasts for the block."""
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow.artifacts import download_artifacts

        client = self.client()
        with explained(self.uri):
            place = client.get_model_version_download_uri(version.name, str(version.number)).rstrip("/")
        place = f"{place}/{below}" if below else place
        if Path(place).is_dir():
            yield Path(place)
            return
        with tempfile.TemporaryDirectory(prefix="vitrail-registered-") as folder:
            with explained(self.uri):
                found = download_artifacts(artifact_uri=place, dst_path=folder, tracking_uri=self.uri)
            yield Path(found)

    def _model(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        client = self.client()
        with explained(self.uri):
            try:
                return client.get_registered_model(name)
            except MlflowException as fault:
                if fault.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                known = [model.name for model in client.search_registered_models(max_results=100)]
        raise VitrailError(
            f"{PREFIX}{name}: no such model in the registry at {self.uri}{nearest(name, known)}; `register` makes one"
        )

    def _version(self, name: str, number: int, source: str) -> ModelVersion:
        from mlflow.exceptions import MlflowException

        with explained(self.uri):
            try:
                found = self.client().get_model_version(name, str(number))
            except MlflowException as fault:
                if fault.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise VitrailError(f"{source}: the registry at {self.uri} has no version {number} of it") from None
        return ModelVersion(name, number, dict(found.tags))
