"""Machines given back, and launches joined: what is said is what happened.

SkyPilot is stood in for here, so that it can fail on purpose; tests/lab has the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from kldcloud.cli.main import app
from kldcloud.clusters import giving_back, remote, skypilot
from kldcloud.clusters.giving_back import give_all_back, give_back
from kldcloud.clusters.remote import await_machines
from kldcloud.clusters.skypilot import SkyJob
from kldcloud.errors import EngineError, KldcloudError
from kldcloud.pipeline.launches import launch_id
from kldcloud.pipeline.life import AttemptRecord, LaunchRecord, attempt_key, launch_key, read_launch
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.store import Store, open_store
from tests.pipeline.sweeps import Notes

RECORD = LaunchRecord("kld-x", launched=1.0)
JOB = SweepJob.model_validate(
    {
        "kind": "sweep",
        "name": "J",
        "base": {"model": "/models/base.gguf"},
        "candidates": [{"quantize": "Q4_0"}],
        "corpora": [{"name": "t", "text": "/texts/t.txt"}],
    }
)
RENTED = ClusterSpec(provider="skypilot", resources={"infra": "slurm/lab"})


@dataclass(slots=True)
class Sky:
    """As much of SkyPilot's client as asking for requests and taking down takes.

    Attributes:
        requests: that are not done: id, name, cluster, when.
        clusters: that are there.
        calls: what was done, in order.
    """

    requests: list[tuple[str, str, str, float]] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)

    def api_status(self) -> list[Any]:
        names = ("request_id", "name", "cluster_name", "created_at")
        return [SimpleNamespace(**dict(zip(names, each, strict=True))) for each in self.requests]

    def api_cancel(self, ids: list[str], *, silent: bool) -> list[str]:
        assert silent
        self.calls += [("cancel", each) for each in ids]
        return ids

    def status(self) -> list[dict[str, str]]:
        return [{"name": each} for each in self.clusters]

    def down(self, name: str) -> str:
        self.calls.append(("down", name))
        return name

    def stream_and_get(self, request: str, output_stream: object) -> Any:
        del output_stream
        self.calls.append(("stream", request))
        return 7, None

    def get(self, request: Any) -> Any:
        return request


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> Sky:
    found = Sky()

    @contextmanager
    def library() -> Iterator[Sky]:
        yield found

    monkeypatch.setattr(skypilot, "sky_library", library)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    kept = open_store(str(tmp_path / "store"))
    kept.write(launch_key("kld-x"), json.dumps(asdict(RECORD)).encode())
    return kept


def refuse(*_: object, **__: object) -> None:
    raise EngineError("no route to it", hint="run sky status")


# Asked for twice


def test_a_cluster_that_is_being_set_up_is_joined_and_not_asked_for_again(sky: Sky) -> None:
    sky.requests = [
        ("other", "sky.launch", "kld-y", 1.0),
        ("looks", "sky.status", "kld-x", 1.0),
        ("second", "sky.launch", "kld-x", 3.0),
        ("first", "sky.launch", "kld-x", 2.0),
    ]
    notes = Notes()
    assert await_machines(RECORD, notes) == SkyJob("kld-x", managed=False, number=7)
    assert sky.calls == [("stream", "first")]
    assert notes.notes == ["launch kld-x is under way already: its machines are being set up"]


def test_nobody_is_waited_for_where_nothing_was_asked(sky: Sky) -> None:
    sky.requests = [("other", "sky.launch", "kld-y", 1.0)]
    assert await_machines(RECORD, Notes()) is None
    sky.requests = [("first", "sky.launch", "kld-x", 1.0)]
    assert await_machines(LaunchRecord("kld-x", managed=True), Notes()) is None
    assert sky.calls == []


def test_a_cluster_that_is_not_there_yet_does_not_come_after_it_was_given_back(sky: Sky) -> None:
    sky.requests = [("first", "sky.launch", "kld-x", 1.0)]
    skypilot.down("kld-x", managed=False)
    assert sky.calls == [("cancel", "first")]
    sky.clusters, sky.requests, sky.calls = ["kld-x"], [], []
    skypilot.down("kld-x", managed=False)
    assert sky.calls == [("down", "kld-x"), ("stream", "kld-x")]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def start(store: Store, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch `JOB`, whose files nobody looks at, until somebody presses Ctrl-C."""
    monkeypatch.setattr(remote, "check_store", lambda *_: None)
    monkeypatch.setattr(remote, "ship", lambda *_: ())
    with pytest.raises(KeyboardInterrupt):
        remote.start(JOB, RENTED, "lab", store, remote.Machine(), notes, seconds=60.0)


