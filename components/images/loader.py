"""Endless batches from tar shards by exact offsets, resumable to the draw, alike for any number of workers and ranks.

The process that trains decides the order and hands workers addresses (shard, offset, length), so workers hold no table.
Rank r of n takes rows ``r*b ... (r+1)*b`` of each global batch of n*b draws: the stream of global batches depends on n
only through their size, and a run resumed with another n goes on where the last one stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.images.dataset import ManifestDataset
from components.images.prepare import Batch, Collate, LoaderParams, Preparer, Task, Transform
from components.images.sampler import Sampler

__all__ = ["Batch", "Loader", "LoaderParams", "ManifestDataset", "Stream", "Task"]


@dataclass(frozen=True)
class Stream:
    """What one rank draws: ``batch`` samples at a time, ``rank`` of ``world``, in the order that ``seed`` decides."""

    batch: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise VitrailError(f"loader: rank {self.rank} of {self.world} ranks; expected 0 <= rank < world")
        if self.batch < 1:
            raise VitrailError(f"loader: batch size {self.batch}; expected at least 1")


class Loader:
    """Endless batches of a :class:`Stream`.

    ``transform(bytes, generator)`` makes a sample (with ``cache_decoded`` it is given pixels instead) and
    ``collate(samples)`` a batch; both run in the workers and must survive being sent there. An image that cannot be
    decoded is reported to ``quarantine`` (a folder) and replaced by another that seed and position decide.

    Raises (while iterating):
        VitrailError: a shard is missing, or ``params.replacements`` images in a row cannot be decoded.
    """

    def __init__(
        self,
        dataset: ManifestDataset,
        transform: Transform,
        stream: Stream,
        *,
        collate: Collate = list,
        params: LoaderParams | None = None,
        quarantine: Path | None = None,
    ) -> None:
        self.params, self.stream = params or LoaderParams(), stream
        self._dataset = dataset
        self._sampler = Sampler(len(dataset), stream.seed, dataset.weights(), self.params.block)
        self._preparer = Preparer(dataset, transform, collate, stream.seed, self.params, quarantine)
        self._epoch = self._position = self._consumed = 0
        self._workers: Any = None

    def __iter__(self) -> Generator[Batch, None, None]:
        """Batches from the current state on. The state moves as each batch is handed out, not as it is prepared.

        Closing the generator ends its worker processes.
        """
        size = self.stream.batch * self.stream.world
        tasks = self._tasks(self._epoch, self._position)
        if self.params.workers == 0:
            prepared: Iterator[Batch | VitrailError] = (self._preparer(batch) for batch in tasks)
        else:
            prepared = iter(self._start(tasks))
        try:
            for batch in prepared:
                if isinstance(batch, VitrailError):
                    raise batch
                self._epoch, self._position = self._sampler.after(self._epoch, self._position, size)
                self._consumed += size
                yield batch
        finally:
            # Ends the workers now: a traceback that holds this frame would keep them, and their process, for ever.
            prepared = iter(())

    def state_dict(self) -> dict[str, int]:
        """The stream's position: plain numbers, the same on every rank."""
        return {
            "seed": self.stream.seed,
            "rows": self._sampler.rows,
            "epoch": self._epoch,
            "position": self._position,
            "consumed": self._consumed,  # draws by all ranks since the beginning
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from ``state``, whatever the number of ranks or workers was.

        Raises:
            VitrailError: the state is of another seed or another manifest.
        """
        for name, own in (("seed", self.stream.seed), ("rows", self._sampler.rows)):
            if state[name] != own:
                raise VitrailError(
                    f"loader: the saved state has {name} {state[name]}, this run {own};"
                    " resume with the params and manifest it was saved under"
                )
        self._epoch, self._position, self._consumed = state["epoch"], state["position"], state["consumed"]

    def _tasks(self, epoch: int, position: int) -> Iterator[list[Task]]:
        size = self.stream.batch * self.stream.world
        first = self.stream.rank * self.stream.batch
        while True:
            draws = self._sampler.draws(epoch, position, size)[first : first + self.stream.batch]
            addresses = self._dataset.addresses([row for _, _, row in draws])
            yield [Task(e, p, address) for (e, p, _), address in zip(draws, addresses, strict=True)]
            epoch, position = self._sampler.after(epoch, position, size)

    def _start(self, tasks: Iterator[list[Task]]) -> Any:
        from torch.utils.data import DataLoader

        _start_fork_server()
        return DataLoader(
            self._preparer,  # type: ignore[arg-type]  # asked for whole batches only, by __getitems__
            batch_sampler=_Once(tasks),
            num_workers=self.params.workers,
            prefetch_factor=self.params.prefetch,
            collate_fn=_as_is,  # type: ignore[arg-type]
            worker_init_fn=_leave_signals,
            multiprocessing_context="forkserver",
        )


class _Once:
    """An iterator as the batch sampler that DataLoader asks for."""

    def __init__(self, tasks: Iterator[list[Task]]) -> None:
        self._tasks = tasks

    def __iter__(self) -> Iterator[list[Task]]:
        return self._tasks


def _start_fork_server() -> None:
    """Start the process that workers are forked from, if it is not there, deaf to SIGTERM (to SIGINT it is already).

    A signal to the process group would end it, and with it, in the eyes of torch, all its workers. The mask is what
    a child inherits; a signal that comes meanwhile waits.
    """
    resource_tracker.ensure_running()  # the server's start would start it, and with that unmask the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals(_: int) -> None:
    """A signal to the process group is answered by the training process, whose checkpoint needs its batches to come."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _as_is(batch: Batch) -> Batch:
    return batch
