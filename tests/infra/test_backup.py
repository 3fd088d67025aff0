"""Backup and restore on SQLite: dump, wipe, restore, and all is there; or nothing is touched."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import VitrailError
from infra.local.databases import Postgres, Sqlite, database_at
from infra.local.state import ServerState, back_up, remove, restore, state_of

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that commits, and is closed: what is left open writes to the file when it is collected."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection
        connection.commit()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two databases in write-ahead mode, as both servers keep theirs, and two artifacts."""
    (tmp_path / "params").mkdir()
    shutil.copy(ROOT / "params/storage.yaml", tmp_path / "params/storage.yaml")
    (tmp_path / ".prefect").mkdir()
    for path in (tmp_path / ".prefect/prefect.db", tmp_path / "mlflow.db"):
        with opened(path) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE run (name TEXT)")
            database.execute("INSERT INTO run VALUES (?)", (path.name,))
    (tmp_path / "mlartifacts/1/a").mkdir(parents=True)
    (tmp_path / "mlartifacts/1/a/model.json").write_text("{}")
    (tmp_path / "mlartifacts/1/picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def state(checkout: Path) -> ServerState:
    return state_of(checkout, {})


def names(path: Path) -> list[str]:
    with opened(path) as database:
        return [row[0] for row in database.execute("SELECT name FROM run")]


def test_what_was_wiped_comes_back(checkout: Path) -> None:
    back_up(state(checkout), checkout / "backups/a")
    for name in ("mlartifacts", ".prefect"):
        shutil.rmtree(checkout / name)
    for path in checkout.glob("mlflow.db*"):
        path.unlink()
    restore(state(checkout), checkout / "backups/a")
    assert names(checkout / "mlflow.db") == ["mlflow.db"]
    assert names(checkout / ".prefect/prefect.db") == ["prefect.db"]
    assert (checkout / "mlartifacts/1/a/model.json").read_text() == "{}"
    assert (checkout / "mlartifacts/1/picture.png").read_bytes() == b"\x89PNG"


def test_a_copy_is_of_one_moment_while_a_server_writes(checkout: Path) -> None:
    path, stop = checkout / "mlflow.db", threading.Event()
    with opened(path) as database:
        database.execute("CREATE TABLE pair (a INTEGER, b INTEGER)")

    def write() -> None:
        writer = sqlite3.connect(path, timeout=20)
        number = 0
        while not stop.is_set():
            number += 1
            with writer:  # both rows or none
                writer.execute("INSERT INTO pair VALUES (?, 0)", (number,))
                writer.execute("INSERT INTO pair VALUES (0, ?)", (number,))
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            back_up(state(checkout), checkout / f"backups/{number}", with_artifacts=False)
    finally:
        stop.set()
        thread.join()
    for number in range(5):
        with opened(checkout / f"backups/{number}/mlflow.sqlite") as copy:
            assert copy.execute("SELECT sum(a) IS sum(b) FROM pair").fetchone() == (1,)


def test_what_is_there_is_not_lost_unasked(checkout: Path) -> None:
    back_up(state(checkout), checkout / "backups/a")
    with opened(checkout / "mlflow.db") as database:
        database.execute("INSERT INTO run VALUES ('later')")
    with pytest.raises(VitrailError, match=r"is not empty; give --replace"):
        restore(state(checkout), checkout / "backups/a")
    assert names(checkout / "mlflow.db") == ["mlflow.db", "later"]
    restore(state(checkout), checkout / "backups/a", replace=True)
    assert names(checkout / "mlflow.db") == ["mlflow.db"]  # and not what a write-ahead file had beside it
    with pytest.raises(VitrailError, match="is there already"):
        back_up(state(checkout), checkout / "backups/a")


@pytest.mark.parametrize("fault", ["flipped", "gone", "half a manifest", "outside", "no manifest"])
def test_a_backup_that_is_not_whole_touches_nothing(checkout: Path, fault: str) -> None:
    folder = checkout / "backups/a"
    back_up(state(checkout), folder)
    file = folder / "artifacts/1/picture.png"
    manifest = folder / "manifest.json"
    if fault == "flipped":
        file.write_bytes(b"\x89PNH")
    elif fault == "gone":
        (folder / "mlflow.sqlite").unlink()
    elif fault == "half a manifest":
        manifest.write_text(manifest.read_text()[:60])
    elif fault == "no manifest":
        manifest.unlink()
    else:
        content = json.loads(manifest.read_text())
        content["files"]["artifacts/../../x"] = content["files"].pop("artifacts/1/picture.png")
        manifest.write_text(json.dumps(content))
    before = sorted((path, path.stat().st_mtime_ns) for path in checkout.glob("*.db"))
    with pytest.raises(VitrailError, match=r"nothing was restored|no manifest\.json"):
        restore(state(checkout), folder, replace=True)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in checkout.glob("*.db"))


def test_a_database_that_is_missing_or_damaged_gives_no_backup(checkout: Path) -> None:
    (checkout / "mlflow.db").rename(checkout / "aside")
    with pytest.raises(VitrailError, match="there is no such database"):
        back_up(state(checkout), checkout / "backups/a")
    assert not (checkout / "backups/a").exists()


def test_only_the_newest_are_kept_and_only_backups_are_deleted(checkout: Path) -> None:
    for name in ("1", "2", "3"):
        back_up(state(checkout), checkout / "backups" / name, with_artifacts=False)
    (checkout / "backups/notes").mkdir()
    assert [path.name for path in remove(checkout / "backups", 2)] == ["1"]
    assert remove(checkout / "backups", 0) == []
    assert sorted(path.name for path in (checkout / "backups").iterdir()) == ["2", "3", "notes"]


def test_a_password_is_in_no_message_and_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    database = database_at("postgresql+asyncpg://me:s3cr%40t@[::1]:5433/prefect?sslmode=require", "X")
    assert isinstance(database, Postgres)
    assert str(database) == "postgresql://me@[::1]:5433/prefect?sslmode=require"
    seen: dict[str, object] = {}

    class Done:
        returncode, stdout, stderr = 1, "", "connection refused\nmore"

    def run(command: list[str], env: dict[str, str], **_: object) -> Done:
        seen.update(command=command, password=env["PGPASSWORD"])
        return Done()

    monkeypatch.setattr("infra.local.databases.subprocess.run", run)
    monkeypatch.setattr("infra.local.databases._tool", lambda name: name)
    with pytest.raises(VitrailError, match=r"pg_dump on postgresql://\[::1\]:5433/prefect") as fault:
        database.dump(Path("x"))
    assert seen["password"] == "s3cr@t"
    assert "s3cr" not in f"{fault.value}{seen['command']}"
    with pytest.raises(VitrailError) as fault:
        database_at("mysql://me:s3cret@host/x", "MLFLOW_BACKEND_STORE_URI")
    assert "s3cret" not in str(fault.value)
    assert database_at("sqlite:////a/b.db", "X") == Sqlite(Path("/a/b.db"))
    assert database_at("sqlite:///b.db", "X") == Sqlite(Path("b.db"))
