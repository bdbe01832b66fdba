"""Commands that run once each, go on after a failure, and end with whoever started them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import EngineError, UserError
from kldcloud.qad.looks import Look
from kldcloud.qad.modelopt.environment import Environment, find_environment, install_script
from kldcloud.qad.modelopt.pinned import VARIABLE
from kldcloud.qad.modelopt.running import log_tail, logged_step, read_progress, run_steps
from kldcloud.qad.modelopt.workplace import Step, Workplace
from tests.qad.modelopt.stand_in import stand_in_environment

VARIABLES = {"PATH": os.environ["PATH"]}


@pytest.fixture
def work(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "work")


def python(code: str, name: str = "some") -> Step:
    return Step(name, (sys.executable, "-c", code))


def nobody(_: str) -> None: ...


def test_each_step_runs_once_and_what_they_say_is_kept(work: Workplace) -> None:
    told: list[str] = []
    steps = [python("print('one')", "a"), python("import os; print(os.environ)", "b")]
    run_steps(steps, work, VARIABLES | {"SHOWN": "yes"}, told.append)
    run_steps(steps, work, VARIABLES, told.append)
    assert sorted(set(told)) == ["a", "b"]
    said = log_tail(work, 1 << 20).decode()
    assert said.count("\none\n") == 1
    assert "'SHOWN': 'yes'" in said
    assert "'HOME'" not in said
    assert log_tail(work, 3) == said.encode()[-3:]


def test_a_step_that_fails_says_its_last_words_and_is_tried_again(work: Workplace) -> None:
    again = f"import pathlib, sys; sys.exit(not pathlib.Path({str(work.root / 'x')!r}).exists())"
    steps = [python("print('first')", "a"), python(f"print('too large'); {again}", "b")]
    with pytest.raises(EngineError, match=r"step b ended with exit code 1: too large") as caught:
        run_steps(steps, work, VARIABLES, nobody)
    assert str(work.log) in str(caught.value)
    (work.root / "x").touch()
    run_steps(steps, work, VARIABLES, nobody)
    assert log_tail(work, 1 << 20).decode().count("\nfirst\n") == 1


def test_a_program_that_is_not_there_is_named(work: Workplace) -> None:
    with pytest.raises(EngineError, match="/missing: cannot be run: No such file"):
        run_steps([Step("a", ("/missing",))], work, VARIABLES, nobody)


def test_an_argument_is_an_argument_to_no_shell(work: Workplace) -> None:
    odd = "a b; touch made $(touch made) `touch made`"
    script = "import sys; print(sys.argv[1:])"
    run_steps([Step("a", (sys.executable, "-c", script, odd))], work, VARIABLES, nobody)
    assert repr([odd]) in log_tail(work, 1 << 20).decode()
    assert not (work.root / "made").exists()


def test_ctrl_c_ends_what_was_started_and_all_below_it(work: Workplace) -> None:
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); print(p.pid, flush=True); time.sleep(99)"  # noqa: E501
    step = python(child)

    def interrupt(_: str) -> None:
        lines = log_tail(work, 1 << 20).decode().split()
        if lines and lines[-1].isdigit():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps([step], work, VARIABLES, interrupt)
    below = int(log_tail(work, 1 << 20).decode().split()[-1])
    deadline = time.monotonic() + 10
    while _alive(below):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (work.root / "some.done").exists()


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_do_not_train_in_one_folder(work: Workplace) -> None:
    started = threading.Event()

    def told(_: str) -> None:
        started.set()

    slow = python("import time; time.sleep(1)")
    thread = threading.Thread(target=run_steps, args=([slow], work, VARIABLES, told))
    thread.start()
    assert started.wait(20)
    with pytest.raises(UserError, match="another process trains there"):
        run_steps([slow], work, VARIABLES, nobody)
    thread.join()
    run_steps([slow], work, VARIABLES, nobody)


def state(folder: Path, step: object, *logged: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"global_step": step, "log_history": list(logged)}
    (folder / "trainer_state.json").write_text(json.dumps(facts))


def test_progress_is_that_of_the_newest_state(work: Workplace) -> None:
    assert read_progress(work, 5).step == 0
    state(work.trained / "checkpoint-5", 5, {"step": 5, "eval_loss": 0.3})
    state(work.trained / "checkpoint-10", 10, {"step": 10, "eval_loss": 0.2})
    (work.trained / "checkpoint-15").mkdir()
    (work.trained / "checkpoint-x").mkdir()
    assert read_progress(work, 5).step == 10
    logged = [{"step": 0, "eval_loss": 0.5}, {"step": 3, "loss": 1.0}]
    logged += [{"step": 5, "eval_loss": 0.4}, {"step": 5, "eval_loss": 0.1}]
    logged += [{"step": 12, "eval_loss": 0.0}, {"step": 10, "eval_loss": float("nan")}]
    state(work.trained, 12, *logged)
    found = read_progress(work, 5)
    assert (found.step, found.looks) == (12, (Look(0, 0.5, None), Look(5, 0.4, None)))


def test_between_checkpoints_its_bar_is_what_people_see(work: Workplace) -> None:
    assert logged_step(work, 640) == 0
    work.root.mkdir()
    bars = "Calib | 9/9 [00:01]\r  1%|  | 6/640 [00:09<1:2, 1s/it]\r  1%|  | 7/640 [00:10<1:2]"
    work.log.write_text(f"{bars}\r 33%|##| 1/3 [00:00<00:01]\n{{'loss': 0.5}}\n")
    assert logged_step(work, 640) == 7
    assert logged_step(work, 641) == 0
    # As transformers draws them: evaluating as many chunks as there are steps is no training.
    below = "\n\r  3%|▎  | 1/30 [00:00<00:09, 3it/s]\x1b[A\n\r100%|█| 30/30 [00:09<00:00]\x1b[A"
    loading = "\rLoading weights:  93%|█▉ | 28/30 [00:00<00:00, 11it/s]"
    work.log.write_text(f"{loading}\n\r 13%|█ | 4/30 [00:17<01:17, 17.7s/it]{below}\n\r   \x1b[A")
    assert logged_step(work, 30) == 4


@pytest.mark.parametrize("content", ["", "[]", '{"global_step": "5"}', "{" * 9, "[" * 100_000])
def test_a_state_that_is_none_is_passed_over(work: Workplace, content: str) -> None:
    state(work.trained / "checkpoint-5", 5)
    (work.trained / "trainer_state.json").write_text(content)
    assert read_progress(work, 5).step == 5


def test_no_secret_goes_along_and_the_gpus_do(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "s", "PYTHONPATH": "x"}
    environ |= {"CUDA_VISIBLE_DEVICES": "1", "WANDB_API_KEY": "s"}
    passed = Environment(tmp_path).variables(tmp_path / "home", environ)
    assert "s" not in passed.values()
    assert (passed["PATH"], passed["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")
    assert "PYTHONPATH" not in passed
    assert passed["HF_HUB_OFFLINE"] == "1"


def test_an_environment_is_found_or_missed_in_one_line(tmp_path: Path) -> None:
    made = stand_in_environment(tmp_path / "made")
    assert find_environment({VARIABLE: str(made)}).folder == made
    with pytest.raises(UserError, match=f"{VARIABLE} is not set"):
        find_environment({})
    shutil.rmtree(made / "source")
    with pytest.raises(UserError, match=f"{VARIABLE}={made} is none"):
        find_environment({VARIABLE: str(made)})


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder of programs that write down how they were called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    record = f'#!/bin/sh\necho "$(basename "$0") $*" >> "{tmp_path}/calls"\n'
    made = f'[ "$2" != venv ] || {{ mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; }}\n'  # noqa: F541
    for name in ("python", "git"):
        (programs / name).write_text(record + made)
        (programs / name).chmod(0o755)
    return tmp_path


def test_the_environment_is_installed_once(recorded: Path) -> None:
    import subprocess

    script = install_script(f'"{recorded}/an env"', "python")
    environ = {"PATH": f"{recorded}/programs:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-ec", script], env=environ, check=True, capture_output=True)
    calls = (recorded / "calls").read_text().splitlines()
    assert [each.split()[0] for each in calls] == ["python", "python", "git", "git", "git"]
    assert "nvidia-modelopt==0.46.0" in calls[1].split()
    assert "43fd41a58d52c4e6e5dec1d1ff5989ecc737ae1a" in calls[3].split()
    assert calls[4].endswith("checkout --quiet FETCH_HEAD -- examples/llm_qat")
