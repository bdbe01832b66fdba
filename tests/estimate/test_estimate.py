"""A plan's numbers, each against another way to get it: a file, a real encoder, or plain sums."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import WIDTH, TinyPair, tiny_pair

from kldcloud.clusters.prices import Offer
from kldcloud.errors import FormatError, UserError
from kldcloud.estimate.cost import Price
from kldcloud.estimate.sweep import SweepEstimate, estimate_sweep, refuse_above
from kldcloud.models.digests import model_sha256
from kldcloud.models.engine import ChunkOutput
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.llama_tokenizer import tokenize
from kldcloud.models.quantize import quantized
from kldcloud.pipeline.prepare import prepare
from kldcloud.spec.cluster import ClusterSpec
from kldcloud.spec.job import SweepJob
from kldcloud.staging.encodings import HiddenEncoding, StageShape
from kldcloud.staging.head import read_head
from kldcloud.staging.kld_file import KldHeader, KldWriter
from tests.pipeline.sweeps import TEXT, Notes, corpus, facts

HOME = ClusterSpec(workers=2, threads_per_worker=1)
RENTED = ClusterSpec(
    provider="skypilot",
    nodes=2,
    resources={"accelerators": "H100:8"},
    max_duration=7200,
    engine={"n_gpu_layers": -1},
)
MY_BOX = ClusterSpec(provider="skypilot", resources={"infra": "ssh/my-box"})
BIG = Offer("aws/us-east-1", "p5.48xlarge", "H100:8", spot=True, hourly=20.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=321, bos=True)


@pytest.fixture(autouse=True)
def no_sky(monkeypatch: pytest.MonkeyPatch) -> None:
    """SkyPilot as on a machine that does not have it."""
    monkeypatch.setitem(sys.modules, "sky", None)


def estimate(
    job: dict[str, Any], cluster: ClusterSpec = RENTED, rate: float | None = None
) -> SweepEstimate:
    return estimate_sweep(SweepJob.model_validate(job), cluster, rate, Notes())


def stated(**changes: Any) -> dict[str, Any]:
    """A job of large models that are nowhere near; everything about them is stated."""
    hub = "hf:org/no-such-model/"
    job = facts(
        {
            "model": f"{hub}big-BF16.gguf",
            "expect": {"bytes": 69_376_637_824, "vocabulary": 248_320, "width": 2048},
        },
        [
            {"model": f"{hub}big-Q8_0.gguf", "expect": {"bytes": 36_903_139_968}},
            {"model": f"{hub}big-Q4_K_M.gguf", "expect": {"bytes": 22_016_023_168}},
        ],
        [
            {
                "name": "wiki",
                "text": "hf:org/no-such-text/wiki.test.raw",
                "expect": {"tokens": 297_053},
            }
        ],
        encoding="hidden",
        cluster="clusters/far.yaml",
    )
    return {**job, **changes}


def priced(plan: SweepEstimate, offer: Offer = BIG) -> SweepEstimate:
    """The plan on machines whose price is known."""
    price = Price(offer, None, "2026-11-24", offer.hourly * plan.nodes)
    return replace(plan, price=price)


# sizes


def test_what_the_job_states_is_enough_for_every_byte() -> None:
    plan = estimate(stated())
    (text,) = plan.corpora
    assert (text.tokens, text.chunks, text.source) == (297_053, 580, "stated")
    assert plan.rows == sum(1 for _ in range(580) for at in range(256, 511) if at + 1 < 512)
    # The size that llama-perplexity's file of this model and text has.
    assert plan.kld_bytes == 73_455_427_060
    states, head, tokens = 147_900 * 2048 * 2, 248_320 * 2048 * 2, 580 * 512 * 4
    hidden, logits = plan.stages
    assert (hidden.encoding, hidden.chosen, hidden.exact) == ("hidden", True, True)
    assert hidden.bytes == states + head + tokens == 1_624_104_960
    assert (logits.encoding, logits.chosen) == ("logits", False)
    assert plan.kld_bytes / 2.8 < logits.bytes < plan.kld_bytes / 2.6
    assert plan.volumes.models_per_node == 69_376_637_824 + 36_903_139_968 + 22_016_023_168
    # Two machines share the rows of two candidates; each of their sixteen workers has the head.
    assert plan.volumes.stage_per_node == (2 * states + 16 * (head + tokens)) // 2
    assert (plan.volumes.upload, plan.volumes.uploads) == (0, ())


def test_a_kld_file_is_planned_to_the_byte(tmp_path: Path) -> None:
    path, header = tmp_path / "real.kld", KldHeader(n_ctx=64, n_vocab=321, n_chunks=3)
    with KldWriter(path, header, np.zeros((3, 64), np.int32)) as writer:
        for _ in range(3):
            writer.write_chunk(np.zeros((31, header.row_words), np.uint16))
    job = stated(
        base={
            "model": "hf:org/no-such-model/m-F16.gguf",
            "expect": {"bytes": 1, "vocabulary": 321, "width": 64},
        },
        corpora=[{**corpus(64, "all"), "expect": {"tokens": 3 * 64 + 63}, "text": "s3://abc/t"}],
    )
    assert estimate(job).kld_bytes == path.stat().st_size


def test_hidden_states_are_planned_to_the_byte(pair: TinyPair) -> None:
    plan = estimate(facts(pair.base, [pair.candidate], [corpus(128, 3)], encoding="hidden"))
    head = read_head(pair.base, read_gguf_header(pair.base))
    encoding = HiddenEncoding(StageShape(63, 321), head)
    chunk = ChunkOutput(
        logits=np.zeros((63, 321), np.float32), hidden=np.zeros((63, WIDTH), np.float32)
    )
    frame = encoding.encode(chunk, np.zeros(63, np.int32))
    assert plan.stages[0].rows_bytes == 3 * len(frame)
    assert plan.stages[0].head_bytes == head.data.nbytes + 3 * 128 * 4


def test_files_at_hand_are_read_and_go_before_what_is_stated(pair: TinyPair) -> None:
    wrong = {"bytes": 1, "vocabulary": 5, "width": 7}
    text = {**corpus(128, "all"), "expect": {"tokens": 9_999_999}}
    base = {"model": str(pair.base), "expect": wrong}
    plan = estimate(facts(base, [pair.candidate], [text]))
    tokens = len(tokenize(pair.base, TEXT.read_text().removesuffix("\n")).tokens)
    assert (plan.corpora[0].tokens, plan.corpora[0].source) == (tokens, "counted")
    assert plan.corpora[0].chunks == tokens // 128
    assert plan.base.vocabulary == 321
    sizes = [path.stat().st_size for path in (pair.base, pair.candidate)]
    assert plan.volumes.models_per_node == sum(sizes)
    assert plan.volumes.upload == sum(sizes) + TEXT.stat().st_size
    assert plan.volumes.uploads == ("base.gguf", "candidate.gguf", "text.txt")


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_a_candidate_that_is_to_be_made_is_sized_to_a_tenth(pair: TinyPair, quant: str) -> None:
    plan = estimate(facts(pair.base, [{"quantize": quant}], [corpus()]))
    made = read_gguf_header(quantized(pair.base, model_sha256(pair.base), quant)).tensor_bytes
    assert plan.candidates[0].size == pytest.approx(made, rel=0.1)
    assert plan.volumes.uploads == ("base.gguf", "text.txt")


def test_a_base_that_is_to_be_converted_counts_as_converted(pair: TinyPair) -> None:
    base = {"model": str(pair.base), "convert": "F16"}
    plan = estimate(facts(base, [pair.candidate], [corpus(128, 2)], encoding="hidden"))
    assert plan.stages[0].rows_bytes == 2 * 63 * WIDTH * 2
    weights = read_gguf_header(pair.base).parameters
    assert plan.base.file.size == 2 * weights


@pytest.mark.parametrize(
    ("name", "encoding", "state"),
    [
        ("m-BF16", "hidden", 4096),
        ("m-f32", "hidden", 8192),
        ("m-Q8_0", "hidden", 2176),
        ("m", "hidden", 4096),
        ("m-Q4_K_M", "logits", 0),
        ("m-UD-Q8_K_XL", "logits", 0),
        ("m-IQ4_NL", "logits", 0),
    ],
)
def test_the_name_of_a_base_that_is_not_here_says_how_its_head_is_stored(
    name: str, encoding: str, state: int
) -> None:
    base = {**stated()["base"], "model": f"hf:org/no-such-model/{name}.gguf"}
    plan = estimate(stated(base=base))
    assert plan.stages[0].encoding == encoding
    if state:
        assert plan.stages[0].rows_bytes == plan.rows * state
    else:
        assert "by its name" in plan.reason


def test_a_base_of_which_nothing_is_known_leaves_blanks_and_says_how_to_fill_them() -> None:
    plan = estimate(stated(base={"model": "hf:org/no-such-model/m.gguf"}))
    assert (plan.stages, plan.kld_bytes, plan.volumes.stage_per_node) == ((), None, None)
    assert plan.volumes.unknown == ("m",)
    assert "state its expect: {bytes, vocabulary, width}" in plan.to_text()
    said = json.loads(plan.to_json())
    assert (said["encoding"], said["staged_bytes"], said["kld_bytes"]) == (None, {}, None)
    assert said["volumes"]["unknown"] == ["m"]


def test_a_text_that_nothing_can_count_is_guessed_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x" * 40_001)
    plan = estimate(stated(corpora=[{"name": "t", "text": str(tmp_path / "t.txt")}]))
    assert (plan.corpora[0].tokens, plan.corpora[0].source) == (10_000, "estimated")
    assert "of 10,000 tokens, by its size" in plan.to_text()


def test_conversations_are_counted_as_rendered_or_guessed_like_any_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    base = tiny_pair(tmp_path / "m", vocabulary=321, bos=True, template=template).base
    talk, name = tmp_path / "talk.jsonl", "talk"
    line = json.dumps({"messages": [{"role": "user", "content": "the other one " * 9}]})
    talk.write_text(f"{line}\n" * 30)
    text = {"name": name, "text": str(talk), "format": "chat", "context": 64}
    job = facts(base, [base.with_name("candidate.gguf")], [text])
    prepared = prepare(SweepJob.model_validate(job), Notes())
    plan = estimate(job)
    assert (plan.corpora[0].tokens, plan.corpora[0].source) == (
        prepared.corpora[0].text_tokens,
        "counted",
    )
    assert plan.volumes.uploads == ("base.gguf", "candidate.gguf", "talk.jsonl")
    guessed = estimate(stated(corpora=[text]))
    assert (guessed.corpora[0].tokens, guessed.corpora[0].source) == (
        talk.stat().st_size // 4,
        "estimated",
    )
    talk.write_text("oops")
    with pytest.raises(FormatError, match=r"^corpus talk: line 1 is not JSON"):
        estimate(job)


def test_what_a_job_names_and_is_not_there_is_refused_unless_it_is_stated() -> None:
    with pytest.raises(UserError, match=r"^base: /no/b\.gguf does not exist; .*expect"):
        estimate(stated(base={"model": "/no/b.gguf"}))
    with pytest.raises(UserError, match=r"^candidate c: /no/c\.gguf does not exist; .*expect"):
        estimate(stated(candidates=[{"model": "/no/c.gguf"}]))
    with pytest.raises(UserError, match=r"^corpus t: /no/t does not exist; .*expect"):
        estimate(stated(corpora=[{"name": "t", "text": "/no/t"}]))
    short = [{"name": "t", "text": "/no/t", "expect": {"tokens": 1023}}]
    with pytest.raises(UserError, match="1023 tokens, fewer than two chunks of 512"):
        estimate(stated(corpora=short))


def test_a_file_that_is_named_twice_travels_once(pair: TinyPair) -> None:
    twice = [
        {"model": str(pair.candidate), "name": "once"},
        {"model": str(pair.candidate), "name": "again"},
    ]
    plan = estimate(facts(pair.base, twice, [corpus()]))
    sizes = pair.base.stat().st_size + pair.candidate.stat().st_size
    assert plan.volumes.models_per_node == sizes
    assert plan.volumes.uploads == (pair.base.name, pair.candidate.name, TEXT.name)
    assert plan.volumes.upload == sizes + TEXT.stat().st_size


def test_a_candidate_with_another_vocabulary_is_refused(pair: TinyPair, tmp_path: Path) -> None:
    stranger = tiny_pair(tmp_path, vocabulary=320, bos=True).candidate
    with pytest.raises(FormatError, match="has a vocabulary of 320, the base 321"):
        estimate(facts(pair.base, [stranger], [corpus()]))


def test_a_base_file_of_llama_cpp_is_no_model_to_run(tmp_path: Path, pair: TinyPair) -> None:
    path, header = tmp_path / "real.kld", KldHeader(n_ctx=64, n_vocab=321, n_chunks=3)
    with KldWriter(path, header, np.zeros((3, 64), np.int32)) as writer:
        for _ in range(3):
            writer.write_chunk(np.zeros((31, header.row_words), np.uint16))
    job = facts({"logits": str(path)}, [pair.candidate], [])
    for cluster in (HOME, MY_BOX):
        plan = estimate(job, cluster, rate=10.0)
        assert (plan.runs, plan.chunks, plan.rows) == (1, 3, 3 * 31)
        assert plan.evaluated_tokens == 3 * 64
        assert plan.kld_bytes == path.stat().st_size
        assert [each.encoding for each in plan.stages] == ["kld"]
    assert plan.volumes.upload == path.stat().st_size + pair.candidate.stat().st_size


# hours


def test_the_rate_is_the_one_typed_then_the_jobs_then_measured_then_unknown(
    pair: TinyPair,
) -> None:
    job = stated(rates={"far": 2000})
    assert estimate(job, rate=500.0).rate.tokens == 500.0
    assert estimate(job).rate.tokens == 2000.0
    assert "rates.far" in estimate(job).rate.source
    unknown = estimate(stated(rates={"near": 2000}))
    assert (unknown.rate.tokens, unknown.seconds, unknown.cost_estimate) == (None, None, None)
    assert "give --rate, or rates: {far: ...} in the job" in unknown.to_text()
    measured = estimate(facts(pair.base, [pair.candidate], [corpus()]), HOME)
    assert (measured.rate.tokens or 0) > 0
    assert measured.rate.source == "measured on one chunk of the base"


def test_workers_share_the_work() -> None:
    plan = estimate(stated(), rate=1000.0)
    assert plan.crew.workers == 16
    assert plan.evaluated_tokens == 3 * 580 * 512
    assert plan.seconds == pytest.approx(3 * 580 * 512 / 16_000)


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ({"resources": {"accelerators": "H100:8"}}, 8),
        ({"resources": {"accelerators": {"H100": 8}}, "gpus_per_worker": 2}, 4),
        ({"resources": {"accelerators": ["A100:4", "H100:8"]}}, 4),
        ({"resources": {"any_of": [{"use_spot": True, "accelerators": "L4:2"}]}}, 2),
        ({"resources": {"accelerators": "H100"}, "nodes": 3}, 3),
        ({"resources": {"cpus": "64+"}}, 1),
        ({"resources": {"accelerators": "H100:8"}, "engine": {"n_gpu_layers": 0}}, 1),
        ({"resources": {"accelerators": "H100:8"}, "workers": 3, "nodes": 2}, 6),
    ],
)
def test_machines_that_nobody_has_seen_have_a_worker_for_each_gpu(
    changes: dict[str, Any], workers: int
) -> None:
    cluster = ClusterSpec.model_validate(
        {"provider": "skypilot", "engine": {"n_gpu_layers": -1}, **changes}
    )
    assert estimate(stated(), cluster).crew.workers == workers


def test_there_are_no_more_workers_than_chunks() -> None:
    job = stated(corpora=[{**stated()["corpora"][0], "chunks": 5}])
    assert estimate(job).crew.workers == 5


def test_rented_machines_are_paid_while_they_start_and_download() -> None:
    plan = estimate(stated(), rate=1000.0)
    fetched = plan.volumes.models_per_node / 200e6
    assert plan.start_seconds == pytest.approx(600 + fetched)
    assert plan.total_seconds == pytest.approx(600 + fetched + 3 * 580 * 512 / 16_000)


# money


def test_money_is_hours_times_machines_times_price() -> None:
    plan = priced(estimate(stated(), rate=100.0))
    assert plan.hourly == 40.0
    assert plan.cost_estimate == pytest.approx((plan.total_seconds or 0) / 3600 * 2 * 20)
    assert plan.cost_at_most == pytest.approx(2 * 40.0)
    assert plan.machine == "aws/us-east-1 p5.48xlarge, H100:8, spot"
    said = json.loads(plan.to_json())
    assert said["offer"]["hourly"] == 20.0
    assert said["cost_at_most"] == 80.0
    assert said["price_unknown"] is None


def test_a_job_that_its_cluster_would_cut_short_says_so() -> None:
    plan = priced(estimate(stated(), rate=1.0))
    assert "longer than max_duration (2 h)" in plan.to_text()
    assert "longer" not in priced(estimate(stated(), rate=1e5)).to_text()


def test_without_skypilot_the_price_is_unknown_and_the_rest_is_not() -> None:
    plan = estimate(stated(), rate=1000.0)
    assert (plan.hourly, plan.offer, plan.cost_estimate) == (None, None, None)
    said = json.loads(plan.to_json())
    assert said["hourly"] is None
    assert "pip install" in said["price_unknown"]
    assert said["seconds"] == plan.seconds
    assert f"unknown: {said['price_unknown']}" in plan.to_text()


@pytest.mark.parametrize("cluster", [HOME, MY_BOX])
def test_own_machines_cost_nothing_however_long_they_take(cluster: ClusterSpec) -> None:
    plan = estimate(stated(), cluster)
    assert plan.seconds is None
    assert (plan.hourly, plan.cost_estimate, plan.cost_at_most) == (0.0, 0.0, 0.0)
    assert "nothing by the hour" in plan.to_text()
    refuse_above(plan, 0.0)


def test_a_bound_refuses_what_is_dearer_or_unknown_and_nothing_else() -> None:
    plan = priced(estimate(stated(), rate=100.0))
    likely = plan.cost_estimate or 0.0
    refuse_above(plan, likely + 0.01)
    with pytest.raises(UserError, match=r"would cost about \$.* on far, more than the \$1\.00 of"):
        refuse_above(plan, 1.0)
    with pytest.raises(UserError, match=r"how long .* unknown.*rates: {far:"):
        refuse_above(priced(estimate(stated())), 79.0)
    # Whatever it does, its machines are gone by then.
    refuse_above(priced(estimate(stated())), 80.0)
    with pytest.raises(UserError, match=r"costs is unknown.*pip install"):
        refuse_above(estimate(stated(), rate=100.0), 1e9)
