"""From the start of a stage's run to its end, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from components.params import Strict
from components.tracking.interface import Run, null_run
from components.tracking.params import TrackingParams
from components.tracking.recording import MlflowRun
from components.tracking.store import explained, probe, resolve


@contextlib.contextmanager
def run(
    stage: str,
    name: str,
    params: TrackingParams | None,
    config: Mapping[str, Any] | Strict,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """Record a run of ``stage`` and end it as FINISHED, FAILED (tag ``vitrail.error`` says why) or KILLED.

    Args:
        params: None records nothing.
        config: the stage's parameters, recorded as MLflow params.
        tags: more tags. Commit, ``dvc.lock`` digest and flow run are set here.
        run_id: continue this run, if the store has it, instead of starting one.

    Raises:
        VitrailError: the store cannot be reached (within 10 seconds) or refuses.
    """
    if params is None:
        yield null_run()
        return
    uri = resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    probe(uri)
    with explained(uri):
        recording = MlflowRun(uri, params, name, config, {**circumstances(stage), **(tags or {})}, run_id)
    restore = end_on_sigterm()
    if recording.url:
        print(f"MLflow run: {recording.url}", file=sys.stderr, flush=True)  # flows link it
    try:
        yield recording
    except Exception as fault:
        recording.end("FAILED", " ".join(str(fault).split())[:500] or type(fault).__name__)
        raise
    except BaseException as fault:  # SystemExit, KeyboardInterrupt
        clean = isinstance(fault, SystemExit) and fault.code in (None, 0)
        recording.end("FINISHED" if clean else "KILLED")
        raise
    else:
        recording.end("FINISHED")
    finally:
        restore()


def circumstances(stage: str) -> dict[str, str]:
    """The tags that say where a run comes from."""
    import getpass
    import hashlib

    tags = {"vitrail.stage": stage, "mlflow.source.name": f"components.{stage}", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        tags["mlflow.source.git.commit"] = head.stdout.strip()
    with contextlib.suppress(FileNotFoundError):
        tags["dvc.lock.md5"] = hashlib.md5(Path("dvc.lock").read_bytes(), usedforsecurity=False).hexdigest()
    if flow_run := os.environ.get("VITRAIL_FLOW_RUN_ID"):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def end_on_sigterm() -> Callable[[], object]:
    """Make SIGTERM (a cancelled flow, a preempted node) raise SystemExit, so that the run is closed; unless handled."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        return lambda: None

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    return lambda: signal.signal(signal.SIGTERM, before)
