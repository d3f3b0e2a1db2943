"""Branches and loops: which branch and how many turns must be known, and then they are lowered one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ir.types import DType
from partitioner.frontends.onnx_file.constants import Known, UnfoldableError, normal_axis
from partitioner.frontends.onnx_file.functions import lower_inside, result_of
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand, Results, Scope
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, fixed, join

_MOST_NODES = 20_000
"""Nodes that the turns of a loop may come to; a model is not to be made of a number in a file."""


def _run(site: Site, graph: Any, name: str, operands: Sequence[Operand]) -> list[Operand]:
    """The outputs of a graph inside of the node of ``site`` for these inputs."""
    site.lowering.unrolled += len(graph.node) + 1
    if site.lowering.unrolled > _MOST_NODES:
        raise UnfoldableError(f"the turns of loops come to more than {_MOST_NODES:,} nodes")
    scope = Scope(site.opset, f"{site.node.name}/{name}/", site.node.scope)
    values = site.lowering.values
    for value, operand in zip(graph.input, operands, strict=True):
        scope.names[value.name] = f"{scope.prefix}{value.name}"
        values[scope.names[value.name]] = operand
    for tensor in graph.initializer:
        scope.names[tensor.name] = f"{scope.prefix}{tensor.name}"
        values[scope.names[tensor.name]] = site.lowering.add_weight(tensor, scope.names[tensor.name])
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        lower_inside(site, node, scope)
    return [result_of(site, scope, value.name) for value in graph.output]


def _tensor(site: Site, operand: Operand) -> Term:
    """An operand that is not an input of the node as a value of the graph."""
    return Term(site, site.as_tensor(operand))


@operator("If")
def _branch(site: Site) -> Results:
    (condition,) = site.demanded(0).list()
    name = "then_branch" if condition else "else_branch"
    return tuple(_run(site, site.attribute(name), name, ()))


@operator("Loop")
def _loop(site: Site) -> Results:
    """``carried`` values go from turn to turn; what else a turn yields is stacked."""
    body = site.attribute("body")
    most = int(site.demanded(0).list()[0]) if site.has(0) else None
    going = bool(site.demanded(1).list()[0]) if site.has(1) else True
    carried = [site.operand(index) for index in range(2, len(site.node.inputs))]
    stacks: list[list[Operand]] = [[] for _ in body.output[1 + len(carried) :]]
    turn = 0
    while going and (most is None or turn < most):
        number, on = (Known.of(dtype, np.array(value)) for dtype, value in ((DType.I64, turn), (DType.BOOL, True)))
        condition, *results = _run(site, body, str(turn), [number, on, *carried])
        going = bool(site.contents_of(condition, "the loop's condition").list()[0])
        carried, rows = results[: len(carried)], results[len(carried) :]
        for stack, row in zip(stacks, rows, strict=True):
            stack.append(row)
        turn += 1
    return (*carried, *(_stacked(site, stack, 0).name for stack in stacks))


@operator("Scan")
def _scan(site: Site) -> Results:
    """A loop over the elements of axes; before opset 9 each user had one of their own."""
    if site.opset < 9:
        return _scan_of_users(site)
    body, count = site.attribute("body"), site.attribute("num_scan_inputs")
    states = [site.operand(index) for index in range(len(site.node.inputs) - count)]
    inputs = [Term(site, site.tensor(index)) for index in range(len(states), len(site.node.inputs))]
    return _scanned(site, body, states, inputs, _Axes.of(site, count, len(body.output) - len(states)))


class _Axes:
    """Along which axes a scan runs, and in which direction (1: in reverse)."""

    def __init__(self, inputs: list[int], backwards: list[int], outputs: list[int], prepends: list[int]) -> None:
        self.inputs, self.backwards, self.outputs, self.prepends = inputs, backwards, outputs, prepends

    @staticmethod
    def of(site: Site, inputs: int, outputs: int) -> _Axes:
        """As the attributes say."""
        return _Axes(
            site.attribute("scan_input_axes") or [0] * inputs,
            site.attribute("scan_input_directions") or [0] * inputs,
            site.attribute("scan_output_axes") or [0] * outputs,
            site.attribute("scan_output_directions") or [0] * outputs,
        )


def _scanned(site: Site, body: Any, states: list[Operand], inputs: list[Term], axes: _Axes, name: str = "") -> Results:
    dims = [normal_axis(axis, len(x.shape)) for axis, x in zip(axes.inputs, inputs, strict=True)]
    lengths = {fixed(x.shape[dim]) for dim, x in zip(dims, inputs, strict=True)}
    if len(lengths) != 1:
        raise UnfoldableError(f"the lengths of its axes differ: {sorted(lengths)}")
    (length,) = lengths
    stacks: list[list[Operand]] = [[] for _ in body.output[len(states) :]]
    for turn in range(length):
        places = [length - 1 - turn if backward else turn for backward in axes.backwards]
        rows = [_element(x, dim, place) for x, dim, place in zip(inputs, dims, places, strict=True)]
        results = _run(site, body, f"{name}{turn}", [*states, *(row.name for row in rows)])
        states, made = results[: len(states)], results[len(states) :]
        for stack, row, backward in zip(stacks, made, axes.prepends, strict=True):
            stack.insert(0 if backward else len(stack), row)
    stacked = [_stacked(site, stack, axis).name for stack, axis in zip(stacks, axes.outputs, strict=True)]
    return (*states, *stacked)


def _scan_of_users(site: Site) -> Results:
    """Opset 8: every input has an axis of users first, and the scan runs along the second."""
    body, count = site.attribute("body"), site.attribute("num_scan_inputs")
    if site.has(0):
        raise UnfoldableError("lengths of their own for each sequence are not supported")
    operands = [Term(site, site.tensor(index)) for index in range(1, len(site.node.inputs))]
    outputs = len(body.output) - (len(operands) - count)
    backwards = site.attribute("directions") or [0] * count
    axes = _Axes([0] * count, backwards, [0] * outputs, [0] * outputs)
    of_users: list[tuple[Operand, ...]] = []
    for user in range(fixed(operands[0].shape[0])):
        own = [_element(x, 0, user) for x in operands]
        states: list[Operand] = [x.name for x in own[: len(own) - count]]
        results = _scanned(site, body, states, own[len(own) - count :], axes, f"user{user}/")
        of_users.append(results if isinstance(results, tuple) else (results,))
    return tuple(_stacked(site, list(of_one), 0).name for of_one in zip(*of_users, strict=True))


def _element(x: Term, dim: int, place: int) -> Term:
    rest = tuple(size for i, size in enumerate(x.shape) if i != dim)
    return x.cut(dim, place, place + 1).reshape(*rest)


def _stacked(site: Site, rows: list[Operand], axis: int) -> Term:
    if not rows:
        raise UnfoldableError("a loop without turns yields nothing to stack")
    terms = [_tensor(site, row) for row in rows]
    shape = terms[0].shape
    dim = normal_axis(axis, len(shape) + 1)
    return join([row.reshape(*shape[:dim], 1, *shape[dim:]) for row in terms], dim)
