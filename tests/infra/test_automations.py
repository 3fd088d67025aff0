"""Automations on Prefect's server: they are what Prefect takes, and a second `make platform` makes no second ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.settings import load_platform
from infra.local import automations


class Server:
    """Remembers what it is told, as Prefect's API does for these calls."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {"automations": [], "block_documents": []}

    def __call__(self, method: str, path: str, body: dict[str, Any]) -> Any:
        table, _, rest = path.strip("/").partition("/")
        if table in ("block_types", "block_schemas"):
            return [{"id": f"id-of-{table}"}]
        rows = self.kept[table]
        if rest == "filter":
            return [row for row in rows if row["name"] in body[table]["name"]["any_"]]
        if method == "POST":
            rows.append({"id": f"{table}-{len(rows)}", **body})
            return rows[-1]
        [known] = [row for row in rows if row["id"] == rest]
        known.update(body)
        return None


def test_prefect_takes_both_automations() -> None:
    from prefect.events.schemas.automations import AutomationCore
    from prefect.server.events.actions import CallWebhook

    silent = load_platform().silent_run
    zombies = AutomationCore.model_validate(automations.of_zombies(silent))
    assert zombies.trigger.within.total_seconds() == silent
    alerts = automations.of_alerts("5f0f4b4e-9d6f-4f6e-8a0c-0d7f6f3a1b2c")
    assert AutomationCore.model_validate(alerts).name == automations.ALERTS
    CallWebhook.validate_template(alerts["actions"][0]["payload"], "payload")


def test_a_second_start_changes_what_is_there_and_adds_nothing() -> None:
    server = Server()
    automations.ensure(server, 120.0)
    assert [row["name"] for row in server.kept["automations"]] == [automations.ZOMBIES]
    automations.ensure(server, 60.0, "https://alerts.test/first")
    automations.ensure(server, 60.0, "https://alerts.test/second")
    assert [row["name"] for row in server.kept["automations"]] == [automations.ZOMBIES, automations.ALERTS]
    assert server.kept["automations"][0]["trigger"]["within"] == 60.0
    [block] = server.kept["block_documents"]
    assert block["data"]["url"] == "https://alerts.test/second"
    assert "alerts.test" not in str(server.kept["automations"])


def test_runs_do_not_get_the_address_of_alerts(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.local.stack import Stack

    monkeypatch.setenv(automations.ALERT, "https://alerts.test/planted-token")
    stack = Stack(Path(), load_platform())
    assert "planted-token" not in str(stack.runs())
    assert int(stack.runs()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) * 3 <= stack.params.silent_run


def test_a_server_that_is_started_again_knows_who_holds_which_slot() -> None:
    import importlib

    from infra.local.stack import Stack

    env = Stack(Path(), load_platform()).servers()
    assert importlib.import_module(env["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]).ConcurrencyLeaseStorage
    root = Path(__file__).resolve().parents[2]
    for file in ("infra/compose/compose.yaml", "infra/kubernetes/stack/prefect.yaml"):
        assert env["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] in (root / file).read_text()
