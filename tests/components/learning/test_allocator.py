"""The allocator's setting, in a process of its own: it holds for the whole process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys, torch
from components.learning.allocator import keep_freed_memory
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
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True).stdout)


def test_freed_memory_is_kept() -> None:
    assert faults("kept") < 0.6 * faults("given back")
