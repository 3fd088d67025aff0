"""What Prefect's server does by itself: ends runs that gave no sign of life, and tells somebody when a run failed.

A flow run sends a heartbeat while it lives (flows/: Prefect's engine does it). Where its process or machine is gone,
nobody else would ever end it: it would stay Running, and hold its deployment's place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

ALERT = "VITRAIL_ALERT_WEBHOOK"  # a URL, which may hold a token: Prefect keeps it encrypted, and it is printed nowhere
ZOMBIES, ALERTS = "vitrail: end runs that are gone", "vitrail: tell of runs that failed"
_BLOCK = "vitrail-alerts"
# What follows a heartbeat of a run that lives, has ended, or rests.
_SIGNS = ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "AwaitingRetry")

Api = Callable[[str, str, dict[str, Any]], Any]  # method, path, body


def of_zombies(silent: float) -> dict[str, Any]:
    """The automation that calls a run Crashed after ``silent`` seconds without a sign of life."""
    return {
        "name": ZOMBIES,
        "description": "A run whose process or machine is gone is called Crashed",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "after": ["prefect.flow-run.heartbeat"],
            "expect": [f"prefect.flow-run.{sign}" for sign in _SIGNS],
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": silent,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"no sign of life for {silent:.0f} s: its process or machine is gone; run the deployment "
                "again, and it goes on from what was saved",
            }
        ],
    }


def of_alerts(block: str) -> dict[str, Any]:
    """The automation that calls the webhook ``block`` (an id) for every run that failed or crashed."""
    text = (
        '{"text": "{{ flow.name }}/{{ deployment.name }} ({{ flow_run.name }}): {{ flow_run.state.name }}: '
        '{{ flow_run.state.message | replace("\\"", "\'") | replace("\\\\", "/") | replace("\\n", " ") }}"}'
    )
    return {
        "name": ALERTS,
        "description": f"A run that failed or crashed is told to the address that {ALERT} named",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "expect": ["prefect.flow-run.Failed", "prefect.flow-run.Crashed"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [{"type": "call-webhook", "block_document_id": block, "payload": text}],
    }


def ensure(api: Api, silent: float, alert: str | None = None) -> None:
    """Make the automations, or bring them up to date; the second only where ``alert``, a URL, is given.

    An automation of alerts that was made earlier stays as it is without ``alert``.
    """
    _put(api, of_zombies(silent))
    if alert:
        _put(api, of_alerts(_webhook(api, alert)))


def alert_address() -> str | None:
    """The webhook of :data:`ALERT`, if it is set."""
    return os.environ.get(ALERT) or None


def _put(api: Api, automation: dict[str, Any]) -> None:
    known = api("POST", "automations/filter", {"automations": {"name": {"any_": [automation["name"]]}}})
    if known:
        api("PUT", f"automations/{known[0]['id']}", automation)
    else:
        api("POST", "automations/", automation)


def _webhook(api: Api, url: str) -> str:
    """The id of the block that holds ``url``."""
    api("POST", "block_types/install_system_block_types", {})
    [kind] = api("POST", "block_types/filter", {"block_types": {"slug": {"any_": ["webhook"]}}})
    wanted = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
    schema = api("POST", "block_schemas/filter", wanted)[0]
    data = {"method": "POST", "url": url}
    named = {"block_documents": {"name": {"any_": [_BLOCK]}, "block_type_id": {"any_": [kind["id"]]}}}
    known = api("POST", "block_documents/filter", named)
    if known:
        api("PATCH", f"block_documents/{known[0]['id']}", {"data": data, "merge_existing_data": False})
        return str(known[0]["id"])
    body = {"name": _BLOCK, "block_type_id": kind["id"], "block_schema_id": schema["id"], "data": data}
    return str(api("POST", "block_documents/", body)["id"])
