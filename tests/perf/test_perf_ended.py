"""A measurement that is ended leaves no server behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import subprocess, sys, time
from perf.__main__ import leaving_nothing

with leaving_nothing():
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    print(server.pid, flush=True)
    {then}
"""


@pytest.mark.parametrize("then", ["time.sleep(1000)", "raise KeyError"])
def test_what_a_measurement_started_ends_with_it(then: str) -> None:
    words = [sys.executable, "-c", SCRIPT.format(then=then)]
    measuring = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert measuring.stdout is not None
    server = psutil.Process(int(measuring.stdout.readline()))
    if "sleep" in then:
        measuring.send_signal(signal.SIGTERM)
    code = measuring.wait(PATIENCE)
    assert code == (128 + signal.SIGTERM if "sleep" in then else 1)
    psutil.wait_procs([server], timeout=PATIENCE)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
