"""Run every measurement of this folder, or those named: ``python -m perf [loader packed_step ...]``.

A measurement is a module here with ``main() -> dict``; its figures are printed and written to perf/results/NAME.json
with the machine they were taken on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def measurements() -> list[str]:
    """Names of the modules here that define ``main``."""
    return sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_") and "\ndef main(" in p.read_text())


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    import torch

    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    found: dict[str, object] = {"cpu": model, "cores": os.cpu_count(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """However the block ends, by SIGTERM too, servers and runs that it started end with it.

    A measurement starts some in process groups of their own, which no signal to this process reaches.
    """
    import psutil

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)  # so that what cleans up behind a measurement runs

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        left = psutil.Process().children(recursive=True)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            _, left = psutil.wait_procs(left, timeout=10)
        signal.signal(signal.SIGTERM, before)


def run(names: list[str]) -> int:
    """Run the named measurements, or all."""
    unknown = set(names) - set(measurements())
    if unknown:
        print(f"error: no such measurement: {', '.join(sorted(unknown))}; there are: {', '.join(measurements())}")
        return 1
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    for name in names or measurements():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        with leaving_nothing():
            figures = importlib.import_module(f"perf.{name}").main()
        record = {"measured": figures, "machine": machine(), "seconds": round(time.monotonic() - start, 1)}
        print(json.dumps(record, indent=1))
        (results / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
