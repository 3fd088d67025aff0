"""A thread that brings a run's spool to the store, and catches up what earlier runs left behind."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path

from components.errors import VitrailError
from components.tracking.delivery import MlflowStore, Tell, deliver, described, skip_first
from components.tracking.spool import Spool, begun, hold, left_behind
from components.tracking.store import probe

GATHER = 2.0  # seconds that records may wait for company before they are sent
RETRY = (2.0, 60.0)  # seconds between tries while the store is away: the first, and the longest; each is twice the last
PATIENCE = 5  # tries of a record, over at least a minute, that a store takes which answers otherwise


class Sender(threading.Thread):
    """Sends what is in ``spool`` until :meth:`close`. A daemon: a store that hangs does not keep the process alive."""

    def __init__(self, spool: Spool, store: MlflowStore, folder: Path) -> None:
        super().__init__(name="mlflow-sender", daemon=True)
        self.away: VitrailError | None = None  # why the store cannot be reached now
        self._spool, self._store, self._folder = spool, store, folder
        self._wake, self._closing = threading.Event(), threading.Event()
        self._contact, self._done = threading.Event(), threading.Event()
        self._advanced = time.monotonic()  # when the store last took something
        self._tries = 0

    @property
    def experiment(self) -> str:
        """The id of the experiment; call it once the store has answered."""
        return self._store.open()[1]

    def contact(self, seconds: float) -> bool:
        """Wait for the first answer of the store, at most so long; whether there was one, good or bad."""
        return self._contact.wait(seconds)

    def caught_up(self, seconds: float) -> bool:
        """Wait until nothing waits to be sent, at most so long; not at all while the store is away."""
        end = time.monotonic() + seconds
        while self._spool.waiting():
            if self.away is not None or time.monotonic() > end or self._done.is_set():
                return False
            self._wake.set()
            time.sleep(0.05)
        return True

    def close(self, stalled: float, longest: float) -> bool:
        """Send what is left and end; whether all was sent.

        Args:
            stalled: seconds to wait without any progress.
            longest: seconds to wait in all.
        """
        self._advanced, end = time.monotonic(), time.monotonic() + longest
        self._closing.set()
        self._wake.set()
        while not self._done.wait(0.05):
            now = time.monotonic()
            if now > end or now - self._advanced > stalled:
                return False
        return self.away is None

    def run(self) -> None:
        """The thread."""
        wait, caught_up = RETRY[0], False
        while True:
            closing = self._closing.is_set()
            try:
                self._once()
                self._contact.set()
                wait = RETRY[0]
                if not caught_up and not closing:
                    catch_up(self._folder, self._store, tell)
                    caught_up = True
            except VitrailError as fault:
                if self.away is None and self._contact.is_set() and not closing:
                    tell(f"{fault}; what is recorded waits in {self._spool.folder} until it answers")
                self.away = fault
                self._contact.set()
                if closing:
                    break
                self._wait(wait, wait)
                wait = min(2 * wait, RETRY[1])
                continue
            if closing:
                break
            self._wait(GATHER, 0)
        self._done.set()

    def _once(self) -> None:
        """Send what waits."""
        if self.away is not None or not self._contact.is_set():
            probe(self._store.uri)  # seconds, where a request would take longer
        self._store.open()
        before = self._spool.state.segment, self._spool.state.offset
        try:
            while deliver(self._spool, self._store, tell, self._progress):
                pass
        except VitrailError as fault:
            moved = (self._spool.state.segment, self._spool.state.offset) != before
            self._tries = 0 if moved else self._tries + 1
            if self._tries < PATIENCE or not skip_first(self._spool, self._store, fault, tell):
                raise
        self._tries = 0
        if self.away is not None:
            self.away = None
            tell(f"MLflow at {self._store.uri} answers; what waited was sent")

    def _progress(self) -> None:
        self._advanced = time.monotonic()

    def _wait(self, seconds: float, least: float) -> None:
        """Until :meth:`close`, or ``seconds``; a call of :meth:`caught_up` ends it after ``least``."""
        self._wake.clear()
        if self._closing.is_set():
            return
        if least:
            self._closing.wait(least)
        else:
            self._wake.wait(seconds)


def catch_up(folder: Path, store: MlflowStore, say: Tell) -> tuple[int, int]:
    """Send what runs that have ended left in ``folder`` for this store; records sent, and runs of other stores.

    A run whose process was killed is closed as KILLED.

    Raises:
        VitrailError: the store is away.
    """
    sent = others = 0
    for one in left_behind(folder):
        if begun(one)["uri"] != store.uri:
            others += 1
            continue
        with hold(one) as held:
            if not held:
                continue
            if not (one / "begun.json").exists():  # another process sent it meanwhile
                shutil.rmtree(one, ignore_errors=True)
                continue
            spool = Spool(one, sys.maxsize)
            if not spool.ended():
                spool.append("end", at=int(time.time() * 1000), status="KILLED", reason="its process was killed")
            own = MlflowStore(store.uri, begun(one)["experiment"])
            count = 0
            while taken := deliver(spool, own, say):
                count += taken
            sent += count
            about = f"{count:,} records of {begun(one)['name']!r}, which had waited, were sent"
            say(f"MLflow at {store.uri}: {about}{lost(spool)}")
            spool.remove()
    return sent, others


def lost(spool: Spool) -> str:
    """What a spool had no room for, or the store did not take, to be put behind another sentence."""
    return f"; not recorded: {described(spool.state.dropped)}" if spool.state.dropped else ""


def tell(message: str) -> None:
    """A warning on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
