"""Downloads from a real HTTP server that answers huggingface_hub as the Hub does."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kldcloud.errors import UserError
from kldcloud.models.sources import fetch
from kldcloud.spec.uri import parse_uri

pytest.importorskip("huggingface_hub")

TOKEN = "hf_" + "notarealtoken" * 3
DATA = b"GGUF" + bytes(1 << 20)
REFUSALS = {
    "/org/gated/": (403, "GatedRepo"),
    "/org/none/": (404, "RepoNotFound"),
    "/org/private/": (401, "RepoNotFound"),
    "/org/repo/resolve/v9/": (404, "RevisionNotFound"),
    "/org/repo/resolve/main/none": (404, "EntryNotFound"),
    "/org/forbidden/": (403, ""),
    "/org/badtoken/": (401, ""),
    "/org/teapot/": (418, ""),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's answers that a download of one file needs."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        for start, (status, code) in REFUSALS.items():
            if self.path.startswith(start):
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                if start == "/org/badtoken/":
                    message = "Invalid credentials in Authorization header"
                    self.send_header("X-Error-Message", message)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(DATA).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        if with_body:
            self.wfile.write(DATA)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of a running server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(text: str, endpoint: str, home: Path, **environment: str) -> str:
    """What fetching prints, in a process of its own: huggingface_hub reads its settings once."""
    code = (
        "import sys; from pathlib import Path\n"
        "from kldcloud.errors import UserError\n"
        "from kldcloud.models.sources import fetch\n"
        "from kldcloud.spec.uri import parse_uri\n"
        "steps = []\n"
        "try:\n"
        "    path = fetch(parse_uri(sys.argv[1]), cache=Path('/nonexistent'),\n"
        "                 progress=lambda *step: steps.append(step))\n"
        "    print(path.name, path.stat().st_size, steps[-1] if steps else 'no steps')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    ran = subprocess.run(
        [sys.executable, "-c", code, text],
        env={**clean, **settings, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert TOKEN not in ran.stdout + ran.stderr
    return ran.stdout


def test_a_file_arrives_in_the_hubs_own_cache_and_is_fetched_once(hub: str, tmp_path: Path) -> None:
    size = len(DATA)
    first = fetched("hf:org/repo/m.gguf", hub, tmp_path)
    assert first == f"m.gguf {size} ({size}, {size})\n"
    assert fetched("hf:org/repo/m.gguf", hub, tmp_path) == f"m.gguf {size} no steps\n"
    offline = fetched("hf:org/repo/m.gguf", hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline == f"m.gguf {size} no steps\n"


ADVICE = "run `hf auth login`, or set HF_TOKEN to a token that may read it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hf:org/gated/m.gguf",
            (
                "hf:org/gated is gated: its owner has to let you in; "
                f"ask for access on its page, then {ADVICE}"
            ),
        ),
        (
            "hf:org/none/m.gguf",
            (
                "hf:org/none: there is no such repository, or it is private; "
                f"check the name; for a private one, {ADVICE}"
            ),
        ),
        (
            "hf:org/private/m.gguf",
            (
                "hf:org/private: there is no such repository, or it is private; "
                f"check the name; for a private one, {ADVICE}"
            ),
        ),
        ("hf:org/repo/m.gguf@v9", "hf:org/repo has no revision 'v9'"),
        ("hf:org/repo/none.gguf", "hf:org/repo has no file 'none.gguf' at revision 'main'"),
        (
            "hf:org/forbidden/m.gguf",
            f"the Hugging Face Hub refused hf:org/forbidden/m.gguf@main (403); {ADVICE}",
        ),
        (
            "hf:org/badtoken/m.gguf",
            f"the Hugging Face Hub refused hf:org/badtoken/m.gguf@main (401); {ADVICE}",
        ),
        (
            "hf:org/teapot/m.gguf",
            (
                "the Hugging Face Hub answered 418 for hf:org/teapot/m.gguf@main; "
                "try again a little later"
            ),
        ),
    ],
)
def test_each_refusal_of_the_hub_is_one_line(
    hub: str, tmp_path: Path, text: str, message: str
) -> None:
    assert fetched(text, hub, tmp_path) == f"{message}\n"


def test_offline_is_said_to_be_offline(hub: str, tmp_path: Path) -> None:
    assert fetched("hf:org/repo/m.gguf", hub, tmp_path, HF_HUB_OFFLINE="1") == (
        "hf:org/repo/m.gguf@main is not in the Hugging Face cache, and HF_HUB_OFFLINE is set; "
        "unset HF_HUB_OFFLINE, or give the path of a file\n"
    )


@pytest.mark.slow  # huggingface_hub itself tries for some twenty seconds
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    line = fetched("hf:org/repo/m.gguf", "http://127.0.0.1:9", tmp_path)
    assert line.startswith("hf:org/repo/m.gguf@main could not be downloaded (")
    assert line.endswith("check the network and HF_ENDPOINT, then run the same command again\n")
    assert line.count("\n") == 1


def test_without_huggingface_hub_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError) as caught:
        fetch(parse_uri("hf:org/repo/m.gguf"), cache=tmp_path)
    assert str(caught.value) == (
        "hf:org/repo/m.gguf@main needs huggingface_hub, which is not installed; "
        "pip install 'kldcloud[hub]'"
    )
