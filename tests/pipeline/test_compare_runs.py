"""`compare`: candidates of several runs as if one run had measured them, or a line why not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import (
    CHUNKS,
    ENGINE,
    STAGE,
    Model,
    change_summary,
    finished_run,
    note_plan,
    partial_keys,
    token_records,
)
from scipy import stats

from kldcloud.corpus.chunks import Shard
from kldcloud.divergence.partial import IDENTITY_KEY, MOMENTS_KEY
from kldcloud.divergence.sequential import Rule, decide
from kldcloud.errors import FormatError, KldcloudError, UserError
from kldcloud.pipeline.compare_runs import compare_runs
from kldcloud.pipeline.runs import FoundRun
from kldcloud.report.compared import ComparedRuns
from kldcloud.report.markdown import render_markdown
from kldcloud.store import open_store, sha256_bytes
from kldcloud.store.base import Store
from tests.divergence.synthetic_records import ROWS

Q8 = Model("Q8_0", "q8", 0.1)
Q4 = Model("Q4_K_M", "q4", 1.0)
UD = Model("UD-Q4_K_XL", "ud", 1.001)
Q2 = Model("Q2_K", "q2", 3.0)
RULE = Rule("ranked", None, 0.95, 8)
FIRST, SECOND = "ours-0123456789ab", "theirs-ba9876543210"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def two(store: Store) -> list[FoundRun]:
    return [finished_run(store, FIRST, [Q8, Q4]), finished_run(store, SECOND, [UD, Q2])]


def refusal(runs: list[FoundRun], kind: type[KldcloudError], corpus: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        compare_runs(runs, corpus)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(compared: ComparedRuns) -> list[str]:
    return [each.name for each in compared.summary.candidates]


def chunk_means(model: Model) -> Any:
    return token_records(model).kld.reshape(CHUNKS, ROWS).mean(axis=1)


# What it comes to


def test_two_runs_give_what_one_run_of_all_candidates_gives(
    two: list[FoundRun], tmp_path: Path
) -> None:
    together = finished_run(
        open_store(str(tmp_path / "other")), "all-111111111111", [Q8, Q4, UD, Q2]
    )
    compared = compare_runs(two)
    expected = compare_runs([together]).summary
    assert compared.summary.comparisons == expected.comparisons
    assert compared.summary.results == expected.results
    assert compared.runs == (FIRST, SECOND)
    assert dict(compared.origins) == {
        "Q8_0": FIRST,
        "Q4_K_M": FIRST,
        "UD-Q4_K_XL": SECOND,
        "Q2_K": SECOND,
    }
    stored = json.loads(together.store.read("runs/all-111111111111/summary.json"))
    plain = compared.summary.to_json_dict()
    assert plain["comparisons"] == stored["comparisons"]
    assert plain["results"] == stored["results"]


def test_candidates_of_two_runs_are_paired_on_the_same_tokens(two: list[FoundRun]) -> None:
    (comparison,) = compare_runs(two).summary.comparisons
    (pair,) = (p for p in comparison.pairs if {p.better, p.worse} == {"Q4_K_M", "UD-Q4_K_XL"})
    better, worse = (chunk_means(each) for each in (Q4, UD))
    if pair.better == "UD-Q4_K_XL":
        better, worse = worse, better
    theirs = stats.ttest_rel(worse, better)
    assert pair.difference == pytest.approx(np.mean(worse - better), rel=1e-9)
    assert pair.p == pytest.approx(theirs.pvalue, rel=1e-8)
    ranks = {each.candidate: (each.low, each.high) for each in comparison.ranks}
    assert ranks == {
        "Q8_0": (1, 1),
        "Q4_K_M": (2, 3),
        "UD-Q4_K_XL": (2, 3),
        "Q2_K": (4, 4),
    }


def test_the_same_file_in_two_runs_appears_once(store: Store, two: list[FoundRun]) -> None:
    third = finished_run(store, "more-111111111111", [replace(Q4, name="renamed"), Q2])
    compared = compare_runs([*two, third])
    assert names(compared) == ["Q8_0", "Q4_K_M", "UD-Q4_K_XL", "Q2_K"]
    assert "renamed" not in str(compared.summary)


def test_two_names_for_one_file_in_one_run_are_meant(store: Store, two: list[FoundRun]) -> None:
    twice = finished_run(store, "twice-111111111111", [Q2, replace(Q2, name="again")])
    assert names(compare_runs([twice])) == ["Q2_K", "again"]
    assert names(compare_runs([two[1], twice])) == ["UD-Q4_K_XL", "Q2_K"]


def test_one_name_for_two_files_is_told_apart_by_the_runs(
    store: Store, two: list[FoundRun]
) -> None:
    other = finished_run(store, SECOND.replace("theirs", "new"), [replace(Q4, file="q4-imatrix")])
    compared = compare_runs([two[0], other])
    assert names(compared) == ["Q8_0", f"Q4_K_M ({FIRST})", f"Q4_K_M ({other.run})"]
    assert compared.origins[f"Q4_K_M ({other.run})"] == other.run
    ranked = {each.candidate for each in compared.summary.comparisons[0].ranks}
    assert ranked == set(names(compared))


def test_a_run_that_is_named_twice_counts_once(two: list[FoundRun]) -> None:
    assert compare_runs([two[0], two[0]]).runs == (FIRST,)


def test_a_failed_candidate_has_a_row_and_no_rank(store: Store, two: list[FoundRun]) -> None:
    broken = finished_run(store, "bad-111111111111", [replace(Q2, failed=True), UD])
    compared = compare_runs([two[0], broken])
    (row,) = (each for each in compared.summary.results if each.candidate == "Q2_K")
    assert (row.status, row.error) == ("failed", "q.gguf: ends inside a tensor")
    assert compared.summary.status == "partial"
    (comparison,) = compared.summary.comparisons
    assert {each.candidate for each in comparison.ranks} == {"Q8_0", "Q4_K_M", "UD-Q4_K_XL"}


def test_what_failed_in_one_run_and_not_in_another_counts_as_measured(
    store: Store, two: list[FoundRun]
) -> None:
    broken = finished_run(store, "bad-111111111111", [replace(Q2, failed=True), UD])
    compared = compare_runs([broken, two[1]])
    assert names(compared) == ["Q2_K", "UD-Q4_K_XL"]
    assert [each.status for each in compared.summary.results] == ["complete", "complete"]
    assert compared.summary.status == "complete"


def test_several_corpora_are_compared_one_by_one(store: Store) -> None:
    corpora = {"wiki": 10, "code": 6}
    runs = [
        finished_run(store, FIRST, [Q8, Q4], corpora=corpora),
        finished_run(store, SECOND, [UD], corpora=corpora),
    ]
    compared = compare_runs(runs).summary
    assert [each.corpus for each in compared.comparisons] == ["wiki", "code"]
    assert [len(each.pairs) for each in compared.comparisons] == [3, 3]
    only = compare_runs(runs, "code").summary
    assert [each.name for each in only.corpora] == ["code"]
    assert only.comparisons == compared.comparisons[1:]


# Runs that may stop early


def stop(candidates: list[Model], **changes: Any) -> list[dict[str, Any]]:
    """What a summary says of a run that stopped at its second checkpoint."""
    means = np.stack([chunk_means(each) for each in candidates])
    decision = decide(RULE, means, [ROWS] * CHUNKS, 40)
    assert decision is not None
    assert (decision.checkpoint, decision.chunks) == (2, CHUNKS)
    facts = decision.to_json_dict([each.name for each in candidates])
    return [{"corpus": "text", **facts, **changes}]


def test_runs_that_stopped_are_compared_by_the_test_that_allows_for_it(store: Store) -> None:
    near = Model("Q2_K_S", "q2s", 3.001)
    runs = [
        finished_run(store, FIRST, [Q4, UD], stops=stop([Q4, UD])),
        finished_run(store, SECOND, [Q2, near], stops=stop([Q2, near])),
    ]
    compared = compare_runs(runs).summary
    means = np.stack([chunk_means(each) for each in (Q4, UD, Q2, near)])
    expected = decide(RULE, means, [ROWS] * CHUNKS, 40)
    assert expected is not None
    (comparison,) = compared.comparisons
    found = {(p.better, p.worse): p.p for p in comparison.pairs}
    shown = names(ComparedRuns((), {}, compared))
    assert found == {
        (shown[pair.better], shown[pair.worse]): pair.p for pair in expected.comparison.pairs
    }
    plain = finished_run(store, "plain-111111111111", [Q4, UD, Q2, near])
    for pair in compare_runs([plain]).summary.comparisons[0].pairs:
        assert pair.p is not None
        assert pair.p < (found[pair.better, pair.worse] or 0), "looks cost certainty"
    (settled,) = compared.stops
    assert not settled.settled
    assert {"Q4_K_M", "UD-Q4_K_XL"} in [set(pair) for pair in settled.undecided]
    page = render_markdown(compared)
    assert "is not settled with 95 % confidence whenever one stops by 10 of 40 chunks" in page


def test_runs_that_stop_by_different_rules_are_refused(store: Store) -> None:
    runs = [
        finished_run(store, FIRST, [Q4], stops=stop([Q4, UD], means=[], order=[], undecided=[])),
        finished_run(
            store, SECOND, [UD], stops=stop([Q4, UD], means=[], order=[], undecided=[], least=9)
        ),
    ]
    assert (
        "differ in when to stop on corpus text: ranked at 0.95, 8 of 40 chunks at least,"
        " ranked at 0.95, 9 of 40 chunks at least; "
    ) in refusal(runs, UserError)
    plain = finished_run(store, "plain-111111111111", [UD])
    assert "8 of 40 chunks at least, none; " in refusal([runs[0], plain], UserError)


@pytest.mark.parametrize("changes", [{"least": 0}, {"of": 5}, {"confidence": 1.0}, {"least": 11}])
def test_a_rule_that_no_run_has_is_refused(store: Store, changes: dict[str, Any]) -> None:
    odd = finished_run(store, FIRST, [Q4, UD], stops=stop([Q4, UD], **changes))
    assert refusal([odd], FormatError) == ("corpus text was stopped by a rule that no run has")


# What is refused


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"base": {"name": "base", "sha256": "ab" * 32, "bytes": 1, "parameters": 1}},
            f"the base's sha256: {'ba' * 32}, {'ab' * 32}",
        ),
        ({"engine": ENGINE | {"version": "0.3.35"}}, "the engine's version: 0.3.36, 0.3.35"),
        ({"engine": ENGINE | {"gpu": "H100"}}, "the engine's gpu: none, H100"),
        ({"encoding": "hidden"}, "the base stage's encoding: logits, hidden"),
    ],
)
def test_runs_that_measured_differently_are_refused_by_the_field(
    two: list[FoundRun], changes: dict[str, Any], what: str
) -> None:
    if "base" in changes:
        changes["base"]["bits_per_weight"] = None
    change_summary(two[1], **changes)
    assert refusal(two, UserError) == (
        f"runs {FIRST} and {SECOND} differ in {what}; only what was measured alike can be compared"
    )


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        (
            "sha256",
            "cc" * 32,
            f"the sha256 of corpus text: {'74657874'.ljust(64, '0')}, {'cc' * 32}",
        ),
        ("context", 128, "the context of corpus text: 64, 128"),
        ("name", "prose", "their corpora: text, prose"),
    ],
)
def test_other_texts_are_refused_by_the_field(
    two: list[FoundRun], field: str, value: object, shown: str
) -> None:
    text = json.loads(two[1].store.read(f"runs/{SECOND}/summary.json").decode())
    if field == "name":
        renamed = json.dumps(text).replace('"text"', '"prose"')
        two[1].store.write(f"runs/{SECOND}/summary.json", renamed.encode())
    else:
        change_summary(two[1], corpora=[text["corpora"][0] | {field: value}])
    said = refusal(two, UserError)
    assert f"differ in {shown}; only what was" in said
    assert said.endswith("; --corpus names one that they share")


def test_more_chunks_of_the_same_text_are_refused(store: Store, two: list[FoundRun]) -> None:
    longer = finished_run(store, "long-111111111111", [UD], corpora={"text": 12})
    assert "differ in the chunks of corpus text: 10, 12; " in refusal([two[0], longer], UserError)


def test_chunks_in_another_order_are_refused(store: Store, two: list[FoundRun]) -> None:
    """Everything that the summaries say agrees; the stages' keys do not."""
    note_plan(store, SECOND, {"text": "6" * 32})
    assert refusal(two, UserError).startswith(
        f"runs {FIRST} and {SECOND} differ in the base stage of corpus text: {STAGE}0, {'6' * 32}; "
    )


