"""Slurm: one controller on the login node, one daemon a compute node, munge between them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from .network import enter_node
from .places import CLUSTER, HEAD_ADDRESS, NODES, Places

_IDLE_SECONDS = 60.0
_CONFIGURATION = """
ClusterName={cluster}
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=5
SlurmdTimeout=60
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
StateSaveLocation={spool}/controller
SlurmdSpoolDir={spool}/%n
SlurmctldLogFile={log}/slurmctld.log
SlurmdLogFile={log}/slurmd.%n.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
# The nodes are what the lines below say, whatever the machine under them has.
SlurmdParameters=config_overrides
"""
_NODE = "NodeName={name} NodeAddr={address} CPUs=4 RealMemory=8000 Gres=gpu:rtx5080:1\n"
_PARTITION = "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"


def start_cluster(places: Places) -> None:
    """Write the configuration and start munge, the controller and both nodes' daemons."""
    _start_munge(places)
    spool = places.fresh("spool")
    for name in ("controller", *NODES):
        places.fresh(f"spool/{name}")
    configuration = _CONFIGURATION.format(
        cluster=CLUSTER, head=HEAD_ADDRESS, spool=spool, log=places.log
    )
    nodes = (_NODE.format(name=name, address=address) for name, address in NODES.items())
    etc = Path("/etc/slurm")
    etc.mkdir(exist_ok=True)
    (etc / "slurm.conf").write_text(configuration + "".join(nodes) + _PARTITION)
    # A device that every machine has: Slurm hands out the name, and nothing opens it.
    gres = (f"NodeName={name} Name=gpu Type=rtx5080 File=/dev/null\n" for name in NODES)
    (etc / "gres.conf").write_text("".join(gres))
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    subprocess.run(["slurmctld", "-c"], check=True)
    for name in NODES:
        subprocess.run([*enter_node(places, name), *slurmd(name)], check=True)


def slurmd(node: str) -> list[str]:
    """Return the command that starts a node's daemon, to be run on that node; it returns soon."""
    return ["slurmd", "-N", node]


def wait_until_idle() -> None:
    """Return once every node waits for work.

    Raises:
        RuntimeError: that takes too long.
    """
    deadline = time.monotonic() + _IDLE_SECONDS
    while True:
        asked = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
        if set(answer.stdout.split()) == set(NODES):
            return
        if time.monotonic() > deadline:
            message = f"idle nodes: {answer.stdout.split()} {answer.stderr}"
            raise RuntimeError(message)
        time.sleep(0.2)


def _start_munge(places: Places) -> None:
    key = Path("/run/munge/key")
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    files = {
        "key-file": key,
        "seed-file": Path("/run/munge/seed"),
        "pid-file": Path("/run/munge/munged.pid"),
        "log-file": Path("/run/munge/munged.log"),
    }
    with (places.log / "munged.out").open("wb") as log:
        subprocess.run(
            ["munged", *(f"--{name}={path}" for name, path in files.items())],
            check=True,
            stdout=log,
            stderr=log,
        )
