"""A TCP proxy that fails on purpose: the far end of a network, at its worst moment."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 1 << 16
_INTERIM = b"HTTP/1.1 100"


class FaultyProxy:
    """Passes bytes between clients and one server on the loopback address, until told to fail.

    Each fault counts over all connections together.

    Attributes:
        connections: How many connections were passed on.
    """

    def __init__(  # noqa: PLR0913 - one fault each
        self,
        server_port: int,
        *,
        upload_bytes: int | None = None,
        download_bytes: int | None = None,
        comes_back: bool = False,
        flip_in: bytes | None = None,
        lose_answer_to: bytes | None = None,
        answers_lost: int = 1,
    ) -> None:
        """Name the faults.

        Args:
            server_port: Where the true server listens.
            upload_bytes: Break off after so many bytes of requests.
            download_bytes: Break off after so many bytes of answers.
            comes_back: Accept new connections after breaking off; else the server is gone for good.
            flip_in: Flip one bit of the first byte of the first such text in an answer.
            lose_answer_to: Let requests with this text through, and break off before their answer arrives.
            answers_lost: How often.
        """
        self._server_port = server_port
        self._left = {"up": upload_bytes, "down": download_bytes}
        self._comes_back = comes_back
        self._flip_in = flip_in
        self._lose_answer_to = lose_answer_to
        self._answers_to_lose = answers_lost
        self._gone = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0

    @property
    def broken(self) -> bool:
        """Whether a limit was reached."""
        return self._gone or None in self._left.values() and 0 in self._left.values()

    def break_now(self) -> None:
        """Be gone from now on: every connection is cut and no new one is passed on."""
        self._gone = True
        for each in self._sockets:
            _cut(each)

    def run(self) -> None:
        """Accept connections until closed."""
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
            lossy = threading.Event()
            self._begin(self._pass_on, client, server, "up", lossy)
            self._begin(self._pass_on, server, client, "down", lossy)

    def close(self) -> None:
        """Cut everything and wait for every thread."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            _cut(each)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _begin(self, action: object, *arguments: object) -> None:
        assert callable(action)
        thread = threading.Thread(target=action, args=arguments, name="proxy")
        self._threads.append(thread)
        thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str, lossy: threading.Event) -> None:
        while data := _receive(source):
            if way == "up" and self._lose_answer_to is not None and self._lose_answer_to in data:
                lossy.set()
            if way == "down" and lossy.is_set() and not data.startswith(_INTERIM) and self._loses_one():
                break
            data, last = self._within_limit(self._flipped(data) if way == "down" else data, way)
            if not _send(target, data) or last:
                break
        _cut(source)
        _cut(target)

    def _loses_one(self) -> bool:
        with self._lock:
            self._answers_to_lose -= 1
            return self._answers_to_lose >= 0

    def _flipped(self, data: bytes) -> bytes:
        with self._lock:
            if self._flip_in is None or self._flip_in not in data:
                return data
            at = data.index(self._flip_in)
            self._flip_in = None
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    def _within_limit(self, data: bytes, way: str) -> tuple[bytes, bool]:
        with self._lock:
            left = self._left[way]
            if left is None:
                return data, False
            data = data[:left]
            self._left[way] = left - len(data)
            if self._left[way]:
                return data, False
            self._gone = not self._comes_back
            if self._comes_back:
                self._left[way] = None
            return data, True


@contextmanager
def faulty_proxy(  # noqa: PLR0913 - one fault each
    server_port: int,
    *,
    upload_bytes: int | None = None,
    download_bytes: int | None = None,
    comes_back: bool = False,
    flip_in: bytes | None = None,
    lose_answer_to: bytes | None = None,
    answers_lost: int = 1,
) -> Iterator[FaultyProxy]:
    """Run a proxy during a block."""
    proxy = FaultyProxy(
        server_port,
        upload_bytes=upload_bytes,
        download_bytes=download_bytes,
        comes_back=comes_back,
        flip_in=flip_in,
        lose_answer_to=lose_answer_to,
        answers_lost=answers_lost,
    )
    acceptor = threading.Thread(target=proxy.run, name="proxy")
    acceptor.start()
    try:
        yield proxy
    finally:
        proxy.close()
        acceptor.join()


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
