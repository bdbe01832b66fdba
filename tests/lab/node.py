"""A compute node's keeper, `python -m lab.node FOLDER NODE`: makes its mounts and holds them open.

It lives outside the node's network: whoever kills every process of the node leaves a machine that
can start again. (Files could hold a mount namespace open as well, but Linux 6.18 numbers
namespaces by processor, and then takes some of them for loops.)
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from .mounts import cover_node
from .places import Places

if __name__ == "__main__":
    folder, name = sys.argv[1:]
    os.chdir("/")
    socket.sethostname(name)
    cover_node(Places(Path(folder)), name)
    print("ready", flush=True)  # noqa: T201 - read by network.add_node
    os.execvp("sleep", ["sleep", "infinity"])  # noqa: S606 - waiting takes no interpreter
