"""The local stack's processes: pid files that do not lie, health with a limit, ports that are taken, clean ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from components.errors import VitrailError
from infra.local.servers import Service, require_free, responds

FOREVER = "import time\nwhile True: time.sleep(0.1)"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('ready', 'w').close()\n" + FOREVER


def start(service: Service, code: str, tmp_path: Path) -> psutil.Process:
    service.start([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ))
    process = service.process()
    assert process is not None
    return process


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_service_runs_until_it_is_stopped(tmp_path: Path) -> None:
    service = Service("x", tmp_path / "state")
    process = start(service, FOREVER, tmp_path)
    assert Service("x", tmp_path / "state").process() == process
    assert service.stop(grace=5)
    assert ended(process)
    assert service.process() is None
    assert not service.stop(grace=5)


def test_one_that_ignores_sigterm_is_killed_with_what_it_started(tmp_path: Path) -> None:
    service = Service("x", tmp_path)
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {FOREVER!r}], start_new_session=True)\n"
    process = start(service, code + DEAF, tmp_path)
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    (child,) = process.children()
    assert service.stop(grace=1)
    assert ended(process)
    assert ended(child)


def test_a_recycled_pid_is_not_taken_for_the_service(tmp_path: Path) -> None:
    service = Service("x", tmp_path)
    (tmp_path / "x.json").write_text(f'{{"pid": {os.getpid()}, "created": 1.0}}')
    assert service.process() is None
    assert not service.stop(grace=1)
    assert psutil.pid_exists(os.getpid())


@pytest.mark.parametrize("content", ["", "{", "{}", '{"pid": 999999999, "created": 1}'])
def test_a_damaged_pid_file_means_not_running(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert Service("x", tmp_path).process() is None


def test_a_server_that_dies_while_starting_is_quoted(tmp_path: Path) -> None:
    service = Service("x", tmp_path)
    start(service, "raise RuntimeError('no database')", tmp_path)
    with pytest.raises(VitrailError, match=r"x ended while starting: RuntimeError: no database \(whole log: .*x\.log"):
        service.wait(lambda: False, timeout=20)


def test_a_server_that_never_gets_healthy_is_given_up(tmp_path: Path) -> None:
    service = Service("x", tmp_path)
    start(service, FOREVER, tmp_path)
    try:
        with pytest.raises(VitrailError, match="x is not healthy after 1 s"):
            service.wait(lambda: False, timeout=1)
    finally:
        service.stop(grace=5)


def test_a_taken_port_is_one_line_with_the_parameter_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(VitrailError, match=rf"127\.0\.0\.1:{port} is taken .* set another mlflow_port in params"):
            require_free("127.0.0.1", port, "mlflow_port", "mlflow")
    require_free("127.0.0.1", port, "mlflow_port", "mlflow")


def test_health_is_an_answer_with_success() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        assert not responds(f"http://127.0.0.1:{port}/")
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split(" port ")[1].split()[0])
        assert responds(f"http://127.0.0.1:{port}/")
        assert not responds(f"http://127.0.0.1:{port}/no-such-page")
    finally:
        server.terminate()
        server.wait()
