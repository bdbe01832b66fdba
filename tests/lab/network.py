"""A bridge with the login node's address, and the compute nodes' network namespaces on it."""

from __future__ import annotations

import subprocess
import sys

from .places import HEAD_ADDRESS, NODES, Places


def raise_bridge() -> None:
    """Bring up loopback and a bridge that leads nowhere but to the nodes."""
    _ip("link set lo up")
    _ip("link add br0 type bridge")
    _ip(f"address add {HEAD_ADDRESS}/24 dev br0")
    _ip("link set br0 up")


def add_node(places: Places, node: str) -> None:
    """Make a node's namespaces, start their keeper, and wire the node to the bridge."""
    _ip(f"netns add {node}")
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--uts", sys.executable, "-m", "lab.node", str(places.folder), node],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert keeper.stdout is not None
    if keeper.stdout.readline() != "ready\n":
        message = f"no node {node}"
        raise RuntimeError(message)
    places.keeper_file(node).write_text(str(keeper.pid))
    _ip(f"link add to-{node} type veth peer name eth0 netns {node}")
    _ip(f"link set to-{node} master br0 up")
    _ip(f"-netns {node} link set lo up")
    _ip(f"-netns {node} address add {NODES[node]}/24 dev eth0")
    _ip(f"-netns {node} link set eth0 up")


def enter_node(places: Places, node: str, root: str = "") -> list[str]:
    """Return the start of a command that goes on inside a node.

    Args:
        places: the lab's.
        node: its name.
        root: where the lab's own root folder is: nowhere else inside, /proc/PID/root outside.
    """
    keeper = f"{root}/proc/{places.keeper_file(node).read_text()}/ns"
    # Not `ip netns exec`, which would mount /sys anew.
    net = f"--net={root}/run/netns/{node}"
    return ["nsenter", net, f"--mount={keeper}/mnt", f"--uts={keeper}/uts"]


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
