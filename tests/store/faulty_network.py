"""A TCP proxy before the real S3 server that loses replies or answers in its place."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

FORWARD = b""
LOSE_REPLY = b"lose the reply"


def status(code: int, error: str) -> bytes:
    """Return a whole S3 error reply, for a fault to send instead of the server's."""
    body = f"<Error><Code>{error}</Code><Message>{error}</Message></Error>".encode()
    head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def faulty_network(endpoint: str, fault: Callable[[bytes], bytes]) -> Iterator[str]:
    """Yield the endpoint of the proxy.

    Args:
        endpoint: the real server's.
        fault: gets the first line of each request, such as b"PUT /bucket/key HTTP/1.1", and
            returns FORWARD, LOSE_REPLY or the bytes to answer with.
    """
    parts = urlsplit(endpoint)
    real = (str(parts.hostname), int(parts.port or 80))
    one_at_a_time = threading.Lock()

    def guarded(line: bytes) -> bytes:
        with one_at_a_time:
            return fault(line)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            # Closing the listener ends the loop.
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(
                        target=_serve, args=(client, real, guarded), daemon=True
                    ).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _serve(client: socket.socket, real: tuple[str, int], fault: Callable[[bytes], bytes]) -> None:
    """Carry one connection: requests are told apart by their first line."""
    with client, socket.create_connection(real) as server, contextlib.suppress(OSError):
        lose = threading.Event()
        threading.Thread(target=_carry_replies, args=(server, client, lose), daemon=True).start()
        while data := client.recv(1 << 16):
            line = data.split(b"\r\n", 1)[0]
            if line.endswith(b" HTTP/1.1"):
                answer = fault(line)
                if answer == LOSE_REPLY:
                    lose.set()
                elif answer != FORWARD:
                    client.sendall(answer)
                    client.shutdown(socket.SHUT_WR)
                    return
            server.sendall(data)


def _carry_replies(server: socket.socket, client: socket.socket, lose: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := server.recv(1 << 16):
            # "100 Continue" only asks for the body: what follows it is the reply.
            if lose.is_set() and not data.startswith(b"HTTP/1.1 100"):
                break
            client.sendall(data)
        client.shutdown(socket.SHUT_RDWR)
