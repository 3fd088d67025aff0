"""Work on untrusted bytes in a process of its own, which may crash, hang or want too much memory without harm here.

The child is a fresh interpreter, not a fork: it holds none of this process's memory, files or locks, so it may be
started beside threads (Ray's workers have dozens, OpenCV and Arrow have pools). It serves call after call and is
replaced when one has ended it. Bytes go in and bytes come out over a socket. On Windows the function runs in this
process, with its other limits only.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, NoReturn

from pydantic import Field

from components.executor import ONE_THREAD
from components.images.decode import DECODE_REASONS, DecodeError
from components.params import Strict

_LENGTH = struct.Struct(">Q")
_GOOD, _REFUSED, _BROKEN = b"g", b"r", b"b"  # an answer; a DecodeError's reason; another exception's text
_START_SECONDS = 120.0  # for an interpreter and its imports, on a machine that is busy
_CLOCK = 4  # seconds by the clock for each second of processor time: the machine may be busy

Function = Callable[[bytes], bytes]


class SandboxParams(Strict):
    """What one call may cost."""

    OFF: ClassVar = {"enabled": False}

    enabled: bool = True
    megabytes: int = Field(
        1500, ge=64, le=10_000_000
    )  # of address space beyond what the process has; of 50 megapixels up to 750 used
    seconds: float = Field(20.0, gt=0, le=1_000_000)  # of processor time, for one call; four times that by the clock


class Sandbox:
    """Calls ``function(data) -> bytes`` in a child under ``params``; close it, or use it as a context manager.

    ``function`` and ``prepare`` must be picklable: something that a fresh interpreter can import. ``prepare`` loads
    what the function needs before the limits are set, so that the limits are those of a call.
    """

    def __init__(self, function: Function, params: SandboxParams, prepare: Callable[[], None] | None = None) -> None:
        self._function, self._params, self._prepare = function, params, prepare
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The child's process id; 0 while there is none."""
        return self._child.pid if self._child else 0

    def __call__(self, data: bytes) -> bytes | bytearray:
        """The function's answer.

        Raises:
            DecodeError: the function's own, or "too-slow", "too-much-memory" or "decoder-crash".
            RuntimeError: another exception in the function, or no child could be started.
        """
        if not self._params.enabled or sys.platform == "win32":
            return self._function(data)
        with self._lock:
            kind, answer = self._ask(self._socket or self._start(), data)
        if kind == _REFUSED:
            reason = answer.decode("ascii", "replace")
            raise DecodeError(next((known for known in DECODE_REASONS if known == reason), "corrupt"))
        if kind == _BROKEN:
            raise RuntimeError(f"failed in the child: {answer.decode('utf-8', 'replace')}")
        return answer

    def _ask(self, link: socket.socket, data: bytes) -> tuple[bytes, bytearray]:
        try:
            link.sendall(_LENGTH.pack(len(data)))
            link.sendall(data)
            return _received(link, self._params.megabytes * 1_000_000)
        except TimeoutError:
            self.close()
            raise DecodeError("too-slow", f"more than {_CLOCK * self._params.seconds} s") from None
        except OSError:
            ended = self._end()
            if ended == -signal.SIGPROF:
                raise DecodeError("too-slow", f"more than {self._params.seconds} s of processor time") from None
            raise DecodeError("decoder-crash", f"{len(data)} bytes, exit code {ended}") from None
        except BaseException:  # Ctrl-C in the middle of an answer: the next call must not read the rest of it
            self.close()
            raise

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(sys.path)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-c", f"from components.images.sandbox import serve; serve({theirs.fileno()})"],
                env={**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "PYTHONPATH": path},
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        self._socket = ours
        order = pickle.dumps((self._function, self._params, self._prepare))
        try:
            ours.settimeout(_START_SECONDS)
            ours.sendall(_LENGTH.pack(len(order)) + order)
            kind, answer = _received(ours, 1 << 20)
        except OSError as fault:
            raise RuntimeError(f"no child to decode in: {fault}, exit code {self._end()}") from None
        except BaseException:
            self.close()
            raise
        if kind != _GOOD:
            self.close()
            raise RuntimeError(f"no child to decode in: {answer.decode('utf-8', 'replace')}")
        ours.settimeout(_CLOCK * self._params.seconds)
        return ours

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._child is not None:
            self._child.kill()
        self._end()

    def _end(self) -> int:
        """The exit code of the child, which hangs up or is hung up on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is None:
            return 0
        try:
            code = self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self._child = None
        return code

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_kept: dict[tuple[int, bytes], Sandbox] = {}  # by process: a fork has the dictionary, and not the children


def kept(function: Function, params: SandboxParams, prepare: Callable[[], None] | None = None) -> Sandbox:
    """This process's sandbox for ``function`` under ``params``, which stays for further work items; the latest two do.

    A child ends by itself when the process that started it does.
    """
    here = os.getpid()
    key = (here, pickle.dumps((function, params.model_dump())))
    if key not in _kept:
        while len(_kept) > 1:
            oldest = next(iter(_kept))
            known = _kept.pop(oldest)
            if oldest[0] == here:
                known.close()
        _kept[key] = Sandbox(function, params, prepare)
    return _kept[key]


def serve(descriptor: int) -> NoReturn:
    """The child's life: take the function, then answer calls until the other end hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    link = socket.socket(fileno=descriptor)
    try:
        try:
            function, params, prepare = pickle.loads(_message(link))
            if prepare is not None:
                prepare()
            kind, answer = _GOOD, b""
        except Exception as fault:
            kind, answer = _BROKEN, _told(fault)
        link.sendall(kind + _LENGTH.pack(len(answer)) + answer)
        if kind == _GOOD:
            _limit(params.megabytes)
            while True:
                data = _message(link)
                signal.setitimer(signal.ITIMER_PROF, params.seconds)  # whose signal ends the process, in any loop
                kind, answer = _answer(function, bytes(data))
                signal.setitimer(signal.ITIMER_PROF, 0)
                link.sendall(kind + _LENGTH.pack(len(answer)))
                link.sendall(answer)
    except OSError:  # the parent hung up
        os._exit(0)
    finally:
        os._exit(1)


