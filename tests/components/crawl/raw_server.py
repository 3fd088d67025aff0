"""A loopback server that sends answers byte for byte, and keeps the first line of each request."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator


class Raw:
    """``answers`` maps a request's target to the bytes sent for it, or to what sends them itself."""

    def __init__(self, answers: dict[str, bytes | Callable[[socket.socket], None]]) -> None:
        self.answers = answers
        self.targets: list[str] = []
        self.hosts: list[str] = []

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (block := connection.recv(65536)):
                    return
                head += block
            lines = head.decode("latin-1").split("\r\n")
            target = lines[0].split(" ")[1]
            self.targets.append(target)
            self.hosts += [line[6:] for line in lines if line.lower().startswith("host: ")]
            answer = self.answers.get(target, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)


@contextlib.contextmanager
def raw_server(answers: dict[str, bytes | Callable[[socket.socket], None]]) -> Iterator[tuple[Raw, str]]:
    """Serve ``answers``; yields the server and its ``address:port``."""
    raw, listener = Raw(answers), socket.create_server(("127.0.0.1", 0), backlog=300)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=raw.serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield raw, f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """One whole answer, after which the connection ends."""
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(head).encode() + body


def drip(body: bytes, seconds: float) -> Callable[[socket.socket], None]:
    """Sends ``body`` as the beginning of a longer one, and then nothing for ``seconds``."""

    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
        time.sleep(seconds)

    return send
