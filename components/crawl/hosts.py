"""What a fetcher remembers of each host: its slots, when it may be asked next, and whether it is worth asking.

Memory is bounded: of hosts that nobody is waiting for, the least recently used are forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Host:
    """One host. ``failures`` counts faults in a row; the circuit is open, so nothing is asked, until ``closed_at``."""

    slots: asyncio.Semaphore
    next_at: float = 0.0  # time.monotonic() before which no request may start
    failures: int = 0
    closed_at: float = 0.0
    users: int = field(default=0, repr=False)


class Hosts:
    """Hosts by name, each with ``per_host`` slots; a host that failed ``threshold`` times in a row rests ``rest`` s."""

    def __init__(self, per_host: int, threshold: int, rest: float, keep: int) -> None:
        self._per_host, self._threshold, self._rest, self._keep = per_host, threshold, rest, keep
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hosts)

    @contextlib.asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[Host]:
        """Hold one of the slots of the host ``name``."""
        host = self._hosts.get(name)
        if host is None:
            self._forget()
            host = self._hosts[name] = Host(asyncio.Semaphore(self._per_host))
        self._hosts.move_to_end(name)
        host.users += 1
        try:
            async with host.slots:
                yield host
        finally:
            host.users -= 1

    def is_open(self, host: Host) -> bool:
        """Whether the circuit is open: too many faults in a row, not long enough ago."""
        return host.failures >= self._threshold and time.monotonic() < host.closed_at

    def note(self, host: Host, good: bool) -> None:
        """Count an answer or a fault; after a rest, one more fault opens the circuit again."""
        host.failures = 0 if good else host.failures + 1
        if host.failures >= self._threshold:
            host.closed_at = time.monotonic() + self._rest

    async def turn(self, host: Host, delay: float) -> None:
        """Wait until ``host`` may be asked again, and let the next one wait ``delay`` seconds longer."""
        now = time.monotonic()
        at = max(host.next_at, now)
        host.next_at = at + delay
        if at > now:
            await asyncio.sleep(at - now)

    def hold(self, host: Host, seconds: float) -> None:
        """Let nobody ask ``host`` for ``seconds`` (its Retry-After)."""
        host.next_at = max(host.next_at, time.monotonic() + seconds)

    def _forget(self) -> None:
        if len(self._hosts) < self._keep:
            return
        now = time.monotonic()
        idle = (name for name, host in self._hosts.items() if not host.users and host.next_at <= now)
        if (oldest := next(idle, None)) is not None:
            del self._hosts[oldest]