def _answer(function: Function, data: bytes) -> tuple[bytes, bytes]:
    try:
        return _GOOD, function(data)
    except DecodeError as fault:
        return _REFUSED, fault.reason.encode()
    except MemoryError:
        return _REFUSED, b"too-much-memory"
    except Exception as fault:
        return _BROKEN, _told(fault)


def _told(fault: Exception) -> bytes:
    return f"{type(fault).__name__}: {fault}".encode("utf-8", "replace")[:2000]


def _limit(megabytes: int) -> None:
    """Let this process have ``megabytes`` more of address space, write no file, and say nothing."""
    import resource

    if os.path.exists("/proc/self/statm"):  # elsewhere (macOS) address space cannot be limited
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = now + megabytes * 1_000_000
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    faulthandler.disable()  # a crash here is expected, and told by the parent
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write their complaints there


def _received(link: socket.socket, most: int) -> tuple[bytes, bytearray]:
    kind = bytes(_exactly(link, 1))
    length = _LENGTH.unpack(_exactly(link, _LENGTH.size))[0]
    if length > most:
        raise ConnectionError("an answer longer than the child could hold")
    return kind, _exactly(link, length)


def _message(link: socket.socket) -> bytearray:
    return _exactly(link, _LENGTH.unpack(_exactly(link, _LENGTH.size))[0])


def _exactly(link: socket.socket, length: int) -> bytearray:
    """``length`` bytes from ``link``.

    Raises:
        ConnectionError: the other end is closed.
    """
    data = bytearray(length)
    view = memoryview(data)
    at = 0
    while at < length:
        got = link.recv_into(view[at:])
        if not got:
            raise ConnectionError("closed")
        at += got
    return data
