"""The lab keeps what it promises to the tests that use it: machines, a store, and walls."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_server import S3Server

from .places import CHECKOUT, HOME, TESTS
from .session import Lab

# The first run ever downloads the wheelhouse; a cold start of SkyPilot takes a minute or two.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_LAUNCH_SECONDS = 600.0
_TASK = """
num_nodes: 2
resources:
  infra: slurm/lab
  accelerators: RTX5080:1
run: |
  echo "rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES is $(hostname)"
"""
_FAILING_TASK = """
resources:
  infra: slurm/lab
run: exit 7
"""
_PUT = "put_object(Bucket='kldcloud-tests', Key='greeting', Body=b'from ' + node.encode())"
_GET = "get_object(Bucket='kldcloud-tests', Key='greeting')['Body'].read()"


@pytest.fixture(scope="module")
def launch(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.CompletedProcess[str]]:
    """A SkyPilot cluster named `two` on both nodes, and how its first job ended."""
    task = tmp_path_factory.mktemp("tasks") / "two.yaml"
    task.write_text(_TASK)
    yield lab.run(["sky", "launch", "-y", "-c", "two", task], timeout=_LAUNCH_SECONDS)
    lab.run(["sky", "down", "-y", "two"], timeout=_LAUNCH_SECONDS)


def test_two_nodes_wait_for_work(lab: Lab) -> None:
    idle = lab.run(["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N %c %G"])
    assert idle.stdout.splitlines() == ["n1 4 gpu:rtx5080:1", "n2 4 gpu:rtx5080:1"]


def test_a_node_reaches_the_other_but_nothing_outside(lab: Lab) -> None:
    connect = ["nc", "-z", "-w", "5"]
    assert lab.on_node("n1", [*connect, "n2", "6818"]).returncode == 0
    assert lab.on_node("n1", [*connect, "1.1.1.1", "443"]).returncode != 0
    assert lab.on_node("n1", ["ip", "route"]).stdout.startswith("10.200.0.0/24 dev eth0")
    assert "default" not in lab.on_node("n1", ["ip", "route"]).stdout


def test_a_node_sees_neither_the_checkout_nor_the_other_nodes_temporary_files(lab: Lab) -> None:
    mine = "/tmp/mine"  # noqa: S108 - a node's, not this machine's
    lab.on_node("n1", ["touch", mine]).check_returncode()
    assert lab.on_node("n1", ["ls", mine]).returncode == 0
    assert lab.on_node("n2", ["ls", mine]).returncode != 0
    assert lab.on_node("n1", ["ls", CHECKOUT / "pyproject.toml"]).returncode != 0
    assert lab.run(["ls", CHECKOUT / "pyproject.toml"]).returncode == 0


def test_an_object_put_on_one_node_is_read_on_the_other_and_outside(
    lab: Lab, lab_store: S3Server
) -> None:
    def on(node: str, call: str) -> str:
        code = f"import boto3; node = '{node}'; print(boto3.client('s3').{call})"
        done = lab.on_node(node, [sys.executable, "-c", code], env=lab.s3_env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    on("n1", _PUT)
    assert "from n1" in on("n2", _GET)
    outside = lab_store.client().get_object(Bucket="kldcloud-tests", Key="greeting")
    assert outside["Body"].read() == b"from n1"


def test_what_is_written_at_home_stays_in_the_lab(lab: Lab) -> None:
    lab.run(["touch", "stays-here"]).check_returncode()
    assert lab.on_node("n1", ["ls", HOME / "stays-here"]).returncode == 0
    assert not (HOME / "stays-here").exists()


def test_our_wheel_and_its_engine_can_be_installed_on_a_node(lab: Lab) -> None:
    built = lab.run(
        ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", HOME / "wheel", _copy(lab)]
    )
    assert built.returncode == 0, built.stderr
    install = "python3 -m venv /tmp/ours && /tmp/ours/bin/pip install --dry-run --report -"
    engine = "llama-cpp-python==0.3.36"
    done = lab.on_node("n1", ["bash", "-c", f"{install} {HOME}/wheel/*.whl {engine}"])
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stdout


def test_ctrl_c_reaches_a_command_and_its_exit_code_comes_back(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "output"
    script = "trap 'echo caught; exit 5' INT; echo ready; while true; do sleep 0.1; done"
    process = lab.popen(["bash", "-c", script], output)
    while "ready" not in output.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    lab.interrupt(process)
    assert process.wait() == 5
    assert "caught" in output.read_text()


def test_skypilot_believes_that_there_is_a_network(lab: Lab) -> None:
    code = "from sky.backends.backend_utils import check_network_connection as check; check()"
    done = lab.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


def test_a_launch_on_two_nodes_prints_from_both_ranks(
    launch: subprocess.CompletedProcess[str],
) -> None:
    assert launch.returncode == 0, launch.stdout + launch.stderr
    assert "rank 0 of 2 is n1" in launch.stdout
    assert "rank 1 of 2 is n2" in launch.stdout


@pytest.mark.usefixtures("launch")
def test_a_failing_run_says_so_in_its_exit_code(lab: Lab, tmp_path: Path) -> None:
    task = tmp_path / "failing.yaml"
    task.write_text(_FAILING_TASK)
    done = lab.run(["sky", "exec", "two", task], timeout=_LAUNCH_SECONDS)
    assert done.returncode == 100
    assert "[7]" in done.stdout + done.stderr


@pytest.mark.usefixtures("launch")
def test_after_down_slurm_has_no_job(lab: Lab) -> None:
    assert [job.nodes for job in lab.squeue()] == ["n[1-2]"]
    done = lab.run(["sky", "down", "-y", "two"], timeout=_LAUNCH_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 60
    while lab.squeue():
        assert time.monotonic() < deadline, lab.squeue()
        time.sleep(0.5)


def test_a_killed_node_has_no_process_left_and_starts_again(lab: Lab) -> None:
    assert [process.command for process in lab.processes("n2")] == ["slurmd -N n2"]
    lab.kill_node("n2")
    assert lab.processes("n2") == []
    assert lab.processes("n1")
    lab.start_node("n2")
    assert lab.run(["srun", "--nodelist=n2", "hostname"]).stdout == "n2\n"


def test_a_lab_ends_with_the_process_that_wanted_it(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    code = f"""
        import time
        from pathlib import Path
        from lab.lifetime import bring_up
        lab = bring_up(Path({str(folder)!r}), tied=True)
        print(lab.pid, flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = int(process.stdout.readline())
    namespace = Path(f"/proc/{first}/ns/pid").readlink()
    assert _members(namespace)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while _members(namespace):
        assert time.monotonic() < deadline, _members(namespace)
        time.sleep(0.1)


def _members(namespace: Path) -> list[str]:
    """Return the processes of a process namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "ns/pid").readlink() == namespace:
                found.append(entry.name)
    return found


def _copy(lab: Lab) -> Path:
    """Copy what our wheel is made of: a build leaves folders beside its sources."""
    copy = HOME / "sources"
    names = [CHECKOUT / name for name in ("pyproject.toml", "README.md", "kldcloud")]
    lab.run(["mkdir", "-p", copy]).check_returncode()
    lab.run(["cp", "-r", *names, copy]).check_returncode()
    return copy
