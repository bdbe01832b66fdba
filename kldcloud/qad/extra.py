"""The optional half of the package: torch and transformers."""

from __future__ import annotations

from importlib.util import find_spec

from kldcloud.errors import UserError


def require_extra() -> None:
    """Say what to install where torch or transformers is missing; imports neither.

    Modules that import them at their top are imported after this.

    Raises:
        UserError: if one is missing.
    """
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"training needs {' and '.join(missing)}, not installed here",
            hint="pip install 'kldcloud[qad]'",
        )
