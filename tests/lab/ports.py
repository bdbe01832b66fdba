"""What listens on a node, and whether it answers a client that has no token."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .session import Lab

# A part of a process's command line -> what we call it; the first that fits: Slurm's and SkyPilot's
# processes have in theirs what they start.
_KINDS = {
    "slurmd ": "Slurm",
    "slurmstepd": "Slurm",
    "srun ": "Slurm",
    "sky.skylet": "SkyPilot",
    "/gcs/gcs_server ": "gcs",
    "/raylet/raylet ": "raylet",
    "ray::RuntimeEnvAgent": "agent",
    "ray::": "worker",
    "kldcloud.cli.main node ": "driver",
}
RAY = ("gcs", "raylet", "agent", "worker", "driver")
_CORE = ("/ray.rpc.CoreWorkerService/GetCoreWorkerStats",)
_METHODS = {
    "gcs": ("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",),
    # It has two ports, a service each.
    "raylet": ("/ray.rpc.NodeManagerService/GetNodeStats", "/ray.rpc.ObjectManagerService/Pull"),
    "worker": _CORE,
    "driver": _CORE,
}
_ASK = """
import json, sys, urllib.error, urllib.request
import grpc
asked, tokens = json.loads(sys.argv[1]), json.loads(sys.argv[2])
def over_http(address, secret):
    request = urllib.request.Request(f"http://{address}/get_runtime_envs_info", b"")
    for name, value in secret:
        request.add_header(name, value)
    try:
        return str(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return str(error.code)
def over_grpc(address, method, secret):
    plain = {"request_serializer": bytes, "response_deserializer": bytes}
    call = grpc.insecure_channel(address).unary_unary(method, **plain)
    try:
        call(b"", timeout=20, metadata=secret)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
def ask(address, methods, token):
    secret = [("authorization", f"Bearer {token}")] if token else []
    if methods:
        return [over_grpc(address, method, secret) for method in methods]
    return [over_http(address, secret)]
print(json.dumps([[ask(*each, token) for each in asked] for token in tokens]))
"""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port that somebody listens at.

    Attributes:
        address: that it is bound to; `*` for all.
        port: its number.
        kind: whose it is; empty for a process that nobody expected.
    """

    address: str
    port: int
    kind: str


def listeners(lab: Lab, node: str) -> list[Listener]:
    """Return what listens on a node."""
    found = []
    for line in lab.on_node(node, ["ss", "-Htlnp"]).stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        match = re.search(r"pid=(\d+)", line)
        assert match, line
        words = lab.on_node(node, ["cat", f"/proc/{match[1]}/cmdline"]).stdout.replace("\0", " ")
        kinds = (kind for part, kind in _KINDS.items() if part in words)
        found.append(Listener(address, int(port), next(kinds, "")))
    return found


def answers(
    lab: Lab, ray: Sequence[tuple[str, Listener]], tokens: Sequence[str]
) -> list[list[set[str]]]:
    """Ask ports of Ray's for something, from the login node.

    Args:
        lab: where.
        ray: hosts and ports.
        tokens: to ask with; an empty one is none.

    Returns:
        For each token and port the codes of gRPC (of HTTP, from an agent) in the answers.
    """
    asked = [(f"{host}:{each.port}", _METHODS.get(each.kind, ())) for host, each in ray]
    done = lab.run([sys.executable, "-c", _ASK, json.dumps(asked), json.dumps(list(tokens))])
    assert done.returncode == 0, done.stderr
    return [[set(codes) for codes in row] for row in json.loads(done.stdout)]


def ray_token(lab: Lab, node: str) -> str:
    """Return the token that Ray's processes on a node have in their environment."""
    prefix = b"RAY_AUTH_TOKEN="
    found = {
        setting.removeprefix(prefix).decode()
        for each in lab.processes(node)
        if each.command.startswith("ray::")
        for setting in Path(f"/proc/{each.pid}/environ").read_bytes().split(b"\0")
        if setting.startswith(prefix)
    }
    (token,) = found
    return token
