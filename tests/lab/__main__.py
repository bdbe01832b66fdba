"""The lab by hand: `python -m lab up | run ARGV | node NAME ARGV | env | down`, tests/ on the path.

`run` and `node` have the S3 server's AWS settings in their environment; `env` prints them. The
variable KLDCLOUD_LAB names another (short) folder, for a second lab beside the first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from .lifetime import bring_up, find, take_down
from .needs import obstacle
from .places import CHECKOUT, SYSTEM_PATH
from .session import Lab

_FOLDER = Path(os.environ.get("KLDCLOUD_LAB", "/tmp/kldcloud-lab"))  # noqa: S108 - root's alone


def main(words: list[str]) -> None:
    """Do what the first word says."""
    match words:
        case ["up"]:
            if problem := obstacle():
                raise SystemExit(problem)
            with contextlib.suppress(LookupError):
                raise SystemExit(f"already up, as process {find(_FOLDER).pid}")
            # One that died has no mounts left, only files.
            shutil.rmtree(_FOLDER, ignore_errors=True)
            _FOLDER.mkdir(mode=0o700)
            lab = bring_up(_FOLDER, tied=False)
            print(f"up; logs are in {lab.places.log}")  # noqa: T201 - this is its output
        case ["env"]:
            for name, value in find(_FOLDER).s3_env.items():
                print(f"export {name}={value}")  # noqa: T201 - this is its output
        case ["run", *argv] if argv:
            _become(find(_FOLDER), argv, None)
        case ["node", node, *argv] if argv:
            _become(find(_FOLDER), argv, node)
        case ["down"]:
            take_down(find(_FOLDER))
        case _:
            raise SystemExit(__doc__)


def _become(lab: Lab, argv: list[str], node: str | None) -> None:
    terminal = {name: os.environ[name] for name in ("TERM",) if name in os.environ}
    command = lab.inside(argv, node=node, cwd=Path("/") if node else CHECKOUT)
    env = lab.environment({**lab.s3_env, **terminal})
    if node:
        env["PATH"] = SYSTEM_PATH
    os.execvpe(command[0], command, env)  # noqa: S606 - the command takes this one's place


if __name__ == "__main__":
    main(sys.argv[1:])