def test_a_corpus_that_only_some_have_is_left_out_when_another_is_named(store: Store) -> None:
    runs = [
        finished_run(store, FIRST, [Q8, Q4], corpora={"wiki": 10, "code": 6}),
        finished_run(store, SECOND, [UD], corpora={"wiki": 10}),
    ]
    assert "differ in their corpora: wiki, code, wiki; " in refusal(runs, UserError)
    assert names(compare_runs(runs, "wiki")) == ["Q8_0", "Q4_K_M", "UD-Q4_K_XL"]
    assert refusal(runs, UserError, "code") == 'no corpus "code" in this run; it has: wiki'


def test_a_base_without_a_digest_is_taken_for_another(two: list[FoundRun]) -> None:
    unknown = {"name": "base", "sha256": None, "bytes": 1, "parameters": 1, "bits_per_weight": 1.0}
    for found in two:
        change_summary(found, base=unknown)
    assert "differ in the base's sha256: none, none; " in refusal(two, UserError)


# Where the numbers come from


def test_footers_are_all_that_is_read_of_partials(two: list[FoundRun]) -> None:
    counting = CountingStore(two[0].store)
    compare_runs([replace(each, store=counting) for each in two])
    assert not [key for key in counting.reads if key.endswith(".parquet")]
    assert sorted(counting.ranges) == sorted(key for found in two for key in partial_keys(found))


