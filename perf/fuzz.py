"""Mutated inputs to every parser that reads strangers' bytes: ``python -m perf.fuzz --inputs 1000000``.

Each parser runs in a process of its own under a cap on memory. An input that ends the process, raises what the parser
does not promise, or takes too long is kept in ``perf/results/fuzz/`` and named. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import VitrailError, nearest, run_cli
from perf._fuzz_targets import Target, targets

KEPT = Path(__file__).parent / "results/fuzz"
MEMORY = 1 << 30  # bytes of address space beyond what the process has once its parser is loaded
SLOW = 5.0  # seconds that one input may take
_MEMORY_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None
_LONGEST = 1 << 16  # bytes of an input


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], generator: np.random.Generator) -> bytes:
    """A seed with one to eight changes: bytes flipped, set, deleted, repeated; words put in; another seed's tail."""
    data = bytearray(seeds[generator.integers(len(seeds))])
    for _ in range(int(generator.integers(1, 9))):
        at = int(generator.integers(len(data) + 1))
        length = int(generator.integers(1, 1 + min(64, len(data) or 1)))
        kind = int(generator.integers(7))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(generator.integers(8))
        elif kind == 1 and at < len(data):
            data[at] = int(generator.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x20)))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * int(generator.integers(1, 40))
        elif kind == 4 and words:
            data[at:at] = words[generator.integers(len(words))]
        elif kind == 5:
            other = seeds[generator.integers(len(seeds))]
            data[at:] = other[int(generator.integers(len(other) + 1)) :]
        else:
            data[at : at + length] = generator.bytes(length)
    return bytes(data[:_LONGEST])


def _work(names: Sequence[str], inputs: int, seconds: float, seed: int, folder: str) -> None:
    """In the parsers' process: writes counts to ``folder``, and each input before it is parsed."""
    for name in names:
        _try(name, inputs, seconds, seed, Path(folder))


def _try(name: str, inputs: int, seconds: float, seed: int, folder: Path) -> None:
    target: Target = targets()[name]
    at, generator = folder / f"{name}.input", np.random.default_rng([seed, *name.encode()])
    at.write_bytes(target.seeds[0])
    for data in target.seeds:  # which must be good, or the mutations would test nothing; and loads the parser
        at.write_bytes(data)
        target.parse(data, at)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    began, done, raised, slowest, faults = time.monotonic(), 0, 0, 0.0, list[str]()
    while done < inputs and (not seconds or time.monotonic() - began < seconds):
        data = mutated(target.seeds, target.words, generator)
        at.write_bytes(data)
        start = time.monotonic()
        try:
            target.parse(data, at)
        except target.raises:
            raised += 1
        except BaseException as fault:  # a parser that raises anything else is at fault
            faults.append(f"{_keep(name, data)}: {type(fault).__name__}: {' '.join(str(fault).split())[:200]}")
        took = time.monotonic() - start
        slowest = max(slowest, took)
        if took > SLOW:
            faults.append(f"{_keep(name, data)}: took {took:.1f} s")
        done += 1
        if len(faults) >= 20:
            break
    said = {"inputs": done, "refused": raised, "slowest": round(slowest, 3), "faults": faults}
    said["megabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    (folder / f"{name}.json").write_text(json.dumps(said))


def _keep(name: str, data: bytes) -> Path:
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def fuzz(
    names: Sequence[str], inputs: int, seconds: float = 0.0, seed: int = 0, *, together: bool = False
) -> dict[str, dict[str, Any]]:
    """``inputs`` mutations for each parser of ``names``, in ``seconds`` each at most (0: no limit); what came of it.

    Args:
        together: in one process for all, which starts faster than one each.
    """
    context, found = multiprocessing.get_context("spawn"), dict[str, dict[str, Any]]()
    for group in [list(names)] if together else [[name] for name in names]:
        with tempfile.TemporaryDirectory(prefix="vitrail-fuzz-", dir=_MEMORY_DISK) as folder:
            began = time.monotonic()
            process = context.Process(target=_work, args=(group, inputs, seconds, seed, folder))
            process.start()
            process.join()
            took = round(time.monotonic() - began, 1)
            for name in group:
                told, last = Path(folder) / f"{name}.json", Path(folder) / f"{name}.input"
                if told.is_file():
                    found[name] = json.loads(told.read_text())
                else:  # the process ended in it, or in one before it
                    kept = _keep(name, last.read_bytes()) if last.is_file() else name
                    found[name] = {"inputs": 0, "faults": [f"{kept}: ended the process (exit code {process.exitcode})"]}
                found[name]["seconds"] = took
    return found


def command(argv: Sequence[str]) -> int:
    """Fuzz and print a line a parser; exit code 1 when one is at fault."""
    parser = argparse.ArgumentParser(prog="python -m perf.fuzz", description="mutated inputs to every parser")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all, over the parsers")
    parser.add_argument("--seconds", type=float, default=0.0, help="in all, at most; 0: no limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="one parser; may be given again")
    given = parser.parse_args(argv)
    known = list(targets())
    names = given.only or known
    for name in names:
        if name not in known:
            raise VitrailError(f"--only {name}: no such parser{nearest(name, known)}; there are: {', '.join(known)}")
    found = fuzz(names, max(1, given.inputs // len(names)), given.seconds / len(names), given.seed)
    for name, said in found.items():
        print(f"{name:<14} {said['inputs']:>9,} inputs, {said.get('refused', 0):>9,} refused, slowest "
              f"{said.get('slowest', 0):.3f} s, {said.get('megabytes', 0):,} MB, {said['seconds']:,} s")  # fmt: skip
    faults = [fault for said in found.values() for fault in said["faults"]]
    print(f"{sum(said['inputs'] for said in found.values()):,} inputs, {len(faults)} faults")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(run_cli(command))
