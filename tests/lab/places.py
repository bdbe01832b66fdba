"""Where the lab's parts are: folders, addresses and names that both sides of its wall share."""

from __future__ import annotations

import json
import pwd
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
CHECKOUT = TESTS.parent
# sshd and SkyPilot go by the password file, whatever HOME says outside.
HOME = Path(pwd.getpwuid(0).pw_dir)

CLUSTER = "lab"
HEAD_ADDRESS = "10.200.0.1"
NODES = {"n1": "10.200.0.11", "n2": "10.200.0.12"}
S3_PORT = 8333
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the outside tells the inside, through a file that only root reads."""

    wheels: str
    # Folders under /tmp or the home that the login node goes on seeing.
    visible: list[str]
    s3_access_key: str
    s3_secret_key: str


@dataclass(frozen=True, slots=True)
class Places:
    """The lab's one folder, and what is where in it (the paths are the same inside)."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / "settings.json"

    @property
    def ready_file(self) -> Path:
        """Exists once both nodes are idle and the S3 server takes objects."""
        return self.folder / "ready"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def wheels(self) -> Path:
        """The wheelhouse, mounted here: the home that it lives in is out of sight."""
        return self.folder / "wheels"

    @property
    def certificate(self) -> Path:
        return self.folder / "tls" / "certificate.pem"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def s3_socket(self) -> Path:
        """Leads to the S3 server from outside: sockets in the file system cross namespaces."""
        return self.folder / "s3.sock"

    def keeper_file(self, node: str) -> Path:
        """Has the process that holds a node's namespaces open, by the lab's own numbering."""
        return self.folder / f"{node}.pid"

    def fresh(self, name: str, mode: int = 0o755) -> Path:
        """Return a folder of that name, made if need be."""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        return path

    def write_settings(self, settings: Settings) -> None:
        self.settings_file.touch(mode=0o600)
        self.settings_file.write_text(json.dumps(asdict(settings)))

    def settings(self) -> Settings:
        return Settings(**json.loads(self.settings_file.read_text()))


def interpreter_folders() -> list[Path]:
    """Return what a Python started from this environment reads: its prefix and its base's."""
    base = Path(sys.base_prefix)
    return [Path(sys.prefix), base, base.resolve()]
