"""A PostgreSQL server of one's own on loopback, from a package such as Debian's; it can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; None where there is no server."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    folders += [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres:
    """A new, empty cluster in a temporary folder; the context starts it, and deletes it at the end.

    Args:
        password: of the user ``vitrail``.
        durable: write what is committed to the disk before it is acknowledged, as a server should; tests that only
            read and write are quicker without.
    """

    def __init__(self, password: str, *, durable: bool = False) -> None:
        self._password, self._durable = password, durable
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        self._tools = binaries()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder = Path()

    @property
    def url(self) -> str:
        """``postgresql://user:password@host:port``."""
        return f"postgresql://vitrail:{self._password}@127.0.0.1:{self.port}"

    def __enter__(self) -> Postgres:
        if self._tools is None:
            raise RuntimeError("no PostgreSQL here: apt-get install postgresql")
        self._folder = Path(tempfile.mkdtemp(prefix="vitrail-postgres-"))
        (self._folder / "password").write_text(self._password)
        if self._user:
            shutil.chown(self._folder, self._user)
            shutil.chown(self._folder / "password", self._user)
        how = ["--auth=scram-sha-256", f"--pwfile={self._folder}/password", "--username=vitrail", "--no-sync"]
        make = [self._tools / "initdb", "-D", self._folder / "data", *how]
        subprocess.run(make, user=self._user, check=True, capture_output=True, cwd="/")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if (self._folder / "data/postmaster.pid").exists():
            self._control("-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it, also after :meth:`kill`; returns once it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        options += "" if self._durable else " -c fsync=off"
        self._control("-l", str(self._folder / "log"), "-t", "600", "-o", options, "start")

    def kill(self) -> None:
        """SIGKILL to the server and every process of it, in the middle of whatever they do."""
        import psutil

        server = psutil.Process(int((self._folder / "data/postmaster.pid").read_text().split()[0]))
        every = [server, *server.children(recursive=True)]
        for process in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(every)

    def _control(self, *words: str) -> None:
        assert self._tools is not None
        command = [self._tools / "pg_ctl", "-D", self._folder / "data", "-w", *words]
        subprocess.run(command, user=self._user, check=True, cwd="/", stdout=subprocess.DEVNULL)
