"""report.md: the exact page of a small run, and pages that hostile names cannot break."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kldcloud.report.markdown import render_markdown

from .compared import compared_run
from .summaries import as_summary, candidate, failed, measured, rename, result, summary_dict

EXPECTED = """\
# KL divergence: `smollm2-requantised`

## On `pydoc`

| candidate | rank | GiB | bpw | mean KLD | llama.cpp's mean KLD | median | 99 % | 99.9 % | max \
| same top % | RMS Δp % | PPL ratio |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| `Q8_0` | 1 | 0.135 | 8.51 | 0.004065 ± 0.000061 | 0.004057 ± 0.000030 | 0.001423 | 0.036179 \
| 0.097560 | 0.390240 | 88.62 ± 0.26 | 5.83 ± 0.11 | 1.0381 ± 0.0034 |
| `Q4_K_M` | 2 | 0.098 | 6.27 | 0.053735 ± 0.000810 | 0.053628 ± 0.000405 | 0.018807 | 0.478241 \
| 1.289640 | 5.158560 | 88.62 ± 0.26 | 5.83 ± 0.11 | 1.0381 ± 0.0034 |

KLD in nats a token against the base, exact, with all tokens 16 nats or more below its top taken \
as one; lower is better. Beside it, what llama.cpp prints (clamped at 16 nats). There ± takes \
tokens as independent; elsewhere it is one standard error, cluster-robust by chunk. Ranks are by \
mean KLD, and ranges where paired differences cannot tell candidates apart (95 % confidence for \
all of a table together).

## Differences

Neighbours on `pydoc`, by how much their mean KLD differs, chunk by chunk.

| better | worse | difference | 95 % interval | p | verdict |
| --- | --- | ---: | ---: | ---: | --- |
| `Q8_0` | `Q4_K_M` | 0.049670 ± 0.016557 | 0.017219 to 0.082121 | 1e-09 | distinguishable |

## What was measured

