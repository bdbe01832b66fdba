"""A Reddit post: tables that both renderers show, and names that neither takes for Markdown."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from kldcloud.report.escaping import printable, reddit_text
from kldcloud.report.reddit import render_reddit

from .compared import compared_run
from .summaries import as_summary, candidate, failed, rename, summary_dict

EXPECTED = """\
**smollm2-requantised: KL divergence from smollm2-f16**

On pydoc, 220 chunks of 512 tokens, 56,100 scored positions:

|quant|rank|GiB|bpw|mean KLD|llama.cpp's|99.9 %|same top %|PPL ratio|
|:--|--:|--:|--:|--:|--:|--:|--:|--:|
|Q8\\_0|1|0.135|8.51|0.004065 ± 0.000061|0.004057|0.097560|88.62 ± 0.26|1.0381 ± 0.0034|
|Q4\\_K\\_M|2|0.098|6.27|0.053735 ± 0.000810|0.053628|1.289640|88.62 ± 0.26|1.0381 ± 0.0034|

KLD in nats a token against the base, exact, with all tokens 16 nats or more below its top taken \
as one; lower is better. Beside it, what llama.cpp prints (clamped at 16 nats). ± is one standard \
error, cluster-robust by chunk. Ranks are by mean KLD, and ranges where paired differences cannot \
tell candidates apart (95 % confidence for all of a table together).

Measured with kldcloud 0.1.0, llama.cpp 0.3.36 CPU.
"""

HOSTILE = (
    "Q4_K_M",
    "*bold* _and_ **more** ~~gone~~ `code` ^up",
    "a|b\\|c",
    "<script>alert(1)</script> &lt; &#60;",
    "[text](https://example.com) ![x](y) <https://example.com> www.example.com",
    "u/somebody /u/somebody r/all /r/all somebody@example.com",
    ">!spoiler!< # heading $x$ \\",
    "\x1b]0;owned\x07\n| row | of | its own |\n\n# heading",
)


def as_html(text: str) -> str:
    """As a renderer that follows CommonMark, with tables, shows it."""
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def as_text(html: str) -> str:
    """The text of one paragraph or cell."""
    for entity, char in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}.items():
        html = html.replace(entity, char)
    return html


def test_one_chunk_is_not_chunks() -> None:
    shape = summary_dict()
    shape["corpora"][0].update(chunks=1)
    assert "On pydoc, 1 chunk of 512 tokens, " in render_reddit(as_summary(shape))


def test_a_small_run_gives_this_post() -> None:
    assert render_reddit(as_summary(summary_dict())) == EXPECTED


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_shows_as_it_is(name: str) -> None:
    html = as_html(f"|quant|\n|:--|\n|{reddit_text(name)}|\n\nOn {reddit_text(name)}:\n")
    (cell,) = re.findall(r"<td[^>]*>(.*)</td>", html)
    (paragraph,) = re.findall(r"<p>On (.*):</p>", html)
    assert as_text(cell) == as_text(paragraph) == printable(name)
    assert not re.search(r"<(?!/?(table|thead|tbody|tr|th|td|p)\b)", html)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_left_that_old_reddit_would_take_for_a_cell_a_link_or_a_mention(
    name: str,
) -> None:
    # Its tables split at any pipe, and it links what looks like an address, a user or a forum.
    text = reddit_text(name)
    assert "|" not in text
    assert "@" not in text
    assert not re.search(r"(?<!\\)[/:]", text)
    assert "www." not in text


def test_hostile_names_leave_the_tables_whole() -> None:
    shape = compared_run({"wiki": {"a": 0.05, "b": 0.05}, "code": {"a": 0.09, "b": 0.05}})
    for name in ("a", "wiki"):
        rename(shape, name, f"x|y*{name}*\n\n<b>")
    shape["name"] = shape["base"]["name"] = shape["kldcloud"] = "<i>*x*\n|"
    post = render_reddit(as_summary(shape))
    html = as_html(post)
    assert html.count("<table>") == 3
    assert html.count("<tr>") == 9
    assert not re.search(r"<(em|i|b|code|a)\b", html)
    assert "x|y*wiki*\\n\\n&lt;b&gt;" in html


def test_candidates_without_numbers_say_why_they_have_none() -> None:
    shape = summary_dict()
    shape["status"] = "partial"
    for name in ("Q2_K", "TQ1_0"):
        shape["candidates"].append(candidate(name, 50_000_000, 3.0))
    shape["results"].append(failed("Q2_K", "pydoc", "ends inside a tensor"))
    post = render_reddit(as_summary(shape))
    assert "\n\nPartial run: 2 of 4 measurements are complete.\n\n" in post
    assert "\n|Q2\\_K|-|0.047|3.00|failed|-|" in post
    assert "\n|TQ1\\_0|-|0.047|3.00|not measured yet|-|" in post


def test_what_cannot_be_told_apart_is_said() -> None:
    shape = compared_run({"wiki_2": {"a": 0.01, "b": 0.09}, "code": {"a": 0.09, "b": 0.05}})
    post = render_reddit(as_summary(shape))
    assert (
        "\nMacro average over 2 corpora, with equal weights:\n\n|quant|mean KLD|same top %|" in post
    )
    assert "\n\nrank depends on the text: a is 1 on wiki\\_2 and 2 on code\n\n" in post
    same = render_reddit(as_summary(compared_run({"wiki_2": {"a_1": 0.05, "a_2": 0.05}})))
    assert re.search(r"\n\nNot distinguishable on wiki\\_2: a\\_\d and a\\_\d \(difference 0", same)
