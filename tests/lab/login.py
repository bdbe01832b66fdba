"""The login node: sshd for SkyPilot to come in by, and the user's own SkyPilot settings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .places import CLUSTER, HOME, Places

_SSHD = """Port 2222
ListenAddress 127.0.0.1
HostKey {folder}/hostkey
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
# SkyPilot opens a connection for nearly everything that it does.
MaxStartups 200
MaxSessions 200
Subsystem sftp internal-sftp
"""
_SSH_ALIAS = """Host {cluster}
    HostName 127.0.0.1
    Port 2222
    User root
    IdentityFile {key}
    IdentitiesOnly yes
"""
# Without consolidation a managed job wants a machine of its own for its controller.
_SKY = """jobs:
  controller:
    consolidation_mode: true
"""


def open_login_node(places: Places) -> None:
    """Start sshd on loopback and write `~/.ssh`, `~/.slurm` and `~/.sky`."""
    folder = places.fresh("ssh", 0o700)
    key = _own_folder(".ssh") / "lab"
    _make_key(folder / "hostkey")
    _make_key(key)
    shutil.copy(key.with_suffix(".pub"), key.with_name("authorized_keys"))
    configuration = folder / "sshd_config"
    configuration.write_text(_SSHD.format(folder=folder))
    log = places.log / "sshd.log"
    # sshd starts itself anew for each connection, so it wants its whole path.
    subprocess.run(["/usr/sbin/sshd", "-f", str(configuration), "-E", str(log)], check=True)
    alias = _own_folder(".slurm") / "config"
    alias.write_text(_SSH_ALIAS.format(cluster=CLUSTER, key=key))
    sky = _own_folder(".sky")
    (sky / "config.yaml").write_text(_SKY)
    # SkyPilot takes a catalogue that is there as it is, and fetches none.
    catalogue = sky / "catalogs" / "v8" / "common"
    catalogue.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("accelerators.csv"), catalogue)


def _own_folder(name: str) -> Path:
    folder = HOME / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