def test_ctrl_c_beside_another_who_launches_says_that_machines_are_coming(
    store: Store, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launch_id(JOB, store.uri, RENTED, ())
    store.write(launch_key(launch), json.dumps(asdict(LaunchRecord(launch))).encode())
    sky.requests = [("first", "sky.launch", launch, 1.0)]
    monkeypatch.setattr(skypilot, "joined", interrupted)
    notes = Notes()
    start(store, notes, monkeypatch)
    assert notes.notes[-1] == (
        "its machines are still being set up, for whoever asked first; "
        f"kldcloud cancel {launch} --store {store.uri} gives them back"
    )
    assert ("down", launch) not in sky.calls


def test_ctrl_c_of_who_asked_for_machines_gives_them_back_and_says_so(
    store: Store, sky: Sky, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    launch = launch_id(JOB, store.uri, RENTED, ())
    sky.clusters = [launch]
    monkeypatch.setattr(skypilot, "submit", interrupted)
    notes = Notes()
    start(store, notes, monkeypatch)
    assert notes.notes[-1] == f"no machine of {launch} is up any more"
    assert ("down", launch) in sky.calls
    kept = read_launch(store, launch_key(launch))
    assert kept is not None
    assert kept.down


# Given back, or not


def test_a_launch_is_noted_as_down_only_if_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    monkeypatch.setattr(skypilot, "down", refuse)
    assert not give_back(RECORD, store, notes)
    (warning,) = notes.warnings
    assert warning == (
        "machines of kld-x may still be up: no route to it; "
        f"kldcloud down kld-x --store {store.uri} tries again"
    )
    kept = read_launch(store, launch_key("kld-x"))
    assert kept is not None
    assert not kept.down
    monkeypatch.setattr(skypilot, "down", lambda *_, **__: None)
    assert give_back(RECORD, store, notes)
    kept = read_launch(store, launch_key("kld-x"))
    assert kept is not None
    assert kept.down


@pytest.mark.parametrize("verb", ["down", "cancel"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_still_up_is_not_said_to_be_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch, verb: str, fails: bool
) -> None:
    monkeypatch.setattr(skypilot, "find_job", lambda *_, **__: None)
    monkeypatch.setattr(skypilot, "down", refuse if fails else lambda *_, **__: None)
    said = CliRunner().invoke(app, [verb, "kld-x", "--store", store.uri])
    assert said.exit_code == fails
    assert ("kld-x: " in said.stdout) is not fails
    assert ("may still be up" in said.stderr) is fails


def test_cancelling_what_has_finished_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = AttemptRecord(attempt="100-a", state="finished")
    store.write(attempt_key("kld-x", "100-a"), json.dumps(asdict(ended)).encode())
    monkeypatch.setattr(skypilot, "find_job", lambda *_, **__: None)
    monkeypatch.setattr(skypilot, "down", lambda *_, **__: None)
    said = CliRunner().invoke(app, ["cancel", "kld-x", "--store", store.uri])
    assert said.stdout == "kld-x: had finished already; its machines are given back\n"


def test_only_what_has_the_name_of_a_launch_is_ours(sky: Sky, store: Store) -> None:
    launch = launch_id(JOB, store.uri, ClusterSpec(), ())
    sky.clusters = ["kld-dev", "kld-box-12345678901", launch, "train-0123abcd"]
    assert skypilot.our_clusters() == [launch]


def test_one_that_will_not_go_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    down: Callable[..., None] = lambda name, **_: refuse() if name == "kld-a" else None  # noqa: E731
    monkeypatch.setattr(skypilot, "our_clusters", lambda: ["kld-a", "kld-b"])
    monkeypatch.setattr(skypilot, "our_managed_jobs", lambda: [SkyJob("kld-c", True, 3)])
    monkeypatch.setattr(skypilot, "down", down)
    monkeypatch.setattr(skypilot, "cancel", lambda _: None)
    monkeypatch.setattr(giving_back, "note_down", noted.append)
    said, notes = list[str](), Notes()
    assert not give_all_back(said.append, notes)
    assert said == ["kld-b: down", "kld-c: down"]
    assert noted == ["kld-b", "kld-c"]
    (warning,) = notes.warnings
    assert warning.startswith("kld-a may still be up: no route to it; run sky status")
    monkeypatch.setattr(skypilot, "our_clusters", list)
    monkeypatch.setattr(skypilot, "our_managed_jobs", list)
    said.clear()
    assert give_all_back(said.append, notes)
    assert said == ["no machine of ours is up"]


# Logs


def test_logs_of_machines_that_are_being_set_up_wait_for_them(
    store: Store, sky: Sky, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[SkyJob] = []

    def follow(job: SkyJob, *_: object) -> SimpleNamespace:
        followed.append(job)
        return SimpleNamespace(code=0)

    monkeypatch.setattr("kldcloud.clusters.following.follow", follow)
    monkeypatch.setattr(skypilot, "find_job", lambda *_, **__: None)
    sky.requests = [("first", "sky.launch", "kld-x", 1.0)]
    said = CliRunner().invoke(app, ["logs", "kld-x", "--store", store.uri])
    assert said.exit_code == 0, said.exception
    assert followed == [SkyJob("kld-x", managed=False, number=7)]
    sky.requests = []
    said = CliRunner().invoke(app, ["logs", "kld-x", "--store", store.uri])
    assert isinstance(said.exception, KldcloudError)
    assert str(said.exception) == (
        "the machines of kld-x are gone, and their log with them; "
        f"kldcloud status kld-x --store {store.uri} reads what the store has"
    )


def test_a_launch_without_a_store_is_asked_for_one() -> None:
    said = CliRunner().invoke(app, ["logs"])
    assert str(said.exception) == (
        "no store is named that has the launch; name its job file instead, or add "
        "--store s3://bucket/prefix"
    )
