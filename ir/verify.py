"""The graph's rules: every name is assigned once and before it is read, and types are what the operators infer."""

from __future__ import annotations

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Graph, Node, Parameter, Value
from ir.ops import OPS, OpTypeError
from ir.text import NAME
from ir.types import TensorType


def verify(graph: Graph) -> Graph:
    """Return ``graph`` unchanged if it keeps the rules.

    Raises:
        UnsupportedModelError: W0301 for each broken rule, with the node's origin.
    """
    problems: list[Diagnostic] = []
    types: dict[str, TensorType] = {}
    given: tuple[Value | Parameter, ...] = (*graph.inputs, *graph.parameters)
    for value in given:
        if not NAME.fullmatch(value.name):
            problems.append(_problem(f"{value.name!r} cannot be the name of a value", graph.name))
        if value.name in types:
            problems.append(_problem(f"{value.name} is defined twice", graph.name))
        types[value.name] = value.type
    for node in graph.nodes:
        problems += [_problem(text, node.origin or graph.name) for text in _broken_rules(node, types)]
        types.update((value.name, value.type) for value in node.results)
    problems += [_problem(f"output {name} is not defined", graph.name) for name in graph.outputs if name not in types]
    if problems:
        raise UnsupportedModelError(*problems)
    return graph


def _broken_rules(node: Node, types: dict[str, TensorType]) -> list[str]:
    definition = OPS.get(node.op)
    if definition is None:
        return [f"there is no operator {node.op}"]
    undefined = [name for name in node.inputs if name not in types]
    if undefined:
        return [f"{node.op} reads {name} before it is defined" for name in undefined]
    least, most = definition.operands
    if len(node.inputs) < least or (most is not None and len(node.inputs) > most):
        return [f"{node.op} takes {least} to {most} operands, not {len(node.inputs)}"]
    names = [value.name for value in node.results]
    again = [f"{name} is defined twice" for i, name in enumerate(names) if name in types or name in names[:i]]
    try:
        inferred = definition.infer([types[name] for name in node.inputs], node.attributes)
    except (OpTypeError, KeyError, TypeError, ValueError) as error:
        return [*again, f"{node.op}: {error}"]
    stated = tuple(value.type for value in node.results)
    if inferred != stated:
        return [*again, f"{node.op} yields {_list(inferred)}, not {_list(stated)}"]
    return again


def _list(types: tuple[TensorType, ...]) -> str:
    return ", ".join(map(str, types))


def _problem(message: str, where: str) -> Diagnostic:
    return Diagnostic("W0301", message, where)
