"""Sweeps over a network that fails: they end in the same bytes, or stop with the reason."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from store_server import BUCKET, S3Server, aws_environment, isolate_aws

from kldcloud.errors import FormatError, StoreError
from kldcloud.store import open_store
from tests.pipeline.sweeps import Notes, corpus, facts, launch, result_bytes, sweep
from tests.store.fault_proxy import (
    Answer,
    CutReply,
    CutRequest,
    Delay,
    Fault,
    FaultProxy,
    FlipReply,
    FlipRequest,
    Lost,
    Outage,
    Unsent,
    fault_proxy,
)
from tests.tiny_models import tiny_pair

CHUNKS = 6
PARTIALS = 2 * CHUNKS
END = 1_000_000
# Bytes into a reply: further than listings and headers go, well inside frames and partials.
DEEP = 4000


@dataclass(frozen=True, slots=True)
class Reference:
    """A job, and what it came to in an undisturbed sweep on one worker."""

    job: dict[str, Any]
    run: str
    results: dict[str, bytes]


@pytest.fixture(scope="module")
def network(s3_server: S3Server) -> Iterator[FaultProxy]:
    """What stands between the store and all that this module starts."""
    with fault_proxy(s3_server.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        isolate_aws(patch)
        for name, value in aws_environment(replace(s3_server, endpoint=proxy.endpoint)).items():
            patch.setenv(name, value)
        yield proxy


@pytest.fixture(scope="module")
def undisturbed(
    network: FaultProxy, one_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    del network, one_ray  # in this order: Ray's workers inherit the way to the proxy
    folder = tmp_path_factory.mktemp("undisturbed")
    pair = tiny_pair(folder / "models", vocabulary=320, bos=True)
    other = tiny_pair(folder / "other", vocabulary=320, bos=True, seed=1).candidate
    candidates = [pair.candidate, {"model": str(other), "name": "other"}]
    job = facts(pair.base, candidates, [corpus(128, CHUNKS)], encoding="logits", shard_chunks=1)
    outcome = sweep(job, folder / "store")
    return Reference(job, outcome.run, result_bytes(folder / "store", outcome.run))


@pytest.fixture
def proxy(network: FaultProxy, undisturbed: Reference) -> FaultProxy:
    del undisturbed
    network.expect()
    return network


@pytest.fixture
def store(proxy: FaultProxy) -> str:
    del proxy
    return f"s3://{BUCKET}/faults-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder whose name leaves room for those of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="k-") as folder:
        yield Path(folder)


NOW_AND_THEN = [
    Fault(Answer(409, "ConditionalRequestConflict"), "PUT", when=range(2, END, 23)),
    Fault(CutRequest(), "PUT", when=range(3, END, 23)),
    Fault(FlipRequest(), "PUT", when=range(5, END, 23)),
    Fault(Lost(), "PUT", when=range(7, END, 23)),
    Fault(CutReply(10), "GET", when=range(2, END, 47)),
    Fault(FlipReply(DEEP), "GET", when=range(4, END, 5)),
    Fault(Answer(503, "SlowDown"), when=range(7, END, 73)),
    Fault(Answer(500, "InternalError"), when=range(9, END, 79)),
    Fault(Unsent(), when=range(11, END, 83)),
    Fault(Delay(0.3), when=range(15, END, 37)),
]
"""Of every kind some, among the two hundred requests of such a sweep."""


@pytest.mark.slow
def test_occasional_faults_of_every_kind_change_no_byte(
    proxy: FaultProxy, undisturbed: Reference, store: str
) -> None:
    proxy.expect(*NOW_AND_THEN)
    outcome = sweep(undisturbed.job, store, workers=2)
    assert {fault.what for fault in proxy.hits} == {fault.what for fault in NOW_AND_THEN}
    proxy.mend()
    assert not outcome.failures
    assert outcome.run == undisturbed.run
    assert result_bytes(store, outcome.run) == undisturbed.results


@pytest.mark.slow
@pytest.mark.parametrize("objects", ["*/stages/*.shard", "*/partials/*"])
def test_a_store_that_says_taken_where_nothing_is_is_not_believed(
    proxy: FaultProxy, undisturbed: Reference, store: str, objects: str
) -> None:
    proxy.expect(Fault(Answer(412, "PreconditionFailed"), "PUT", objects, range(0, END, 4)))
    sweep(undisturbed.job, store, workers=2)
    assert len(proxy.hits) >= 2
    assert result_bytes(store, undisturbed.run) == undisturbed.results


@pytest.mark.parametrize(
    "objects",
    [
        pytest.param("*/stages/*.shard", marks=pytest.mark.slow),
        "*/partials/*",
        pytest.param("*/tokens.parquet", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_refuses_midway_stops_the_run_which_later_goes_on(
    proxy: FaultProxy, undisturbed: Reference, store: str, objects: str
) -> None:
    midway = 0 if objects.endswith("tokens.parquet") else 3
    refused = Outage(Answer(403, "AccessDenied"))
    proxy.expect(Fault(refused, "PUT", objects, range(midway, midway + 1)))
    with pytest.raises(StoreError, match=r"denied access to .*\(AccessDenied\)") as caught:
        sweep(undisturbed.job, store)
    assert "\n" not in str(caught.value)
    proxy.mend()
    kept = committed(store)
    assert len(kept) >= midway

    proxy.expect()
    notes = Notes()
    sweep(undisturbed.job, store, progress=notes)
    assert [note for note in notes.notes if "chunks are done already" in note]
    assert not [put for put in proxy.asked if put.startswith("PUT") and put.endswith(kept)]
    assert result_bytes(store, undisturbed.run) == undisturbed.results


@pytest.mark.slow
def test_a_base_stage_that_reads_back_wrong_fails_what_needs_it_and_is_named(
    proxy: FaultProxy, undisturbed: Reference, store: str
) -> None:
    proxy.expect(Fault(FlipReply(DEEP), "GET", "*/0000002-0001.shard"))
    outcome = sweep(undisturbed.job, store)
    assert sorted(outcome.failures) == ["candidate on text", "other on text"]
    for failure in outcome.failures.values():
        assert issubclass(failure.kind, FormatError)
        assert "/0000002-0001.shard in s3://" in failure.cause
    names = {info.key.rsplit("/", 1)[1] for info in open_store(store).list("runs/")}
    assert "summary-partial.json" in names
    assert not names & {"summary.json", "tokens.parquet"}

    proxy.mend()
    sweep(undisturbed.job, store)
    assert result_bytes(store, undisturbed.run) == undisturbed.results


def test_a_partial_that_reads_back_wrong_stops_the_run_by_name(
    proxy: FaultProxy, undisturbed: Reference, store: str
) -> None:
    proxy.expect(Fault(FlipReply(), "GET", "*/partials/other/*/0000003-0001.parquet"))
    with pytest.raises(FormatError, match=r"/partials/other/text/0000003-0001\.parquet in s3://"):
        sweep(undisturbed.job, store)
    proxy.mend()
    names = {info.key.rsplit("/", 1)[1] for info in open_store(store).list("runs/")}
    assert not names & {"summary.json", "summary-partial.json", "tokens.parquet"}
    sweep(undisturbed.job, store)
    assert result_bytes(store, undisturbed.run) == undisturbed.results


@pytest.mark.slow
@pytest.mark.parametrize("down", [Outage(), Outage(Answer(503, "SlowDown"))], ids=["reset", "503"])
def test_an_outage_stops_a_launch_with_one_line_and_the_same_command_goes_on(
    proxy: FaultProxy, undisturbed: Reference, store: str, short_folder: Path, down: Outage
) -> None:
    proxy.expect(Fault(down, "PUT", "*/partials/*", range(4, 5)))
    code, out, errors = launch(short_folder / "1", undisturbed.job, store, workers=2).wait(240)
    assert (code, out) == (2, "")
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("kldcloud: "))
    assert line == errors.splitlines()[-1]
    assert proxy.endpoint in line
    assert "run the same command again" in line

    proxy.mend()
    done = sum(key.endswith(".parquet") for key in committed(store))
    assert 4 <= done < PARTIALS
    code, _, errors = launch(short_folder / "2", undisturbed.job, store, workers=2).wait()
    assert code == 0, errors
    assert "base stage for text is there already" in errors
    assert f"measuring: {done} of {PARTIALS} chunks are done already" in errors
    assert result_bytes(store, undisturbed.run) == undisturbed.results


@pytest.mark.slow
def test_two_launches_of_one_job_over_a_failing_network_end_in_the_same_bytes(
    proxy: FaultProxy, undisturbed: Reference, store: str, short_folder: Path
) -> None:
    proxy.expect(*NOW_AND_THEN)
    both = [launch(short_folder / name, undisturbed.job, store) for name in "12"]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda each: each.wait(240), both))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert len(proxy.hits) > 10
    proxy.mend()
    assert result_bytes(store, undisturbed.run) == undisturbed.results


def committed(store: str) -> tuple[str, ...]:
    """Keys of the shards and partials that are there."""
    keys = [info.key for info in open_store(store).list("")]
    return tuple(key for key in keys if key.endswith(".shard") or "/partials/" in key)
