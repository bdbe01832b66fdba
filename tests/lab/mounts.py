"""Folders that the lab puts in place of the machine's own, for itself alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .places import CHECKOUT, HEAD_ADDRESS, HOME, NODES, Places, Settings, interpreter_folders

_TMP = Path("/tmp")  # noqa: S108 - the very folder that is covered with a private one


def cover_login_node(places: Places, settings: Settings) -> None:
    """Give the lab an /etc, a /run, a /tmp and a home of its own; the wheels become readable."""
    bind(Path(settings.wheels), places.fresh("wheels"))
    _private_etc(places)
    _memory("/run", "mode=755")
    _memory("/dev/shm", "mode=1777")  # noqa: S108 - Ray's objects, which a killed node leaves behind
    for folder in ("sshd", "munge"):
        (Path("/run") / folder).mkdir()
    visible = [places.folder, CHECKOUT, *interpreter_folders(), *map(Path, settings.visible)]
    _cover(_TMP, places.fresh("tmp/login", 0o1777), visible)
    _cover(HOME, places.fresh("home", 0o700), visible)
    _own_programs(places)


def cover_node(places: Places, node: str) -> None:
    """Give a compute node its own /tmp and shared memory, and take this checkout from it.

    The home stays shared, as on most Slurm clusters. The environment of the tests stays visible,
    so that a test can look around with it, but what it would import from the checkout is gone.
    """
    _memory("/dev/shm", "mode=1777")  # noqa: S108 - as above
    keep = [path for path in interpreter_folders() if path.is_relative_to(CHECKOUT)]
    _cover(CHECKOUT, places.fresh(f"nothing/{node}"), keep)
    _cover(_TMP, places.fresh(f"tmp/{node}", 0o1777), [places.folder, *interpreter_folders()])


def bind(source: Path, target: Path) -> None:
    """Show `source` at `target` as well."""
    _mount("--bind", str(source), str(target))


def _cover(target: Path, fresh: Path, visible: Iterable[Path]) -> None:
    """Put `fresh` in the place of `target`; the visible folders under it stay where they are."""
    kept: list[Path] = []
    for path in sorted(set(visible)):
        if not path.is_relative_to(target) or any(path.is_relative_to(each) for each in kept):
            continue
        kept.append(path)
        stand_in = fresh / path.relative_to(target)
        stand_in.mkdir(parents=True, exist_ok=True)
        _mount("--rbind", str(path), str(stand_in))
    _mount("--rbind", str(fresh), str(target))


def _private_etc(places: Places) -> None:
    """Cover /etc with a copy, and change there what must not reach the machine's own."""
    copy = places.folder / "etc"
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "--archive", "/etc", str(copy)], check=True)
    names = {"localhost": "127.0.0.1", "head": HEAD_ADDRESS, **NODES}
    _replace(copy / "hosts", "".join(f"{address} {name}\n" for name, address in names.items()))
    # Nobody listens there: a name that is not in the hosts file fails at once.
    _replace(copy / "resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    # sshd lets nobody in whose password is locked, not even with a key.
    shadow = copy / "shadow"
    shadow.write_text(re.sub(r"^root:![^:]*:", "root:*:", shadow.read_text(), flags=re.MULTILINE))
    bind(copy, Path("/etc"))


def _own_programs(places: Places) -> None:
    """Put the lab's stand-ins before the machine's programs, on every PATH that Debian sets."""
    layers = f"lowerdir={places.fresh('bin')}:/usr/local/bin"
    _mount("-t", "overlay", "overlay", "-o", layers, "/usr/local/bin")


def _replace(path: Path, text: str) -> None:
    # It may be a link into /run.
    path.unlink(missing_ok=True)
    path.write_text(text)


def _memory(target: str, options: str) -> None:
    _mount("-t", "tmpfs", "-o", options, "tmpfs", target)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
