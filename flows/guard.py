"""Between a flow run and the command that it runs: ends the command when the flow run is gone.

``python flows/guard.py PARENT GRACE COMMAND...`` runs COMMAND and ends as it ends, with all that it left behind. When
the process PARENT is no longer its parent (it was killed, so it could end nothing), the command and all below it get
SIGTERM, GRACE seconds, SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_TICK = 0.5  # seconds between looks at the parent
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


def main(argv: list[str]) -> int:
    """See the module."""
    parent, grace, command = int(argv[0]), float(argv[1]), argv[2:]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, text=True)

    def hand_on(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    _adopt_orphans()
    code: int | None = None
    while code is None and os.getppid() == parent:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(_TICK)
    _end_all(child, grace)
    if code is None:
        return 1
    if code < 0:  # end as it ended
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _adopt_orphans() -> None:
    """Become the parent of what loses its own below this process, so that it is found; Linux alone can do it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _end_all(child: subprocess.Popen[str], grace: float) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import psutil

    from flows.process import end_group

    end_group(child, grace)
    left = psutil.Process().children(recursive=True)  # in groups of their own, and orphans
    for signal_it in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                signal_it(process)
        _, left = psutil.wait_procs(left, timeout=grace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
