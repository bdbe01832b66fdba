"""Keys stay where they are: not on a screen, not in a store, not in a process list."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Desk, Said
from store_server import S3Server

from kldcloud.store import open_store

Command = Callable[..., Said]
PASSWORD = "hunter2-and-more"  # noqa: S105 - the one that must not be seen


class ProcessList:
    """What `ps` could have shown of one session while it lived, and what its environments held."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._done = threading.Event()
        self.command_lines: set[bytes] = set()
        self.tokens: set[bytes] = set()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for folder in self._members():
                try:
                    self.command_lines.add((folder / "cmdline").read_bytes())
                    settings = (folder / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                prefix = b"RAY_AUTH_TOKEN="
                self.tokens |= {s.removeprefix(prefix) for s in settings if s.startswith(prefix)}

    def _members(self) -> Iterator[Path]:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._leader:
                yield folder


@pytest.mark.slow
def test_a_launch_against_s3_shows_its_keys_nowhere(
    desk: Desk, s3_store_uri: Callable[[str], str], s3_server: S3Server
) -> None:
    uri = s3_store_uri("secrets")
    process = subprocess.Popen(
        [sys.executable, "-m", "kldcloud.cli.main", "launch", str(desk.job), "--store", uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watch = ProcessList(process.pid)
    try:
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
        watch.stop()
    assert process.returncode == 0, err
    secret = s3_server.secret_key
    assert secret not in out + err

    lines = b"\n".join(watch.command_lines)
    assert b"raylet" in lines  # Ray's processes were among those watched
    assert watch.tokens
    for hidden in (secret.encode(), *watch.tokens):
        assert hidden not in lines

    store = open_store(uri)
    keys = [info.key for info in store.list("")]
    assert any(key.endswith("summary.json") for key in keys)
    for key in keys:
        content = store.read(key)
        for hidden in (secret.encode(), *watch.tokens):
            assert hidden not in content, key


@pytest.mark.parametrize("verb", ["launch", "import-kld", "report", "check"])
def test_a_refused_key_is_not_repeated(
    command: Command,
    desk: Desk,
    s3_store_uri: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    uri = s3_store_uri("refused")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"token-{PASSWORD}")
    arguments = {
        "launch": [desk.job],
        "import-kld": [desk.text],
        "report": ["latest"],
        "check": ["--cluster", "nope"],
    }[verb]
    said = command(verb, *arguments, "--store", uri)
    assert said.code == 2
    assert "refused the AWS credentials" in said.out + said.err
    assert PASSWORD not in said.out + said.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["launch", "JOB", "--store", f"s3://someone:{PASSWORD}@bucket/x"],
        ["launch", "JOB", "--store", f"https://someone:{PASSWORD}@host/x"],
        ["launch", "JOB", "--set", f"store=ftp://someone:{PASSWORD}@host/x"],
        ["launch", "JOB", "--set", f"base.model=https://someone:{PASSWORD}@host/x.gguf"],
        ["launch", "JOB", "--set", f"base.model=s3://someone:{PASSWORD}@bucket/x.gguf"],
        ["launch", "JOB", "--set", f"base.model=gopher://someone:{PASSWORD}@host/x.gguf"],
        ["launch", "JOB", "--set", f"base.model=file://someone:{PASSWORD}@host/x.gguf"],
        ["launch", "JOB", "--set", f"candidates[0].name=https://someone:{PASSWORD}@host/x"],
        ["launch", "JOB", "--set", f"corpora[0].text=https://someone:{PASSWORD}@host/x.txt"],
        ["launch", "JOB", "--set", f"corpora[0].text=https://host/x.txt?key={PASSWORD}"],
        ["launch", "JOB", "--cluster", f"https://someone:{PASSWORD}@host/x"],
        ["launch", f"https://someone:{PASSWORD}@host/job.yaml"],
        ["plan", f"https://someone:{PASSWORD}@host/job.yaml"],
        ["report", "latest", "--store", f"s3://someone:{PASSWORD}@bucket/x"],
        ["report", f"s3://someone:{PASSWORD}@bucket/x", "--store", "STORE"],
        ["import-kld", f"s3://someone:{PASSWORD}@bucket/x.kld", "--store", "STORE"],
        ["check", "--store", f"s3://someone:{PASSWORD}@bucket/x", "--cluster", "nope"],
        [f"https://someone:{PASSWORD}@host/x"],
    ],
)
def test_a_password_in_an_address_is_never_repeated(
    command: Command, desk: Desk, arguments: list[str]
) -> None:
    names = {"JOB": str(desk.job), "STORE": str(desk.store)}
    said = command(*(names.get(each, each) for each in arguments))
    assert said.code == 2
    assert "kldcloud: " in said.err
    assert PASSWORD not in said.out + said.err


def test_a_password_of_the_endpoint_is_never_repeated(
    command: Command,
    desk: Desk,
    s3_store_uri: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = s3_store_uri("endpoint")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:{PASSWORD}@127.0.0.1:9")
    said = command("launch", desk.job, "--store", uri)
    assert said.complaint.startswith("cannot reach http://127.0.0.1:9; ")
    assert PASSWORD not in said.err
