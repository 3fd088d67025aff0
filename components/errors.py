"""The one exception a user is meant to read, and the wrapper that shows it as one line.

Every command's entry point is ``raise SystemExit(run_cli(main))``: a :class:`VitrailError` becomes
``error: <what>, <where>, <what to do>`` on stderr and exit code 1; so do faults of a disk that the user can mend.
Anything else is a bug and keeps its traceback. If nobody reads the output any more (``| head``), a command ends at once
and without a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from components import json_lines
from components.collector import leave_alone
from components.loopback import spare_loopback

_AGAIN = "and run the same command again: finished work is kept, nothing half-written counts"
_PERMIT = f"choose another place, or have its owner or mode changed, {_AGAIN}"
# What is wrong, and what to do: of faults that lie with a disk or a path, not with the code.
_DISK = {
    errno.ENOSPC: ("the disk is full", f"free some space {_AGAIN}"),
    errno.EDQUOT: ("the disk quota is used up", f"free some space or have the quota raised {_AGAIN}"),
    errno.EFBIG: ("the file system or a limit (ulimit -f) allows no larger file", f"raise it {_AGAIN}"),
    errno.EROFS: ("the file system is read-only", f"choose another place, or have it mounted for writing, {_AGAIN}"),
    errno.EACCES: ("not permitted", _PERMIT),
    errno.EPERM: ("not permitted", _PERMIT),
    errno.EIO: ("the disk could not read or write it", f"check the disk {_AGAIN}"),
    errno.ESTALE: ("the file server no longer knows it", f"mount it again {_AGAIN}"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "name another path"),
    errno.EISDIR: ("this is a folder; a file is wanted", "name another path"),
    errno.EEXIST: ("something else is here already", "name another path"),
    errno.ENAMETOOLONG: ("this name is too long for the file system", "name another path"),
}
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # only ever of the path that is written to
_KERNELS = ("/proc/", "/sys/")  # file systems that the kernel fills: nobody can make a file there
UNREAD = 128 + signal.SIGPIPE  # exit code of a command whose output nobody reads any more, as shells show it


_LOGIN = re.compile(r"(?<=://)[^\s/@?#]+@")
_SIGNED = re.compile(
    r"(?i)(?<=[?&])((?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|(?:access_)?token"
    r"|api_?key|password)=)[^&\s\"'#]+"
)


def redacted(text: str) -> str:
    """``text`` without what gives access: logins in addresses, signatures and tokens of presigned ones."""
    return _SIGNED.sub(r"\1***", _LOGIN.sub("", text))


class VitrailError(Exception):
    """A fault of input, parameters or surroundings. Its message is one line: what, where, what to do.

    Messages go to logs, to Prefect and to MLflow, so they are :func:`redacted`.

    Args:
        message: the line.
        told: it has been printed already, so that the command does not print it again.
    """

    def __init__(self, message: object = "", *, told: bool = False) -> None:
        super().__init__(redacted(str(message)))
        self.told = told


def nearest(word: str, known: Sequence[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word closest to ``word``, or an empty string when none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def disk_fault(fault: BaseException, path: str | Path | None = None) -> str | None:
    """The line for a fault of a disk or path, or None for any other exception.

    Args:
        fault: an ``OSError``, or what a library made of one (safetensors and DuckDB raise their own kinds).
        path: what was being written, where the exception does not know it itself.
    """
    if isinstance(fault, VitrailError):
        return None
    code = fault.errno if isinstance(fault, OSError) else None
    named = [name for at in ("filename", "filename2") if isinstance(name := getattr(fault, at, None), str | bytes)]
    if code not in _DISK and not _of_a_place(code, named):  # PyArrow gives the number, others only the words
        code = next((known for known in _WRITING if os.strerror(known) in str(fault)), None)
    if code is None:
        return None
    if code in (*_WRITING, errno.EISDIR):
        named.reverse()  # of a copy or rename the second is written
    where = os.fsdecode(named[0]) if named else None
    if where is None and code not in _WRITING and path is None:
        return None  # such as a signal to another user's process
    if where is None:
        where = _fullest(path) if code == errno.ENOSPC else str(path or ".")
    what, remedy = _DISK.get(code, (os.strerror(code).lower(), "mend that, or name another path"))
    if code == errno.ENOENT:
        what, remedy = "no file can be made here", "name another path"
    where = os.path.abspath(where)
    return f"{what} while writing {where}; {remedy}" if code in _WRITING else f"{where}: {what}; {remedy}"


def _of_a_place(code: int | None, named: Sequence[str | bytes]) -> bool:
    """Whether a fault lies with the path that it names; that a file is missing is the business of who looks for it."""
    if code is None or not named:
        return False
    return code != errno.ENOENT or os.path.abspath(os.fsdecode(named[0])).startswith(_KERNELS)


@contextlib.contextmanager
def named_faults(path: str | Path) -> Iterator[None]:
    """Turn faults of a disk into one line that names the file itself, or ``path`` where the exception names none.

    Raises:
        VitrailError: such a fault.
    """
    try:
        yield
    except Exception as fault:
        line = disk_fault(fault, path)
        if line is None:
            raise
        raise VitrailError(line) from fault


def run_cli(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run ``main(argv)`` and return the process's exit code, showing faults the user can mend as one line.

    Servers on loopback are reached without a proxy from here on.
    """
    spare_loopback()
    json_lines.begin()
    try:
        try:
            return _code(main, list(sys.argv[1:] if argv is None else argv))
        finally:
            json_lines.end()
            sys.stdout.flush()
            if argv is None:
                leave_alone()  # the process ends: to free each object of all libraries would take a second
    except BrokenPipeError:
        if not _unread():
            raise  # another pipe or socket
        return UNREAD


def _code(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    try:
        return main(argv) or 0
    except VitrailError as fault:
        if not fault.told:
            print(f"error: {fault}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped: run the same command again to carry on", file=sys.stderr, flush=True)
        return 130
    except Exception as fault:
        line = disk_fault(fault)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        return 1


def _unread() -> bool:
    """Whether nobody reads stdout or stderr any more; if so, what is still buffered for it goes nowhere."""
    found = False
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
            found = True
    return found


def _fullest(path: str | Path | None) -> str:
    """``path``, unless the disk of temporary files is the one that is full."""
    there, temporary = os.path.abspath(path or "."), tempfile.gettempdir()
    return temporary if _free(temporary) < _free(there) else there


def _free(path: str) -> int:
    """Bytes that are left on the disk that ``path`` is, or would be, on."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free
