"""Ten seconds of mutated inputs over every parser that reads strangers' bytes; a million is perf/fuzz.py's to try."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from perf import fuzz
from perf._fuzz_targets import Target, targets


def test_no_parser_falls_over_in_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "KEPT", tmp_path)
    names = list(targets())
    found = fuzz.fuzz(names, inputs=10_000_000, seconds=10 / len(names), seed=1, together=True)
    assert [fault for said in found.values() for fault in said["faults"]] == []
    assert min(said["inputs"] for said in found.values()) > 10


def test_mutations_repeat_and_reach_everywhere() -> None:
    def some(seed: int) -> Iterator[bytes]:
        generator = np.random.default_rng(seed)
        return (fuzz.mutated([b"abcdefgh", b"12345678"], [b"WORD"], generator) for _ in range(300))

    assert list(some(3)) == list(some(3))
    assert list(some(3)) != list(some(4))
    made = set(some(3))
    assert len(made) > 250
    assert any(b"WORD" in one for one in made)


@pytest.mark.parametrize("how", ["raises", "ends the process", "takes memory"])
def test_a_parser_at_fault_is_named_with_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    broken = {"raises": "raise KeyError('x')", "ends the process": "import os; os._exit(9)",
              "takes memory": "bytearray(1 << 33)"}[how]  # fmt: skip

    def parse(data: bytes, _: Path) -> None:
        if data != b"seed":
            exec(broken)

    monkeypatch.setattr(fuzz, "KEPT", tmp_path)
    monkeypatch.setattr(fuzz, "targets", lambda: {"x": Target(parse, (b"seed",))})
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(fuzz.multiprocessing, "get_context", lambda _: fork)
    found = fuzz.fuzz(["x"], inputs=50)
    [kept, *_] = sorted(tmp_path.iterdir())
    assert any(str(kept) in fault for fault in found["x"]["faults"])
