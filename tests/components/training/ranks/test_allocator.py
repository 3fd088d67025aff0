"""The allocator's setting, in a process of its own: it holds for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import resource, sys, torch
from components.training.ranks.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    return [torch.ones(2**20) for _ in range(20)]  # 4 MiB each: 20,480 pages
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    # glibc moves its threshold as a program goes; fixed, every block goes back to the kernel for certain
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True, env=environment
    )
    return int(done.stdout)


def test_freed_memory_is_kept() -> None:
    assert faults("given back") > 90_000  # of 102,400 pages
    assert faults("kept") < 5_000
