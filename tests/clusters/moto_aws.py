"""An AWS where nothing costs anything: moto's server, the keys it takes, and homes of SkyPilot's.

SkyPilot reads HOME when it is imported, so whatever asks it runs in a process of its own. Price
lists are ours, and nothing can be fetched: every HTTPS request ends at a port that nobody hears.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CATALOG = Path(__file__).parent / "catalog"
_READY_SECONDS = 120.0
_ANSWER = """
import json, sys
from kldcloud.clusters.prices import quote
from kldcloud.errors import UserError

for line in sys.stdin:
    question = json.loads(line)
    try:
        found = quote(question["resources"], question["nodes"])
        answer = {
            "offers": [
                [each.infra, each.instance, each.accelerators, each.spot, each.hourly]
                for each in found.offers
            ],
            "catalog_date": found.catalog_date,
            "enabled": found.enabled,
        }
        try:
            found.require_enabled()
        except UserError as error:
            answer["refusal"] = str(error)
    except UserError as error:
        answer = {"refusal": str(error)}
    answer["tracebacks"] = not hasattr(sys, "tracebacklimit")
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True, slots=True)
class SkyHome:
    """A home folder of SkyPilot's, and the environment in which it is the only one."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def catalogs(self) -> Path:
        return self.folder / ".sky" / "catalogs" / "v8"


class Desk:
    """A process that imported SkyPilot once and answers one question after another.

    Its stdout is the answers: anything that SkyPilot printed there would end the test.
    """

    def __init__(self, home: SkyHome) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ANSWER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(home.environment),
            text=True,
        )

    def ask(self, resources: Mapping[str, object], nodes: int = 1) -> dict[str, Any]:
        """Return what `quote` said, as JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"resources": resources, "nodes": nodes}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer.pop("tracebacks"), "SkyPilot's own limit on tracebacks stayed"
        return dict(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def sky_home(folder: Path, endpoint: str | None = None, *, lists: bool = True) -> SkyHome:
    """Make a home.

    Args:
        folder: where; it need not exist.
        endpoint: of moto's server; None leaves this home without credentials.
        lists: whether the price lists are there.
    """
    home = SkyHome(folder, _environment(folder, endpoint))
    folder.mkdir(parents=True, exist_ok=True)
    if lists:
        shutil.copytree(CATALOG, home.catalogs)
    if endpoint:
        keys = "aws_access_key_id = testing\naws_secret_access_key = testing\n"
        (folder / ".aws").mkdir()
        (folder / ".aws" / "credentials").write_text(f"[default]\n{keys}")
        (folder / ".aws" / "config").write_text("[default]\nregion = us-east-1\n")
    return home


@contextlib.contextmanager
def desk(home: SkyHome) -> Iterator[Desk]:
    """Somebody to ask, until the end of the block."""
    someone = Desk(home)
    try:
        yield someone
    finally:
        someone.close()


@pytest.fixture(scope="session")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running moto server, killed at the end of the session."""
    binary = Path(sysconfig.get_path("scripts")) / "moto_server"
    command = str(binary) if binary.is_file() else shutil.which("moto_server")
    if command is None:
        pytest.skip("no moto_server: pip install 'moto[server]'")
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            _wait_until_heard(port, process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(folder: Path, endpoint: str | None) -> dict[str, str]:
    """Only what is needed: no setting of a developer's own may choose another account."""
    beside = sysconfig.get_path("scripts")  # the command `aws`, which SkyPilot calls
    environment = {
        "PATH": f"{beside}:{os.environ['PATH']}",
        "HOME": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    return environment | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})


def _wait_until_heard(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"moto did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)
