"""Map a function over shards, in worker processes or on a Ray cluster. The only module that imports Ray.

The unit of work is a shard's path, never its pixels.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from components.errors import VitrailError
from components.params import Strict

Item = TypeVar("Item")
Result = TypeVar("Result")

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
_number = -1  # of this process among its pool's workers
_kept: ContextVar[tuple[int, ProcessPoolExecutor] | None] = ContextVar("kept workers", default=None)
_CONNECT_SECONDS = 5.0  # for the first answer of a cluster's head; Ray itself tries for a minute


class ExecutorParams(Strict):
    """How a stage spreads its shards."""

    kind: Literal["pool", "ray"] = "pool"
    workers: int = Field(0, ge=0, le=4096)  # pool: processes; 0: run in this process
    address: str | None = None  # ray: "auto", HOST:PORT or ray://HOST:PORT; null: a Ray of its own, on this machine
    retries: int = Field(3, ge=0, le=1000)  # ray: times that a shard is tried again when its worker or node died


def map_shards(function: Callable[[Item], Result], shards: Iterable[Item], params: ExecutorParams) -> Iterator[Result]:
    """Yield ``function(shard)`` for every shard, in order, with at most two shards a worker under way.

    ``function`` and its results travel between processes, so both must be picklable; results should be small (a
    manifest row, not images). On Ray a shard may be tried twice, or by two workers, so ``function`` must give the same
    files on every node; nodes see the run's folder under the path that it has here.

    Raises:
        VitrailError: a worker process died (out of memory, say); or no Ray, no cluster, or a node without the folder.
    """
    if params.kind == "ray":
        yield from _on_ray(function, shards, params)
    elif params.workers:
        yield from _in_pool(function, shards, params)
    else:
        for shard in shards:
            yield function(shard)


@contextlib.contextmanager
def kept_workers(params: ExecutorParams) -> Iterator[None]:
    """Let all :func:`map_shards` inside share one set of worker processes: each takes a second to start and import."""
    if params.kind != "pool" or not params.workers:
        yield
        return
    with _started(params.workers) as pool:
        token = _kept.set((params.workers, pool))
        try:
            yield
        finally:
            _kept.reset(token)


def _started(workers: int) -> ProcessPoolExecutor:
    # Workers are spawned, not forked: a forked copy of a process with threads can deadlock.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin_worker, (context.Value("i", 0),))


def worker_number() -> int | None:
    """Which of its pool's workers this process is, from 0, so that each can keep to a GPU; None: it is none."""
    return None if _number < 0 else _number


def _in_pool(function: Callable[[Item], Result], shards: Iterable[Item], params: ExecutorParams) -> Iterator[Result]:
    workers, kept = _kept.get() or (0, None)
    with contextlib.nullcontext(kept) if kept and workers == params.workers else _started(params.workers) as pool:
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


def _begin_worker(begun: Any) -> None:
    """Number this worker, and keep its libraries to one thread each, before they are loaded.

    The processes are the parallelism. OpenMP threads that wait for each other spin; with more of them than cores, face
    detection was seen to run at a twentieth of its speed. The worker also ends when its parent is gone (killed, out of
    memory), which a pool's workers do not by themselves: they would wait for work for ever, or beside the next run.
    """
    global _number
    with begun.get_lock():
        _number = begun.value
        begun.value += 1
    for name in ONE_THREAD:
        os.environ[name] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _on_ray(function: Callable[[Item], Result], shards: Iterable[Item], params: ExecutorParams) -> Iterator[Result]:
    ray = _connected(params)
    task = ray.remote(num_cpus=1, max_retries=params.retries, scheduling_strategy="SPREAD")(_task(os.getcwd()))
    pending: deque[Any] = deque()
    try:
        for shard in shards:
            pending.append(task.remote(pickle.dumps((function, shard))))
            # Asked each time: a cluster grows and shrinks.
            if len(pending) >= 2 * max(1, int(ray.cluster_resources().get("CPU", 1))):
                yield _taken(ray, pending.popleft(), params)
        while pending:
            yield _taken(ray, pending.popleft(), params)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _task(folder: str) -> Callable[[bytes], Any]:
    """What runs on a node: the pickled (function, shard), in ``folder`` and with its code.

    A closure, for Ray then sends its code by value: a function of this module could not be found on a node before it
    has the folder on its path.
    """
    names = ONE_THREAD

    def work(payload: bytes) -> Any:
        import os
        import pickle
        import sys

        if not os.path.isdir(folder):
            raise FileNotFoundError(folder)
        os.environ.update(dict.fromkeys(names, "1"))
        os.chdir(folder)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        function, shard = pickle.loads(payload)
        return function(shard)

    return work


def _taken(ray: Any, reference: Any, params: ExecutorParams) -> Any:
    """The task's result; its own exception as it was raised there, without Ray's wrapping."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as fault:
        cause = fault.cause
        if isinstance(cause, FileNotFoundError) and cause.args == (os.getcwd(),):
            raise VitrailError(_shared(os.getcwd())) from None
        raise (cause if isinstance(cause, Exception) else fault) from None
    except ray.exceptions.RayError as fault:  # the worker, its node or the whole cluster died
        raise VitrailError(
            f"Ray: a shard was lost {params.retries + 1} times ({type(fault).__name__}); out of memory? lower `chunk`, "
            "or raise executor.retries, and run again: finished shards are kept"
        ) from None
    if isinstance(result, Path) and not result.exists():
        raise VitrailError(_shared(str(result)))
    return result


def _shared(path: str) -> str:
    return (
        f"Ray: {path} is not the same place on every node; put the checkout and the run's data on a file system that "
        "all nodes mount under one path"
    )


def _connected(params: ExecutorParams) -> Any:
    """The module ``ray``, connected for the rest of this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of shards given up because another one failed
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice about a coming default
    try:
        import ray
    except ImportError:
        raise VitrailError(
            "executor.kind is ray, but Ray is not installed: pip install --require-hashes --no-deps -r "
            "requirements/ray.lock, on every node; or use the process pool (--executor pool)"
        ) from None
    if ray.is_initialized():
        return ray
    address = params.address
    options: dict[str, Any] = {"logging_level": logging.WARNING}
    options |= {"address": address} if address else {"num_cpus": params.workers or os.cpu_count()}
    if address is None:
        options["include_dashboard"] = False
    try:
        if address not in (None, "auto"):
            _probe(str(address))
        with _sigterm_kept():
            ray.init(**options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as fault:
        raise VitrailError(
            f"Ray at {address or 'this machine'}: {' '.join(str(fault).split())[:200]}; is it up (ray status), and of "
            f"version {ray.__version__} everywhere?"
        ) from None
    return ray


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Leave SIGTERM to the handler that had it: Ray's own ends the process before its MLflow run can be closed."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _probe(address: str) -> None:
    """Fail within seconds where nothing listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is auto, HOST:PORT (of `ray start --head`) or ray://HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
