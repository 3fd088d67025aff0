"""Records of a spool carried out on the MLflow store, in order. Doing one twice changes nothing but pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from components.params import fingerprint
from components.tracking.spool import Position, Spool
from components.tracking.store import Refused, existing_run, explained, open_client, open_experiment

Tell = Callable[[str], object]

BATCH = 500  # metrics sent at once; MLflow takes at most 1,000
KEY = "vitrail.key"  # tag: the run's, or the model's, name before the store had it
ERROR = "vitrail.error"
DROPPED = "vitrail.not_recorded"
FACTS = "vitrail.facts"
SUPERSEDES, SUPERSEDED = "vitrail.supersedes", "vitrail.superseded_by"  # tags of models measured anew


class MlflowStore:
    """The store at ``uri``, opened at the first use."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self._name = uri, experiment
        self._opened: tuple[Any, str] | None = None

    def open(self) -> tuple[Any, str]:
        """MLflow's client and the id of the experiment.

        Raises:
            VitrailError: the store is away, or refuses.
        """
        if self._opened is None:
            with explained(self.uri):
                client = open_client(self.uri)
                self._opened = client, open_experiment(client, self.uri, self._name)
        return self._opened


def deliver(spool: Spool, store: MlflowStore, tell: Tell, progress: Callable[[], object] = lambda: None) -> int:
    """Send what waits in ``spool``; how many records were dealt with.

    A record that the store does not take is dropped, counted, and told of through ``tell``. ``progress`` is called
    whenever the store took some.

    Raises:
        VitrailError: the store is away; what was not sent stays, in its order.
    """
    taken = 0
    for group in _groups(spool):
        hand = _Hand(spool, store)
        try:
            hand.carry_out([record for record, _ in group])
        except Refused:
            if group[0][0]["kind"] == "begin":  # nothing else of the run would be taken
                raise
            for record, position in group:
                try:
                    hand.carry_out([record])
                except Refused as fault:
                    give_up(spool, record, fault, tell)
                spool.sent(position, _files([record]))
        taken += len(group)
        spool.sent(group[-1][1], _files([record for record, _ in group]))
        progress()
    return taken


def give_up(spool: Spool, record: Mapping[str, Any], fault: Exception, tell: Tell) -> None:
    """Drop a record, and say why."""
    spool.drop(str(record["kind"]))
    tell(f"{described({str(record['kind']): 1})} could not be logged: {fault}")


def skip_first(spool: Spool, store: MlflowStore, fault: Exception, tell: Tell) -> bool:
    """Give up the first record that waits, if the store answers another request; whether it was given up."""
    client, experiment = store.open()
    with explained(store.uri):
        client.get_experiment(experiment)
    for record, position in spool.pending():
        if record["kind"] == "begin":
            return False
        give_up(spool, record, fault, tell)
        spool.sent(position, _files([record]))
        return True
    return False


def _groups(spool: Spool) -> Iterator[list[tuple[dict[str, Any], Position]]]:
    """Waiting records, those of metrics that follow each other together."""
    group: list[tuple[dict[str, Any], Position]] = []
    size = 0
    for record, position in spool.pending():
        points = len(record["values"]) if record["kind"] in ("metrics", "system") else BATCH
        if group and size + points > BATCH:
            yield group
            group, size = [], 0
        group.append((record, position))
        size += points
    if group:
        yield group


def _files(records: list[dict[str, Any]]) -> list[str]:
    return [record["file"] for record in records if "file" in record]


