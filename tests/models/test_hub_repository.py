"""Repositories from a real HTTP server that answers huggingface_hub as the Hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from kldcloud.models.model_folder import read_model_folder
from tests.tiny_folders import write_folder

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "notarealtoken" * 3
SHARD = "model-00002-of-00003.safetensors"
# huggingface_hub keeps what came of a file in steps of 10 MiB.
KEPT = 20 << 20
CUT = KEPT + 12345
SHARD_BYTES = 24 << 20
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "none": (404, "RepoNotFound"),
    "unlisted": (503, ""),
}


@dataclass
class Hub:
    """A Hub with repositories of the organisation `org`.

    Attributes:
        files: repository's name -> file's name -> bytes.
        asked: what was fetched: a file's name, and from which byte.
        cut: after this many bytes of a shard, the connection is closed.
    """

    files: Mapping[str, Mapping[str, bytes]]
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)
    cut: int | None = None

    def fetched(self) -> list[str]:
        """What was fetched since the last time that this was asked."""
        found, self.asked = self.asked, []
        return found


class Handler(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's answers that a download of a repository needs."""

    hub: ClassVar[Hub]

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?", 1)[0]
        is_list = path.startswith("/api/models/")
        _, repository, *rest = path.removeprefix("/api/models").strip("/").split("/")
        if repository in REFUSALS and (is_list or repository != "unlisted"):
            return self.refuse(*REFUSALS[repository])
        files = self.hub.files.get(repository.replace("unlisted", "repo"))
        if files is None:
            return self.refuse(404, "RepoNotFound")
        revision, name = rest[1], "/".join(rest[2:])
        if revision not in {"main", "v1", COMMIT}:
            return self.refuse(404, "RevisionNotFound")
        if is_list:
            return self.list(files)
        if name not in files:
            return self.refuse(404, "EntryNotFound")
        return self.send(name, files[name], with_body=with_body)

    def list(self, files: Mapping[str, bytes]) -> None:
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0"} for name, data in files.items()
        ]
        body = json.dumps({"id": "org/repo", "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send(self, name: str, data: bytes, *, with_body: bool) -> None:
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        start = int(asked) if with_body else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if with_body:
            self.hub.asked.append(f"{name} {start}")
            cut = self.hub.cut if name == SHARD else None
            self.wfile.write(data[start:cut])
            self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def repositories(folder: Path) -> dict[str, dict[str, bytes]]:
    """One whole model, and some that are none."""
    small = {each.name: each.read_bytes() for each in write_folder(folder, shards=3).iterdir()}
    tensor = {"dtype": "U8", "shape": [SHARD_BYTES], "data_offsets": [0, SHARD_BYTES]}
    header = json.dumps({"model.norm.weight": tensor}).encode()
    shard = len(header).to_bytes(8, "little") + header + bytes(SHARD_BYTES)
    config = {"config.json": b"{}", "tokenizer.json": b"{}"}
    others = {
        "generation_config.json": b"{}",
        "modeling.py": b"raise SystemExit",
        "pytorch_model.bin": b"cos",
        "consolidated.safetensors": b"a second copy",
        "onnx/model.safetensors": b"another",
        "onnx/config.json": b"another",
    }
    climbing = json.dumps({"weight_map": {"a": "../../escaped.safetensors"}}).encode()
    return {
        "repo": {**small, SHARD: shard, **others},
        "pickles": {**config, "pytorch_model.bin": b"cos"},
        "ggufs": {"m.Q4_0.gguf": b"GGUF", "README.md": b"."},
        "climbs": {**config, "model.safetensors.index.json": climbing},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(repositories(tmp_path_factory.mktemp("hub") / "model"))
    handler = type("Bound", (Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        hub.endpoint = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield hub
        running.shutdown()
        thread.join()


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.fetched()
    server.cut = None
    return server


PROGRAM = """
import sys; from pathlib import Path
from kldcloud.errors import UserError
from kldcloud.models.sources import fetch_model, model_at_hand, pinned
from kldcloud.spec.uri import parse_uri
uri, steps = parse_uri(sys.argv[1]), []
try:
    here = model_at_hand(uri)
    path = fetch_model(uri, cache=Path('/nonexistent'), progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    print(path, steps[-1] if steps else 'no steps', pinned(uri, path), here == path)
except UserError as error:
    print(error)
"""


def fetched(text: str, hub: Hub, home: Path, **environment: str) -> str:
    """What fetching prints, in a process of its own: huggingface_hub reads its settings once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, text],
        env={**clean, **settings, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert TOKEN not in ran.stdout + ran.stderr
    return ran.stdout.strip()


NEEDED = [
    "config.json",
    "generation_config.json",
    "model-00001-of-00003.safetensors",
    SHARD,
    "model-00003-of-00003.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
]


def test_what_is_needed_of_a_repository_arrives_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--repo" / "snapshots" / COMMIT
    sizes = {name: len(hub.files["repo"][name]) for name in NEEDED}
    total = sum(sizes.values()) - sizes["model.safetensors.index.json"]
    first = fetched("hf:org/repo", hub, tmp_path)
    assert first == f"{folder} ({total}, {total}) hf:org/repo@{COMMIT} False"
    assert sorted(each.name for each in folder.iterdir()) == NEEDED
    for name in NEEDED:
        assert (folder / name).read_bytes() == hub.files["repo"][name]
    assert len(read_model_folder(folder).tensors) == 3
    asked = hub.fetched()
    assert sorted(asked) == [f"{name} 0" for name in NEEDED]
    # What a cut-off download has is never a whole model.
    weights = [name for name in asked if name.startswith("model-")]
    assert asked[-3:] == weights
    # The second time, and where there is no network, nothing is fetched.
    again = f"{folder} no steps hf:org/repo@{COMMIT} True"
    assert fetched("hf:org/repo", hub, tmp_path) == again
    assert fetched(f"hf:org/repo@{COMMIT}", hub, tmp_path) == again
    assert fetched("hf:org/repo", hub, tmp_path, HF_HUB_OFFLINE="1") == again
    assert fetched(f"hf:org/repo@{COMMIT}", hub, tmp_path, HF_HUB_OFFLINE="1") == again
    assert hub.fetched() == []


def test_a_download_that_was_cut_off_is_no_model_and_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.cut = CUT
    line = fetched("hf:org/repo", hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert line.startswith(f"hf:org/repo/{SHARD}@{COMMIT} could not be downloaded (")
    assert fetched("hf:org/repo", hub, tmp_path, HF_HUB_OFFLINE="1").startswith(
        f"hf:org/repo@{COMMIT} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set"
    )
    hub.cut = None
    hub.fetched()
    assert fetched("hf:org/repo", hub, tmp_path).startswith(f"{tmp_path}/hub/models--org--repo/")
    assert hub.fetched() == [f"{SHARD} {KEPT}", "model-00003-of-00003.safetensors 0"]


def test_a_hub_that_does_not_answer_is_not_needed_for_what_is_here(
    hub: Hub, tmp_path: Path
) -> None:
    assert fetched("hf:org/unlisted", hub, tmp_path) == (
        f"the Hugging Face Hub answered 503 for hf:org/unlisted@{COMMIT}; try again a little later"
    )
    snapshot = tmp_path / "hub" / "models--org--unlisted" / "snapshots" / COMMIT
    for name in NEEDED:
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).write_bytes(hub.files["repo"][name])
    assert fetched("hf:org/unlisted", hub, tmp_path).startswith(f"{snapshot} no steps")


ADVICE = "run `hf auth login`, or set HF_TOKEN to a token that may read it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hf:org/pickles",
            (
                "hf:org/pickles@main holds its weights as pickles (pytorch_model.bin), which can "
                "run any code; convert them to safetensors, or find a revision that has them"
            ),
        ),
        (
            "hf:org/ggufs",
            (
                "hf:org/ggufs@main holds GGUF files (m.Q4_0.gguf), of which each is a model; "
                "name one, such as hf:org/ggufs/m.Q4_0.gguf"
            ),
        ),
        (
            "hf:org/ggufs@v1",
            (
                "hf:org/ggufs@v1 holds GGUF files (m.Q4_0.gguf), of which each is a model; "
                "name one, such as hf:org/ggufs/m.Q4_0.gguf@v1"
            ),
        ),
        ("hf:org/repo@v9", "hf:org/repo has no revision 'v9'"),
        (
            "hf:org/gated",
            (
                "hf:org/gated is gated: its owner has to let you in; "
                f"ask for access on its page, then {ADVICE}"
            ),
        ),
        (
            "hf:org/none",
            (
                "hf:org/none: there is no such repository, or it is private; "
                f"check the name; for a private one, {ADVICE}"
            ),
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(hub: Hub, tmp_path: Path, text: str, message: str) -> None:
    assert fetched(text, hub, tmp_path) == message
    assert all(each.startswith("config.json ") for each in hub.fetched())


def test_an_index_that_leads_out_of_the_folder_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    line = fetched("hf:org/climbs", hub, tmp_path)
    assert "tensor 'a' is in '../../escaped.safetensors', which is no safetensors file" in line
    assert hub.fetched() == ["config.json 0", "model.safetensors.index.json 0"]


def test_offline_without_it_says_so(hub: Hub, tmp_path: Path) -> None:
    assert fetched("hf:org/repo", hub, tmp_path, HF_HUB_OFFLINE="1") == (
        "hf:org/repo/config.json@main is not in the Hugging Face cache, and HF_HUB_OFFLINE is set; "
        "unset HF_HUB_OFFLINE, or give the path of a file"
    )
