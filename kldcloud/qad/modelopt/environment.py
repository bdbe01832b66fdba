"""Where Model Optimizer lives on a machine: how its environment is made, and found again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kldcloud.errors import UserError
from kldcloud.qad.modelopt.pinned import (
    COMMIT,
    EXAMPLE,
    REPOSITORY,
    REQUIREMENTS,
    SOURCE,
    VARIABLE,
    VERSION,
)
from kldcloud.store.digest import sha256_bytes

_PASSED_ON: Final = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "USER")
_PASSED_PREFIXES: Final = ("CUDA_", "NCCL_", "NVIDIA_", "OMP_")


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that is there.

    Attributes:
        folder: a virtual environment with a checkout in it.
    """

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def accelerate(self) -> Path:
        return self.folder / "bin" / "accelerate"

    @property
    def example(self) -> Path:
        """Its scripts."""
        return self.folder / SOURCE / EXAMPLE

    def variables(self, home: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What its processes find in their environment: no secret, and nobody to ask.

        Args:
            home: a folder for what Hugging Face's libraries keep.
            environ: our own.
        """
        passed = {
            name: value
            for name, value in environ.items()
            if name in _PASSED_ON or name.startswith(_PASSED_PREFIXES)
        }
        return {
            **passed,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }


def find_environment(environ: Mapping[str, str] = os.environ) -> Environment:
    """The environment of this machine.

    Raises:
        UserError: there is none.
    """
    named = environ.get(VARIABLE)
    found = Environment(Path(named or "."))
    wanted = (found.python, found.accelerate, found.example / "train.py")
    if not named or not all(each.is_file() for each in wanted):
        told = f"{VARIABLE}={named} is none" if named else f"{VARIABLE} is not set"
        raise UserError(
            f"trainer: modelopt needs an environment with Model Optimizer {VERSION}, and {told}",
            hint="launch on a cluster of provider: skypilot, whose machines get one, or make one"
            " here with python -m kldcloud.qad.modelopt.install FOLDER",
        )
    return found


def folder_name() -> str:
    """The folder's name, which changes with anything that is installed."""
    digest = sha256_bytes("\n".join([COMMIT, *REQUIREMENTS]).encode())[:8]
    return f"modelopt-{VERSION}-{digest}"


def install_script(folder: str, python: str) -> str:
    """Shell lines that make the environment, unless it is there.

    Args:
        folder: where to, as the shell is to read it.
        python: a Python with the module venv, likewise.
    """
    packages = " ".join(map(shlex.quote, REQUIREMENTS))
    return f"""\
if [ ! -f {folder}/.ready ]; then
  echo "kldcloud: installing Model Optimizer {VERSION} on $(hostname)"
  rm -rf {folder}
  {python} -m venv {folder}
  {folder}/bin/python -m pip install --quiet --disable-pip-version-check {packages}
  git init --quiet {folder}/{SOURCE}
  git -C {folder}/{SOURCE} fetch --quiet --depth 1 {REPOSITORY} {COMMIT}
  git -C {folder}/{SOURCE} checkout --quiet FETCH_HEAD -- {EXAMPLE}
fi
touch {folder}/.ready
"""
