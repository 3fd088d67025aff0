from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.command_line import ExecutorOptions
from components.dedup.params import DedupParams
from components.errors import VitrailError
from components.executor import ExecutorParams, kept_workers, map_shards
from components.params import load_params


def square(number: int) -> int:
    return number * number


def threads(number: int) -> str:
    return os.environ.get("OMP_NUM_THREADS", "")


def pid(number: int) -> int:
    return os.getpid()


def die(number: int) -> int:
    if number == 2:
        os._exit(9)
    return number


def refuse(number: int) -> int:
    raise VitrailError(f"shard {number}: unreadable")


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers: int) -> None:
    assert list(map_shards(square, range(9), ExecutorParams(workers=workers))) == [n * n for n in range(9)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_reaches_the_caller(workers: int) -> None:
    with pytest.raises(VitrailError, match="shard 0: unreadable"):
        list(map_shards(refuse, range(3), ExecutorParams(workers=workers)))


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(VitrailError, match="a worker process died"):
        list(map_shards(die, range(6), ExecutorParams(workers=1)))


def test_workers_can_be_kept_from_one_map_to_the_next() -> None:
    one = ExecutorParams(workers=1)
    apart = [*map_shards(pid, [0], one), *map_shards(pid, [0], one)]
    with kept_workers(one):
        together = {*map_shards(pid, range(2), one), *map_shards(pid, range(2), one)}
        other = set(map_shards(pid, [0], ExecutorParams(workers=2)))
        with pytest.raises(VitrailError):
            list(map_shards(die, range(6), one))
    assert apart[0] != apart[1]
    assert len(together) == 1
    assert not other & together
    with kept_workers(ExecutorParams(workers=0)):
        assert list(map_shards(pid, [0], ExecutorParams(workers=0))) == [os.getpid()]


def test_workers_keep_their_libraries_to_one_thread() -> None:
    assert set(map_shards(threads, range(2), ExecutorParams(workers=1))) == {"1"}


def test_the_commands_options_override_the_parameters() -> None:
    assert ExecutorOptions().overrides() == ()
    given = ExecutorOptions(executor="ray", address="head:6379").overrides()
    assert given == ("executor.kind=ray", "executor.address=head:6379")
    params = load_params(Path("params/dedup.yaml"), DedupParams, given).executor
    assert (params.kind, params.address) == ("ray", "head:6379")
