"""The one error root: what happened, where, and the next step."""

from __future__ import annotations

from typing import ClassVar


class KldcloudError(Exception):
    """Something that the person at the terminal should read as one line.

    The library raises these and never exits; only the command line turns them into an exit code.

    Args:
        message: what happened, and to which file, field or object.
        hint: the next command or change to try, without a full stop.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross from Ray's workers to the driver: the default would lose the hint.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[KldcloudError], message: str, hint: str | None) -> KldcloudError:
    return kind(message, hint=hint)


class UserError(KldcloudError):
    """Input that a person can correct: exit code 2, nothing half-written."""

    exit_code: ClassVar[int] = 2


class SpecError(UserError):
    """A job or cluster file, or a URI in it, that does not say what it must."""


class FormatError(UserError):
    """A GGUF, .kld or store object that is not what its name or header claims."""


class StoreError(UserError):
    """A store that cannot be reached, written or trusted."""


class EngineError(KldcloudError):
    """An engine that is missing, refuses a model, or fails to evaluate a chunk."""


class PartialFailureError(KldcloudError):
    """A run of which some candidates failed; the others finished and are reported."""