def test_a_run_without_partials_is_read_from_its_tokens(two: list[FoundRun]) -> None:
    expected = compare_runs(two)
    for key in partial_keys(two[1]):
        two[1].store.delete(key)
    found = compare_runs(two).summary
    assert found.comparisons == expected.summary.comparisons
    (lost, *_) = partial_keys(two[0])
    two[0].store.delete(lost)
    assert compare_runs(two).summary.comparisons == expected.summary.comparisons


def test_runs_in_a_bucket_are_compared_alike(
    two: list[FoundRun], s3_store_uri: Callable[[str], str]
) -> None:
    bucket = open_store(s3_store_uri("compare"))
    for info in two[0].store.list("runs/"):
        if SECOND not in info.key or "partials" not in info.key:
            bucket.write(info.key, two[0].store.read(info.key))
    expected = compare_runs(two)
    found = compare_runs([replace(each, store=bucket) for each in two])
    assert found == expected


def test_a_run_without_partials_and_tokens_is_refused(two: list[FoundRun]) -> None:
    for key in [*partial_keys(two[1])[:3], f"runs/{SECOND}/tokens.parquet"]:
        two[1].store.delete(key)
    assert refusal(two, UserError) == (
        f"run {SECOND} has no partials of Q2_K on text (any more), and no tokens.parquet;"
        " delete its summary.json and launch its job again"
    )


