"""Map a function over shards in worker processes. The unit of work is a shard's path, never its pixels."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pydantic import Field

from components.errors import VitrailError
from components.params import Strict

Item = TypeVar("Item")
Result = TypeVar("Result")


class ExecutorParams(Strict):
    """How a stage spreads its shards."""

    workers: int = Field(0, ge=0)  # processes; 0: run in this process


def map_shards(function: Callable[[Item], Result], shards: Iterable[Item], params: ExecutorParams) -> Iterator[Result]:
    """Yield ``function(shard)`` for every shard, in order, with at most two shards a worker under way.

    ``function`` and its results travel between processes, so both must be picklable; results should be small (a
    manifest row, not images). Workers are spawned, not forked: a forked copy of a process with threads can deadlock.

    Raises:
        VitrailError: a worker process died (out of memory, say).
    """
    if params.workers == 0:
        for shard in shards:
            yield function(shard)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(params.workers, mp_context=context, initializer=_one_thread) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for shard in shards:
                pending.append(pool.submit(function, shard))
                if len(pending) >= 2 * params.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise VitrailError(
                f"a worker process died (of {params.workers}); out of memory? lower executor.workers and run again"
            ) from None
        finally:
            for future in pending:
                future.cancel()


def _one_thread() -> None:
    """Keep a worker's libraries to one thread each, before they are loaded: the processes are the parallelism.

    OpenMP threads that wait for each other spin; with more of them than cores, face detection was seen to run at a
    twentieth of its speed.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        os.environ[name] = "1"
