"""A model card's section: metadata that the Hub's own library reads, tables that render."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from kldcloud.errors import UserError
from kldcloud.report.escaping import printable
from kldcloud.report.hf_card import render_hf_card

from .compared import compared_run
from .summaries import as_summary, candidate, failed, measured, rename, result, summary_dict

TWO = {"wiki": {"Q8_0": 0.01, "Q4_K_M": 0.05}, "code": {"Q8_0": 0.01, "Q4_K_M": 0.09}}
ODD_NAMES = (
    "yes",
    "1e3",
    "0x10",
    "null",
    "a: b # c",
    "---",
    "\n---\nlicense: mit\n",
    '"\\',
    "größe",
)


def card(shape: Any) -> tuple[dict[str, Any], str]:
    """The metadata and the Markdown below it."""
    text = render_hf_card(as_summary(shape))
    assert text.startswith("---\n")
    metadata, _, section = text.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(metadata), section


def test_every_candidate_has_its_metrics_on_every_corpus() -> None:
    shape = compared_run(TWO)
    metadata, _ = card(shape)
    (index,) = metadata["model-index"]
    assert index["name"] == "smollm2-requantised"
    assert [each["dataset"]["name"] for each in index["results"]] == ["wiki", "code"]
    found = {
        (part["dataset"]["name"], metric["args"]["candidate"], metric["type"]): metric
        for part in index["results"]
        for metric in part["metrics"]
    }
    assert len(found) == 2 * 2 * 3
    for each in shape["results"]:
        pair = (each["corpus"], each["candidate"])
        estimates = {
            "kl_divergence": each["result"]["kld"]["mean"],
            "top_1_agreement": each["result"]["same_top"],
            "perplexity": each["result"]["perplexity"]["candidate"],
        }
        for kind, estimate in estimates.items():
            metric = found[*pair, kind]
            assert metric["value"] == estimate["value"]
            assert metric["args"]["standard_error"] == estimate["error"]
            assert each["candidate"] in metric["name"]
    assert index["results"][0]["dataset"]["args"] == {
        "context": 512,
        "chunks": 220,
        "sha256": "c0" * 32,
    }


def test_the_hubs_own_library_reads_it_and_writes_the_same() -> None:
    text = render_hf_card(as_summary(compared_run(TWO)))
    read = ModelCard(text)
    assert read.data.model_name == "smollm2-requantised"
    assert len(read.data.eval_results) == 12
    first = read.data.eval_results[0]
    assert (first.task_type, first.dataset_type) == ("text-generation", "wiki")
    assert (first.metric_type, first.metric_name) == (
        "kl_divergence",
        "mean KL divergence in nats, Q8_0",
    )
    again = yaml.safe_load(read.data.to_yaml())["model-index"]
    assert again == yaml.safe_load(text.split("---\n")[1])["model-index"]
    read.validate = lambda *_: None  # type: ignore[method-assign] # asks the Hub
    assert ModelCard(str(read)).data.eval_results == read.data.eval_results


def test_the_section_holds_the_published_tables() -> None:
    _, section = card(compared_run(TWO))
    html = MarkdownIt("commonmark").enable("table").render(section)
    assert html.count("<table>") == 3
    assert "<h2>KL divergence from <code>smollm2-f16</code></h2>" in html
    assert html.count("<td><code>Q4_K_M</code></td>") == 3
    assert "\n### Macro average over 2 corpora, with equal weights\n" in section
    assert section.endswith("Measured with kldcloud `0.1.0`, `llama.cpp`, `0.3.36`, `CPU`.\n")
    assert "Macro" not in card(summary_dict())[1]


def test_neighbours_that_cannot_be_told_apart_are_named() -> None:
    _, section = card(compared_run({"wiki": {"a": 0.05, "b": 0.05}}))
    assert "\nNot distinguishable on `wiki`: `" in section


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_stays_a_string_in_the_metadata(name: str) -> None:
    shape = compared_run(TWO)
    rename(shape, "Q8_0", name)
    rename(shape, "wiki", name)
    shape["name"] = name
    metadata, section = card(shape)
    assert list(metadata) == ["model-index"]
    (index,) = metadata["model-index"]
    shown = printable(name)
    assert index["name"] == shown
    assert index["results"][0]["dataset"]["name"] == shown
    assert index["results"][0]["metrics"][0]["args"]["candidate"] == shown
    assert section.startswith("\n## KL divergence from ")
    assert ModelCard(render_hf_card(as_summary(shape))).data.model_name == shown
    # Not every reader of YAML takes the same bare words for numbers: quotes leave no doubt.
    assert f'\n- name: "{shown}"\n'.replace("\\", "\\\\").replace('""\\\\"', '"\\"\\\\"') in (
        "\n" + render_hf_card(as_summary(shape))
    )


def test_what_failed_has_no_metric_and_what_does_not_exist_is_left_out() -> None:
    shape = summary_dict()
    shape["candidates"].append(candidate("Q2_K", 1, 2.0))
    shape["results"].append(failed("Q2_K", "pydoc", "ends early"))
    shape["results"][0] = measured("Q8_0", "pydoc", result(0.004, None))
    shape["results"][1]["result"]["perplexity"]["candidate"]["value"] = None
    metadata, section = card(shape)
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    assert {each["args"]["candidate"] for each in metrics} == {"Q8_0", "Q4_K_M"}
    assert "standard_error" not in metrics[0]["args"]
    assert [each["type"] for each in metrics[3:]] == ["kl_divergence", "top_1_agreement"]
    assert "| `Q2_K` | - | 1 B | 2.00 | failed |" in section


def test_a_run_without_results_has_no_card() -> None:
    shape = summary_dict()
    shape["results"] = [failed(name, "pydoc", "ends early") for name in ("Q8_0", "Q4_K_M")]
    shape["comparisons"] = []
    with pytest.raises(UserError, match="no results for a model card"):
        render_hf_card(as_summary(shape))
