"""A server's database, SQLite or PostgreSQL, written to one file and brought back from it.

Passwords reach PostgreSQL's tools by the environment, never by their command line, which every user of a machine sees.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from components.errors import VitrailError


@dataclass(frozen=True)
class Sqlite:
    """A database in one file."""

    path: Path
    suffix = "sqlite"

    def __str__(self) -> str:
        return str(self.path)

    def dump(self, target: Path) -> None:
        """Write a consistent copy to ``target``, also while a server writes."""
        if not self.path.is_file():
            raise VitrailError(f"{self.path}: there is no such database; was the platform ever up here?")
        with (
            contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            found = copy.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise VitrailError(f"{self.path}: the database is damaged ({found}); nothing was backed up")

    def restore(self, source: Path) -> None:
        """Put the copy ``source`` in place of the database. No server may be at work on it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f".{self.path.name}.partial")
        shutil.copyfile(source, aside)
        for end in ("-wal", "-shm", "-journal"):  # of the database that was there
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        os.replace(aside, self.path)

    def empty(self) -> bool:
        """Whether there is nothing to lose."""
        return not self.path.exists()


@dataclass(frozen=True)
class Postgres:
    """A database on a PostgreSQL server."""

    url: str  # postgresql://user:password@host:port/name, also with SQLAlchemy's +driver
    suffix = "pgdump"

    def __str__(self) -> str:
        return self._plain()[0]

    def dump(self, target: Path) -> None:
        """Write the database to ``target`` in pg_dump's own format: one snapshot, also while a server writes."""
        self._run("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={target}")

    def restore(self, source: Path) -> None:
        """Put what ``source`` holds in place of the database's tables, all of them or none."""
        self._run(
            "pg_restore", "--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction",
            "--exit-on-error", last=str(source),
        )  # fmt: skip

    def empty(self) -> bool:
        """Whether there is nothing to lose."""
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        return self._run("psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--command={query}").strip() == "0"

    def _plain(self) -> tuple[str, str]:
        """The address as PostgreSQL's tools read it, without its password; and the password."""
        parts = urlsplit(self.url)
        where = parts.hostname or ""
        where = f"[{where}]" if ":" in where else where
        where += f":{parts.port}" if parts.port else ""
        user = f"{parts.username}@" if parts.username else ""
        return urlunsplit(("postgresql", user + where, parts.path, parts.query, "")), unquote(parts.password or "")

    def _run(self, tool: str, *options: str, last: str = "") -> str:
        url, password = self._plain()
        env = os.environ | ({"PGPASSWORD": password} if password else {})
        command = [_tool(tool), f"--dbname={url}", "--no-password", *options, *([last] if last else [])]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
            raise VitrailError(f"{tool} on {url}: {said[0].strip()}")
        return done.stdout


Database = Sqlite | Postgres


def database_at(url: str, key: str) -> Database:
    """The database that SQLAlchemy's ``url`` names.

    Raises:
        VitrailError: of another kind; names the variable ``key``, never the address, which may hold a password.
    """
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme in ("postgresql", "postgres"):
        return Postgres(url)
    if scheme == "sqlite":
        return Sqlite(Path(urlsplit(url).path.removeprefix("/")))
    raise VitrailError(f"{key}: neither sqlite:// nor postgresql:// ({scheme}://); use its own tools for a backup")


def _tool(name: str, folders: Sequence[Path] | None = None) -> str:
    """Debian keeps PostgreSQL's tools beside its server, not on the PATH."""
    found = shutil.which(name)
    if found:
        return found
    beside = sorted(folders if folders is not None else Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in beside:
        if (folder / name).is_file():
            return str(folder / name)
    raise VitrailError(f"{name} is not installed: apt-get install postgresql-client")
