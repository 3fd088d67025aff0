"""A proxy in the environment is not asked for servers on this machine."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from components.errors import run_cli
from components.loopback import LOOPBACK, spare_loopback

DEAD = "http://127.0.0.1:9"  # the discard port: nothing answers there
CLIENTS = {
    "urllib": "import urllib.request as r; print(r.urlopen(URL, timeout=20).status)",
    "requests (MLflow)": "import requests as r; print(r.get(URL, timeout=20).status_code)",
    "httpx (Prefect)": "import httpx as r; print(r.get(URL, timeout=20).status_code)",
    "storage": (
        "from components.storage import StorageParams, open_store\n"
        "store = open_store(StorageParams(root='s3://bucket/x', endpoint_url=URL, region='x', max_attempts=1))\n"
        "print(200 if store.exists('name') else 404)"
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def ask(client: str, url: str) -> str:
    code = f"URL = {url!r}\n{CLIENTS[client]}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ).stdout.strip()


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_reaches_a_server_on_loopback(client: str, server: str, proxied: None) -> None:
    if client != "storage":  # which mends its environment itself, for those who use it without a command
        assert ask(client, server) == ""
    spare_loopback()
    assert ask(client, server) == "200"


def test_every_command_and_what_it_starts_reach_loopback(server: str, proxied: None) -> None:
    def main(_: object) -> int:
        assert urllib.request.urlopen(server, timeout=20).status == 200
        return 0 if ask("requests (MLflow)", server) == "200" else 1

    assert run_cli(main, []) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, ",".join(LOOPBACK)),
        ({"no_proxy": "a.example"}, "a.example," + ",".join(LOOPBACK)),
        ({"NO_PROXY": "a.example, .b.example ,127.0.0.1"}, "a.example,.b.example,127.0.0.1,localhost,::1"),
        ({"no_proxy": "one", "NO_PROXY": "two"}, "one,two," + ",".join(LOOPBACK)),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_what_was_spared_stays_spared(before: dict[str, str], after: str) -> None:
    environment = dict(before)
    spare_loopback(environment)
    assert environment == {"no_proxy": after, "NO_PROXY": after}
    spare_loopback(environment)
    assert environment["no_proxy"] == after