class _Hand:
    """Carries out records of one run."""

    def __init__(self, spool: Spool, store: MlflowStore) -> None:
        self._spool, self._state = spool, spool.state
        self._uri = store.uri
        self._client, self._experiment = store.open()

    def carry_out(self, records: list[dict[str, Any]]) -> None:
        """All ``records`` are of metrics, or there is one."""
        with explained(self._uri):
            if records[0]["kind"] in ("metrics", "system"):
                points = [point for record in records for point in self._points(record)]
                for start in range(0, len(points), BATCH):
                    self._client.log_batch(self._run(), metrics=points[start : start + BATCH])
            else:
                getattr(self, f"_{records[0]['kind']}", self._unknown)(records[0])

    def _run(self) -> str:
        if self._state.run is None:
            raise Refused(f"MLflow at {self._uri}: the run was never begun there")
        return self._state.run

    def _unknown(self, record: dict[str, Any]) -> None:
        raise Refused("a record that was damaged on disk")

    def _begin(self, record: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        client, key = self._client, record["key"]
        if self._state.run is None:
            found = client.search_runs([self._experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
            self._state.run = str(found[0].info.run_id) if found else existing_run(client, key)
        if self._state.run is None:
            made = client.create_run(
                self._experiment, record["at"], {**record["tags"], KEY: key}, run_name=record["name"]
            )
            self._state.run = str(made.info.run_id)
        else:
            client.update_run(self._state.run, status="RUNNING")
            client.log_batch(self._state.run, tags=[RunTag(*pair) for pair in record["tags"].items()])
        now = client.get_run(self._state.run)
        if ERROR in now.data.tags:
            client.delete_tag(self._state.run, ERROR)  # what ended it then is overcome
        if not now.data.params:
            self._params({"values": record["config"]})
        self._state.ended = False
        steps = [metric.step for metric in now.data._metric_objs if metric.key.startswith("system/")]
        self._state.system_step = max(steps, default=-1) + 1

    def _params(self, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in record["values"].items()]
        for start in range(0, len(entries), 100):  # MLflow's limit
            self._client.log_batch(self._run(), params=entries[start : start + 100])

    def _image(self, record: dict[str, Any]) -> None:
        from PIL import Image

        path = self._spool.file(record["file"]) / "image.png"
        if not path.is_file():
            raise Refused("its file is gone from the spool")
        with Image.open(path) as image:
            self._client.log_image(
                self._run(), image, key=record["key"], step=record["step"], timestamp=record["at"], synchronous=True
            )

    def _artifacts(self, record: dict[str, Any]) -> None:
        path = self._spool.file(record["file"])
        if not path.is_dir():
            raise Refused("its files are gone from the spool")
        self._client.log_artifacts(self._run(), str(path), record["folder"] or None)

    def _dataset(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, source = urlsplit(record["source"]).scheme or "local", json.dumps({"uri": record["source"]})
        dataset = Dataset(record["name"][:500], record["digest"][:36], kind, source)  # 36 characters are MLflow's limit
        tags = [InputTag("mlflow.data.context", record["context"])]
        self._client.log_inputs(self._run(), [DatasetInput(dataset, tags)])

    def _checkpoint(self, record: dict[str, Any]) -> None:
        own = [m for m in self._same(record["name"], record["facts"]) if m.source_run_id == self._run()]
        model = str(own[0].model_id) if own else self._new_model(record["name"], record["facts"], record["tags"],
                                                                  record["handle"])  # fmt: skip
        self._state.models[record["handle"]] = model
        if record["metrics"]:
            points = self._points({**record, "values": record["metrics"]}, model, record["dataset"])
            self._client.log_batch(self._run(), metrics=points)

    def _ensure(self, record: dict[str, Any]) -> None:
        handle = record["handle"]
        found = self._model(handle)
        if found is None:
            same = self._same(record["name"], record["facts"])
            found = str(same[0].model_id) if same else None
        self._state.models[handle] = found or self._new_model(record["name"], record["facts"], record["tags"], handle)

    def _scores(self, record: dict[str, Any]) -> None:
        metrics, dataset, client = record["values"], record["dataset"], self._client
        model = client.get_logged_model(self._need(record["handle"]))
        while SUPERSEDED in model.tags:
            model = client.get_logged_model(model.tags[SUPERSEDED])
        known = {point.key: point.value for point in model.metrics or [] if point.dataset_digest == dataset[1][:36]}
        tags = record.get("tags") or {}
        other = any(model.tags.get(key, value) != value for key, value in tags.items())
        if other or any(abs(known[key] - value) > 1e-9 for key, value in metrics.items() if key in known):
            # The UI goes on showing a metric's first value, so a model measured anew is a new row.
            own = {k: v for k, v in model.tags.items() if not k.startswith("mlflow.") and k not in (SUPERSEDES, KEY)}
            new = self._new_model(model.name, model.params, {SUPERSEDES: model.model_id} | own)
            client.set_logged_model_tags(model.model_id, {SUPERSEDED: new})
            model, known = client.get_logged_model(new), {}
        if any(model.tags.get(key) != value for key, value in tags.items()):
            client.set_logged_model_tags(model.model_id, tags)
        fresh = {key: value for key, value in metrics.items() if key not in known}
        if fresh:
            client.log_batch(self._run(), metrics=self._points({**record, "values": fresh}, model.model_id, dataset))
        self._state.models[record["handle"]] = str(model.model_id)

    def _tag_model(self, record: dict[str, Any]) -> None:
        self._client.set_logged_model_tags(self._need(record["handle"]), record["tags"])

    def _end(self, record: dict[str, Any]) -> None:
        if record["reason"]:
            self._client.set_tag(self._run(), ERROR, record["reason"])
        if self._state.dropped:
            self._client.set_tag(self._run(), DROPPED, described(self._state.dropped))
        self._client.set_terminated(self._run(), record["status"], record["at"])
        self._state.ended = True

    def _need(self, handle: str) -> str:
        found = self._model(handle)
        if found is None:
            raise Refused(f"MLflow at {self._uri}: it has no model {handle}")
        return found

    def _model(self, handle: str) -> str | None:
        """The id of the LoggedModel that ``handle`` names: one of this run, an id itself, or of another run's spool."""
        from mlflow.exceptions import MlflowException

        if handle in self._state.models:
            return self._state.models[handle]
        try:
            return str(self._client.get_logged_model(handle).model_id)
        except MlflowException as fault:
            if fault.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        found = self._client.search_logged_models(
            [self._experiment], filter_string=f"tags.`{KEY}` = '{handle.replace(chr(39), '')}'", max_results=1
        )
        return str(found[0].model_id) if found else None

    def _same(self, name: str, facts: dict[str, str]) -> list[Any]:
        """Models of this name and these facts, the oldest first."""
        found = self._client.search_logged_models(
            [self._experiment],
            filter_string=f"name = '{name}' AND tags.`{FACTS}` = '{fingerprint(facts)}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        )
        return list(found)

    def _new_model(self, name: str, facts: dict[str, str], tags: Mapping[str, str], handle: str = "") -> str:
        made = self._client.create_logged_model(
            self._experiment,
            name=name,
            source_run_id=self._run(),
            params=facts,
            tags={**tags, FACTS: fingerprint(facts), **({KEY: handle} if handle else {})},
            model_type="checkpoint",
        )
        self._client.finalize_logged_model(made.model_id, "READY")
        return str(made.model_id)

    def _points(self, record: dict[str, Any], model: str | None = None, dataset: Any = None) -> list[Any]:
        from mlflow.entities import Metric

        name, digest = dataset or (None, None)
        step = record["step"] + (self._state.system_step if record["kind"] == "system" else 0)
        about: dict[str, Any] = {"model_id": model, "dataset_name": name, "run_id": self._run()}
        about["dataset_digest"] = digest[:36] if digest else None
        return [Metric(key, float(value), record["at"], step, **about) for key, value in record["values"].items()]


def described(dropped: Mapping[str, int]) -> str:
    """What was dropped, in words."""
    words = {"system": "system metrics", "image": "pictures", "scores": "sets of scores", "checkpoint": "models"}
    return ", ".join(f"{count:,} {words.get(kind, kind)}" for kind, count in sorted(dropped.items()))
