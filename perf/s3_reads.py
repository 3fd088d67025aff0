"""Reads from S3 through ``components.storage`` against plain boto3, over loopback, in turns (server: moto, a process).

python -m perf s3_reads
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

SIZES = {"64 KiB ranges": (1 << 16, 128), "1 MiB ranges": (1 << 20, 48), "64 MiB file": (1 << 26, 1)}
TURNS = 7


def main() -> dict[str, object]:
    """Bytes a second of storage.py over those of boto3, medians of turns, by size of a read."""
    import boto3

    from components.storage import StorageParams, open_store

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        _answering(url)
        plain = boto3.client("s3", endpoint_url=url)
        plain.create_bucket(Bucket="perf")
        store = open_store(StorageParams(root="s3://perf", endpoint_url=url))
        store.write("shard", os.urandom(1 << 26))
        found: dict[str, object] = {}
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / "copy"
            for name, (size, count) in SIZES.items():

                def ours(size: int = size, count: int = count) -> None:
                    for at in range(count):
                        assert len(store.read("shard", at * size, size)) == size

                def theirs(size: int = size, count: int = count) -> None:
                    for at in range(count):
                        asked = f"bytes={at * size}-{(at + 1) * size - 1}"
                        body = plain.get_object(Bucket="perf", Key="shard", Range=asked)["Body"]
                        assert len(body.read()) == size

                if name.endswith("file"):
                    pair = (lambda: store.get_file("shard", here)), (lambda: plain.download_file("perf", "shard", here))
                else:
                    pair = ours, theirs
                found[name] = _ratio(*pair, size * count)
        return found
    finally:
        server.terminate()
        server.wait()


def _ratio(ours: Callable[[], object], theirs: Callable[[], object], size: int) -> dict[str, float]:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for at, call in enumerate((ours, theirs)):
            began = time.perf_counter()
            call()
            seconds[at].append(time.perf_counter() - began)
    mine, plain = (statistics.median(one) for one in seconds)
    rates = {"storage MB/s": size / mine / 1e6, "boto3 MB/s": size / plain / 1e6, "ratio": plain / mine}
    return {name: round(value, 3) for name, value in rates.items()}


def _answering(url: str) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=3).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
