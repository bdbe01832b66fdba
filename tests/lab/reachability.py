"""The two public addresses that SkyPilot asks before it believes that a machine is gone.

A managed job looks for preemptions only while a HEAD request to one of them is answered. Inside
the lab both are on loopback, with a certificate that only the lab's own user trusts.
"""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading

from .places import Places

_ADDRESSES = ("1.1.1.1", "8.8.8.8")


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers HEAD and nothing else."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the question comes every few seconds."""


def answer_for_the_internet(places: Places) -> None:
    """Serve both addresses from a thread of this process, for as long as it lives."""
    places.fresh("tls")
    key = places.certificate.with_name("key.pem")
    alternatives = ",".join(f"IP:{address}" for address in _ADDRESSES)
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "30"]
    request += ["-subj", "/CN=lab", "-addext", f"subjectAltName={alternatives}"]
    # Newer Pythons refuse a certificate that signs itself without saying that it may.
    request += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    request += ["-keyout", str(key), "-out", str(places.certificate)]
    subprocess.run(request, check=True, stderr=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(places.certificate, key)
    for address in _ADDRESSES:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        server = http.server.ThreadingHTTPServer((address, 443), _Answers)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
