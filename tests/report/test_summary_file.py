"""summary.json: bytes that round-trip, and one clear line for anything that is not one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from kldcloud.errors import FormatError
from kldcloud.report.summary_file import MAX_SUMMARY_BYTES, dump_summary, parse_summary

from .summaries import CHANGE_QUANTILES, QUANTILES, as_summary, estimate, failed, summary_dict


def refusal(data: bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        parse_summary(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


def changed(**fields: Any) -> bytes:
    return json.dumps({**summary_dict(), **fields}).encode()


def test_a_summary_survives_writing_and_reading() -> None:
    written = dump_summary(summary_dict())
    assert json.loads(written) == summary_dict()
    assert parse_summary(written).to_json_dict() == summary_dict()
    assert dump_summary(parse_summary(written).to_json_dict()) == written


def test_key_order_of_the_writer_does_not_change_a_byte() -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return [reversed_keys(item) for item in value] if isinstance(value, list) else value

    shuffled = {**reversed_keys(summary_dict()), "engine": summary_dict()["engine"]}
    assert dump_summary(shuffled) == dump_summary(summary_dict())


def test_bytes_are_indented_unescaped_and_end_in_one_newline() -> None:
    text = dump_summary({**summary_dict(), "name": "größe"}).decode()
    assert text.startswith('{\n  "schema": "kldcloud.summary/2",\n  "run": ')
    assert '"name": "größe"' in text
    assert text.endswith("}\n")


def test_statistics_stand_in_declared_order() -> None:
    written = json.loads(dump_summary(summary_dict()))
    kld = written["results"][0]["result"]["kld"]
    assert list(kld) == ["mean", *QUANTILES, "quantiles"]
    change = written["results"][0]["result"]["probability_change"]
    assert list(change) == ["mean", "rms", *CHANGE_QUANTILES, "quantiles"]


def test_numbers_that_are_not_finite_are_written_as_null() -> None:
    shape = summary_dict()
    shape["results"][0]["result"]["llama"]["ppl_ratio"] = [math.inf, math.nan]
    written = dump_summary(shape)
    assert b"NaN" not in written
    assert b"Infinity" not in written
    llama = json.loads(written)["results"][0]["result"]["llama"]
    assert llama["ppl_ratio"] == [None, None]


def test_a_summary_cannot_be_changed_after_it_is_read() -> None:
    summary = as_summary(summary_dict())
    with pytest.raises(ValidationError):
        summary.name = "another"


def test_every_number_of_a_single_chunk_may_be_null() -> None:
    shape = summary_dict()
    shape["results"][0]["result"]["kld"]["mean"] = estimate(None)
    result = as_summary(shape).results[0].result
    assert result is not None
    assert result.kld.mean.value is None


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    error = refusal(changed(schema="kldcloud.summary/12", surprise=1))
    assert "kldcloud.summary/12 is newer" in error.message
    assert error.hint is not None
    assert "upgrade" in error.hint


@pytest.mark.parametrize("schema", ["kldcloud.plan/1", "kldcloud.summary/x", "\x1b[2J"])
def test_another_schema_is_named(schema: str) -> None:
    assert "is not kldcloud.summary/2" in str(refusal(changed(schema=schema)))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": "kldcloud.summary/2"} tail'],
)
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    assert "not JSON" in str(refusal(data))


@pytest.mark.parametrize("data", [b"[]", b"3", b"{}", b'{"schema": 1}'])
def test_json_that_is_no_summary_is_refused(data: bytes) -> None:
    assert 'no "schema" field' in str(refusal(data))


def test_a_file_above_the_bound_is_not_even_parsed() -> None:
    assert "67,108,865 bytes" in str(refusal(b" " * (MAX_SUMMARY_BYTES + 1)))


def test_a_flood_of_bad_entries_costs_one_error() -> None:
    assert str(refusal(changed(results=[1] * 100_000))).startswith("summary.json: results[0]: ")
    assert "(and" not in str(refusal(changed(results=[1] * 100_000)))


def test_more_values_than_a_run_has_are_refused_unparsed() -> None:
    flood = b'{"schema": "kldcloud.summary/2", "results": [' + b"1," * 4_000_000 + b"1]}"
    assert "more values than any run has" in str(refusal(flood))


def test_an_object_with_a_flood_of_fields_is_refused() -> None:
    many = {str(number): "x" for number in range(2000)}
    assert "an object of 2,000 fields" in str(refusal(changed(engine=many)))


def test_a_field_that_stands_twice_is_refused() -> None:
    doubled = changed().replace(b'"name": "Q8_0"', b'"name": "Q8_0", "name": "Q2_K"')
    assert 'field "name" stands twice' in str(refusal(doubled))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", '"0.1"', "true"])
def test_a_number_that_json_does_not_know_is_refused(number: str) -> None:
    text = dump_summary(summary_dict()).decode().replace("0.053735", number)
    assert "results[1].result.kld.mean.value" in str(refusal(text.encode()))


@pytest.mark.parametrize("size", [-1, 2**63, 10**400, 1.5, True])
def test_a_size_that_no_file_has_is_refused(size: float) -> None:
    assert "base.bytes" in str(refusal(changed(base={**summary_dict()["base"], "bytes": size})))


def test_an_unknown_field_is_named_without_its_control_characters() -> None:
    assert "\\x1b[2J\\n: is a field that this" in str(refusal(changed(**{"\x1b[2J\n": 1})))


def test_a_missing_field_is_named_with_its_path() -> None:
    shape = summary_dict()
    del shape["results"][1]["result"]["same_top"]["error"]
    message = str(refusal(json.dumps(shape).encode()))
    assert message == "summary.json: results[1].result.same_top.error: is missing"


def test_results_must_name_what_the_run_declares() -> None:
    stray = [failed("Q1", "pydoc", "x")]
    assert 'unknown candidate, "Q1"' in str(refusal(changed(results=stray)))
    stray = [failed("Q8_0", "wiki\n", "x")]
    assert 'unknown corpus, "wiki\\n"' in str(refusal(changed(results=stray)))


def test_more_pairs_than_a_table_holds_are_refused() -> None:
    many = [{**summary_dict()["candidates"][0], "name": str(number)} for number in range(400)]
    texts = [{**summary_dict()["corpora"][0], "name": str(number)} for number in range(400)]
    error = refusal(changed(candidates=many, corpora=texts, results=[]))
    assert "400 candidates on 400 corpora" in str(error)


def test_a_measurement_stands_once() -> None:
    twice = [*summary_dict()["results"], failed("Q8_0", "pydoc", "x")]
    assert 'results[2] repeats "Q8_0" on "pydoc"' in str(refusal(changed(results=twice)))
    twice = summary_dict()["candidates"] * 2
    assert 'candidates names "Q8_0" twice' in str(refusal(changed(candidates=twice)))


def test_a_status_must_agree_with_its_result() -> None:
    odd = [{**failed("Q8_0", "pydoc", "x"), "status": "complete"}]
    assert "its result contradicts" in str(refusal(changed(results=odd)))


def test_a_writer_whose_file_nobody_could_read_is_told_so() -> None:
    with pytest.raises(FormatError, match="candidates: is missing"):
        dump_summary({key: value for key, value in summary_dict().items() if key != "candidates"})
    with pytest.raises(FormatError, match="cannot be written as JSON"):
        dump_summary({**summary_dict(), "name": object()})


def test_a_summary_from_before_there_were_comparisons_is_read() -> None:
    shape = {**summary_dict(), "schema": "kldcloud.summary/1"}
    del shape["comparisons"]
    assert as_summary(shape).comparisons == ()
    assert json.loads(dump_summary(as_summary(shape).to_json_dict())) == shape


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": "wiki"}, 'comparisons names an unknown corpus, "wiki"'),
        ({"ranks": [{"candidate": "Q1", "low": 1, "high": 1}]}, 'unknown candidate, "Q1"'),
        ({"ranks": [{"candidate": "Q8_0", "low": 1, "high": 1}] * 2}, 'ranks names "Q8_0" twice'),
        ({"pairs_tested": -1}, "comparisons[0].pairs_tested"),
    ],
)
def test_comparisons_must_name_what_the_run_declares(change: dict[str, Any], said: str) -> None:
    (comparison,) = summary_dict()["comparisons"]
    assert said in str(refusal(changed(comparisons=[comparison | change])))


def test_a_pair_of_strangers_is_refused() -> None:
    (comparison,) = summary_dict()["comparisons"]
    comparison["pairs"][0]["worse"] = "Q9"
    assert 'unknown candidate, "Q9"' in str(refusal(changed(comparisons=[comparison])))
