"""What flow runs of one server wait for: a DVC workspace, which one at a time may change, and the GPUs of a machine.

The limits are Prefect's global concurrency limits (``prefect gcl ls``). A run holds its slots by a lease that it
renews, so what a killed run held is free after :data:`LEASE` seconds. DVC's own locks stay the last word: they also
keep out what somebody runs by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException

LEASE = 60.0  # seconds; Prefect's least
_TRAINING = ("pretrain", "continue", "distill")  # take every GPU, unless their preset says how many processes
_ONE_GPU = ("curate", "dedup", "gain", "benchmark", "release embed")


def workspace_limit(workspace: Path) -> str:
    """The name of the limit of a DVC workspace, on this machine: ``workspace-vitrail-1f2e3d4c``."""
    place = f"{socket.gethostname()}:{workspace.resolve()}"
    return f"workspace-{_plain(workspace.resolve().name)}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def gpu_limit() -> str:
    """The name of the limit of this machine's GPUs."""
    return f"gpus-{_plain(socket.gethostname())}"


def gpus() -> int:
    """How many NVIDIA GPUs flow runs may use here: those of ``CUDA_VISIBLE_DEVICES``, where it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([word for word in visible.split(",") if word.strip() and word.strip() != "-1"])
    try:
        said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in said.splitlines())


def gpus_for(stage: str, workspace: Path, there: int) -> int:
    """How many of the ``there`` GPUs ``stage`` takes."""
    family, _, preset = stage.partition("@")
    if family in _TRAINING:
        path = workspace / "params" / family / f"{preset}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        asked = ((content or {}).get("run") or {}).get("processes", "auto")
        return min(asked, there) if isinstance(asked, int) else there
    return min(1, there) if family in _ONE_GPU else 0


@contextlib.contextmanager
def held(stage: str, workspace: Path, alone: bool = True) -> Iterator[None]:
    """Wait for what ``stage`` needs, and hold it for the block: its workspace if ``alone``, then its GPUs.

    A limit that is not there yet is made; a number that somebody changed on the server stays.
    """
    there = gpus()
    wanted = gpus_for(stage, workspace, there)
    with contextlib.ExitStack() as stack:
        # In this order everywhere, so that no two runs wait for each other.
        if alone:
            stack.enter_context(_slots(workspace_limit(workspace), 1, 1))
        if wanted:
            stack.enter_context(_slots(gpu_limit(), there, wanted))
        yield


@contextlib.contextmanager
def _slots(name: str, limit: int, number: int) -> Iterator[None]:
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(name).limit
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):  # another run was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
    slots = concurrency(name, occupy=min(number, limit), lease_duration=LEASE, raise_on_lease_renewal_failure=False)
    slots.__enter__()
    try:
        yield
    finally:
        # A server that is away costs no finished work: the lease ends by itself.
        with contextlib.suppress(httpx.HTTPError, PrefectException):
            slots.__exit__(*sys.exc_info())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "here"
