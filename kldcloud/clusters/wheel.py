"""A wheel of the kldcloud that runs here: other machines must run the very same code."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import kldcloud
from kldcloud.errors import UserError

EXTRAS: Final = ("llama", "hub", "hf", "recipes", "qad")
"""What machines may be asked to install beside the package."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can hold: the same code makes the same bytes."""


def build_wheel(folder: Path) -> Path:
    """Write the wheel into a folder; its file name is that of the version.

    Nothing is built and nothing is fetched: the package is Python alone, so that its files and the
    metadata of the installed distribution are all there is to a wheel (PEP 427).

    Raises:
        UserError: if kldcloud runs without being installed, or was installed before it had the
            extras that it has now.
    """
    try:
        installed = distribution("kldcloud")
        # An editable checkout may have its metadata in the older place only.
        metadata = installed.read_text("METADATA") or installed.read_text("PKG-INFO")
    except PackageNotFoundError:
        metadata = None
    if metadata is None:
        raise UserError(
            "this kldcloud is not installed, so other machines cannot install it",
            hint="pip install --editable . in its folder",
        )
    offered = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    if missing := sorted(set(EXTRAS) - offered):
        # pip would warn of an extra that it does not know, and install the rest.
        raise UserError(
            f"kldcloud was installed before it had the extra {missing[0]!r}, so other machines "
            "would miss packages",
            hint="pip install --editable . in its folder, as it was installed",
        )
    version = kldcloud.__version__
    info = f"kldcloud-{version}.dist-info"
    files = {
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: kldcloud\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": b"[console_scripts]\nkldcloud = kldcloud.cli.main:main\n",
    }
    package = Path(kldcloud.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files[f"kldcloud/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    record = f"{info}/RECORD"
    lines = [f"{name},{_digest(data)},{len(data)}" for name, data in files.items()]
    files[record] = ("\n".join([*lines, f"{record},,"]) + "\n").encode()
    wheel = folder / f"kldcloud-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
