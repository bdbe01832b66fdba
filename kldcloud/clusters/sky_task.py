"""A launch as a SkyPilot task: what is copied to the machines, set up there, and run."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kldcloud.clusters.sealed import VARIABLE
from kldcloud.errors import UserError
from kldcloud.models.digests import model_sha256
from kldcloud.qad.modelopt.environment import folder_name as modelopt_folder
from kldcloud.qad.modelopt.environment import install_script
from kldcloud.qad.modelopt.pinned import VARIABLE as MODELOPT_VARIABLE
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.store.digest import sha256_bytes

RAY_TOKEN: Final = "KLDCLOUD_JOB_RAY_TOKEN"  # noqa: S105 - the variable's name
"""Variable in which the machines of a launch share Ray's token."""

FORWARDED: Final = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "HF_ENDPOINT",
)
"""Settings without secrets that the machines need to find the same store; sent if they are set."""

# On Slurm, SkyPilot gives each of its clusters a home of its own and removes it with the cluster:
# an environment there would be compiled again for every launch. The account's own home may be
# shared by machines of several kinds, and the engine is compiled for one.
_ENVIRONMENT: Final = """\
home="$(getent passwd "$(id -u)" | cut -d: -f6)"
[ -w "$home" ] || home="$HOME"
home="$home/.kldcloud"
kind="$(uname -m) $(grep -m1 '^model name' /proc/cpuinfo || true)"
[ ! -e /proc/driver/nvidia/version ] || kind="$kind nvidia"
environment="$home/env-{digest}-{extras}-$(printf %s "$kind" | sha256sum | cut -c1-8)"
"""

# SkyPilot's images may have an older Python only; uv, which SkyPilot itself puts there, brings one.
_SETUP: Final = """\
mkdir -p "$home"
exec 9>"$environment.lock"
flock 9
if [ ! -f "$environment/.ready" ]; then
  echo "kldcloud: installing on $(hostname)"
  rm -rf "$environment"
  python=""
  for each in python3.13 python3.12 python3.11 python3; do
    if "$each" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>&-; then
      python="$each"; break
    fi
  done
  if [ -n "$python" ]; then
    "$python" -m venv "$environment"
  else
    export PATH="$PATH:$HOME/.local/bin"
    uv venv --quiet --seed --python 3.12 "$environment"
  fi
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    export PATH="$PATH:/usr/local/cuda/bin"
    export CMAKE_ARGS="{cmake} -DGGML_CUDA=on"
  else
    export CMAKE_ARGS="{cmake}"
  fi
  CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" "$environment/bin/python" -m pip install --quiet \\
    --disable-pip-version-check "kldcloud[{extras}] @ file://$PWD/{wheel}"{packages}
fi
touch "$environment/.ready"
find "$home" -mindepth 2 -maxdepth 2 -name .ready -mtime +{days} -printf '%h\\0' |
  xargs -0 -r rm -rf
"""
_UNUSED_DAYS: Final = 30
"""An environment that nothing was launched in for so long is removed: each has a gigabyte."""

_CMAKE: Final = (
    "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"
    " -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
)


@dataclass(frozen=True, slots=True)
class LaunchFolder:
    """The folder that travels to the machines: the wheel, and files that say what to do.

    Attributes:
        path: the folder; nothing else is in it.
        wheel: the wheel's file name.
        needs_hub: whether a machine will fetch from the Hugging Face Hub.
        trains: whether machines will train.
        runs_folders: whether any model is a folder of safetensors.
        recipes: whether any is quantised while it is loaded.
        modelopt: whether they need an environment with NVIDIA Model Optimizer.
    """

    path: Path
    wheel: str
    needs_hub: bool
    trains: bool = False
    runs_folders: bool = False
    recipes: bool = False
    modelopt: bool = False

    @property
    def extras(self) -> list[str]:
        """What is installed with the wheel, beside what every machine needs."""
        asked = {
            "llama": True,
            "hub": self.needs_hub,
            "hf": self.runs_folders,
            "recipes": self.recipes,
            "qad": self.trains,
        }
        return [name for name, wanted in asked.items() if wanted]


def task_config(
    name: str,
    cluster: ClusterSpec,
    folder: LaunchFolder,
    sealed: str,
) -> dict[str, Any]:
    """The task as SkyPilot's YAML would say it.

    Args:
        name: of the task.
        cluster: where it runs.
        folder: what travels.
        sealed: its secrets; see `sealed.seal`.
    """
    digest = model_sha256(folder.path / folder.wheel)[:12]
    setup = "set -e\n"
    if cluster.setup:
        setup += cluster.setup.rstrip() + "\n"
    environment = _ENVIRONMENT.format(digest=digest, extras=_named(folder, cluster))
    setup += environment
    setup += _SETUP.format(
        wheel=shlex.quote(folder.wheel),
        extras=",".join(folder.extras),
        packages="".join(f" {shlex.quote(each)}" for each in cluster.packages),
        cmake=_CMAKE,
        days=_UNUSED_DAYS,
    )
    run = environment
    if folder.modelopt:
        named = f'export {MODELOPT_VARIABLE}="$home/{modelopt_folder()}-$(uname -m)"\n'
        setup += named + install_script(f'"${MODELOPT_VARIABLE}"', '"$environment/bin/python"')
        run += named
    return {
        "name": name,
        "num_nodes": cluster.nodes,
        "workdir": str(folder.path),
        "resources": dict(cluster.resources),
        "envs": {**_forwarded(), **cluster.envs, VARIABLE: sealed},
        "setup": setup,
        # exec: SkyPilot's signals and exit codes are the driver's own.
        "run": f'{run}exec "$environment/bin/python" -m kldcloud.cli.main node .\n',
    }


def _named(folder: LaunchFolder, cluster: ClusterSpec) -> str:
    """What tells environments of one wheel apart: extras, and the cluster's packages."""
    names = [*folder.extras]
    if cluster.packages:
        names.append(sha256_bytes("\n".join(cluster.packages).encode())[:8])
    return "-".join(names)


def secrets_of(cluster: ClusterSpec) -> dict[str, str]:
    """The values of a cluster's secrets, from this process's environment.

    Raises:
        UserError: if one is not set; its name alone is repeated.
    """
    values = {}
    for name in cluster.secrets:
        plain = name.removesuffix("?")
        value = os.environ.get(plain)
        if value:
            values[plain] = value
        elif plain == name:
            raise UserError(
                f"the cluster needs the secret {name}, which is not set here",
                hint=f"export {name}, or write '{name}?' in the cluster file if it may be missing",
            )
    return values


def _forwarded() -> dict[str, str]:
    return {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}
