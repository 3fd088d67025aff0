"""CPU, memory, disk, network and GPU of this machine, sampled by MLflow's own monitors into the run's spool."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

EVERY = 10.0  # seconds between samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL goes before it


class Monitor(threading.Thread):
    """Hands samples, under ``system/``, and their number to ``record`` until :meth:`finish`."""

    def __init__(self, record: Callable[[Mapping[str, float], int], None]) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self._record, self._end = record, threading.Event()

    def run(self) -> None:
        """The thread."""
        from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL as INTERVAL

        monitors, step = _monitors(), 0
        while True:
            for monitor in monitors:
                with contextlib.suppress(Exception):  # a driver that fails a sample: the next may come
                    monitor.collect_metrics()
            if self._end.wait(float(INTERVAL.get() or EVERY)):
                return
            found: dict[str, float] = {}
            for monitor in monitors:
                with contextlib.suppress(Exception):
                    found |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            if found:
                self._record({f"system/{name}": value for name, value in found.items()}, step)
                step += 1

    def finish(self) -> None:
        """End the thread; waits for at most two seconds."""
        self._end.set()
        self.join(2.0)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(Exception):  # no NVIDIA driver
        found.append(GPUMonitor())
    return found
