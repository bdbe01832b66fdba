"""What listens on a node, and whether it answers a client that has no token."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .session import Lab

# A part of a process's command line -> what we call it; the first that fits.
_KINDS = {
    "/gcs/gcs_server ": "gcs",
    "/raylet/raylet ": "raylet",
    "ray::RuntimeEnvAgent": "agent",
    "ray::": "worker",
    "kldcloud.cli.main node ": "driver",
    "sky.skylet.skylet": "SkyPilot",
    "slurmd ": "Slurm",
    "slurmstepd": "Slurm",
    "srun ": "Slurm",
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
asked, token = json.loads(sys.argv[1]), sys.argv[2]
secret = [("authorization", f"Bearer {token}")] if token else []
def over_http(address):
    request = urllib.request.Request(f"http://{address}/get_runtime_envs_info", b"")
    for name, value in secret:
        request.add_header(name, value)
    try:
        return str(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        return str(error.code)
def over_grpc(address, method):
    plain = {"request_serializer": bytes, "response_deserializer": bytes}
    call = grpc.insecure_channel(address).unary_unary(method, **plain)
    try:
        call(b"", timeout=20, metadata=secret)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"
print(json.dumps([
    [over_grpc(address, method) for method in methods] or [over_http(address)]
    for address, methods in asked
]))
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


def answers(lab: Lab, host: str, ray: Sequence[Listener], token: str) -> list[set[str]]:
    """Ask each of Ray's ports for something, from the login node.

    Returns:
        For each, the codes of gRPC (of HTTP, from an agent) that it answered with.
    """
    asked = [(f"{host}:{each.port}", _METHODS.get(each.kind, ())) for each in ray]
    done = lab.run([sys.executable, "-c", _ASK, json.dumps(asked), token])
    assert done.returncode == 0, done.stderr
    return [set(codes) for codes in json.loads(done.stdout)]


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
