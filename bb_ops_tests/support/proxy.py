"""A TCP proxy that fails on purpose: the far end of a network, at its worst moment."""

import socket
import threading
from contextlib import suppress
from typing import Self

_CHUNK_BYTES = 1 << 16
_INTERIM = b"HTTP/1.1 100"
_UP, _DOWN = "up", "down"


class FaultyProxy:
    """Passes bytes between clients and one server on the loopback address, until told to fail. A context manager.

    Attributes:
        port: Where it listens.
        connections: How many connections were passed on.
        flip_in: Flip one bit of the first byte of the next such text in an answer.
        lose_answer_to: Let requests with this text through, and break off before their answers arrive.
        answers_to_lose: How many of them.
    """

    def __init__(
        self,
        server_port: int,
        *,
        upload_bytes: int | None = None,
        download_bytes: int | None = None,
        comes_back: bool = False,
    ) -> None:
        """Listen.

        Args:
            server_port: Where the true server listens.
            upload_bytes: Break off after so many bytes of requests, over all connections together.
            download_bytes: Break off after so many bytes of answers, likewise.
            comes_back: Accept new connections after breaking off; else the server is gone for good.
        """
        self.connections = 0
        self.flip_in: bytes | None = None
        self.lose_answer_to: bytes | None = None
        self.answers_to_lose = 1
        self._server_port = server_port
        self._left = {_UP: upload_bytes, _DOWN: download_bytes}
        self._comes_back = comes_back
        self._gone = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name="proxy")]

    def __enter__(self) -> Self:
        """Accept connections."""
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut everything and wait for every thread."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_now()
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def break_now(self) -> None:
        """Be gone from now on: every connection is cut and no new one is passed on."""
        self._gone = True
        for each in list(self._sockets):
            _cut(each)

    def come_back(self) -> None:
        """Pass new connections on again."""
        self._gone = False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._gone:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._server_port))
            self.connections += 1
            self._sockets += [client, server]
            to_lose = threading.Event()
            for source, target, way in ((client, server, _UP), (server, client, _DOWN)):
                thread = threading.Thread(target=self._pass_on, args=(source, target, way, to_lose), name="proxy")
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str, to_lose: threading.Event) -> None:
        while data := _receive(source):
            if way == _UP and self._names_the_answer_to_lose(data):
                to_lose.set()
            if way == _DOWN and to_lose.is_set() and not data.startswith(_INTERIM):
                break
            data, last = self._within_limit(self._flipped(data) if way == _DOWN else data, way)
            if not _send(target, data) or last:
                break
        _cut(source)
        _cut(target)

    def _names_the_answer_to_lose(self, data: bytes) -> bool:
        with self._lock:
            if self.lose_answer_to is None or self.lose_answer_to not in data or self.answers_to_lose == 0:
                return False
            self.answers_to_lose -= 1
            return True

    def _flipped(self, data: bytes) -> bytes:
        with self._lock:
            if self.flip_in is None or self.flip_in not in data:
                return data
            at = data.index(self.flip_in)
            self.flip_in = None
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    def _within_limit(self, data: bytes, way: str) -> tuple[bytes, bool]:
        with self._lock:
            left = self._left[way]
            if left is None:
                return data, False
            self._left[way] = max(0, left - len(data))
            if self._left[way]:
                return data, False
            if self._comes_back:
                self._left[way] = None
            else:
                self._gone = True
            return data[:left], True


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(_CHUNK_BYTES)
    except OSError:
        return b""


def _send(target: socket.socket, data: bytes) -> bool:
    try:
        target.sendall(data)
    except OSError:
        return False
    return True


def _cut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
