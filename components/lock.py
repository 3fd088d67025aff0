"""One run at a time works in a folder: ``with hold(folder):`` takes ``.NAME.lock`` beside it, others are refused.

The lock names its holder (host, process, since when, command), and a dead holder does not keep it:

- On the same machine the process is looked up by number and start time, so that a killed one is known at once.
- From another machine or container only the file is seen. A holder touches it every :data:`BEAT` seconds. A second run
  watches it: at the next touch it gives up, after :data:`SILENCE` seconds without one it takes the lock. If the last
  touch looks as old as that, :data:`WATCHED` seconds are enough.

``O_EXCL`` makes the file where nobody has it. ``flock`` on the parent folder, where the file system has it, orders
those who find a dead holder's; where it has not, and between machines, the last to write its name has the lock
(Lamport 1987, A fast mutual exclusion algorithm, section 2; Fischer's).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from components.errors import VitrailError, named_faults
from components.progress import publish

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a holder on another machine is taken for dead
WATCHED = 3 * BEAT  # seconds at least for which it is watched, too: a clock that jumps makes a living one look old
SETTLE = 1.0  # seconds in which all who found the same dead holder have written their names
COMMAND = 200  # characters of a command that are shown


@dataclass(frozen=True)
class Holder:
    """Who has a lock."""

    token: str  # of this holding alone
    system: str  # boot and process namespace that ``pid`` is a number in
    host: str
    pid: int
    started: int  # of the process, in ticks since boot: tells it from a later one of the same number
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


@dataclass(frozen=True)
class Held:
    """A lock as another process sees it."""

    folder: Path
    holder: Holder
    alive: bool  # whether the holder gives signs of life
    progress: Path  # what :func:`components.progress.published` reads


def look(lock: Path) -> Held | None:
    """Who has ``lock`` (``.NAME.lock``), without waiting; None if it is no lock, or its holder has not written yet."""
    try:
        holder, changed = _look(lock)
    except OSError:
        return None
    if holder is None:
        return None
    alive = _alive(holder)
    silent = time.time() - changed / 1e9 > SILENCE
    folder = lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))
    return Held(folder, holder, not silent if alive is None else alive, _progress(lock))


def _progress(lock: Path) -> Path:
    return lock.with_name(lock.name.removesuffix(".lock") + ".progress")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Work in ``folder``, which need not exist, as its only holder. Faults of the disk name the folder.

    Raises:
        VitrailError: another run holds it; the message says which.
    """
    place = folder.resolve()
    lock = place.with_name(f".{place.name}.lock")
    with named_faults(folder):
        lock.parent.mkdir(parents=True, exist_ok=True)
        own = this_process()
        _take(lock, own, folder)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(lock, own, ended), daemon=True, name=f"lock {lock}")
        beating.start()
        try:
            with publish(_progress(lock)):
                yield
        finally:
            ended.set()
            beating.join(BEAT)
            _release(lock, own)


def this_process() -> Holder:
    """This process, as a new holder."""
    pid = os.getpid()
    command = " ".join(shlex.join(["python", *sys.orig_argv[1:]]).split())  # one line, whatever it holds
    return Holder(
        uuid.uuid4().hex,
        _system(),
        socket.gethostname(),
        pid,
        _started(pid) or 0,
        time.strftime("%Y-%m-%d %H:%M:%S %z"),
        command if len(command) <= COMMAND else command[: COMMAND - 4] + " ...",
    )


def _take(lock: Path, own: Holder, folder: Path) -> None:
    """Make ``lock`` ours."""
    before: tuple[Holder | None, int] | None = None
    watched = 0.0
    while True:
        with _guard(lock.parent) as ordered:
            if _create(lock, own):
                return
            try:
                seen = _look(lock)
            except FileNotFoundError:  # released just now
                continue
            alive = _alive(seen[0])
            if alive or (before is not None and seen != before):
                raise VitrailError(_busy(folder, seen[0]))
            if before is None:
                watched = time.monotonic()
            waited = time.monotonic() - watched
            old = waited > WATCHED and _age(lock, seen[1]) > SILENCE
            dead = alive is False or old or waited > SILENCE
            if dead:
                _write(lock, own)
                if alive is False and ordered:
                    return
        if dead:
            time.sleep(SETTLE)
            last = _read(lock)
            if last == own:
                return
            raise VitrailError(_busy(folder, last))
        if before is None:
            who = seen[0] or "a process that has not written its name"
            print(f"{folder}: held by {who}; waiting up to {SILENCE:.0f} s for a sign of life", file=sys.stderr)
        before = seen
        time.sleep(min(1.0, BEAT / 4))


