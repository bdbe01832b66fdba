"""The wheels that a node without a network installs from: made once, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_NAME = re.compile(r"([A-Za-z0-9._-]+)(\[[a-z,]+\])?")


def wheelhouse() -> Path:
    """Return the folder of wheels for this interpreter; the first call downloads them (minutes).

    One folder serves SkyPilot's own set-up of a node, our package with its engine, and the builds
    of both packages' wheels. What our package asks for directly has the versions of this very
    environment, so that a node computes with the libraries that a local run computes with.
    """
    groups = _requirements()
    text = "\n".join([sys.version, platform.machine(), *(" ".join(group) for group in groups)])
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kldcloud"
    folder = cache / f"wheelhouse-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="wheelhouse-part-", dir=cache))
    try:
        constraints = part / "constraints.txt"
        # pip takes no extras there.
        constraints.write_text(re.sub(r"\[.*?\]", "", "\n".join(groups[0])) + "\n")
        # One call a group: pip would rightly find that their wishes contradict each other.
        for group in groups:
            _pip_wheel(part, group, constraints)
        if not folder.is_dir():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def unpack_uv(wheels: Path, target: Path) -> None:
    """Write the uv program of the wheelhouse to `target`."""
    wheel = next(wheels.glob("uv-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
        target.write_bytes(archive.read(name))
    target.chmod(0o755)


def _requirements() -> list[list[str]]:
    """Return groups of requirements, each consistent in itself; our package's is the first."""
    project = tomllib.loads(_PROJECT.read_text())
    ours = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    engine = extras["llama"]
    asked = sorted({*extras["hf"], *extras["qad"]})
    found = [match for text in (*ours, *asked) if (match := _NAME.match(text))]
    return [
        [*(f"{match[0]}=={version(match[1])}" for match in found), *engine],
        [f"skypilot[slurm,remote]=={version('skypilot')}"],
        ["pip", "uv", "wheel", "setuptools<70"],
        project["build-system"]["requires"],
    ]


def _pip_wheel(folder: Path, requirements: list[str], constraints: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder)]
    command += ["--constraint", str(constraints), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"pip wheel {' '.join(requirements)} failed:\n{done.stderr[-2000:]}"
        raise RuntimeError(message)
