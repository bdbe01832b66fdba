"""Templates from nobody knows where: each is refused by a line, for what it wants or what it costs.

No test here looks at a clock or at the memory. A meter that is missing shows as another line, such
as MemoryError's, or as a test that does not end.
"""

from __future__ import annotations

import pytest

from kldcloud.errors import FormatError
from kldcloud.models import template_steps
from kldcloud.models.chat_template import ChatTemplate
from tests.models.test_chat_template import CHATML, TALK, THINKING

TOO_MUCH = "takes more steps or memory than a conversation can need"
TWOFOLD = (
    "{% set ns = namespace(a=(1,), b=(1,)) %}"
    "{% for i in range(50) %}{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}"
)
"""Two values of a hundred objects each, which take 2^50 steps to go through."""
DEEP = (
    "{% set ns = namespace(a=[1]) %}"
    "{% for i in range(20000) %}{% set ns.a = CHANGE %}{% endfor %}{{ ns.a | list }}"
)


def forever(body: str) -> str:
    loop = "{% for _ in range(100000) %}"
    return f"{loop}{loop}{body}{{% endfor %}}{{% endfor %}}"


SPINNING = {
    "loops": forever(""),
    "loops that choose nothing": forever("{% for i in range(100000) if false %}{% endfor %}"),
    "loops that find nothing": forever("{% for i in [] %}{% else %}{% endfor %}"),
    "text": forever("x" * 1000),
    "a capture": forever("{% set x %}{{ 'x' * 1000 }}{% endset %}"),
    "branches": forever("{% if true %}{% else %}{% endif %}"),
    "calls": forever("{{ dict() }}"),
    "methods": forever("{{ 'a'.upper() }}"),
    "a macro of two": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}"
    ),
    "a loop of two": (
        "{% for x in [1, 2] recursive %}{% if loop.depth < 50 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}"
    ),
    "filters": forever("{{ [1] | map('string') | list }}"),
    "tests": forever("{{ 1 is odd }}"),
    "a filter that filters": forever("{{ range(1000) | select('odd') | list | length }}"),
    "sorting": forever("{{ range(1000) | sort | length }}"),
    "searching": forever(f"{{{{ '{'a' * 300}b{'a' * 300}' in '{'a' * 1200}' }}}}"),
    "searching from the end": "{{ ('a' * 900000).rfind('b' + 'a' * 100000) }}",
    "stripping": "{{ ('a' * 900000).strip('b' * 100000 + 'a') }}",
    "trimming": "{{ ('a' * 900000) | trim('b' * 100000 + 'a') }}",
    "slices": "{% set x = range(100000) | list %}" + forever("{% set y = x[1:] %}"),
    "slices of text": "{% set x = 'x' * 1000000 %}" + forever("{% set y = x[1:] %}"),
    "a long attribute": "{{ ([{}] * 100000) | map(default=1, "
    f"attribute='{'a.' * 9000}a') | list }}}}",
    "a longest attribute": f"{{{{ ([{{}}] * 100000) | max(attribute='{'a.' * 9000}a') }}}}",
    "a sum of attributes": f"{{{{ ([{{}}] * 100000) | sum('{'a.' * 9000}a') }}}}",
    "comparing": TWOFOLD + "{{ ns.a == ns.b }}",
    "ordering": TWOFOLD + "{{ ns.a < ns.b }}",
    "looking in": TWOFOLD + "{{ ns.a in [ns.b] }}",
    "looking in what is reversed": TWOFOLD + "{{ ns.a in ([ns.b] | reverse) }}",
    "a test that compares": TWOFOLD + "{{ ns.a is eq ns.b }}",
    "choosing": TWOFOLD + "{{ [ns.a] | select('in', [ns.b]) | list }}",
    "a key": TWOFOLD + "{% set d = {ns.a: 1} %}",
    "an item": TWOFOLD + "{{ {}[ns.a] }}",
    "getting": TWOFOLD + "{{ {}.get(ns.a) }}",
    "counting": TWOFOLD + "{{ [ns.a].count(ns.b) }}",
    "finding": TWOFOLD + "{{ (1, ns.a).index(ns.b) }}",
    "views": TWOFOLD + "{{ {1: ns.a}.items() == {1: ns.b}.items() }}",
    "changing": TWOFOLD + "{% for x in [1, 2] %}{{ loop.changed(ns.a) }}{% endfor %}",
    "unique": TWOFOLD + "{{ [ns.a, ns.b] | unique | list }}",
    "printing": TWOFOLD + "{{ ns.a }}",
    "printing as text": TWOFOLD + "{{ ns.a | string | length }}",
    "printing in capitals": TWOFOLD + "{{ ns.a | upper | length }}",
    "printing with another": TWOFOLD + "{{ ns.a ~ '' }}",
    "printing in a format": TWOFOLD + "{{ '{}'.format(ns.a) }}",
    "printing in a list": TWOFOLD + "{{ [ns.a] | join }}",
    "testing its letters": TWOFOLD + "{{ ns.a is lower }}",
    "JSON": TWOFOLD + "{{ ns.a | tojson | length }}",
    "replacing in it": TWOFOLD + "{{ ns.a | replace('1', '2') | length }}",
    "what a macro is called with": TWOFOLD + "{{ raise_exception(ns.a) }}",
}
GROWING = {
    "times": "{{ 'x' * 10000000000 }}",
    "times a text": "{{ 10000000000 * 'x' }}",
    "times a list": "{{ ([1] * 10000000000) | length }}",
    "doubling": "{% set ns = namespace(a='x') %}{% for i in range(60) %}"
    "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a | length }}",
    "doubling with ~": "{% set ns = namespace(a='x') %}{% for i in range(60) %}"
    "{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a | length }}",
    "doubling a list": "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}"
    "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a | length }}",
    "replacing": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replacing nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "joining": "{{ range(99999) | join('x' * 100000) }}",
    "joining as a method": "{{ ('x' * 100000).join(['a'] * 99999) }}",
    "splitting": "{{ ('a ' * 9000000).split(' ') | length }}",
    "splitting at spaces": "{{ ('a ' * 9000000).split() | length }}",
    "splitting into lines": "{{ ('\\v' * 9000000).splitlines() | length }}",
    "letters": "{{ ('a' * 9000000) | list | length }}",
    "indenting": "{{ ('\\n' * 100000) | indent('x' * 100000) }}",
    "separators": "{{ range(1000) | list | tojson(separators=('x' * 1000000, ':')) }}",
}
WANTING = {
    "{{ 9 ** (9 ** 9) }}": "thousand digits",
    "{{ 1 ** 99999 }}": "thousand digits",
    "{% set ns = namespace(a=7) %}{% for _ in range(60) %}{% set ns.a = ns.a * ns.a %}{% endfor %}"
    "": "thousand digits",
    f"{{{{ 0x{'f' * 2000} + 1 }}}}": "thousand digits",
    f"{{{{ 0x{'f' * 2000} }}}}": "thousand digits",
    f"{{{{ '{'f' * 5000}' | int(base=16) }}}}": "thousand digits",
    "{{ '%1000000000d' % 1 }}": r"computes str % int",
    "{{ '%1000000000s' % nowhere }}": "'nowhere' is undefined",
    "{{ nowhere + 1 }}": "'nowhere' is undefined",
    "{{ '%1000000000d' is odd }}": "divides a str",
    "{{ '%1000000000d' is divisibleby 1 }}": "divides a str",
    "{{ ['%1000000000d'] | select('even') | list }}": "divides a str",
    "{{ '{:1000000000}'.format(1) }}": "formats with widths",
    "{{ '{0:{1}}'.format(1, 1000000000) }}": "formats with widths",
    "{{ '{0.__class__}'.format(1) }}": "formats with widths or attributes",
    "{{ '{0[a]}'.format({'a': 1}) }}": "formats with widths or attributes",
    "{{ '{!r}'.format(1) }}": "formats with widths or attributes",
    "{{ '{a}'.format_map({'a': 1}) }}": "attribute 'format_map'",
    "{{ 'x'.ljust(1000000000) }}": "attribute 'ljust'",
    "{{ 'x'.zfill(1000000000) }}": "attribute 'zfill'",
    "{{ '\\t'.expandtabs(1000000000) }}": "attribute 'expandtabs'",
    "{{ 'x'.encode() }}": "attribute 'encode'",
    "{{ (1).to_bytes(1000000000) }}": "attribute 'to_bytes'",
    "{{ 'x' | center(1000000000) }}": "No filter named 'center'",
    "{{ 'x' | indent(1000000000) }}": "indents a text by more than 64",
    "{{ [1] | tojson(indent=1000000000) }}": "indents JSON by more than 64",
    "{{ range(100001) | length }}": "Range too big",
    "{{ [[1], [2]] | sum(start=[]) }}": "sums up what is no number",
    "{{ [{}] | sum(attribute=[1]) }}": "names an attribute by what is no name",
    "{{ dict([(1, 2)]) }}": "makes a dict of a list",
    "{{ messages[0].update({}) }}": "attribute 'update'",
    "{{ messages.append(1) }}": "attribute 'append'",
    "{{ ''.__class__.__mro__ }}": "attribute '__class__'",
    "{{ ''['__class__'].__mro__ }}": "attribute '__class__'",
    "{{ (messages | map(attribute='__class__') | first).__mro__ }}": "attribute '__class__'",
    "{{ namespace(_a=1)._a + 1 }}": "attribute '_a'",
    "{% macro m() %}{% endmacro %}{{ m.name + 1 }}": "attribute 'name'",
    "{% for x in [1] %}{{ loop._iterator + 1 }}{% endfor %}": "attribute '_iterator'",
    "{{ [1]() }}": "calls a list, which is no function",
    "{{ ''.join.__self__ + 1 }}": "attribute '__self__'",
    "{{ nowhere() }}": "'nowhere' is undefined",
    "{{ lipsum() }}": "'lipsum' is undefined",
    "{{ cycler(1) }}": "'cycler' is undefined",
    "{{ [1, 2] | random }}": "No filter named 'random'",
    "{{ 'x' | attr('upper') }}": "No filter named 'attr'",
    "{{ range }}": "prints a function, which is no text",
    "{{ messages | map('upper') }}": "prints a Lazy, which is no text",
    "{{ messages | reverse }}": "prints a list_reverseiterator, which is no text",
    "{{ [''.join] }}": "prints a builtin_function_or_method, which is no text",
    "{{ ''.join ~ '' }}": "prints a builtin_function_or_method, which is no text",
    "{{ [''.join] | join }}": "prints a builtin_function_or_method, which is no text",
    "{{ {'a': {'b': ''.join}} | string }}": "prints a builtin_function_or_method",
    "{{ '{}'.format(''.join) }}": "prints a builtin_function_or_method",
    "{{ {}.items() }}": "prints a dict_items, which is no text",
    "{{ range(3) }}": "prints a range, which is no text",
    "{{ namespace() }}": "prints a Namespace, which is no text",
    "{{ self }}": "prints a TemplateReference, which is no text",
    "{{ (-8) ** 0.5 }}": "prints a complex, which is no text",
    "{% for x in [1] %}{{ loop }}{% endfor %}": "prints a LoopContext, which is no text",
    "{% include 'x' %}": "uses Include, which none needs",
    "{% import 'x' as x %}": "uses Import, which none needs",
    "{% from 'x' import x %}": "uses FromImport, which none needs",
    "{% extends 'x' %}": "uses Extends, which none needs",
    "{% block x %}{% endblock %}": "uses Block, which none needs",
    "{% autoescape true %}{% endautoescape %}": "uses Scope, which none needs",
    "{% debug %}": "unknown tag 'debug'",
    "{{ dict(*[1]) }}": r"calls with \* or \*\*",
    "{{ dict(**{'a': 1}) }}": r"calls with \* or \*\*",
    "{{ 'a' | replace(*['a', 'b']) }}": r"calls with \* or \*\*",
    "{% macro m() %}{{ varargs }}{% endmacro %}": "uses 'varargs', which none needs",
    "{% macro m() %}{{ kwargs }}{% endmacro %}": "uses 'kwargs', which none needs",
    "{{ 1 < 2 in [2] }}": "chains 'in' with a comparison",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "nests calls more than 64 deep",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}": "nests calls more than 64 deep",
    DEEP.replace("CHANGE", "ns.a | map('string')"): "nests filters more than 64 deep",
    DEEP.replace("CHANGE", "ns.a | select"): "nests filters more than 64 deep",
    DEEP.replace("CHANGE", "[ns.a]"): "nests lists more than 64 deep",
    DEEP.replace("CHANGE", "{'a': ns.a}.items()"): "nests lists more than 64 deep",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}": "nests too deeply",
    "{{ 1" + " + 1" * 9000 + " }}": "nests too deeply",
    "{% if true %}" * 2000 + "{% endif %}" * 2000: "nests too deeply",
    "{% for a in b %}" * 100 + "{% endfor %}" * 100: "fails: ",
}


