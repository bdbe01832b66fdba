"""The optional half of the package: torch, transformers, and what Ray needs to train."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from kldcloud.errors import UserError
from kldcloud.models.transformers_library import quieten

MODELS: Final = ("torch", "transformers")
"""What a model is computed with."""
_TRAINING: Final = (*MODELS, "pandas", "requests")
"""The last two by Ray Train, whose own extra brings them."""


def require_extra(needed: Sequence[str] = _TRAINING) -> None:
    """Say what to install where something that training imports is missing; imports none of it.

    Modules that import them at their top are imported after this.

    Args:
        needed: names of modules; a whole launch needs more than its models.

    Raises:
        UserError: if one is missing.
    """
    quieten()
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UserError(
            f"training needs {', '.join(missing)}, not installed here",
            hint="pip install 'kldcloud[qad]'",
        )
