"""A Ray cluster of two nodes on this machine that also starts where the machine is busy. Tests use it, too."""

from __future__ import annotations

import inspect
import socket
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

# The ports of a node's agents. A raylet ends itself where it does not know them within 15 seconds, which agents need
# for their imports alone on a busy machine. It waits for none that it was given; the last it reads from a file alone.
_AGENTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
_HEAD = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


def patient(seconds: int) -> dict[str, str]:
    """Environment variables, to be set before Ray is imported: what is slow gets ``seconds``, and is not dead.

    A node that was killed refuses connections: that is seen within seconds all the same. Workers, which Ray starts at
    niceness 15 and ends after an idle second, run like any other process here, and stay: each imports for seconds.
    """
    return {
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(seconds),
        "RAY_raylet_start_wait_time_s": str(seconds),
        "RAY_agent_register_timeout_ms": str(1000 * seconds),
        "RAY_health_check_timeout_ms": str(1000 * seconds),
        "RAY_health_check_period_ms": "1000",
        "RAY_worker_niceness": "0",
        "RAY_idle_worker_killing_time_threshold_ms": str(1000 * seconds),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def two_nodes(object_store: int) -> Any:
    """A head and a second node (``ray.cluster_utils.Cluster``), each of one CPU and ``object_store`` bytes."""
    from ray._private import services
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port
    from ray.cluster_utils import Cluster

    start_raylet = services.start_raylet

    def start(*given: Any, **named: Any) -> Any:
        where = inspect.signature(start_raylet).bind(*given, **named).arguments
        persist_port(where["session_dir"], where["node_id"], DASHBOARD_AGENT_LISTEN_PORT_NAME, -1)  # none, for now
        return start_raylet(*given, **named)

    nodes = Cluster()
    with patch.object(services, "start_raylet", start):
        for extra in (_HEAD, {}):
            nodes.add_node(num_cpus=1, object_store_memory=object_store, **extra, **_free_ports())
    return nodes


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _AGENTS]
        for one in sockets:
            one.bind(("", 0))
        return {name: one.getsockname()[1] for name, one in zip(_AGENTS, sockets, strict=True)}
