"""What every test shares: marks that say why a test was left out, and small real fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

LONG = (
    "test_chain.py",
    "test_engine.py",
    "test_pretrain_launch.py",
    "test_pretrain_phases.py",
    "test_pretrain_stage.py",
    "test_own_data.py",
    "test_curate_killed.py",
    "test_prefect_run.py",  # begins with what test_chain.py makes, so not earlier
    "test_postgres_platform.py",
    "test_tracking_outage.py",
    "test_install.py",  # waits for a package index
)
# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile(
    "patient", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
# Teams of threads that share their cores with another process spin and starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "1" if PARALLEL else "2")
for line in (ROOT / "infra/local/telemetry-off.env").read_text().splitlines():
    name, _, value = line.partition("=")
    os.environ.setdefault(name, value)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name compressed bytes by their argument: gzip holds the time, and test processes must agree on every name."""
    return argname if isinstance(val, bytes) and not val.isascii() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run, with the reason in the report (``-ra`` prints it).

    Of several processes, each takes whole files (``--dist loadfile``), so that a file's fixtures are made once. The
    files that take longest go first, so that no process waits for the other at the end.
    """
    if PARALLEL:
        items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        if item.get_closest_marker("shared") and not SHARED_DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"left out: no development data at {SHARED_DATA}"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="left out: no CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the checkout (tests that ask for it carry the mark ``shared``)."""
    return SHARED_DATA


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server over HTTP on loopback (moto's), with one bucket and credentials in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="vitrail-test")
    yield endpoint
    patch.undo()
    server.stop()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Ports of loopback that nothing listens on."""
    import socket

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
