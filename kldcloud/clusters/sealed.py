"""Secrets on their way to the machines: sealed in the job's environment, the key in a file.

SkyPilot would take secrets in the clear, but then writes them into its request database and its
managed jobs' YAML, and on Slurm into the command line of srun. So what it is given is sealed with a
key made for this one launch, which travels as a file of mode 0600 in the job's folder: neither
alone says anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from kldcloud.errors import UserError

VARIABLE: Final = "KLDCLOUD_JOB_SEALED"
KEY_FILE: Final = "key"


def seal(values: Mapping[str, str], folder: Path) -> str:
    """Write a new key into the folder; return the values sealed with it."""
    from cryptography.fernet import Fernet

    key = Fernet.generate_key()
    descriptor = os.open(folder / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
    return Fernet(key).encrypt(json.dumps(dict(values)).encode()).decode()


def unseal(folder: Path, environment: MutableMapping[str, str]) -> None:
    """Put a job's secrets into the environment, for this process and those that it starts.

    Raises:
        UserError: the key is missing, or not the one that sealed them.
    """
    from cryptography.fernet import Fernet, InvalidToken

    try:
        sealed = environment.pop(VARIABLE)
        values = json.loads(Fernet((folder / KEY_FILE).read_bytes()).decrypt(sealed.encode()))
    except (KeyError, OSError, ValueError, InvalidToken) as error:
        raise UserError(
            f"the secrets of this job cannot be opened ({type(error).__name__})",
            hint="this command is for the machines of a launch: use kldcloud launch",
        ) from None
    environment.update({str(name): str(value) for name, value in values.items()})
