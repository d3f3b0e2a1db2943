"""What an export asks of whole rows of a mask, such as whether a token sees none: decided where it is the same for all.

A token of a causal model sees itself, so that no row is empty, whatever the export prepares for. Such a question lets
tokens meet; its answer does not depend on them. It is measured: the graph's own nodes are run for several numbers of
tokens at positions of every magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ir.graph import Graph, Node
from ir.interpret import interpret
from ir.types import DType

_REDUCTIONS = frozenset({"sum", "amax", "amin", "prod"})
_SIZES = ((1, 1), (2, 2), (1, 9))
_STARTS = (0, *(1 << power for power in range(21)))
"""Positions of the first token; an answer that turns at some position differs between two of them."""


def fold_rows(graph: Graph, positions: str) -> Graph:
    """The graph with booleans about rows, computed from the input ``positions`` [users, tokens] alone, as constants
    where they are the same for every token.
    """
    asked = _asked(graph, positions)
    if not asked:
        return graph
    answers = list(_answers(graph, asked, positions))
    decided = {
        name: bool(answers[0][name].flatten()[0])
        for name in _questions(graph, asked)
        if all(bool((answer[name] == answers[0][name].flatten()[0]).all()) for answer in answers)
    }
    return replace(graph, nodes=tuple(_constant(node, decided) for node in graph.nodes))


def _asked(graph: Graph, positions: str) -> tuple[Node, ...]:
    """The nodes that compute from positions alone."""
    known = {positions}
    asked: list[Node] = []
    for node in graph.nodes:
        if known.issuperset(node.inputs):
            known.update(value.name for value in node.results)
            asked.append(node)
    return tuple(asked) if len(known) > 1 else ()


def _questions(graph: Graph, asked: tuple[Node, ...]) -> Iterator[str]:
    """Booleans that a reduction has a part in."""
    of_rows: set[str] = set()
    for node in asked:
        if node.op in _REDUCTIONS or of_rows.intersection(node.inputs):
            of_rows.update(value.name for value in node.results)
            if graph.types[node.result.name].dtype is DType.BOOL:
                yield node.result.name


def _answers(graph: Graph, asked: tuple[Node, ...], positions: str) -> Iterator[dict[str, Any]]:
    import torch

    (given,) = (value for value in graph.inputs if value.name == positions)
    piece = Graph(graph.name, (given,), (), asked, ())
    for users, tokens in _SIZES:
        for start in _STARTS:
            counted = torch.arange(start, start + tokens).expand(users, tokens)
            yield interpret(piece, {positions: counted})


def _constant(node: Node, decided: dict[str, bool]) -> Node:
    name = node.result.name
    if name not in decided:
        return node
    type_ = node.result.type
    attributes = {"dtype": type_.dtype, "shape": type_.shape, "value": decided[name]}
    return replace(node, op="full", inputs=(), attributes=attributes)
