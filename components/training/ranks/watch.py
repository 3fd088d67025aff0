"""A rank that is lost is named, and the others leave: no run hangs in a collective whose partner is gone.

Every rank says once a second, through the store that the launcher set up, that it is alive. A rank on the same machine
whose process has ended is noticed within that second, one on another host when it has been silent for some time. Who is
left waits a moment for its own connections to fail, then says which rank was lost and ends with exit code 1, even where
the main thread hangs in a collective (NCCL's do not return).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from components.errors import VitrailError
from components.training.ranks.distributed import World, gather_objects

EVERY = 1.0  # seconds between two signs of life
GRACE = 3.0  # seconds that the main thread gets to learn of a loss by itself
ALIVE, DONE, FOLLOWS = "", "done", "follows"  # what a rank's sign says, besides a fault of its own


class Stopped(VitrailError):
    """The run was asked to end, on all ranks; its state is on disk."""


class Watch:
    """Watches the other ranks from a thread.

    Args:
        world: this rank among the others.
        silence: seconds without a sign after which a rank on another host is lost.
        advice: the end of every line: what to do.
        leave: ends this process, given the exit code.
    """

    def __init__(self, world: World, silence: float, advice: str, leave: Callable[[int], None] = os._exit) -> None:
        self.step = 0  # kept by the training loop, for the line
        self._world, self._silence, self._advice, self._leave = world, silence, advice, leave
        where = (socket.gethostname(), _namespace())
        mine = {"host": where[0], "space": where[1], "pid": os.getpid(), "born": _born(os.getpid())}
        self._ranks: list[dict[str, Any]] = gather_objects(mine)
        self._near = {r for r, it in enumerate(self._ranks) if (it["host"], it["space"]) == where and r != world.rank}
        run = gather_objects(uuid.uuid4().hex)[0]  # several runs of one process must not read each other's signs
        self._keys = [f"vitrail/{run}/{rank}" for rank in range(world.size)]
        self._at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # A connection of its own: the process group's is held while it waits.
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(silence, 10.0)),
        )
        self._lock = threading.Lock()  # one question at a time on that connection
        self._count = 0
        self._heard = dict.fromkeys(range(world.size), ("", time.monotonic()))
        self._done = threading.Event()
        self._say(ALIVE)
        dist.barrier()  # from here on every rank's key is there
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self, fault: BaseException | None = None, *, follows: bool = False) -> None:
        """End watching and tell the others why this rank leaves."""
        self._done.set()
        said = FOLLOWS if follows else DONE
        if fault is not None and not follows and not isinstance(fault, Stopped):
            said = f"{fault}" if isinstance(fault, VitrailError) else f"{type(fault).__name__}: {fault}"
            said = said.splitlines()[0] if said else type(fault).__name__
        with contextlib.suppress(RuntimeError):  # the store may be what was lost
            self._say(said)
            if said not in (DONE, FOLLOWS):
                time.sleep(2 * EVERY)  # until all have read it: rank 0's end may take the store with it
        self._thread.join(timeout=2 * EVERY)

    def lost(self, within: float) -> str:
        """Which rank is lost and how, looked for during ``within`` seconds; "" when all are well."""
        until = time.monotonic() + within
        while True:
            found = self._look()
            if found or time.monotonic() >= until:
                return found
            time.sleep(EVERY / 10)

    def line(self, found: str) -> str:
        """The one line about what :meth:`lost` found."""
        return f"rank {self._world.rank} leaves in step {self.step + 1}: {found}; {self._advice}"

    def _run(self) -> None:
        while not self._done.wait(EVERY):
            found = self._look()
            if found and not self._done.wait(GRACE):
                print(f"error: {self.line(found)}", file=sys.stderr, flush=True)
                self._leave(1)
                return

    def _say(self, what: str) -> None:
        with self._lock:
            self._count += 1
            self._store.set(self._keys[self._world.rank], json.dumps([self._count, what]))

    def _look(self) -> str:
        try:
            if not self._done.is_set():
                self._say(ALIVE)
            with self._lock:
                signs = [sign.decode() for sign in self._store.multi_get(self._keys)]
        except RuntimeError:
            # rank 0 or its launcher keeps the store: without it nobody goes on
            gone = next((rank for rank in sorted(self._near) if not self._lives(rank)), None)
            return self._ended(gone) if gone is not None else f"the ranks' store at {self._at} (rank 0's host) is gone"
        now = time.monotonic()
        for rank, sign in enumerate(signs):
            what = str(json.loads(sign)[1])
            if rank == self._world.rank or what in (DONE, FOLLOWS):
                continue
            if what:
                return f"{self._name(rank)} ended: {what}"
            if rank in self._near and not self._lives(rank):
                return self._ended(rank)
            before, since = self._heard[rank]
            if sign != before:
                self._heard[rank] = (sign, now)
            elif now - since > self._silence:
                return f"{self._name(rank)} gave no sign for {now - since:.0f} s"
        return ""

    def _name(self, rank: int) -> str:
        it = self._ranks[rank]
        return f"rank {rank} (process {it['pid']} on {it['host']})"

    def _ended(self, rank: int) -> str:
        return f"{self._name(rank)} ended without a word (killed, or out of memory?)"

    def _lives(self, rank: int) -> bool:
        it = self._ranks[rank]
        return bool(_born(it["pid"]) == it["born"])


def _namespace() -> str:
    """Process ids mean the same to those that share this; "" where there is no such thing."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> float | None:
    """When process ``pid`` of this machine was started; None when it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


class _Alone:
    """Nobody to watch."""

    step = 0


@contextlib.contextmanager
def watched(world: World, silence: float, folder: Path) -> Iterator[Watch | _Alone]:
    """Watch the other ranks while the block runs; a fault that another rank's loss brought about is told as that.

    Raises:
        VitrailError: another rank was lost; names it, and says how to go on from the checkpoints in ``folder``.
    """
    if world.size == 1:
        yield _Alone()
        return
    advice = f"the checkpoints are in {folder}: run the same command again to resume from the newest"
    watch = Watch(world, silence, advice)
    try:
        yield watch
    except VitrailError as fault:
        watch.close(fault)
        raise
    except RuntimeError as fault:  # what a collective raises when a partner's connection is closed, among much else
        found = watch.lost(within=GRACE)
        watch.close(fault, follows=bool(found))
        if not found:
            raise
        # Told here: the launcher may kill this process before the command comes to it.
        print(f"error: {watch.line(found)}", file=sys.stderr, flush=True)
        raise VitrailError(watch.line(found), told=True) from None
    except BaseException as fault:
        watch.close(fault)
        raise
    watch.close()
