"""What a node would fetch from outside, answered from the wheelhouse and this interpreter.

SkyPilot sets up a node with an installer of uv, a Python 3.10 that uv downloads, and wheels. Here
curl knows that installer, uv takes the interpreter of the tests for 3.10, and pip and uv look for
wheels in a folder only. `python3` is that interpreter too: Debian's may lack ensurepip.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .places import Places
from .wheelhouse import unpack_uv

_CURL = """#!/bin/sh
for argument in "$@"; do
    case "$argument" in
    https://*/uv/install.sh)
        echo 'mkdir -p "$UV_INSTALL_DIR" && cp /usr/local/bin/uv "$UV_INSTALL_DIR/uv"'
        exit 0 ;;
    esac
done
exec /usr/bin/curl "$@"
"""
_UV = """#!/bin/bash
words=()
for word in "$@"; do
    [ "$word" = 3.10 ] && word={python}
    words+=("$word")
done
exec {uv} "${{words[@]}}"
"""
# A link would do for Python, but environments made from it would look for Debian's libraries.
_PYTHON = """#!/bin/sh
exec {python} "$@"
"""
_PIP_CONFIGURATION = """[global]
no-index = true
find-links = {wheels}
disable-pip-version-check = true
root-user-action = ignore
"""
_UV_CONFIGURATION = """no-index = true
find-links = ["{wheels}"]
python-downloads = "never"
"""


def base_python() -> Path:
    """Return the interpreter that the environment of the tests was made from."""
    return Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


def write_stand_ins(places: Places) -> None:
    """Fill the folder that /usr/local/bin shows first, and the settings of pip and uv."""
    programs = places.fresh("bin")
    real_uv = places.fresh("uv") / "uv"
    unpack_uv(places.wheels, real_uv)
    _script(programs / "curl", _CURL)
    _script(programs / "uv", _UV.format(python=base_python(), uv=real_uv))
    if base_python().parent != Path("/usr/local/bin"):
        _script(programs / "python3", _PYTHON.format(python=base_python()))
    Path("/etc/pip.conf").write_text(_PIP_CONFIGURATION.format(wheels=places.wheels))
    Path("/etc/uv").mkdir(exist_ok=True)
    Path("/etc/uv/uv.toml").write_text(_UV_CONFIGURATION.format(wheels=places.wheels))


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
