"""Ray across the machines of a SkyPilot job: the driver's has the head, the others join it.

Ray listens on every interface unless it is told loopback (it knows no third choice), so what keeps
strangers out is the token that every connection needs, and the cloud's firewall, in which SkyPilot
opens no port of Ray's. There is no dashboard, no client server and no metrics port.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kldcloud.clusters.ray_actors import (
    ENVIRONMENT,
    GLOO_INTERFACE,
    NODE_SHARE,
    OBJECT_STORE_BYTES,
    RayActors,
    first_line,
    keep_off_stdout,
)
from kldcloud.clusters.sky_task import RAY_TOKEN
from kldcloud.errors import EngineError, UserError
from kldcloud.pipeline.machines import NodeFacts, Seat, WorkerSettings, World, this_node

GCS_PORT = 6391
"""Not Ray's own 6379, nor SkyPilot's 6380: either may run beside ours."""
JOIN_SECONDS = 900.0
"""Set-up ends at different times on different machines."""
MACHINE = "machine"
"""What Ray calls the room for training processes on any of our machines, and"""
MACHINE_PARTS = 10_000
"""how many parts it has."""
LOST_SECONDS = 20.0
"""How long the head's port may be closed before the others take the run for ended."""


_SIOCGIFADDR = 0x8915
"""netdevice(7): the address of an interface, 4 bytes at 20 of a `struct ifreq`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among the machines of its job.

    Attributes:
        rank: 0 drives.
        addresses: private addresses of all machines, by rank.
        gpus: of each machine.
        token: that all of Ray asks for.
    """

    rank: int
    addresses: tuple[str, ...]
    gpus: int
    token: str

    @property
    def address(self) -> str:
        return self.addresses[self.rank]

    @property
    def resource(self) -> str:
        """What Ray calls this machine."""
        return node_name(self.rank)

    @property
    def resources(self) -> dict[str, float]:
        """What Ray has of this machine, beside processors."""
        return {self.resource: 1.0, MACHINE: float(MACHINE_PARTS)}


def node_name(rank: int) -> str:
    return f"node-{rank}"


def place_from(environment: Mapping[str, str]) -> Place:
    """The place that SkyPilot's variables tell.

    Raises:
        UserError: if this is no SkyPilot job.
    """
    try:
        rank = int(environment["SKYPILOT_NODE_RANK"])
        addresses = tuple(environment["SKYPILOT_NODE_IPS"].split())
        gpus = int(float(environment.get("SKYPILOT_NUM_GPUS_PER_NODE") or 0))
        token = environment[RAY_TOKEN]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"this is not a job of kldcloud on SkyPilot: {error}", hint="use kldcloud launch"
        ) from error
    if not 0 <= rank < len(addresses):
        raise UserError(f"rank {rank} of {len(addresses)} machines does not exist")
    return Place(rank, addresses, gpus, token)


class RayNodes:
    """All machines of a job, seen from the driver's; Ray's head for the length of the block."""

    remote = True

    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder: str | None = None
        self._facts: tuple[NodeFacts, ...] | None = None

    def __enter__(self) -> Self:
        prepare_environment(self._place)
        os.environ["RAY_GCS_SERVER_PORT"] = str(GCS_PORT)
        import ray

        keep_off_stdout()
        self._folder = tempfile.mkdtemp(prefix="kld-")
        try:
            ray.init(
                address="local",
                num_cpus=1,
                num_gpus=_gpus(self._place),
                resources=self._place.resources,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=True,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=self._place.address,
                _temp_dir=self._folder,
            )
        except (RuntimeError, OSError, ValueError, TimeoutError) as error:
            raise EngineError(f"Ray did not start: {first_line(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def nodes(self) -> Sequence[NodeFacts]:
        """Every machine's facts, in order of rank; waits until all have joined.

        Raises:
            EngineError: if one does not come.
        """
        if self._facts is None:
            self._wait_for_all()
            import ray

            probe = ray.remote(num_cpus=0, max_retries=3)(this_node)
            names = [node_name(rank) for rank in range(len(self._place.addresses))]
            try:
                self._facts = tuple(
                    ray.get(
                        [probe.options(resources={name: NODE_SHARE}).remote(name) for name in names]
                    )
                )
            except ray.exceptions.RayError as error:
                raise EngineError(
                    f"a machine could not tell what it is: {first_line(error)}",
                    hint="look at its logs: kldcloud logs",
                ) from error
        return self._facts

    def start(self, seats: Sequence[Seat], settings: WorkerSettings) -> RayActors:
        return RayActors(seats, settings)

    @contextlib.contextmanager
    def room(self, world: World) -> Iterator[Mapping[str, float]]:
        # Each machine has parts for its own processes and not for one more of another's.
        parts = {MACHINE: float(MACHINE_PARTS // world.each)}
        yield {**parts, "GPU": 1.0} if world.gpus else parts

    def end(self) -> None:
        """Actors end with their handles; Ray itself goes on to the end of the block."""

    def _wait_for_all(self) -> None:
        import ray

        wanted = len(self._place.addresses)
        deadline = time.monotonic() + JOIN_SECONDS
        while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{there} of {wanted} machines joined within {JOIN_SECONDS:.0f} s",
                    hint="kldcloud logs shows what the others say; launch the job again",
                )
            time.sleep(0.5)


def join(place: Place) -> int:
    """Lend this machine to the driver's Ray until the driver ends; returns the exit code.

    Ray's processes here are started again if they die while the head lives.
    """
    prepare_environment(place)
    head = (place.addresses[0], GCS_PORT)
    deadline = time.monotonic() + JOIN_SECONDS
    while not _answers(head):
        if time.monotonic() > deadline:
            sys.stderr.write(f"kldcloud: no driver on {head[0]} within {JOIN_SECONDS:.0f} s\n")
            return 1
        time.sleep(0.5)
    while _answers(head):
        with _raylet(place, head) as process:
            _watch(process, head)
    return 0


def prepare_environment(place: Place) -> None:
    """Set what Ray reads when it is imported or started, and forget what others set for theirs."""
    for name in ("RAY_ADDRESS", "RAY_JOB_ID", "RAY_RAYLET_PID"):
        os.environ.pop(name, None)
    os.environ.update(ENVIRONMENT)
    os.environ["RAY_AUTH_TOKEN"] = place.token
    interface = _interface_of(place.address)
    if interface is not None:
        os.environ[GLOO_INTERFACE] = interface


def _interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None if none says so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            with contextlib.suppress(OSError):
                reply = fcntl.ioctl(any_socket, _SIOCGIFADDR, request)
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return None


def _gpus(place: Place) -> int:
    # A scheduler may lend a device that is no NVIDIA GPU, as a test cluster's does.
    return min(place.gpus, this_node().gpus)


@contextlib.contextmanager
def _raylet(place: Place, head: tuple[str, int]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
    command += [f"--address={head[0]}:{head[1]}", f"--node-ip-address={place.address}"]
    command += ["--num-cpus=1", f"--num-gpus={_gpus(place)}", "--disable-usage-stats", "--block"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += ["--resources", json.dumps(place.resources)]
    process = subprocess.Popen(  # noqa: S603 - Ray's own command, arguments as a list
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _watch(process: subprocess.Popen[bytes], head: tuple[str, int]) -> None:
    """Return when Ray's processes here have ended, or the head has been away for too long."""
    last = time.monotonic()
    while process.poll() is None:
        if _answers(head):
            last = time.monotonic()
        elif time.monotonic() - last > LOST_SECONDS:
            return
        time.sleep(1.0)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5.0).close()
    except OSError:
        return False
    return True