def refused(template: str, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        ChatTemplate(template, bos="", eos="").render(TALK)
    assert str(caught.value).startswith("the chat template ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", SPINNING.values(), ids=SPINNING)
def test_a_template_that_spins_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_steps, "_STEPS", 1 << 19)  # a quarter of what there is
    refused(template, TOO_MUCH)


@pytest.mark.parametrize("template", GROWING.values(), ids=GROWING)
def test_a_template_that_fills_the_memory_is_refused_before(template: str) -> None:
    refused(template, TOO_MUCH)


@pytest.mark.parametrize(("template", "words"), WANTING.items())
def test_what_no_chat_template_needs_is_refused(template: str, words: str) -> None:
    refused(template, words)


def test_steps_are_for_each_conversation_anew() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{{ i }}{% endfor %}", bos="", eos="")
    for _ in range(8):
        assert template.render(TALK[:1]).endswith("59999")


@pytest.mark.parametrize("source", [CHATML, THINKING], ids=["chatml", "thinking"])
@pytest.mark.parametrize("messages", [1, 10, 1000])
def test_ordinary_templates_need_a_small_part_of_what_they_may(source: str, messages: int) -> None:
    template = ChatTemplate(source.replace("> 5", "> 5000"), bos="", eos="")
    talk = [{"role": "user", "content": "some words " * 20} for _ in range(messages)]
    steps = template._environment.steps
    steps.allow(messages, 220 * messages)
    allowed = steps._left
    template.render(talk)
    assert 0 < allowed - steps._left < allowed // 8
