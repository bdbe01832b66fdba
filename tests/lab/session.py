"""A lab that is up, from outside: run commands in it, look at it, break it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from store_server import BUCKET, S3Server, aws_environment

from .network import enter_node
from .places import CHECKOUT, HEAD_ADDRESS, HOME, S3_PORT, SYSTEM_PATH, Places
from .slurm import slurmd


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a node; its id is that of the machine, so `os.kill` reaches it."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """One line of squeue."""

    job_id: int
    name: str
    state: str
    nodes: str


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that is up.

    Commands of `run`, `popen` and `on_node` start from an environment of the lab's own, not from
    that of the tests; `env` adds to it. Their output goes through files, never through pipes,
    which servers that a command leaves behind would hold open.
    """

    places: Places
    pid: int
    """The lab's first process, by the machine's numbering."""
    outer: subprocess.Popen[bytes] | None = None
    """What waits for that process, if we started it."""

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 120.0,
        cwd: Path = HOME,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the user on the login node and wait for it.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds; the command was killed.
        """
        return self._finish(self.inside(argv, cwd=cwd), self.environment(env), timeout)

    def on_node(
        self,
        node: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside a node, beside Slurm, and wait for it.

        Its PATH is that of a Slurm job: the tests' environment is not on it.
        """
        plain = {"PATH": SYSTEM_PATH, **(env or {})}
        return self._finish(self.inside(argv, node=node), self.environment(plain), timeout)

    def popen(
        self,
        argv: Sequence[str | Path],
        output: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = HOME,
    ) -> subprocess.Popen[bytes]:
        """Start a command on the login node; both its streams go to the file `output`.

        Use `interrupt` for Ctrl-C; `kill` on the result kills the command too, but not what it
        started in sessions of its own.
        """
        with output.open("wb") as stream:
            return subprocess.Popen(
                self.inside(argv, cwd=cwd),
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def interrupt(self, process: subprocess.Popen[bytes]) -> None:
        """Press Ctrl-C on a command that `popen` started."""
        os.killpg(process.pid, signal.SIGINT)

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a user on the login node, with `env` on top."""
        return {
            "HOME": str(HOME),
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PATH": f"{Path(sys.prefix) / 'bin'}:{SYSTEM_PATH}",
            "PYTHONDONTWRITEBYTECODE": "1",
            # What is launched is the checkout of these tests, whichever is installed here.
            "PYTHONPATH": str(CHECKOUT),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            # The addresses that SkyPilot asks whether there is a network; see reachability.py.
            "SSL_CERT_FILE": str(self.places.certificate),
            "REQUESTS_CA_BUNDLE": str(self.places.certificate),
            **(env or {}),
        }

    def inside(
        self, argv: Sequence[str | Path], *, node: str | None = None, cwd: Path = HOME
    ) -> list[str]:
        """Return the command that runs `argv` in the lab, on the login node if no node is named.

        Ctrl-C and SIGTERM go past the outer processes to the command itself, whose exit code the
        outer ones then return; killing the outer one kills the command.
        """
        root = f"/proc/{self.pid}/root"
        target = ["--target", str(self.pid), "--ipc", "--pid"]
        where = enter_node(self.places, node, root)[1:] if node else ["--mount", "--uts", "--net"]
        before = ["env", "--ignore-signal=INT,TERM", "nsenter", *target, *where]
        # Not nsenter's own option, which means a folder outside.
        after = ["env", "--default-signal=INT,TERM", f"--chdir={cwd}"]
        tie = ["setpriv", "--pdeathsig", "KILL"]
        return [*before, *tie, *after, *map(str, argv)]

    def processes(self, node: str) -> list[Process]:
        """Return the processes that live in a node's network namespace, slurmd among them."""
        network = Path(f"/proc/{self.pid}/root/run/netns/{node}").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            # Anything may end between two looks at it; a zombie has no namespace any more.
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == network:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(Process(int(entry.name), words.decode(errors="replace").strip()))
        return found

    def kill_node(self, node: str) -> None:
        """End every process of a node at once, as a power cut does; `start_node` reboots it."""
        while processes := self.processes(node):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.05)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node that was killed; Slurm takes the node back by itself."""
        self.on_node(node, slurmd(node)).check_returncode()

    def squeue(self) -> list[SlurmJob]:
        """Return Slurm's jobs, the running and the waiting."""
        done = self.run(["squeue", "--noheader", "--format=%i|%j|%T|%N"])
        done.check_returncode()
        lines = (line.split("|") for line in done.stdout.split())
        return [SlurmJob(int(number), name, state, nodes) for number, name, state, nodes in lines]

    def scancel(self, job_id: int) -> None:
        """End a job from Slurm's side: what a preemption looks like to SkyPilot."""
        self.run(["scancel", str(job_id)]).check_returncode()

    @property
    def s3_env(self) -> dict[str, str]:
        """The AWS environment with which the login node and the nodes reach the S3 server."""
        settings = self.places.settings()
        endpoint = f"http://{HEAD_ADDRESS}:{S3_PORT}"
        return aws_environment(S3Server(endpoint, settings.s3_access_key, settings.s3_secret_key))

    def store_uri(self, name: str) -> str:
        """Return a fresh, empty prefix of the lab's bucket."""
        return f"s3://{BUCKET}/{name}-{uuid.uuid4().hex[:12]}"

    def _finish(
        self, command: list[str], env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                texts = []
                for stream in (out, err):
                    stream.seek(0)
                    texts.append(stream.read().decode(errors="replace"))
            return subprocess.CompletedProcess(command, code, *texts)
