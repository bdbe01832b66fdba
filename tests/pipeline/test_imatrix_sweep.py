"""Candidates made with importance matrices: in a sweep, on other machines, in a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kldcloud.errors import FormatError, UserError
from kldcloud.estimate.sweep import estimate_sweep
from kldcloud.models.imatrix import collect_imatrix
from kldcloud.models.imatrix_file import imatrix_bytes
from kldcloud.models.llama_engine import LlamaOptions
from kldcloud.models.quantize import quantized
from kldcloud.pipeline.launches import named_sources, ship
from kldcloud.pipeline.prepare import prepare
from kldcloud.pipeline.runs import what_counts
from kldcloud.pipeline.sources import Sources
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.store import open_store
from kldcloud.store.digest import sha256_file
from tests.golden.cases import GOLDEN
from tests.models.test_imatrix import chunks_of
from tests.pipeline.sweeps import TEXT, Notes, corpus, facts, sweep
from tests.tiny_models import TinyPair, tiny_pair

GOLDEN_MATRIX = GOLDEN / "imatrix" / "dense.gguf"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=320, bos=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def other_text(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.txt"
    path.write_text(TEXT.read_text()[::-1])
    return path


def job_of(pair: TinyPair, *candidates: dict[str, Any], **options: Any) -> SweepJob:
    said = facts(pair.base, candidates, [corpus(chunks=2)], **options)
    return SweepJob.model_validate(said)


def computed(text: Path, chunks: int | str = 4, context: int = 128) -> dict[str, Any]:
    return {"text": str(text), "chunks": chunks, "context": context}


@pytest.mark.usefixtures("one_ray")
def test_a_sweep_measures_a_type_with_and_without_importance(
    pair: TinyPair, tmp_path: Path
) -> None:
    with_matrix = {"quantize": "Q4_0", "imatrix": str(GOLDEN_MATRIX)}
    # Without repacking: which layouts there are for these types differs from machine to machine.
    engine = {"repack": False}
    candidates = [{"quantize": "Q4_0"}, with_matrix]
    job = facts(pair.base, candidates, [corpus(chunks=4)], engine=engine)
    outcome = sweep(job, tmp_path / "store")
    assert not outcome.failures
    plain, made = outcome.summary.candidates
    assert (plain.name, made.name) == ("Q4_0", "Q4_0-imat")
    assert (plain.file, made.file) == ("base-Q4_0.gguf", "base-Q4_0-imat.gguf")
    file = quantized(pair.base, sha256_file(pair.base), "Q4_0", imatrix=GOLDEN_MATRIX)
    assert made.sha256 == sha256_file(file) != plain.sha256
    first, second = (each.result for each in outcome.summary.results)
    assert first is not None
    assert second is not None
    assert first.kld.mean.value != second.kld.mean.value


def test_one_is_computed_from_a_text_as_llama_imatrix_reads_it(
    pair: TinyPair, other_text: Path, cache: Path
) -> None:
    notes = Notes()
    spec = computed(other_text)
    job = job_of(pair, {"quantize": "Q4_0", "imatrix": spec}, {"quantize": "Q5_0", "imatrix": spec})
    four, _five = prepare(job, notes).candidates
    (path,) = (cache / "imatrix").iterdir()
    chunks = chunks_of(pair.base, 4, text=other_text)
    wanted = collect_imatrix(pair.base, chunks, LlamaOptions())
    assert path.read_bytes() == imatrix_bytes(wanted, "calibration.txt")
    assert four.header.metadata["quantize.imatrix.file"] == f"sha256:{sha256_file(path)}"
    assert "importance matrix of calibration.txt" in notes.bars
    assert notes.warnings == []


def test_a_converted_base_is_what_it_is_computed_with(
    pair: TinyPair, other_text: Path, cache: Path
) -> None:
    said = facts(
        {"model": str(pair.base), "convert": "F16"},
        [{"quantize": "Q4_0", "imatrix": computed(other_text)}],
        [corpus(chunks=2)],
    )
    prepare(SweepJob.model_validate(said), Notes())
    (path,) = (cache / "imatrix").iterdir()
    f16 = quantized(pair.base, sha256_file(pair.base), "F16")
    wanted = collect_imatrix(f16, chunks_of(f16, 4, text=other_text), LlamaOptions())
    assert path.read_bytes() == imatrix_bytes(wanted, "calibration.txt")


def test_one_of_the_measured_text_is_told_to_flatter(pair: TinyPair) -> None:
    notes = Notes()
    prepare(job_of(pair, {"quantize": "Q4_0", "imatrix": computed(TEXT)}), notes)
    (warning,) = notes.warnings
    assert warning == (
        "candidate Q4_0-imat: its importance matrix is of the text that text measures, "
        "which flatters it"
    )


def test_what_is_wrong_is_said_before_anything_is_made(
    pair: TinyPair, tmp_path: Path, cache: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    moe = GOLDEN / "imatrix" / "moe.gguf"
    for said, error, message in (
        (str(moe), FormatError, r"^candidate Q4_0-imat: .*moe\.gguf: has the importance of"),
        (str(TEXT), FormatError, "^candidate Q4_0-imat: .*is neither a GGUF nor an older"),
        (computed(short), UserError, "^candidate Q4_0-imat: the text has .* fewer than two"),
        (str(tmp_path / "none.dat"), UserError, "^candidate Q4_0-imat: .*does not exist"),
    ):
        job = job_of(pair, {"quantize": "Q8_0"}, {"quantize": "Q4_0", "imatrix": said})
        with pytest.raises(error, match=message):
            prepare(job, Notes())
        if isinstance(said, str):
            with pytest.raises(error, match=message):
                ship(job, open_store(str(tmp_path / "store")), Notes())
    assert not (cache / "quantized").exists()


def test_other_machines_get_files_and_texts_and_make_the_same(
    pair: TinyPair, other_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = tmp_path / "mine.gguf"
    matrix.write_bytes(GOLDEN_MATRIX.read_bytes())
    job = job_of(
        pair,
        {"quantize": "Q4_0", "imatrix": str(matrix)},
        {"quantize": "Q5_0", "imatrix": computed(other_text)},
    )
    named = [Path(uri.path).name for uri, _ in named_sources(job)]
    assert named == ["base.gguf", "mine.gguf", "calibration.txt", "text.txt"]
    here = prepare(job, Notes())
    store = open_store(str(tmp_path / "store"))
    shipped = ship(job, store, Notes())
    matrix.unlink()
    other_text.unlink()
    monkeypatch.setenv("KLDCLOUD_CACHE", str(tmp_path / "elsewhere"))
    there = prepare(job, Notes(), Sources(store, {each.uri: each for each in shipped}))
    assert [each.sha256 for each in there.candidates] == [each.sha256 for each in here.candidates]


def test_a_job_without_any_is_the_job_that_it_was_before_there_were_any(pair: TinyPair) -> None:
    said = job_of(pair, {"quantize": "Q4_0"}).model_dump(mode="json")
    earlier = {**said, "candidates": [dict(each) for each in said["candidates"]]}
    for each in earlier["candidates"]:
        assert each.pop("imatrix", "missing") is None
    assert what_counts(said) == what_counts(earlier)
    other = job_of(pair, {"quantize": "Q4_0", "imatrix": "m.gguf"}).model_dump(mode="json")
    assert what_counts(other) != what_counts(said)


def test_a_plan_counts_what_is_evaluated_first(pair: TinyPair, other_text: Path) -> None:
    spec = computed(other_text, chunks=5)
    whole = computed(other_text, chunks="all")
    plain = job_of(pair, {"quantize": "Q4_0"}, {"quantize": "Q5_0"}, {"quantize": "Q4_1"})
    job = job_of(
        pair,
        {"quantize": "Q4_0", "imatrix": spec},
        {"quantize": "Q5_0", "imatrix": spec},
        {"quantize": "Q4_1", "imatrix": whole},
    )
    home = ClusterSpec(workers=2, threads_per_worker=1)
    before, plan = (estimate_sweep(each, home, 1000.0, Notes()) for each in (plain, job))
    every = len(chunks_of(pair.base, 10**6, text=other_text))
    assert (before.imatrix_tokens, plan.imatrix_tokens) == (0, (5 + every) * 128)
    assert plan.evaluated_tokens == before.evaluated_tokens
    assert plan.seconds is not None
    assert before.seconds is not None
    assert plan.seconds - before.seconds == pytest.approx((5 + every) * 128 / 2000)
    assert "first 5 chunks of 128 tokens for the importance matrix of Q4_0-imat" in plan.to_text()
    other_text.unlink()
    with pytest.raises(UserError, match=r"^imatrix of Q4_0-imat: .*calibration.txt does not exist"):
        estimate_sweep(job, home, 1000.0, Notes())
