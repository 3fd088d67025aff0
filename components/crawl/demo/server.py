"""A small web server on loopback that serves a site from memory and disk, by host name, until its block ends."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Resource:
    """What the server answers for one address."""

    content: bytes | Path
    content_type: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Site = Mapping[tuple[str, str], Resource]  # (host, path) -> resource


@contextlib.contextmanager
def serve(site: Site) -> Iterator[str]:
    """Serve ``site`` on a free port of 127.0.0.1; yields ``"127.0.0.1:<port>"``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one segment: no waiting for a delayed acknowledgement

        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").partition(":")[0].lower()
            resource = site.get((host, self.path)) or Resource(b"not found\n", "text/plain", 404)
            body = resource.content.read_bytes() if isinstance(resource.content, Path) else resource.content
            # No Date and no Server header: the same site gives the same bytes.
            self.send_response_only(resource.status)
            self.send_header("Content-Type", resource.content_type)
            self.send_header("Content-Length", str(len(body)))
            for name, value in resource.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The crawl reports; the server is silent."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """A crawl that stops (a full disk, Ctrl-C) hangs up; its own message is the one to read."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
