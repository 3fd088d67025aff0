"""From the start of a stage's run to its end, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from components.errors import VitrailError
from components.git import git
from components.params import Strict
from components.storage import atomic_file
from components.tracking.delivery import MlflowStore
from components.tracking.interface import Run, null_run
from components.tracking.pages import note
from components.tracking.params import TrackingParams
from components.tracking.recording import MlflowRun
from components.tracking.sender import Sender, tell
from components.tracking.spool import Spool, hold
from components.tracking.state import FOLDER, TAG, keep_state
from components.tracking.store import Away, resolve

START = {"http": 10.0, "sqlite": 60.0}  # seconds for a store's first answer; a new SQLite file needs several
KILLED = 5.0  # seconds that a run that is being killed waits for the store


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

    A store that hangs, dies or is away costs a warning: what is recorded waits in ``params.spool`` (see
    :mod:`components.tracking.spool`).

    Args:
        params: None records nothing.
        config: the stage's parameters, recorded as MLflow params.
        tags: more tags. Commit, ``dvc.lock`` digest and flow run are set here.
        run_id: continue this run (its ``key`` or its id), if the store has it, instead of starting one.

    Raises:
        VitrailError: the store refuses; or it is away (seen within seconds) and ``params.required``.
    """
    if params is None:
        yield null_run()
        return
    uri = resolve(os.environ.get("MLFLOW_TRACKING_URI") or params.uri)
    with contextlib.ExitStack() as stack:
        spool, key = _open_spool(stack, params, run_id)
        store = MlflowStore(uri, params.experiment)
        sender = Sender(spool, store, params.spool)
        recording = MlflowRun(key, uri, spool, sender)
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrail-state-")))
        about = {**circumstances(stage), **_kept_state(kept), **note(stage), **(tags or {})}
        new = not (spool.folder / "begun.json").exists()
        with atomic_file(spool.folder / "begun.json", "w") as file:
            json.dump({"uri": uri, "experiment": params.experiment, "stage": stage, "name": name, "tags": about}, file)
        recording.begin(name, config, about)
        if TAG in about:
            recording.log_artifacts(kept, f"{FOLDER}/{about[TAG]}")
        _meet(recording, sender, spool, params, new)
        restore = end_on_sigterm()
        if params.system_metrics:
            recording.watch_system()
        status, reason, stalled, longest = "FINISHED", "", params.wait_at_end, max(60.0, 10 * params.wait_at_end)
        try:
            yield recording
        except Exception as fault:
            status, reason = "FAILED", " ".join(str(fault).split())[:500] or type(fault).__name__
            raise
        except BaseException as fault:  # SystemExit, KeyboardInterrupt
            if not (isinstance(fault, SystemExit) and fault.code in (None, 0)):
                status, stalled, longest = "KILLED", min(stalled, KILLED), KILLED
            raise
        finally:
            if recording.end(status, reason, stalled, longest):
                spool.remove()
            restore()


def _open_spool(stack: contextlib.ExitStack, params: TrackingParams, former: str | None) -> tuple[Spool, str]:
    """A spool, held until ``stack`` ends, and the run's key: ``former`` unless another process has it."""
    for key in [*([former] if former else []), uuid.uuid4().hex]:
        folder = params.spool.absolute() / key
        try:
            if stack.enter_context(hold(folder)):
                return Spool(folder, params.spool_megabytes * 1_000_000), key
        except OSError as fault:
            raise VitrailError(
                f"{folder}: cannot write there ({fault.strerror}); set spool in params/tracking.yaml to another folder"
            ) from None
        tell(f"the run {key} is recorded by another process, too; this one gets a run of its own")
    raise AssertionError("a new key is nobody else's")


def _meet(recording: MlflowRun, sender: Sender, spool: Spool, params: TrackingParams, new: bool) -> None:
    """Start sending; wait until the store has answered, or has had its time."""
    uri = recording.uri
    sender.start()
    answered = sender.contact(START["sqlite" if uri.startswith("sqlite") else "http"])
    fault = sender.away
    if answered and fault is None:
        if recording.url:
            print(f"MLflow run: {recording.url}", file=sys.stderr, flush=True)  # flows link it
        return
    fault = fault or Away(f"MLflow at {uri}: no answer yet")
    if params.required or not isinstance(fault, Away):  # what its user has to mend is said now
        sender.close(0.0, 0.0)
        if new:
            spool.remove()
        raise fault
    tell(f"{fault}; the run goes on, and what it records waits in {spool.folder}")


def _kept_state(into: Path) -> dict[str, str]:
    """Write the state of this checkout to ``into``; returns the tag that names it, if there is one to name."""
    try:
        state = keep_state(Path.cwd(), into)
    except OSError as fault:
        tell(f"the code and parameters of this run could not be kept: {fault}")
        return {}
    return {} if state is None else {TAG: state.digest}


def circumstances(stage: str) -> dict[str, str]:
    """The tags that say where a run comes from."""
    import getpass
    import hashlib

    tags = {"vitrail.stage": stage, "mlflow.source.name": f"components.{stage}", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        tags["mlflow.source.git.commit"] = git(Path(), "rev-parse", "HEAD", seconds=5).strip()
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
