"""Whose processes are whose, on a machine that others work on as well."""

from __future__ import annotations

from pathlib import Path


def descendants(root: int) -> set[int]:
    """A process and all that came of it and still live."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found