def test_a_run_that_is_not_finished_is_refused(store: Store, two: list[FoundRun]) -> None:
    store.delete(f"runs/{SECOND}/summary.json")
    assert refusal(two, UserError).startswith(f"run {SECOND} has no results yet; ")


def metadata(data: bytes, key: str) -> bytes:
    found: bytes = pq.ParquetFile(pa.BufferReader(data)).metadata.metadata[key.encode()]
    return found


def cut_short(data: bytes) -> bytes:
    return data[:-20]


def of_another(data: bytes) -> bytes:
    """Whose it is, as its footer says."""
    identity = metadata(data, IDENTITY_KEY)
    return data.replace(identity, identity.replace(b"Q2_K", b"Q3_K"))


def other_moments(data: bytes) -> bytes:
    """The first chunk's mean KL divergence, the second number: one of its highest bits."""
    moments = metadata(data, MOMENTS_KEY)
    numbers = bytearray(base64.b64decode(moments))
    numbers[8 + 6] ^= 1
    return data.replace(moments, base64.b64encode(numbers))


@pytest.mark.parametrize("damaged", [cut_short, of_another, other_moments])
def test_a_damaged_partial_is_named_by_its_key_and_digest(
    two: list[FoundRun], damaged: Callable[[bytes], bytes]
) -> None:
    store = two[1].store
    key = next(key for key in partial_keys(two[1]) if "Q2_K" in key)
    data = damaged(store.read(key))
    store.write(key, data)
    said = refusal(two, FormatError)
    assert said.startswith(f"{key} (sha256 {sha256_bytes(data)[:16]}...): ")
    assert said.endswith("; delete it and the run's summary.json, and launch the job again")


