"""SkyPilot's library as we take it: errors in one line, output on stderr, no keys of ours."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from kldcloud.errors import EngineError, UserError

_KEPT_LINES: Final = 20
_KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class LogTee(io.TextIOBase):
    """A job's log on stderr, in colours where that is a terminal; its last lines kept, without."""

    def __init__(self) -> None:
        self.last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        plain = _COLOUR.sub("", text)
        sys.stderr.write(text if sys.stderr.isatty() else plain)
        *lines, self._line = (self._line + plain).split("\n")
        self.last.extend(line.strip() for line in lines if line.strip())
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextlib.contextmanager
def sky_library() -> Iterator[Any]:
    """The library as `sky_errors` gives it, all that it prints on stderr, and our keys hidden.

    Raises:
        KldcloudError: as `sky_errors`.
    """
    with sky_errors() as sky:
        # It prints where results go, and its logger holds on to the stdout that it was imported
        # with.
        for handler in logging.getLogger("sky").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(LogTee())
        with contextlib.redirect_stdout(LogTee()), _without_keys():
            yield sky


@contextlib.contextmanager
def sky_errors() -> Iterator[Any]:
    """The library, its errors as lines of ours.

    Raises:
        UserError: SkyPilot is missing, has no access, or no machine.
        EngineError: anything else that went wrong in it.
    """
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    try:
        import sky
        from sky import exceptions
    except ImportError:
        raise UserError("SkyPilot is not installed", hint="pip install 'kldcloud[sky]'") from None
    try:
        yield sky
    except exceptions.ResourcesUnavailableError as error:
        raise EngineError(
            f"no machine could be had: {_line(error)}",
            hint="launch again later, or allow more clouds, regions or kinds in the cluster file",
        ) from error
    except exceptions.NoCloudAccessError as error:
        raise UserError(
            f"SkyPilot has no access to a cloud: {_line(error)}",
            hint="run sky check",
        ) from error
    except exceptions.ApiServerConnectionError as error:
        raise EngineError(
            f"SkyPilot's API server does not answer: {_line(error)}", hint="run sky api status"
        ) from error
    except exceptions.RequestCancelled as error:
        raise EngineError(
            "its machines were given back while they were being set up",
            hint="the same command asks for them again",
        ) from error
    except exceptions.ClusterNotUpError as error:
        raise UserError(f"its machines are not up: {_line(error)}") from error
    except (exceptions.NotSupportedError, ValueError) as error:
        raise UserError(f"SkyPilot refuses: {_line(error)}") from error
    # What its server could not open comes back as the OSError that it was there.
    except (
        exceptions.CommandError,
        exceptions.ClusterDoesNotExist,
        RuntimeError,
        OSError,
    ) as error:
        raise EngineError(f"SkyPilot: {_line(error)}", hint="run sky status") from error


@contextlib.contextmanager
def _without_keys() -> Iterator[None]:
    """Keep a store's keys from SkyPilot, unless it rents from AWS and may need them itself.

    Its server writes what it finds of them, in requests or when it starts, into a file.
    """
    from sky import global_user_state
    from sky.clouds.cloud import CloudCapability

    rents = global_user_state.get_cached_enabled_clouds(CloudCapability.COMPUTE, "default")
    hidden = () if any(str(cloud) == "AWS" for cloud in rents) else _KEYS
    kept = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