def _busy(folder: Path, holder: Holder | None) -> str:
    who = holder or "a process that has just begun"
    return f"{folder}: in use by {who}; two runs at once would spoil it: wait for that one, or stop it, and run again"


def _beat(lock: Path, own: Holder, ended: threading.Event) -> None:
    """Signs of life; where another run took the lock, this one must not write any more."""
    while not ended.wait(BEAT):
        try:
            holder = _read(lock)
            if holder == own:
                os.utime(lock)
            elif holder is not None and not ended.is_set():
                print(f"error: {lock} was taken by {holder}: this run was silent too long", file=sys.stderr, flush=True)
                os._exit(1)  # as after kill -9, which all state is safe against
        except FileNotFoundError:  # removed by hand
            with contextlib.suppress(OSError):
                _create(lock, own)
        except OSError:
            continue  # a file server that is away for a moment


def _release(lock: Path, own: Holder) -> None:
    with contextlib.suppress(OSError), _guard(lock.parent):
        if _read(lock) == own:
            lock.unlink()


@contextlib.contextmanager
def _guard(folder: Path) -> Iterator[bool]:
    """Alone among those on this kernel, for the moment of a decision; False where the file system cannot."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _flocked(handle)
    finally:
        os.close(handle)


def _flocked(handle: int) -> bool:
    for _ in range(100):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # NFS, some parallel file systems
            return False
    return False


def _create(lock: Path, own: Holder) -> bool:
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    with open(handle, "w") as file:
        json.dump(asdict(own), file)
        file.flush()
        os.fsync(handle)
    return True


def _write(lock: Path, own: Holder) -> None:
    """Put our name in another's place."""
    handle, aside = tempfile.mkstemp(dir=lock.parent, prefix=f"{lock.name}.", suffix=".partial")
    with open(handle, "w") as file:
        json.dump(asdict(own), file)
        file.flush()
        os.fsync(handle)
    os.replace(aside, lock)


def _look(lock: Path) -> tuple[Holder | None, int]:
    """The holder, and when it last gave a sign of life, in nanoseconds of the file system's clock.

    Opened each time: a network file system asks its server only then.
    """
    with open(lock) as file:
        changed = os.fstat(file.fileno()).st_mtime_ns
        try:
            return Holder(**json.load(file)), changed
        except (ValueError, TypeError):  # made and not yet written
            return None, changed


def _read(lock: Path) -> Holder | None:
    return _look(lock)[0]


def _age(lock: Path, changed: int) -> float:
    """Seconds since ``changed`` by the clock that files are stamped with, which is a server's where they are shared."""
    with tempfile.NamedTemporaryFile(dir=lock.parent, prefix=f"{lock.name}.", suffix=".partial") as probe:
        return (os.fstat(probe.fileno()).st_mtime_ns - changed) / 1e9


def _alive(holder: Holder | None) -> bool | None:
    """Whether the holder's process is there; None where that cannot be known from here."""
    if holder is None or holder.system != _system():
        return None
    started = _started(holder.pid)
    if started is None:
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's, hidden from /proc
            return None
        return False if Path("/proc/self/stat").exists() else None  # a zombie
    return started == holder.started


def _system() -> str:
    """What a process number is a number of: the running system and, in a container, its own namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _started(pid: int) -> int | None:
    """When process ``pid`` began, in ticks since boot; None when there is no such process, or it is a zombie."""
    if not Path("/proc/self/stat").exists():
        import psutil

        try:
            return int(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(numbers[18])
