"""Servers on this machine are reached directly: traffic to loopback never goes to a proxy.

With ``http_proxy`` set and no ``no_proxy``, every HTTP client would ask the proxy for ``127.0.0.1``, which there is the
proxy's own machine. Clients read the variables from the environment, so it is mended there, for child processes too.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def spare_loopback(environment: MutableMapping[str, str] | None = None, *hosts: str) -> None:
    """Add loopback's names, and ``hosts``, to ``no_proxy`` and ``NO_PROXY`` of ``environment`` (this process's own).

    Both spellings get what either had: clients differ in which of them they read. ``*`` (no proxy at all) stays.
    """
    environment = os.environ if environment is None else environment
    known: list[str] = []
    for name in ("no_proxy", "NO_PROXY"):
        known += [part.strip() for part in environment.get(name, "").split(",")]
    entries = ["*"] if "*" in known else list(dict.fromkeys([*filter(None, known), *LOOPBACK, *hosts]))
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(entries)
