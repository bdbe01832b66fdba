"""Ray on this machine talks to nobody else, and to nobody here without the run's token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kldcloud.clusters.local_ray import local_ray
from kldcloud.errors import EngineError

LISTENING = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with local_ray(1):
        import ray

        yield ray.get_runtime_context().gcs_address


def test_listens_on_loopback_only(ray_address: str) -> None:
    sockets = _listening_sockets(_descendants(os.getpid()))
    assert len(sockets) >= 3, "Ray's control store and node manager listen somewhere"
    assert {address for address, _ in sockets} <= LOOPBACK
    assert int(ray_address.rsplit(":", 1)[1]) in {port for _, port in sockets}


def test_runs_no_dashboard(ray_address: str) -> None:
    import ray

    del ray_address
    assert not ray._private.worker.global_worker.node.webui_url


@pytest.mark.slow
def test_refuses_whoever_has_no_token(ray_address: str, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.py"
    stranger.write_text(
        "import ray, sys\n"
        f"ray.init(address={ray_address!r}, logging_level='CRITICAL')\n"
        "print('let in', len(ray.nodes()))\n"
    )
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_TOKEN": "0" * 64,
    }
    done = subprocess.run(
        [sys.executable, stranger], env=bare, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "let in" not in done.stdout


def test_a_ray_that_does_not_come_up_is_one_line(
    ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with too much to do, Ray gives up with a bare Exception."""
    import ray

    del ray_address

    complaint = "The current node timed out during startup"

    def busy(**_: object) -> None:
        raise Exception(f"{complaint}. This could\nhappen because")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr(ray, "init", busy)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(EngineError, match=f"^Ray did not start: {complaint}"), local_ray(1):
        pass


def _descendants(root: int) -> set[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _listening_sockets(pids: set[int]) -> set[tuple[str, int]]:
    """(address as the kernel spells it, port) of the TCP sockets that processes listen on."""
    inodes = set()
    for pid in pids:
        try:
            links = [each.readlink().name for each in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found
