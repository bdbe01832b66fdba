"""What travels to rented machines: this very code, an order, and secrets that nobody can read."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import kldcloud
from kldcloud.clusters import wheel as wheels
from kldcloud.clusters.sealed import KEY_FILE, VARIABLE, seal, unseal
from kldcloud.clusters.sky_task import LaunchFolder, secrets_of, task_config
from kldcloud.clusters.wheel import EXTRAS, build_wheel
from kldcloud.errors import FormatError, UserError
from kldcloud.pipeline.launches import LaunchOrder, launch_id, read_order, ship, write_order
from kldcloud.pipeline.progress import Silent
from kldcloud.pipeline.sources import ShippedFile
from kldcloud.qad.modelopt.pinned import VARIABLE as MODELOPT
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.spec.qad_job import QadJob
from kldcloud.store import open_store
from tests.qad.small_training import tiny_init, tiny_teacher

SECRET = "s3cr3t-and-nobody-elses"  # noqa: S105 - made up
RENTED = ClusterSpec.model_validate(
    {
        "provider": "skypilot",
        "nodes": 2,
        "resources": {"accelerators": "H100:1", "use_spot": True},
        "setup": "module load cuda",
        "envs": {"PLACE": "here"},
        "secrets": ["KLDTEST_KEY", "KLDTEST_OPTIONAL?"],
        "engine": {"n_gpu_layers": -1},
    }
)
JOB = SweepJob.model_validate(
    {
        "kind": "sweep",
        "name": "Some.Job",
        "base": {"model": "/models/base.gguf"},
        "candidates": [{"model": "/models/q4.gguf"}, {"quantize": "Q8_0"}],
        "corpora": [{"name": "text", "text": "/texts/text.txt"}],
        "rates": {"h100": 100.0},
    }
)
SHIPPED = (ShippedFile("/models/base.gguf", "a" * 64, 10), ShippedFile("/t", "b" * 64, 20))


def test_the_wheel_installs_the_code_that_runs_here(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    ours = Path(kldcloud.__file__).parent
    for path in ours.rglob("*.py"):
        assert (target / "kldcloud" / path.relative_to(ours)).read_bytes() == path.read_bytes()
    assert list(target.glob("kldcloud-*.dist-info"))


def test_the_same_code_makes_the_same_wheel(tmp_path: Path) -> None:
    # Machines keep what they installed under the wheel's digest.
    first = build_wheel(tmp_path).read_bytes()
    for path in Path(kldcloud.__file__).parent.glob("*.py"):
        os.utime(path)
    assert build_wheel(tmp_path).read_bytes() == first


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        roots = {name.split("/")[0] for name in archive.namelist()}
        assert roots == {"kldcloud", f"kldcloud-{kldcloud.__version__}.dist-info"}
        assert not [name for name in archive.namelist() if "__pycache__" in name]


def test_secrets_arrive_and_neither_half_tells_them(tmp_path: Path) -> None:
    sealed = seal({"KLDTEST_KEY": SECRET}, tmp_path)
    key = tmp_path / KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert SECRET not in sealed
    assert SECRET.encode() not in key.read_bytes()
    environment = {VARIABLE: sealed, "PATH": "/bin"}
    unseal(tmp_path, environment)
    assert environment == {"KLDTEST_KEY": SECRET, "PATH": "/bin"}


@pytest.mark.parametrize("harm", ["other key", "no key", "cut", "not there"])
def test_secrets_that_do_not_open_are_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    sealed = seal({"KLDTEST_KEY": SECRET}, tmp_path)
    environment = {VARIABLE: sealed}
    if harm in {"no key", "other key"}:
        (tmp_path / KEY_FILE).unlink()
    if harm == "other key":
        seal({}, tmp_path)
    if harm == "cut":
        environment[VARIABLE] = sealed[:-9]
    if harm == "not there":
        environment.clear()
    with pytest.raises(UserError, match="secrets of this job cannot be opened") as caught:
        unseal(tmp_path, environment)
    assert sealed[:20] not in str(caught.value)


def test_secrets_come_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLDTEST_KEY", raising=False)
    with pytest.raises(UserError, match="needs the secret KLDTEST_KEY, which is not set here"):
        secrets_of(RENTED)
    monkeypatch.setenv("KLDTEST_KEY", SECRET)
    assert secrets_of(RENTED) == {"KLDTEST_KEY": SECRET}
    monkeypatch.setenv("KLDTEST_OPTIONAL", "x")
    assert set(secrets_of(RENTED)) == {"KLDTEST_KEY", "KLDTEST_OPTIONAL"}


def test_a_task_says_what_the_cluster_file_says(tmp_path: Path) -> None:
    folder = LaunchFolder(tmp_path, build_wheel(tmp_path).name, needs_hub=False)
    sealed = seal({"KLDTEST_KEY": SECRET}, tmp_path)
    config = task_config("kld-some", RENTED, folder, sealed)
    assert config["resources"] == {"accelerators": "H100:1", "use_spot": True}
    assert (config["num_nodes"], config["workdir"]) == (2, str(tmp_path))
    assert config["envs"]["PLACE"] == "here"
    assert config["setup"].index("module load cuda") < config["setup"].index("pip install")
    assert SECRET not in yaml.safe_dump(config)
    for script in (config["setup"], config["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.parametrize(
    ("needs", "extras"),
    [
        ((False, False), "llama"),
        ((True, True), "llama,hub,qad"),
        ((False, False, True), "llama,hf"),
        ((True, False, True, True), "llama,hub,hf,recipes"),
    ],
)
def test_machines_install_what_their_job_needs(
    tmp_path: Path, needs: tuple[bool, ...], extras: str
) -> None:
    folder = LaunchFolder(tmp_path, build_wheel(tmp_path).name, *needs)
    config = task_config("kld-some", RENTED, folder, seal({}, tmp_path))
    assert f'"kldcloud[{extras}] @ file' in config["setup"]
    # What one kind of job installed may lack what another one needs.
    assert f"-{extras.replace(',', '-')}-$(printf" in config["run"]


def test_packages_of_a_cluster_are_installed_with_kldcloud_and_not_by_the_shell(
    tmp_path: Path,
) -> None:
    folder = LaunchFolder(tmp_path, build_wheel(tmp_path).name, False, runs_folders=True)
    sealed = seal({}, tmp_path)

    def scripts(*packages: str) -> tuple[str, str]:
        cluster = RENTED.model_copy(update={"packages": packages})
        config = task_config("kld-some", cluster, folder, sealed)
        return config["setup"], config["run"]

    setup, run = scripts("gptqmodel>=4,<6", "optimum")
    (installs,) = re.findall(r"-m pip install (?:.*\\\n)*.*", setup)
    told = shlex.split(installs.replace("\\\n", " "))
    ours = f"kldcloud[llama,hf] @ file://$PWD/{folder.wheel}"
    assert told[-3:] == [ours, "gptqmodel>=4,<6", "optimum"]
    subprocess.run(["bash", "-n", "-c", setup], check=True)
    # Another list is another environment; without any, nothing is new.
    lists = ((), ("optimum",), ("gptqmodel>=4,<6", "optimum"))
    names = [re.findall(r"/env-\S+-\$\(", scripts(*each)[1])[0] for each in lists]
    assert len(set(names)) == 3
    assert names[2] in run
    assert names[0].endswith("-llama-hf-$(")


def test_a_wheel_that_lacks_an_extra_is_refused_before_machines_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = LaunchFolder(tmp_path, "w", True, True, True, True)
    assert sorted(everything.extras) == sorted(EXTRAS)

    class Older:
        def read_text(self, _: str) -> str:
            offered = (name for name in EXTRAS if name != "recipes")
            return "".join(f"Provides-Extra: {name}\n" for name in offered)

    monkeypatch.setattr(wheels, "distribution", lambda _: Older())
    with pytest.raises(UserError, match=r"before it had the extra 'recipes'.*pip install"):
        build_wheel(tmp_path)
    assert not list(tmp_path.iterdir())


def test_machines_that_train_with_model_optimizer_get_an_environment_with_it(
    tmp_path: Path,
) -> None:
    folder = LaunchFolder(tmp_path, build_wheel(tmp_path).name, False, True, modelopt=True)
    sealed = seal({}, tmp_path)
    config = task_config("kld-some", RENTED, folder, sealed)
    for script in (config["setup"], config["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)
        assert f'export {MODELOPT}="$home/modelopt-' in script
    assert "pip install --quiet --disable-pip-version-check nvidia-modelopt==" in config["setup"]
    assert "nvidia-modelopt" not in config["run"]
    plain = LaunchFolder(tmp_path, folder.wheel, False, True)
    assert MODELOPT not in str(task_config("kld-some", RENTED, plain, sealed))


def test_a_distillation_ships_what_it_names_and_comes_back(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("a text\n")
    job = QadJob.model_validate(
        {
            "kind": "qad",
            "name": "some",
            "teacher": str(teacher),
            "student": {"init": str(tiny_init(teacher))},
            "data": {"text": str(text)},
            "eval": {"second_text": "builtin:python-reference"},
            "export": {"path": "out.gguf"},
        }
    )
    store = open_store(str(tmp_path / "store"))
    shipped = ship(job, store, Silent())
    named = [str(job.teacher.model), str(job.student.init.model), str(text)]
    assert [each.uri for each in shipped] == [*named, "builtin:python-reference"]
    for each in shipped:
        assert store.size(f"models/{each.sha256}") == each.size
    order = LaunchOrder("kld-x", "s3://bucket/prefix", RENTED, shipped, 3600.0)
    write_order(tmp_path, order, job)
    assert read_order(tmp_path) == (order, job)


def test_a_distillation_of_what_is_no_model_is_refused_before_it_ships(tmp_path: Path) -> None:
    (tmp_path / "t.gguf").write_text("no model")
    facts = {"kind": "qad", "name": "x", "teacher": str(tmp_path / "t.gguf")}
    facts |= {"student": {"init": {"quantize": "Q4_0"}}, "data": {"text": "a.txt"}}
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(FormatError, match=r"t\.gguf"):
        ship(QadJob.model_validate(facts), store, Silent())
    assert not list(store.list(""))


def test_an_order_comes_back_as_it_was_written(tmp_path: Path) -> None:
    order = LaunchOrder("kld-x", "s3://bucket/prefix", RENTED, SHIPPED, 3600.0, allow_mixed=True)
    write_order(tmp_path, order, JOB)
    again, job = read_order(tmp_path)
    assert again == order
    assert again.cluster.engine.given() == ["n_gpu_layers"]
    assert job == JOB


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"launch": 1}', "\0", '{"shipped": [1]}'])
def test_a_folder_that_is_no_launch_is_refused(tmp_path: Path, text: str) -> None:
    write_order(tmp_path, LaunchOrder("x", "s3://b/p", RENTED, SHIPPED, 1.0), JOB)
    (tmp_path / "launch.json").write_text(text)
    with pytest.raises(FormatError, match="is not the folder of a launch"):
        read_order(tmp_path)


def test_the_same_command_is_the_same_launch_and_another_is_not() -> None:
    one = launch_id(JOB, "s3://b/p", RENTED, SHIPPED)
    assert one.startswith("kld-some-job-")
    stated = JOB.model_copy(update={"rates": {"h100": 5.0}})
    assert launch_id(stated, "s3://b/p", RENTED, SHIPPED) == one
    others = {
        launch_id(JOB, "s3://b/q", RENTED, SHIPPED),
        launch_id(JOB, "s3://b/p", RENTED.model_copy(update={"nodes": 3}), SHIPPED),
        launch_id(JOB, "s3://b/p", RENTED, SHIPPED[:1]),
        launch_id(JOB.model_copy(update={"llama_compat": False}), "s3://b/p", RENTED, SHIPPED),
    }
    assert len(others | {one}) == 5
