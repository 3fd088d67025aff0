"""A network that drops every packet without a word and comes back, between two network namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from patience import PATIENCE

# Answers as S3 does, in pieces: the first at once, the rest when told to go on.
SERVER = """
import http.server, sys, threading
go = threading.Event()
class Slow(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        for name, value in (("Content-Length", "10"), ("ETag", '"x"')):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"01234")
        print("half", flush=True)
        go.wait()
        self.wfile.write(b"56789")
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("198.18.0.1", 8000), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
go.set()
sys.stdin.readline()
"""
CLIENT = """
from components.storage import StorageParams, open_store
params = StorageParams(root="s3://bucket", endpoint_url="http://198.18.0.1:8000", region="us-east-1",
                       read_timeout=1.0, connect_timeout=1.0, max_attempts=50)
print(open_store(params).read("key").decode())
"""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Two network namespaces, 198.18.0.1 and 198.18.0.2, joined by a cable; nothing else is reached from them."""
    server, client = (f"vitrail-{side}-{os.getpid()}" for side in ("s", "c"))
    made = []
    try:
        try:
            for name in (server, client):
                _ip("netns", "add", name)
                made.append(name)
            _ip("-n", server, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", client)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("left out: no network namespaces here (they need root and iproute2)")
        for name, address in ((server, "198.18.0.1/24"), (client, "198.18.0.2/24")):
            _ip("-n", name, "address", "add", address, "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield server, client
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _within(name: str, code: str) -> subprocess.Popen[str]:
    command = [shutil.which("ip") or "ip", "netns", "exec", name, sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    return subprocess.Popen(command, env=os.environ | keys, **pipes)


def test_a_network_that_hangs_within_an_answer_and_comes_back_costs_only_time(names: tuple[str, str]) -> None:
    server, client = _within(names[0], SERVER), None
    try:
        said = _lines(server)
        assert said() == "ready"
        client = _within(names[1], CLIENT)
        assert said() == "half"
        _ip("-n", names[0], "route", "add", "blackhole", "198.18.0.2/32")  # answers go nowhere, and nobody is told
        assert server.stdin is not None
        server.stdin.write("\n")
        server.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(3)
        _ip("-n", names[0], "route", "delete", "blackhole", "198.18.0.2/32")
        out, faults = client.communicate(timeout=PATIENCE)
        assert out == "0123456789\n", faults
    finally:
        for process in (server, client):
            if process is not None:
                process.kill()
                process.communicate()


def _lines(process: subprocess.Popen[str]) -> Callable[[], str]:
    def one() -> str:
        assert process.stdout is not None
        ended = threading.Timer(PATIENCE, process.kill)
        ended.start()
        try:
            return process.stdout.readline().strip()
        finally:
            ended.cancel()

    return one
