"""The lab's first process, `python -m lab.inside FOLDER`: builds the lab, waits to be killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from store_server import S3Server, server_command, wait_until_ready, weed_binary

from .login import open_login_node
from .mounts import cover_login_node
from .network import add_node, raise_bridge
from .places import HEAD_ADDRESS, NODES, S3_PORT, Places
from .reachability import answer_for_the_internet
from .slurm import start_cluster, wait_until_idle
from .stand_ins import write_stand_ins

_REAP_SECONDS = 0.5


def main() -> None:
    """Build the lab and stay, for all of it ends with this process."""
    places = Places(Path(sys.argv[1]))
    # The folder where the tests were started is not everywhere in the lab.
    os.chdir("/")
    _build(places)
    places.ready_file.touch()
    _reap_for_ever()


def _build(places: Places) -> None:
    settings = places.settings()
    socket.sethostname("head")
    cover_login_node(places, settings)
    write_stand_ins(places)
    raise_bridge()
    store = S3Server(
        f"http://{HEAD_ADDRESS}:{S3_PORT}", settings.s3_access_key, settings.s3_secret_key
    )
    store_process = _start_store(places, store)
    for node in NODES:
        add_node(places, node)
    start_cluster(places)
    open_login_node(places)
    answer_for_the_internet(places)
    wait_until_idle()
    wait_until_ready(store, store_process, places.log / "weed.log")


def _start_store(places: Places, store: S3Server) -> subprocess.Popen[bytes]:
    """Start the S3 server on the bridge, and a socket in the lab's folder that leads to it."""
    weed = weed_binary()
    assert weed is not None, "needs.obstacle() looks for it"
    folder = places.fresh("s3")
    command = server_command(
        weed, folder, list(range(S3_PORT, S3_PORT + 8)), store, address=HEAD_ADDRESS
    )
    with (places.log / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    relay = [
        "socat",
        f"UNIX-LISTEN:{places.s3_socket},fork,mode=600",
        f"TCP:{HEAD_ADDRESS}:{S3_PORT}",
    ]
    with (places.log / "relay.log").open("wb") as log:
        subprocess.Popen(relay, stdout=log, stderr=log)
    return process


def _reap_for_ever() -> None:
    """Collect the exit codes of orphans, as the first process of a namespace has to."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(_REAP_SECONDS)


if __name__ == "__main__":
    main()
