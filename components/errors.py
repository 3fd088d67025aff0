"""The one exception a user is meant to read, and the wrapper that shows it as one line.

Every command's entry point is ``raise SystemExit(run_cli(main))``: a :class:`VitrailError` becomes
``error: <what>, <where>, <what to do>`` on stderr and exit code 1; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence


class VitrailError(Exception):
    """A fault of input, parameters or surroundings. Its message is one line: what, where, what to do."""


def nearest(word: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word closest to ``word``, or an empty string when none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def run_cli(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return the process's exit code, showing faults the user can mend as one line."""
    try:
        return main(list(sys.argv[1:] if argv is None else argv)) or 0
    except VitrailError as fault:
        print(f"error: {fault}", file=sys.stderr, flush=True)
        return 1
    except OSError as fault:
        if fault.errno != errno.ENOSPC:
            raise
        where = os.path.abspath(fault.filename or ".")
        print(
            f"error: the disk is full while writing {where}; free some space and run the same command again:"
            " finished work is kept, nothing half-written counts",
            file=sys.stderr,
            flush=True,
        )
        return 1
    except KeyboardInterrupt:
        print("stopped: run the same command again to carry on", file=sys.stderr, flush=True)
        return 130
