"""Decode untrusted bytes in a child process that may crash, hang or want too much memory, without harm to this one.

The child is forked once and serves image after image; it is replaced when one has ended it. Bytes go in and a short
answer comes out over a socket, so nothing the child does to its memory reaches the parent. Where processes cannot be
forked (Windows) the function runs in this process, with its other limits only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import struct
from collections.abc import Callable
from types import TracebackType

from pydantic import Field

from components.images.decode import DECODE_REASONS, DecodeError
from components.params import Strict

_LENGTH = struct.Struct(">Q")
_GOOD, _REFUSED, _BROKEN = b"g", b"r", b"b"  # an answer; a DecodeError's reason; another exception's text


class SandboxParams(Strict):
    """What one image may cost while it is decoded."""

    enabled: bool = True
    megabytes: int = Field(1500, ge=64)  # of address space beyond what the process has; of 50 megapixels up to 750 used
    seconds: float = Field(20.0, gt=0)  # for one image


class Sandbox:
    """Calls ``function(data) -> bytes`` in a child under ``params``; use as a context manager.

    The child inherits what this process has loaded: load the decoders first.
    """

    def __init__(self, function: Callable[[bytes], bytes], params: SandboxParams) -> None:
        self._function, self._params = function, params
        self._child = 0
        self._socket: socket.socket | None = None

    def __call__(self, data: bytes) -> bytes:
        """The function's answer.

        Raises:
            DecodeError: the function's own, or "too-slow", "too-much-memory" or "decoder-crash".
        """
        if not self._params.enabled or not hasattr(os, "fork"):
            return self._function(data)
        link = self._socket or self._start()
        try:
            link.sendall(_LENGTH.pack(len(data)))
            link.sendall(data)
            kind, answer = _received(link)
        except TimeoutError:
            self._end()
            raise DecodeError("too-slow", f"more than {self._params.seconds} s") from None
        except OSError:
            self._end()
            raise DecodeError("decoder-crash", f"{len(data)} bytes") from None
        if kind == _REFUSED:
            reason = answer.decode("ascii", "replace")
            raise DecodeError(next((known for known in DECODE_REASONS if known == reason), "corrupt"))
        if kind == _BROKEN:
            raise RuntimeError(f"decoding failed in the child: {answer.decode('utf-8', 'replace')}")
        return answer

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            ours.close()
            _serve(theirs, self._function, self._params)  # does not return
        theirs.close()
        ours.settimeout(self._params.seconds)
        self._child, self._socket = child, ours
        return ours

    def _end(self) -> None:
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _serve(link: socket.socket, function: Callable[[bytes], bytes], params: SandboxParams) -> None:
    """The child's life: until the other end is closed. It never returns into the code that forked it."""
    try:
        faulthandler.disable()  # a crash here is expected, and told by the parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _limit(params.megabytes)
        while True:
            kind, answer = _answer(function, _exactly(link, _LENGTH.unpack(_exactly(link, _LENGTH.size))[0]))
            link.sendall(kind + _LENGTH.pack(len(answer)) + answer)
    except OSError:  # the parent hung up
        os._exit(0)
    finally:
        os._exit(1)


def _answer(function: Callable[[bytes], bytes], data: bytes) -> tuple[bytes, bytes]:
    try:
        return _GOOD, function(data)
    except DecodeError as fault:
        return _REFUSED, fault.reason.encode()
    except MemoryError:
        return _REFUSED, b"too-much-memory"
    except Exception as fault:
        return _BROKEN, f"{type(fault).__name__}: {fault}".encode()[:2000]


def _limit(megabytes: int) -> None:
    """Let this process have ``megabytes`` more of address space, and no core file."""
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = now + megabytes * 1_000_000
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _received(link: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(link, 1)
    return kind, _exactly(link, _LENGTH.unpack(_exactly(link, _LENGTH.size))[0])


def _exactly(link: socket.socket, length: int) -> bytes:
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
    return bytes(data)
