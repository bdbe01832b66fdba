"""Bring a lab up, find one that is up, take it down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from store_server import S3Server, wait_until_ready

from .places import HOME, SYSTEM_PATH, TESTS, Places, Settings
from .session import Lab
from .wheelhouse import wheelhouse

_UP_SECONDS = 120.0


def bring_up(folder: Path, visible: Sequence[Path] = (), *, tied: bool) -> Lab:
    """Build a lab in a folder and return it once both nodes are idle and the S3 server answers.

    Args:
        folder: must be there, and be short: the paths of Unix sockets in it may have 107 bytes.
        visible: folders under /tmp or the home that the login node is to see as well.
        tied: the lab ends with this process, however that ends.

    Raises:
        RuntimeError: it did not come up; says which log to read.
    """
    places = Places(folder)
    log = places.fresh("log") / "lab.log"
    settings = Settings(
        wheels=str(wheelhouse()),
        visible=[str(path) for path in visible],
        s3_access_key="tester",
        s3_secret_key=uuid.uuid4().hex,
    )
    places.write_settings(settings)
    tie = ["setpriv", "--pdeathsig", "KILL"] if tied else []
    # unshare ignores SIGTERM; it is killed, and takes the first process and so all of them along.
    unshare = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--mount-proc"]
    unshare += ["--fork", "--kill-child"]
    python = {"PATH": SYSTEM_PATH, "HOME": str(HOME), "LANG": "C.UTF-8", "PYTHONPATH": str(TESTS)}
    with log.open("wb") as stream:
        outer = subprocess.Popen(
            [*tie, *unshare, sys.executable, "-m", "lab.inside", str(folder)],
            env=python,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    deadline = time.monotonic() + _UP_SECONDS
    while not places.ready_file.exists():
        if outer.poll() is not None or time.monotonic() > deadline:
            outer.kill()
            outer.wait()
            tail = log.read_text(errors="replace")[-2000:]
            message = f"the lab did not come up; its logs are in {places.log}\n{tail}"
            raise RuntimeError(message)
        time.sleep(0.1)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    places.pid_file.write_text(children[0])
    return Lab(places, int(children[0]), outer)


def find(folder: Path) -> Lab:
    """Return the lab that is up in a folder.

    Raises:
        LookupError: there is none.
    """
    places = Places(folder)
    with contextlib.suppress(FileNotFoundError):
        pid = int(places.pid_file.read_text())
        if f"lab.inside\0{folder}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return Lab(places, pid)
    message = f"no lab is up in {folder}"
    raise LookupError(message)


@contextlib.contextmanager
def store_from_outside(lab: Lab) -> Iterator[S3Server]:
    """Open a port of this machine's loopback that leads to the lab's S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"
    relay = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "socat", listen, f"UNIX:{lab.places.s3_socket}"],
        start_new_session=True,
    )
    settings = lab.places.settings()
    server = S3Server(f"http://127.0.0.1:{port}", settings.s3_access_key, settings.s3_secret_key)
    try:
        wait_until_ready(server, relay, lab.places.log / "weed.log")
        yield server
    finally:
        relay.kill()
        relay.wait()


def take_down(lab: Lab) -> None:
    """Kill every process of the lab and remove its folder."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(lab.pid, signal.SIGKILL)
    # The namespaces go with their last process, and with them every mount in the folder.
    while Path(f"/proc/{lab.pid}").exists():
        time.sleep(0.05)
    if lab.outer:
        lab.outer.wait()
    shutil.rmtree(lab.places.folder, ignore_errors=True)
