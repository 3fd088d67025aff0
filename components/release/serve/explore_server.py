"""The page of a map and its thumbnails over HTTP, to this machine alone."""

from __future__ import annotations

import http.server
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.loopback import LOOPBACK
from components.release.use.explore import PAGE, POINTS, THUMBNAILS

HOST = "127.0.0.1"


def open_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the map ``folder`` on loopback; port 0: any that is free. ``serve_forever`` runs it.

    Raises:
        VitrailError: no map there, or the port is taken.
    """
    import pyarrow.parquet as pq

    try:
        ends = [0, *pq.read_table(folder / POINTS, columns=["end"])["end"].to_pylist()]
        page = (folder / PAGE).read_bytes()
    except (OSError, ValueError) as fault:
        raise VitrailError(f"{folder}: no map here ({fault}); give --model and --images to make one") from None
    try:
        return http.server.ThreadingHTTPServer((HOST, port), _handler(page, folder / THUMBNAILS, ends))
    except OSError as fault:
        raise VitrailError(f"{HOST}:{port}: cannot listen there ({fault.strerror}); give another --port") from None


def _handler(page: bytes, thumbnails: Path, ends: list[int]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """``/`` is the page, ``/thumbnail/ROW.jpg`` a picture."""

        def do_GET(self) -> None:
            # A page elsewhere whose name leads to 127.0.0.1 (DNS rebinding) names itself here.
            if self.headers.get("Host", "").rpartition(":")[0].strip("[]") not in LOOPBACK:
                self.send_error(403)
            elif self.path == "/":
                self._answer(page, "text/html; charset=utf-8")
            elif (data := self._thumbnail()) is not None:
                self._answer(data, "image/jpeg")
            else:
                self.send_error(404)

        def _thumbnail(self) -> bytes | None:
            name = self.path.removeprefix("/thumbnail/").removesuffix(".jpg")
            if self.path != f"/thumbnail/{name}.jpg" or not (name.isascii() and name.isdecimal()):
                return None
            row = int(name[:12])
            if row >= len(ends) - 1 or ends[row] == ends[row + 1]:
                return None
            with open(thumbnails, "rb") as file:
                file.seek(ends[row])
                return file.read(ends[row + 1] - ends[row])

        def _answer(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Requests are not logged."""

    return Handler