- base: `smollm2-f16`, 0.252 GiB, 16.01 bpw, sha256 `ba5eba5eba5e`
- corpus: `pydoc`, 220 chunks of 512 tokens, 56,100 scored positions, cut from 112,900 tokens, \
sha256 `c0c0c0c0c0c0`
- candidate: `Q8_0`, `smollm2-135m-q8_0.gguf`, sha256 `71385f300000`
- candidate: `Q4_K_M`, `smollm2-135m-q4_k_m.gguf`, sha256 `71345f6b5f6d`
- engine: `llama.cpp`, `0.3.36`, `CPU`, `flash_attention=on`
- run: `3f9ac1d2e4b5`, kldcloud `0.1.0`, base stage encoding `logits`
"""


def test_a_small_run_gives_this_page() -> None:
    assert render_markdown(as_summary(summary_dict())) == EXPECTED


def test_a_partial_run_says_so_and_gives_each_cause() -> None:
    shape = summary_dict()
    shape["status"] = "partial"
    for name in ("Q2_K", "TQ1_0"):
        shape["candidates"].append(candidate(name, 50_000_000, 3.0))
    shape["results"].append(failed("Q2_K", "pydoc", "q2.gguf: the file ends\ninside a tensor"))
    page = render_markdown(as_summary(shape))
    assert "**Partial run: 2 of 4 measurements are complete.**" in page
    assert "| `Q2_K` | - | 0.047 | 3.00 | failed | - |" in page
    assert "| `TQ1_0` | - | 0.047 | 3.00 | not measured yet | - |" in page
    assert "## Failed\n\n- `Q2_K` on `pydoc`: `q2.gguf: the file ends\\ninside a tensor`\n" in page


def test_one_chunk_has_no_plus_minus_and_says_why() -> None:
    shape = summary_dict()
    shape["results"] = [measured("Q8_0", "pydoc", result(0.004065, None, llama=False))]
    shape["comparisons"] = []
    page = render_markdown(as_summary(shape))
    row = next(line for line in page.splitlines() if line.startswith("| `Q8_0`"))
    assert row == (
        "| `Q8_0` | 0.135 | 8.51 | 0.004065 | 0.001423 | 0.036179 | 0.097560 | 0.390240 |"
        " 88.62 | 5.83 | 1.0381 |"
    )
    assert "No ± where too few chunks give no error." in page
    assert "llama.cpp prints" not in page


def test_histogram_quantiles_are_labelled() -> None:
    shape = summary_dict()
    shape["results"][0]["result"]["kld"]["quantiles"] = "histogram"
    assert "Quantiles come from a histogram" in render_markdown(as_summary(shape))


def test_an_imported_base_without_a_size_is_described_by_what_is_known() -> None:
    shape = summary_dict()
    shape["base"] = {
        "name": "base.kld",
        "sha256": "ab" * 32,
        "bytes": 5 * 2**30,
        "parameters": None,
        "bits_per_weight": None,
    }
    assert "- base: `base.kld`, 5.00 GiB, sha256 `abababababab`\n" in render_markdown(
        as_summary(shape)
    )


def test_hostile_names_break_neither_the_table_nor_the_page() -> None:
    shape = summary_dict()
    hostile = "x | y`\n# owned\n\x1b[31m<script>"
    shape["name"] = hostile
    shape["engine"]["version"] = "1`|`\n# owned"
    rename(shape, "Q8_0", hostile)
    page = render_markdown(as_summary(shape))
    honest = render_markdown(as_summary(summary_dict()))
    assert len(page.splitlines()) == len(honest.splitlines())
    assert "\x1b" not in page
    assert "``x \\| y`\\n# owned\\n\\x1b[31m<script>``" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in rows] == [14] * 4 + [7] * 3


@pytest.mark.parametrize(
    ("encoding", "words"),
    [("hidden", "base, exact; lower"), ("logits", "taken as one"), ("kld", "renormalised over")],
)
def test_says_how_exact_the_encoding_leaves_the_divergence(encoding: str, words: str) -> None:
    page = render_markdown(as_summary({**summary_dict(), "encoding": encoding}))
    assert words in page
    assert ("PPL ratios are on the high side" in page) == (encoding == "kld")


def test_differences_are_those_of_neighbours_with_ps_for_all_pairs() -> None:
    shape = compared_run({"text": {"Q8_0": 0.001, "Q4_K_M": 0.05, "UD-Q4": 0.05}})
    (comparison,) = shape["comparisons"]
    page = render_markdown(as_summary(shape))
    assert "\nNeighbours on `text`, by how much their mean KLD differs, chunk by chunk; " in page
    assert "; p after Holm over 3 pairs.\n" in page
    ranks = {each["candidate"]: (each["low"], each["high"]) for each in comparison["ranks"]}
    assert ranks == {"Q8_0": (1, 1), "Q4_K_M": (2, 3), "UD-Q4": (2, 3)}
    assert "\n| `Q4_K_M` | 2-3 | " in page
    order = [each["candidate"] for each in comparison["ranks"]]
    for better, worse in pairwise(order):
        (pair,) = (p for p in comparison["pairs"] if (p["better"], p["worse"]) == (better, worse))
        low, high = pair["interval95"]
        told = "distinguishable" if better == "Q8_0" else "not distinguishable"
        assert (
            f"\n| `{better}` | `{worse}` | {pair['difference']:.6f} ± {pair['error']:.6f}"
            f" | {low:.6f} to {high:.6f} | {pair['p_holm']:.2g} | {told} |\n"
        ) in page


def test_a_lone_candidate_has_neither_rank_nor_differences() -> None:
    page = render_markdown(as_summary(compared_run({"text": {"Q8_0": 0.001}})))
    assert "\n| candidate | GiB |" in page
    assert "Differences" not in page
    assert "Ranks are" not in page


def test_several_corpora_have_a_macro_average_and_a_warning_where_they_disagree() -> None:
    shape = compared_run({"wiki": {"a": 0.01, "b": 0.05}, "code": {"a": 0.09, "b": 0.05}})
    page = render_markdown(as_summary(shape))
    assert (
        "## Macro average\n\nThe mean over 2 corpora, with equal weights.\n\n"
        "| candidate | mean KLD | same top % |\n| --- | ---: | ---: |\n| `a` | "
    ) in page
    means = [
        each["result"]["kld"]["mean"]["value"]
        for each in shape["results"]
        if each["candidate"] == "a"
    ]
    assert f"\n| `a` | {sum(means) / 2:.6f} ± " in page
    assert "\n**rank depends on the text: `a` is 1 on `wiki` and 2 on `code`**\n" in page
    assert "Macro" not in render_markdown(as_summary(summary_dict()))