def test_partials_of_another_measurement_are_noticed(store: Store, two: list[FoundRun]) -> None:
    """Sound in themselves, but not those that the summary was made of."""
    for key in partial_keys(two[1]):
        store.delete(key)
    changed = [replace(each, file=f"{each.file}x") for each in (UD, Q2)]
    scratch = open_store(f"{store.uri}-2")
    finished_run(scratch, SECOND, changed)
    for info in scratch.list(f"runs/{SECOND}/partials/"):
        store.write(info.key, scratch.read(info.key))
    assert refusal(two, FormatError) == (
        f"run {SECOND}: its partials of UD-Q4_K_XL on text do not come to the mean KLD of its"
        " summary; delete its summary.json and launch its job again"
    )


def test_tokens_that_are_not_the_runs_are_noticed(store: Store, two: list[FoundRun]) -> None:
    for key in partial_keys(two[1]):
        store.delete(key)
    store.write(f"runs/{SECOND}/tokens.parquet", store.read(f"runs/{FIRST}/tokens.parquet"))
    assert "holds nothing of " in refusal(two, FormatError)
    store.write(f"runs/{SECOND}/tokens.parquet", b"PAR1 nothing PAR1")
    assert "not readable as Parquet" in refusal(two, FormatError)


def test_partials_cut_in_two_ways_count_for_nothing(two: list[FoundRun]) -> None:
    store = two[0].store
    key = next(iter(partial_keys(two[0])))
    store.write(key.replace(Shard(0, 4).label, Shard(0, 2).label), b"whatever")
    store.delete(f"runs/{FIRST}/tokens.parquet")
    assert "has no partials of Q4_K_M on text" in refusal(two, UserError)


class CountingStore:
    """A store that remembers what was read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ranges: list[str] = []
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, **options: Any) -> bytes:
        self.reads.append(key)
        return self._store.read(key, **options)

    def read_into(self, key: str, start: int, out: memoryview, **options: Any) -> None:
        self.ranges.append(key)
        self._store.read_into(key, start, out, **options)
