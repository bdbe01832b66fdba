"""Builds of llama.cpp whose AMX kernels crash: a compiler lost what configures the tiles.

GCC took `_tile_loadconfig` to read 8 bytes of the 64 that it reads, and removed the stores to the
others (its bug 114098, mended in 11.5, 12.4, 13.3 and 14). What llama.cpp then loads is whatever
the stack holds: a quantised matrix may multiply well a hundred times and end the process next.
"""

from __future__ import annotations

import mmap
import re
from functools import cache
from pathlib import Path
from typing import Final

from kldcloud.models.llama_library import build_facts, library_path

_COMPILER: Final = re.compile(rb"GCC: \([^)\0]{0,200}\) (\d{1,3})\.(\d{1,3})\.\d")
_MENDED: Final = {11: 5, 12: 4, 13: 3}
_FIRST_WITHOUT: Final = 14


@cache
def extra_buffers_work() -> bool:
    """Whether llama.cpp may keep quantised weights in the forms that its CPU kernels like best.

    False for a build with AMX by one of those compilers. Its weights then stay as their file has
    them, which avoids those kernels, costs some speed and moves last bits.
    """
    if "AMX_INT8" not in build_facts()["instructions"].split():
        return True
    return not any(map(_loses_tiles, _compilers(library_path("cpu"))))


def _compilers(library: Path) -> set[tuple[int, int]]:
    """Major and minor version of every GCC that had a part in a library."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {(int(major), int(minor)) for major, minor in _COMPILER.findall(data)}


def _loses_tiles(version: tuple[int, int]) -> bool:
    major, minor = version
    return major < _FIRST_WITHOUT and minor < _MENDED.get(major, 100)
