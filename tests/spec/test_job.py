"""What a sweep job may say, and what it says of itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from kldcloud.spec.engine import EngineOptions
from kldcloud.spec.job import BaseSpec, CandidateSpec, SweepJob
from kldcloud.spec.uri import SourceUri


def job_of(**changes: Any) -> SweepJob:
    """A valid job with some of its keys replaced; None leaves one out."""
    said: dict[str, Any] = {
        "kind": "sweep",
        "name": "demo",
        "base": {"model": "base.gguf", "convert": "F16"},
        "candidates": [{"quantize": "Q8_0"}, {"model": "./mine-Q4_0.gguf"}],
        "corpora": [{"name": "text", "text": "builtin:python-reference"}],
    }
    return SweepJob.model_validate({**said, **changes})


def reason_of(**changes: Any) -> tuple[tuple[int | str, ...], str]:
    """Where and why such a job is refused."""
    with pytest.raises(ValidationError) as caught:
        job_of(**changes)
    (finding,) = caught.value.errors()
    return (*finding["loc"], *finding.get("ctx", {}).get("at", ())), finding["msg"]


def test_what_is_left_out_has_the_documented_default() -> None:
    job = job_of()
    assert (job.cluster, job.store, job.encoding) == ("local", "./kldcloud-store", "auto")
    assert (job.llama_compat, job.shard_chunks, job.engine) == (True, None, EngineOptions())
    assert (job.corpora[0].context, job.corpora[0].chunks) == (512, "all")
    assert job.corpora[0].format == "text"
    assert job.engine.model_dump() == {
        "n_gpu_layers": 0,
        "tensor_overrides": {},
        "threads": None,
        "flash_attention": "auto",
        "kv_type_k": "f16",
        "kv_type_v": "f16",
        "repack": True,
        "transformers": {
            "dtype": "auto",
            "device": "auto",
            "attention": "sdpa",
            "head": "float32",
            "offload": False,
            "dequantize": False,
            "round_activations": False,
        },
    }


def test_a_key_without_a_value_counts_as_left_out() -> None:
    assert job_of(engine=None, store=None, shard_chunks=None) == job_of()


def test_a_job_survives_json_unchanged() -> None:
    job = job_of(
        engine={"tensor_overrides": {r"blk\.1\..*": "CPU"}, "flash_attention": "on"},
        candidates=[
            {"model": "hf:org/repo/m.gguf@v1"},
            {"model": "s3://bucket/a/k.gguf"},
            {"quantize": "Q4_0", "imatrix": "a/m.dat"},
            {"quantize": "Q4_1", "imatrix": {"text": "builtin:python-reference", "chunks": 9}},
        ],
        store="s3://bucket/prefix",
    )
    assert SweepJob.model_validate(json.loads(job.model_dump_json())) == job


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job_of().name = "other"


def test_places_come_parsed() -> None:
    job = job_of()
    assert job.base.model == SourceUri("file", "", "base.gguf")
    assert job.corpora[0].text == SourceUri("builtin", "", "python-reference")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"quantize": "q4_k_m"}, "Q4_K_M"),
        ({"model": "a/b/mine-Q4_0.gguf"}, "mine-Q4_0"),
        ({"model": "hf:org/repo/sub/model.Q4_K_M.gguf@v1"}, "model.Q4_K_M"),
        ({"model": "my model (1).gguf"}, "my-model-1"),
        ({"model": "a.gguf", "name": "mine"}, "mine"),
        ({"quantize": "Q8_0", "name": "eight"}, "eight"),
        ({"quantize": "q4_0", "imatrix": "m.gguf"}, "Q4_0-imat"),
        ({"quantize": "Q4_0", "imatrix": "m.gguf", "name": "four"}, "four"),
    ],
)
def test_a_candidate_is_called_by_its_name_type_or_file(said: dict[str, str], name: str) -> None:
    assert CandidateSpec.model_validate(said).display_name == name


def test_a_model_may_be_a_whole_repository_which_gives_its_name() -> None:
    job = job_of(
        base={"model": "hf:org/Some-1.5B"}, candidates=[{"model": "hf:other/Some-1.5B.fp8@v1"}]
    )
    assert job.base.model == SourceUri("hf", "org/Some-1.5B", "", "main")
    assert job.base.display_name == "Some-1.5B"
    assert job.candidates[0].display_name == "Some-1.5B.fp8"
    assert SweepJob.model_validate(json.loads(job.model_dump_json())) == job


NO_FILE = "does not name a file of a Hugging Face repository"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"corpora": [{"name": "t", "text": "hf:org/repo"}]}, ("corpora", 0, "text")),
        ({"base": {"logits": "hf:org/repo"}}, ("base", "logits")),
        (
            {"candidates": [{"quantize": "Q4_0", "imatrix": {"file": "hf:org/repo"}}]},
            ("candidates", 0, "imatrix", "file"),
        ),
    ],
)
def test_what_must_be_a_file_cannot_be_a_repository(
    changes: dict[str, Any], where: tuple[int | str, ...]
) -> None:
    at, reason = reason_of(**changes)
    assert at == where
    assert NO_FILE in reason


def test_a_base_is_called_by_its_name_or_file_and_conversion() -> None:
    assert BaseSpec.model_validate({"model": "m.Q4_1.gguf"}).display_name == "m.Q4_1"
    said = {"model": "m.gguf", "convert": "F16"}
    assert BaseSpec.model_validate(said).display_name == "m-F16"
    assert BaseSpec.model_validate({"logits": "a/b.kld"}).display_name == "b"
    assert BaseSpec.model_validate({"logits": "b.kld", "name": "n"}).display_name == "n"


@pytest.mark.parametrize(
    ("changes", "at", "reason"),
    [
        ({"base": {"name": "x"}}, ("base",), "give exactly one of 'model' and 'logits'"),
        (
            {"base": {"model": "a", "logits": "b"}},
            ("base",),
            "give exactly one of 'model' and 'logits'",
        ),
        (
            {"base": {"logits": "b.kld", "convert": "F16"}},
            ("base", "convert"),
            "only a 'model' can be converted, not 'logits'",
        ),
        (
            {"base": {"logits": "package:a/b.kld"}},
            ("base", "logits"),
            "must be a path, file:, s3:// or hf:",
        ),
        (
            {"base": {"model": "builtin:python-reference"}},
            ("base", "model"),
            "a built-in text is not a model",
        ),
        (
            {"base": {"logits": "b.kld"}, "candidates": [{"model": "a"}, {"quantize": "Q8_0"}]},
            ("candidates", 1, "quantize"),
            "there is no model to quantise: 'base' has only 'logits'",
        ),
        (
            {"candidates": [{"name": "x"}]},
            ("candidates", 0),
            "give exactly one of 'quantize' and 'model'",
        ),
        (
            {"candidates": [{"quantize": "Q8_0", "model": "a"}]},
            ("candidates", 0),
            "give exactly one of 'quantize' and 'model'",
        ),
        (
            {"candidates": [{"model": "a", "imatrix": "m.gguf"}]},
            ("candidates", 0, "imatrix"),
            "only what is quantised here takes one: leave it out",
        ),
        (
            {"candidates": [{"quantize": "IQ2_XXS"}]},
            ("candidates", 0, "quantize"),
            (
                "IQ2_XXS needs an importance matrix; "
                "add imatrix: {text: ...}, or imatrix: and the path of one"
            ),
        ),
        (
            {"candidates": [{"quantize": "Q8_0", "imatrix": "m.gguf"}]},
            ("candidates", 0, "quantize"),
            "Q8_0 takes no importance matrix; leave 'imatrix' out",
        ),
        (
            {"candidates": [{"quantize": "Q4_0", "imatrix": {"chunks": 5}}]},
            ("candidates", 0, "imatrix"),
            "give the path of a file, or a 'text' to make one with",
        ),
        (
            {"candidates": [{"quantize": "Q4_0", "imatrix": {"file": "m", "text": "t"}}]},
            ("candidates", 0, "imatrix"),
            "give the path of a file, or a 'text' to make one with",
        ),
        (
            {"candidates": [{"quantize": "Q4_0", "imatrix": {"file": "m", "chunks": 5}}]},
            ("candidates", 0, "imatrix"),
            "a file is used as it is: leave out 'chunks' and 'context'",
        ),
        (
            {"candidates": [{"quantize": "Q4_0", "imatrix": "builtin:python-reference"}]},
            ("candidates", 0, "imatrix"),
            "a built-in text is no importance matrix: give it as 'text'",
        ),
        (
            {"candidates": [{"quantize": "Q4_0"}, {"quantize": "Q4_0", "imatrix": "m"}] * 2},
            ("candidates", 2),
            "has the same name 'Q4_0' as candidates[0]; give it a 'name' of its own",
        ),
        (
            {"candidates": [{"model": "a/x.gguf"}, {"model": "b/X.gguf"}]},
            ("candidates", 1),
            "has the same name 'X' as candidates[0]; give it a 'name' of its own",
        ),
        (
            {"candidates": [{"quantize": "Q8_0"}, {"model": "a", "name": "q8_0"}]},
            ("candidates", 1),
            "has the same name 'q8_0' as candidates[0]; give it a 'name' of its own",
        ),
        (
            {"candidates": [{"model": "???.gguf"}]},
            ("candidates", 0),
            "no name can be made from the file's name: give one with 'name'",
        ),
        (
            {"candidates": [{"quantize": "Q8_0", "name": "../x"}]},
            ("candidates", 0, "name"),
            (
                "'../x' cannot name a folder in a store; "
                "use letters, digits, '.', '_' and '-', a letter or digit first, 128 at most"
            ),
        ),
        ({"corpora": []}, ("corpora",), "needs at least one entry"),
        (
            {"corpora": [{"name": "a", "text": "x"}, {"name": "A", "text": "y"}]},
            ("corpora", 1),
            "has the same name 'A' as corpora[0]; give it a 'name' of its own",
        ),
        (
            {"corpora": [{"name": "a", "text": "x", "chunks": 0}]},
            ("corpora", 0, "chunks"),
            "must be all or a whole number from 1 to 2147483647, not 0",
        ),
        (
            {"corpora": [{"name": "a", "text": "x", "chunks": True}]},
            ("corpora", 0, "chunks"),
            "must be all or a whole number from 1 to 2147483647, not true",
        ),
        (
            {"corpora": [{"name": "a", "text": "builtin:python-reference", "format": "chat"}]},
            ("corpora", 0, "format"),
            "a built-in text has no conversations in it",
        ),
        (
            {
                "base": {"logits": "b.kld"},
                "candidates": [{"model": "a"}],
                "corpora": [{"name": "a", "text": "x.jsonl", "format": "chat"}],
            },
            ("corpora", 0, "format"),
            "the tokens come from 'base.logits': leave it out",
        ),
        (
            {"engine": {"tensor_overrides": {"blk.(": "CPU"}}},
            ("engine", "tensor_overrides", "blk.("),
            "is not a regular expression: missing ), unterminated subpattern at position 4",
        ),
        (
            {"engine": {"tensor_overrides": {"blk": " "}}},
            ("engine", "tensor_overrides", "blk"),
            "needs a buffer type such as CPU",
        ),
    ],
)
def test_parts_that_do_not_agree_are_refused(
    changes: dict[str, Any], at: tuple[int | str, ...], reason: str
) -> None:
    assert reason_of(**changes) == (at, reason)


def test_a_base_file_brings_its_own_tokens() -> None:
    models_only = [{"model": "a.gguf"}]
    assert job_of(base={"logits": "b.kld"}, candidates=models_only, corpora=[]).corpora == ()
    named = [{"name": "wiki", "text": "wiki.txt"}]
    job = job_of(base={"logits": "b.kld"}, candidates=models_only, corpora=named)
    assert job.corpora[0].name == "wiki"
    at, reason = reason_of(
        base={"logits": "b.kld"},
        candidates=models_only,
        corpora=[*named, {"name": "code", "text": "code.txt"}],
    )
    assert (at, reason) == (("corpora", 1), "'base.logits' holds the tokens of one corpus")


@pytest.mark.parametrize("context", [8, 512, 777, 1 << 20])
def test_any_context_from_8_tokens_to_a_mebi_is_accepted(context: int) -> None:
    assert job_of(corpora=[{"name": "a", "text": "x", "context": context}]).corpora[0].context == (
        context
    )


@pytest.mark.parametrize("context", [7, (1 << 20) + 1, "512", 512.0, True])
def test_any_other_context_is_refused(context: object) -> None:
    with pytest.raises(ValidationError):
        job_of(corpora=[{"name": "a", "text": "x", "context": context}])


@pytest.mark.parametrize(
    ("said", "meant"),
    [(True, "on"), (False, "off"), ("on", "on"), ("off", "off"), ("auto", "auto")],
)
def test_flash_attention_takes_the_words_that_yaml_calls_booleans(said: object, meant: str) -> None:
    assert job_of(engine={"flash_attention": said}).engine.flash_attention == meant


@pytest.mark.parametrize(
    "engine",
    [
        {"n_gpu_layers": -2},
        {"n_gpu_layers": "all"},
        {"threads": 0},
        {"threads": 1.5},
        {"repack": "yes"},
        {"repack": 1},
        {"kv_type_k": "f64"},
        {"flash_attention": "maybe"},
        {"tensor_overrides": ["CPU"]},
        {"tensor_overrides": {"": "CPU"}},
        {"tensor_overrides": {"x" * 1025: "CPU"}},
        {"tensor_overrides": {f"x{index}": "CPU" for index in range(257)}},
    ],
)
def test_engine_options_out_of_range_are_refused(engine: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        job_of(engine=engine)


@pytest.mark.parametrize(
    "kv", ["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"]
)
def test_every_cache_type_of_llama_cpp_is_accepted(kv: str) -> None:
    engine = job_of(engine={"kv_type_k": kv, "kv_type_v": kv}).engine
    assert (engine.kv_type_k, engine.kv_type_v) == (kv, kv)


def test_tensor_overrides_keep_their_order() -> None:
    overrides = {"b": "CPU", "a": "CUDA0", "c": "CPU"}
    assert list(job_of(engine={"tensor_overrides": overrides}).engine.tensor_overrides) == [
        "b",
        "a",
        "c",
    ]
