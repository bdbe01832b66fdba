"""Make Model Optimizer's environment on this machine: python -m kldcloud.qad.modelopt.install."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

from kldcloud.qad.modelopt.environment import install_script
from kldcloud.qad.modelopt.pinned import VARIABLE

_ARGUMENTS: Final = 2


def main() -> int:
    """Install into the folder that is named; the exit code is the shell's."""
    if len(sys.argv) != _ARGUMENTS:
        sys.stderr.write("usage: python -m kldcloud.qad.modelopt.install FOLDER\n")
        return 2
    folder = Path(sys.argv[1]).absolute()
    script = install_script(shlex.quote(str(folder)), shlex.quote(sys.executable))
    code = subprocess.run(["bash", "-c", f"set -e\n{script}"], check=False).returncode  # noqa: S603, S607
    if code == 0:
        sys.stdout.write(f"export {VARIABLE}={shlex.quote(str(folder))}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
