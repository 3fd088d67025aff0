"""A model behind HTTP: MLflow's own server over what :func:`components.release.serve.registered.build` writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from components.errors import VitrailError
from components.loopback import spare_loopback
from components.release.serve.registered import build
from components.release.serve.serving import OVERRIDE, ServeParams
from components.release.weights.load import load_model
from components.tracking.registry import Registry, is_registered


def serve(model: str, params: ServeParams, host: str, port: int, workers: int) -> int:
    """Serve ``model`` until the process is told to end; returns the server's exit code.

    A registered model is served as it was registered; any other is prepared in a temporary folder first.

    Raises:
        VitrailError: no such model, or the port is taken.
    """
    check_free(host, port)
    if is_registered(model):
        registry = Registry()
        version = registry.version(model)
        print(f"{model} is {version.source}", flush=True)
        with registry.files(version) as folder:
            return _serve(folder, params, host, port, workers)
    with tempfile.TemporaryDirectory(prefix="vitrail-serve-") as temporary:
        folder = Path(temporary) / "served"
        build(load_model(model, with_heads=False), folder, params)
        return _serve(folder, params, host, port, workers)


def check_free(host: str, port: int) -> None:
    """Nothing when a server could listen there.

    Raises:
        VitrailError: the port is taken, or the host is no address of this machine.
    """
    import socket

    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as fault:
        raise VitrailError(f"{host}:{port}: cannot listen there ({fault.strerror}); give another --port") from None


def _serve(folder: Path, params: ServeParams, host: str, port: int, workers: int) -> int:
    environment = dict(os.environ, MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
    environment[OVERRIDE] = json.dumps(params.model_dump(mode="json"))
    spare_loopback(environment)
    given = ["--model-uri", str(folder), "--env-manager", "local", "--host", host, "--port", str(port)]
    print(f"POST images to http://{host}:{port}/invocations; end with Ctrl-C", flush=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", *given, "--workers", str(workers)],
        env=environment, start_new_session=True,
    )  # fmt: skip

    def end(number: int, frame: FrameType | None) -> None:
        os.killpg(child.pid, signal.SIGTERM)

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = child.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return 0 if code in (0, -signal.SIGTERM, 128 + signal.SIGTERM) else code
