"""A web server on loopback that costs little: nginx in its own process, with numbered images under any host."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from perf.links import documentation

_CONFIG = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000; open_file_cache max=4096; tcp_nopush on; sendfile on;
client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t; uwsgi_temp_path {folder}/t;
scgi_temp_path {folder}/t;
server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/files; default_type image/jpeg;
location / {{ rewrite ^/[0-9]+/([0-9]+[.]jpg)$ /$1 break; }} }} }}
"""


@contextlib.contextmanager
def serving(images: list[bytes], folder: Path) -> Iterator[int]:
    """The port at which ``/ANYTHING/N.jpg`` answers with image N; nginx is taken from Debian where it is not installed.

    Raises:
        RuntimeError: no nginx, here or from Debian.
    """
    binary = shutil.which("nginx")
    if binary is None and (unpacked := documentation("nginx", folder)) is not None:
        binary = str(unpacked / "usr/sbin/nginx")
    if binary is None:
        raise RuntimeError("no nginx: install it")
    files = folder / "files"
    files.mkdir()
    for number, data in enumerate(images):
        (files / f"{number}.jpg").write_bytes(data)
    os.chmod(folder, 0o755)  # nginx started by root serves as another user
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    config = folder / "nginx.conf"
    config.write_text(("user root; " if os.geteuid() == 0 else "") + _CONFIG.format(folder=folder.resolve(), port=port))
    server = subprocess.Popen(
        [binary, "-p", str(folder.resolve()), "-c", str(config.resolve())], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()
