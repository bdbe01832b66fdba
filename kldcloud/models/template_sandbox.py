"""Where chat templates run: jinja's immutable sandbox, narrowed to what chat templates are made of.

The sandbox keeps a template from the process. Beyond it, this keeps one from spinning and from
filling the memory: whatever repeats, and whatever costs more for a larger value, spends steps
first. Statements, filters, methods and functions that are not listed are refused. Nothing tells the
time, draws at random or shows an address, so a template makes the same text everywhere.
"""

from __future__ import annotations

from types import BuiltinMethodType, MethodType
from typing import Final

from jinja2 import Undefined, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from kldcloud.models.template_filters import bounded_filters, bounded_tests, is_in
from kldcloud.models.template_meter import (
    COMPARED,
    JOINED,
    NOT_FOUND,
    RUN,
    SLICED,
    SOUGHT,
    put_meters,
)
from kldcloud.models.template_methods import ATTRIBUTES, PlainFormat, pay_for_method
from kldcloud.models.template_steps import Steps, TemplateRefusalError, Value

_SEQUENCES: Final = (str, list, tuple)
_MOST_NESTED_CALLS: Final = 64
_STEPS_A_CALL: Final = 16


class RaisedByTemplateError(Exception):
    """What a template itself says of a conversation that it does not take."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates.

    Blocks are trimmed as in transformers, for which templates are written, and in llama.cpp.

    Attributes:
        steps: of the rendering under way.
    """

    filters: Value
    tests: Value
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        self.steps = Steps()
        self._nested = 0
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed, unpaid, while a template is compiled
            finalize=self._printed,
            extensions=[loopcontrols, _Generation],
        )
        self.filters = bounded_filters(self.filters, self.steps) | {
            RUN: self._run,
            COMPARED: self._compared,
            SOUGHT: self._sought,
            NOT_FOUND: self._not_found,
            SLICED: self._sliced,
            JOINED: self._joined,
        }
        self.tests = bounded_tests(self.tests, self.steps)
        self.globals.clear()
        self.globals |= {
            "dict": self._dict,
            "namespace": self._namespace,
            "raise_exception": self._raise,
            "range": safe_range,
        }
        self._functions = tuple(self.globals.values())

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        put_meters(source, self)
        return super()._generate(source, name, filename, defer_init)

    def is_safe_attribute(self, obj: Value, attr: str, value: Value) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        known = next((names for kind, names in ATTRIBUTES.items() if isinstance(obj, kind)), ())
        return attr in known and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Value) -> PlainFormat | None:
        if isinstance(value, BuiltinMethodType) and value.__name__ == "format":
            owner = value.__self__
            return PlainFormat(self.steps, owner) if isinstance(owner, str) else None
        return None

    def getitem(self, obj: Value, argument: Value) -> Value:
        self.steps.through(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Value, right: Value) -> Value:
        if isinstance(left, int | float) and isinstance(right, int | float):
            self._pay_for_numbers(operator, left, right)
        elif operator == "+" and isinstance(left, _SEQUENCES) and isinstance(right, type(left)):
            self._pay_for_copies(left, len(left) + len(right))
        elif operator == "*" and isinstance(left, _SEQUENCES) and isinstance(right, int):
            self._pay_for_copies(left, len(left) * max(right, 0))
        elif operator == "*" and isinstance(right, _SEQUENCES) and isinstance(left, int):
            self._pay_for_copies(right, len(right) * max(left, 0))
        elif isinstance(right, Undefined):
            # It refuses any operation; a text on its left would take it for what to format.
            left, right = right, left
        elif not isinstance(left, Undefined):
            what = f"{type(left).__name__} {operator} {type(right).__name__}"
            raise TemplateRefusalError(f"computes {what}, which has no meaning here")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Value, /, *args: Value, **kwargs: Value) -> Value:
        self.steps.spend(_STEPS_A_CALL)
        if isinstance(obj, BuiltinMethodType):
            if not self.is_safe_attribute(obj.__self__, obj.__name__, obj):
                raise TemplateRefusalError(f"calls {obj.__name__}, which none needs")
            args = tuple(pay_for_method(self.steps, obj, args, kwargs))
        elif isinstance(obj, MethodType) and isinstance(obj.__self__, LoopContext):
            self.steps.through(args)
        elif not isinstance(obj, Macro | LoopContext | PlainFormat | Undefined) and not any(
            obj is each for each in self._functions
        ):
            raise TemplateRefusalError(f"calls a {type(obj).__name__}, which is no function")
        self._nested += 1
        try:
            if self._nested > _MOST_NESTED_CALLS:
                raise TemplateRefusalError(f"nests calls more than {_MOST_NESTED_CALLS} deep")
            return super().call(context, obj, *args, **kwargs)
        finally:
            self._nested -= 1

    @pass_context
    def _printed(self, _context: Context, value: Value) -> str:
        return self.steps.printed(value)

    def _run(self, cost: int) -> bool:
        self.steps.spend(cost)
        return True

    def _compared(self, value: Value) -> Value:
        self.steps.through(value)
        return value

    def _sought(self, value: Value, within: Value) -> bool:
        return is_in(self.steps, value, within)

    def _not_found(self, value: Value, within: Value) -> bool:
        return not is_in(self.steps, value, within)

    def _sliced(self, value: Value) -> Value:
        if isinstance(value, str):
            self.steps.characters(len(value))
            return value
        return self.steps.held(value)

    def _joined(self, values: list[Value]) -> str:
        return "".join([self.steps.printed(each) for each in values])

    def _pay_for_numbers(self, operator: str, left: float, right: float) -> None:
        self.steps.through((left, right))
        if isinstance(left, int) and isinstance(right, int):
            if operator == "*":
                self.steps.bits(left.bit_length() + right.bit_length())
            elif operator == "**":
                self.steps.bits(left.bit_length() * max(right, 0))

    def _pay_for_copies(self, value: str | list[Value] | tuple[Value, ...], count: int) -> None:
        if isinstance(value, str):
            self.steps.characters(count)
        else:
            self.steps.spend(1 + count)

    def _dict(self, *args: Value, **kwargs: Value) -> dict[Value, Value]:
        made: dict[Value, Value] = {}
        for each in (*args, kwargs):
            if not isinstance(each, dict):
                raise TemplateRefusalError(f"makes a dict of a {type(each).__name__}")
            self.steps.held(each)
            made |= each
        return made

    def _namespace(self, *args: Value, **kwargs: Value) -> Namespace:
        return Namespace(self._dict(*args, **kwargs))

    def _raise(self, message: Value = "") -> None:
        raise RaisedByTemplateError(self.steps.printed(message))


class _Generation(Extension):
    """`{% generation %}`, which marks for training what a model says; here it only holds that."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
