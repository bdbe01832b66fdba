"""A chat template's syntax tree with meters built in, before jinja makes code of it.

The meters are filters whose names no template can write. One stands at the head of every list of
statements and counts what is evaluated each time that it runs. Others stand where generated code
goes through a value without asking the environment: comparisons, `~`, slices, keys of a dict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from jinja2 import Environment, nodes
from jinja2.visitor import NodeTransformer

from kldcloud.models.template_steps import CHARACTERS_A_STEP, TemplateRefusalError, Value

RUN: Final = "statements run"
COMPARED: Final = "a value is compared"
SOUGHT: Final = "a value is sought"
NOT_FOUND: Final = "a value is not found"
SLICED: Final = "a value is sliced"
JOINED: Final = "values are joined"

_KNOWN: Final = frozenset(
    {
        *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.ExprStmt),
        *(nodes.For, nodes.If, nodes.Continue, nodes.Break, nodes.With),
        *(nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Assign, nodes.AssignBlock),
        *(nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair),
        *(nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call),
        *(nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand),
        *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
        *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
    }
)
_SEARCHES: Final = {"in": SOUGHT, "notin": NOT_FOUND}
_LISTS_OF_STATEMENTS: Final = ("body", "else_")
_ARGUMENTS_OF_MACROS: Final = frozenset({"varargs", "kwargs"})


def put_meters(tree: nodes.Template, environment: Environment) -> None:
    """Change the tree in place.

    Raises:
        TemplateRefusalError: for statements that chat templates do not use.
    """
    _Meters().visit(tree)
    tree.set_environment(environment)


class _Meters(NodeTransformer):
    """Refuses what is not known, and puts a meter before what costs."""

    def visit(self, node: nodes.Node, *args: Value, **kwargs: Value) -> Value:
        if type(node) not in _KNOWN:
            raise TemplateRefusalError(f"uses {type(node).__name__}, which none needs")
        if isinstance(node, nodes.Name) and node.name in _ARGUMENTS_OF_MACROS:
            # Tuples that are made without a meter, and that can hold each other many times.
            raise TemplateRefusalError(f"uses '{node.name}', which none needs")
        if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (
            node.dyn_args is not None or node.dyn_kwargs is not None
        ):
            raise TemplateRefusalError("calls with * or **, which none needs")
        return super().visit(node, *args, **kwargs)

    def generic_visit(self, node: nodes.Node, *args: Value, **kwargs: Value) -> nodes.Node:
        costs = {
            field: 1 + sum(map(_cost, getattr(node, field)))
            for field in _LISTS_OF_STATEMENTS
            if field in node.fields
        }
        super().generic_visit(node, *args, **kwargs)
        for field, cost in costs.items():
            statements = getattr(node, field)
            if statements or isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock):
                statements.insert(0, nodes.ExprStmt(_run(cost, node), lineno=node.lineno))
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - how jinja finds it
        cost = 1 + _cost(node.test) if node.test is not None else 0
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(_run(cost, node), node.test, lineno=node.lineno)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _through(COMPARED, node.key)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        searches = [_SEARCHES[operand.op] for operand in node.ops if operand.op in _SEARCHES]
        if searches and len(node.ops) > 1:
            raise TemplateRefusalError("chains 'in' with a comparison, which none needs")
        if searches:
            return _filtered(searches[0], node.expr, node.ops[0].expr)
        node.expr = _through(COMPARED, node.expr)
        for operand in node.ops:
            operand.expr = _through(COMPARED, operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(JOINED, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through(SLICED, node.node)
        return node


def _cost(node: nodes.Node) -> int:
    """Steps of running a statement once, without the lists of statements in it."""
    text = node.data if isinstance(node, nodes.TemplateData) else None
    if isinstance(node, nodes.Const):
        text = node.value
    cost = 1 + (len(text) // CHARACTERS_A_STEP if isinstance(text, str) else 0)
    inner: Iterable[nodes.Node] = node.iter_child_nodes(exclude=_LISTS_OF_STATEMENTS)
    return cost + sum(map(_cost, inner))


def _run(cost: int, node: nodes.Node) -> nodes.Expr:
    return _filtered(RUN, nodes.Const(cost, lineno=node.lineno))


def _through(meter: str, node: nodes.Expr) -> nodes.Expr:
    # A constant's length is part of what its statement costs.
    return node if isinstance(node, nodes.Const) else _filtered(meter, node)


def _filtered(meter: str, node: nodes.Expr, *rest: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, meter, list(rest), [], None, None, lineno=node.lineno)
