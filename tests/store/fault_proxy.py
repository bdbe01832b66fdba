"""An HTTP proxy before the real S3 server that loses, delays, answers and damages by rule.

Headers reach the server as they were sent, Host among them: requests are signed for the proxy's
address, and the server checks that signature against the Host that it is told.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ALWAYS = range(sys.maxsize)
# Theirs are about one connection, not about the request; Expect has been answered here.
_BETWEEN_NEIGHBOURS = {"connection", "expect", "keep-alive", "transfer-encoding"}
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The proxy answers, and the server never hears of the request."""

    status: int
    code: str = ""
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> bytes:
        """What S3 would say, unless another body was given."""
        if self.body is not None:
            return self.body
        return f"<Error><Code>{self.code}</Code><Message>{self.code}</Message></Error>".encode()


@dataclass(frozen=True, slots=True)
class Unsent:
    """The connection is reset before the server has seen the request."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The server does what it was asked; the connection is reset instead of its reply."""


@dataclass(frozen=True, slots=True)
class CutReply:
    """The reply promises its whole length and ends after some bytes of its body."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class CutRequest:
    """The server is promised a whole body, gets half of it and then nothing more."""


@dataclass(frozen=True, slots=True)
class FlipReply:
    """One bit of the reply's body is wrong: in the middle, or at the byte given if it has one."""

    at: int | None = None


@dataclass(frozen=True, slots=True)
class FlipRequest:
    """One bit in the middle of the request's body is wrong."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Nothing for half of this time, then the reply's body in pieces for the other half."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Outage:
    """From this request on nothing passes, until `FaultProxy.mend`; None resets connections."""

    answer: Answer | None = None


What = Answer | Unsent | Lost | CutReply | CutRequest | FlipReply | FlipRequest | Delay | Outage


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to which requests.

    Attributes:
        what: one of the kinds above.
        method: "GET", "PUT" and so on; "" for any.
        target: a pattern for the path and query, such as "*/00001.shard" or "*uploadId=*".
        when: which of the requests that match, and that no fault before this one took.
    """

    what: What
    method: str = ""
    target: str = "*"
    when: range = ALWAYS

    def matches(self, method: str, target: str) -> bool:
        return self.method in ("", method) and fnmatchcase(target, self.target)


class FaultProxy:
    """A proxy under way.

    Attributes:
        endpoint: where clients find it.
        asked: every request, as "PUT /bucket/key?query", in the order of arrival.
        hits: the faults that struck, in order.
    """

    def __init__(self, endpoint: str, upstream: str, faults: tuple[Fault, ...]) -> None:
        self.endpoint = endpoint
        self.asked: list[str] = []
        self.hits: list[Fault] = []
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._one_at_a_time = threading.Lock()
        self._counts: list[tuple[Fault, int]] = []
        self._outage: Outage | None = None
        self.expect(*faults)

    def expect(self, *faults: Fault) -> None:
        """From now on only these strike, counted from the start; what happened is forgotten."""
        with self._one_at_a_time:
            self._counts = [(fault, 0) for fault in faults]
            self._outage = None
            self.asked.clear()
            self.hits.clear()

    def mend(self) -> None:
        """End an outage and all other faults; what happened stays on record."""
        with self._one_at_a_time:
            self._counts, self._outage = [], None

    @property
    def is_down(self) -> bool:
        return self._outage is not None

    def fate(self, method: str, target: str) -> What | None:
        """Count a request and say what happens to it."""
        with self._one_at_a_time:
            self.asked.append(f"{method} {target}")
            if self._outage is not None:
                return self._outage
            for at, (fault, count) in enumerate(self._counts):
                if not fault.matches(method, target):
                    continue
                self._counts[at] = (fault, count + 1)
                if count in fault.when:
                    self.hits.append(fault)
                    if isinstance(fault.what, Outage):
                        self._outage = fault.what
                    return fault.what
            return None

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the real server."""
        return http.client.HTTPConnection(*self._upstream, timeout=_PATIENCE)


@contextlib.contextmanager
def fault_proxy(upstream: str, *faults: Fault) -> Iterator[FaultProxy]:
    """Serve on a free port of the loopback interface for the length of the block."""
    with _Server(("127.0.0.1", 0), _Connection) as server:
        proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}", upstream, faults)
        server.proxy = proxy
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    proxy: FaultProxy
    daemon_threads = True
    # Clients keep their connections; waiting for those threads would wait for the clients.
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the game."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _serve(self) -> None:
        body = self._body()
        what = self.server.proxy.fate(self.command, self.path)
        if isinstance(what, Outage):
            what = what.answer or Unsent()
        if isinstance(what, Answer):
            self._answer(what)
        elif isinstance(what, Unsent):
            self._reset()
        elif isinstance(what, CutRequest):
            with contextlib.closing(self.server.proxy.connect()) as server:
                self._ask(server, body[: len(body) // 2], len(body))
            self._reset()
        else:
            self._pass_on(_flipped(body) if isinstance(what, FlipRequest) else body, what)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815 - http.server's names

    def _pass_on(self, body: bytes, what: What | None) -> None:
        with contextlib.closing(self.server.proxy.connect()) as server:
            self._ask(server, body, len(body))
            reply = server.getresponse()
            content = reply.read()
        if isinstance(what, Lost):
            self._reset()
            return
        if isinstance(what, Delay):
            time.sleep(what.seconds / 2)
        if isinstance(what, FlipReply):
            content = _flipped(content, what.at)
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.getheaders():
            if name.lower() not in _BETWEEN_NEIGHBOURS | {"content-length"}:
                self.send_header(name, value)
        # The reply to HEAD states a length and has no body.
        stated = reply.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", stated or str(len(content)))
        self.end_headers()
        if isinstance(what, Delay):
            self._trickle(content, what.seconds / 2)
        elif isinstance(what, CutReply):
            self.wfile.write(content[: what.after])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def _ask(self, server: http.client.HTTPConnection, body: bytes, stated: int) -> None:
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _BETWEEN_NEIGHBOURS | {"content-length"}:
                server.putheader(name, value)
        if stated or self.command in ("PUT", "POST"):
            server.putheader("Content-Length", str(stated))
        server.endheaders(body or None)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers, which no signature covers
        return b"".join(pieces)

    def _answer(self, what: Answer) -> None:
        content = b"" if self.command == "HEAD" else what.content
        self.send_response_only(what.status)
        for name, value in (*what.headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _trickle(self, content: bytes, seconds: float) -> None:
        pieces = 4
        step = max(1, -(-len(content) // pieces))
        for piece in range(pieces):
            time.sleep(seconds / pieces)
            self.wfile.write(content[piece * step : (piece + 1) * step])

    def _reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The socket's own close would wait for its readers, and socketserver says FIN first.
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited name
        """Nothing: `FaultProxy.asked` is the log."""


def _flipped(data: bytes, at: int | None = None) -> bytes:
    where = len(data) // 2 if at is None else at
    if where >= len(data):
        return data
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]
