"""What one operator takes on the tiles of its block: the definitions of :mod:`targets.program.kinds` in closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ir.graph import Node
from ir.layout import Ints, MatrixLayout
from ir.plan import Rectangle
from ir.types import Dim, Size, TensorType, evaluate, for_one_token, one_token_shape
from targets.cost.laid_out import LaidOut
from targets.cost.moves import NOTHING, sources
from targets.cost.paths import Path, Stretches, Vectors, across, at_home, between, enter, leave, look_up, travel
from targets.cost.routing import even_routing
from targets.counters import OpCount, Routing, Traffic
from targets.program.instructions import Instruction, Program, is_transposed
from targets.program.kinds import SUM_BYTES, KernelKind, values_that_meet


@dataclass(frozen=True, slots=True)
class Site:
    """A block in one step: what it runs, where its weights lie, what the symbols stand for, and which experts are met
    (see :class:`targets.cost.traffic.Predictor`).
    """

    program: Program
    weights: LaidOut
    types: Mapping[str, TensorType]
    bindings: Mapping[str, int]
    routing: Routing | None

    @property
    def region(self) -> Rectangle:
        """The block's."""
        return self.program.placed.region

    def is_apart(self, name: str) -> bool:
        """Whether a value lies apart, and not on every tile."""
        return name in self.program.apart

    def elements(self, name: str) -> int:
        """Of a value, for one token."""
        return _sizes(self.types[name])[1]

    def tokens(self, name: str) -> int:
        """Of a value: how often it has its elements for one token."""
        size, elements = _sizes(self.types[name])
        return evaluate(size, self.bindings) // max(1, elements)

    def element_bytes(self, name: str) -> int:
        """Of a value on the machine."""
        return self.types[name].dtype.held_bits // 8

    def token_bytes(self, name: str) -> int:
        """Bytes that go over a link that one element of each token crosses."""
        return self.element_bytes(name) * self.tokens(name)

    def homes(self, name: str) -> Stretches:
        """Where a value's elements for one token lie."""
        return at_home(self.elements(name), self.region)

    def operands(self, instruction: Instruction) -> list[str]:
        """What an operator reads that lies apart and not on tiles of its own, each value once."""
        read = (name for at, name in enumerate(instruction.node.inputs) if at not in instruction.weights)
        return [name for name in dict.fromkeys(read) if self.is_apart(name)]

    def routes(self, node: Node) -> Ints:
        """How many tokens each expert serves at each place of their choice [experts, k]."""
        name = node.result.name
        if self.routing is not None:
            return self.routing[name]
        chosen = self.types[node.inputs[2]]
        places = for_one_token(chosen.shape[1])
        return even_routing(len(self.program.placed.experts), places, evaluate(chosen.shape[0], self.bindings))


@lru_cache(maxsize=4096)
def _sizes(type_: TensorType) -> tuple[Size, int]:
    """How many elements, and how many for one token."""
    size = type_.elements
    return size, for_one_token(size)


def moved(collective: str, path: Path, element_bytes: int) -> Iterator[OpCount]:
    """One run of a collective whose elements take so many bytes each, those of all tokens; nothing if none moves."""
    if path.hops and element_bytes:
        yield OpCount(0, {collective: Traffic(1, path.hops, path.links * element_bytes)})


def broadcast(site: Site, name: str) -> Iterator[OpCount]:
    """All tiles of the block get a value."""
    path = Path(across(site.region), site.elements(name) * (site.region.tiles - 1))
    yield from moved("broadcast", path, site.token_bytes(name))


def all_reduce(region: Rectangle, payload_bytes: int) -> Iterator[OpCount]:
    """All tiles add up values along the rows and down the first column, and get the sums back."""
    yield from moved("all_reduce", Path(2 * across(region), 2 * (region.tiles - 1)), payload_bytes)


def sum_bytes(site: Site, name: str) -> int:
    """Of one partial sum over elements of a value."""
    return max(SUM_BYTES, site.element_bytes(name))


Sizes: TypeAlias = tuple[int, ...]
Kernel: TypeAlias = Callable[[Instruction, Site], Iterator[OpCount]]


def count(instruction: Instruction, site: Site) -> OpCount:
    """What one operator takes, attention left out (see :mod:`targets.cost.attention_traffic`)."""
    total = OpCount()
    if instruction.kind not in (KernelKind.REFERENCE, KernelKind.EVERYWHERE):
        for piece in _collect(instruction, site):
            total += piece
    for piece in _KERNELS[instruction.kind](instruction, site):
        total += piece
    return total


def _collect(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    """Matrices that are not read on their tiles go to their homes."""
    for name in site.operands(instruction):
        parameter = site.weights.parameters.get(name)
        if parameter and len(parameter.shape) > 1:
            path = between(site.weights.stretches(parameter), site.homes(name))
            yield from moved("collect", path, site.element_bytes(name))


def _through(
    layout: MatrixLayout, transposed: bool, x: Vectors | None, y: Vectors, region: Rectangle, home: Rectangle,
    tokens: int, element_bytes: int,
) -> Iterator[OpCount]:  # fmt: skip
    """Vectors of ``tokens`` tokens through a matrix on ``region``; ``x`` is none where all tiles have the inputs."""
    inputs, outputs = (layout.outputs, layout.inputs) if transposed else (layout.inputs, layout.outputs)
    sums = tokens * y.count * outputs.length
    yield OpCount(sums * inputs.length)
    if x:
        yield from moved("enter", enter(inputs, x, home, region, transposed), tokens * element_bytes)
    length = (region.columns if transposed else region.rows) - 1
    yield from moved("chain", Path(length, length * sums), max(SUM_BYTES, element_bytes))
    yield from moved("leave", leave(outputs, y, region, home, transposed), tokens * element_bytes)


def _product(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    name, _weight, *bias = instruction.node.inputs
    layout, transposed = site.weights.own.layouts[instruction.weights[1].parameter], is_transposed(instruction)
    vectors = site.elements(name) // (layout.outputs if transposed else layout.inputs).length
    y = Vectors(vectors, 0, vectors)
    x = y if site.is_apart(name) else None
    region = site.region
    yield from _through(layout, transposed, x, y, region, region, site.tokens(name), site.element_bytes(name))
    for other in bias:
        if vectors > 1 and site.is_apart(other):
            yield from broadcast(site, other)


def _experts(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    node, transposed = instruction.node, is_transposed(instruction)
    name = node.inputs[0]
    routes = site.routes(node)
    own_input = for_one_token(site.types[name].shape[1]) > 1
    for expert, place in np.argwhere(routes).tolist():
        laid = site.weights.experts[expert]
        y = Vectors(1, place, routes.shape[1])
        x = None if not site.is_apart(name) else y if own_input else Vectors()
        layout, tokens = laid.layouts[instruction.weights[1].parameter], int(routes[expert, place])
        yield from _through(layout, transposed, x, y, laid.region, site.region, tokens, site.element_bytes(name))


def _lookup(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    name = instruction.node.result.name
    width = site.weights.own.layouts[instruction.weights[0].parameter].inputs
    rows = site.elements(name) // width.length
    yield from moved("lookup", look_up(width, Vectors(rows, 0, rows), site.region), site.token_bytes(name))


def _element(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    yield from _aligned(site, site.operands(instruction), site.elements(instruction.node.result.name))


def _aligned(site: Site, names: list[str], elements: int) -> Iterator[OpCount]:
    """Those of ``names`` that have not ``elements`` elements for one token go to all tiles."""
    for name in names:
        if site.elements(name) != elements:
            yield from broadcast(site, name)


def _move(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    node, name = instruction.node, instruction.node.result.name
    operands = tuple((one_token_shape(site.types[operand].shape), site.is_apart(operand)) for operand in node.inputs)
    attributes = tuple((key, _bound(value)) for key, value in sorted(node.attributes.items()))
    yield from moved("move", _way(node.op, attributes, operands, site.region), site.token_bytes(name))


def _bound(value: Any) -> Any:
    """An attribute with 1 in the place of its symbols."""
    return tuple(for_one_token(v) if isinstance(v, Dim) else v for v in value) if isinstance(value, tuple) else value


@lru_cache(maxsize=4096)
def _way(
    op: str,
    attributes: tuple[tuple[str, Any], ...],
    operands: tuple[tuple[tuple[int, ...], bool], ...],
    region: Rectangle,
) -> Path:
    """How far elements go that change their places; ``operands``: the shape of each, and whether it lies apart."""
    numbers, rows, columns = [], [], []
    first = 0
    for shape, is_apart in operands:
        own = np.arange(int(np.prod(shape, dtype=np.int64)))
        numbers.append((own + first if is_apart else np.full_like(own, NOTHING)).reshape(shape))
        row, column = at_home(len(own), region).tiles(own)
        rows.append(row)
        columns.append(column)
        first += len(own)
    origin = sources(op, numbers, dict(attributes)).ravel()
    moving = np.flatnonzero(origin != NOTHING)
    start = (np.concatenate(rows)[origin[moving]], np.concatenate(columns)[origin[moving]])
    return travel(start, at_home(len(origin), region).tiles(moving), np.ones_like(moving))


def _reduction(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    node = instruction.node
    first, *others = node.inputs
    values = values_that_meet(site.types, node) * site.tokens(first)
    yield from all_reduce(site.region, values * sum_bytes(site, first))
    further = [name for name in dict.fromkeys(others) if site.is_apart(name)]
    yield from _aligned(site, further, site.elements(first))


def _combine(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    """Each element goes to the home of the one that it is added to."""
    node = instruction.node
    (name,) = node.inputs
    path = _way_to_sums(one_token_shape(site.types[name].shape), node.attributes["dims"], site.region)
    yield from moved("combine", path, site.token_bytes(name))


@lru_cache(maxsize=4096)
def _way_to_sums(shape: Sizes, dims: Sizes, region: Rectangle) -> Path:
    """How far elements go that meet along the axes ``dims``."""
    kept = tuple(1 if axis in dims else size for axis, size in enumerate(shape))
    elements = int(np.prod(kept, dtype=np.int64))
    sums = np.broadcast_to(np.arange(elements).reshape(kept), shape).ravel()
    source = at_home(len(sums), region).tiles(np.arange(len(sums)))
    return travel(source, at_home(elements, region).tiles(sums), np.ones_like(sums))


def _everywhere(_instruction: Instruction, _site: Site) -> Iterator[OpCount]:
    yield from ()


def _by_reference(instruction: Instruction, site: Site) -> Iterator[OpCount]:
    if instruction.work:
        yield OpCount(evaluate(instruction.work, site.bindings))
    first = Rectangle(site.region.column, site.region.row, 1, 1)
    for name in site.operands(instruction):
        parameter = site.weights.parameters.get(name)
        held = site.weights.stretches(parameter) if parameter else site.homes(name)
        yield from moved("gather", between(held, at_home(held.elements, first)), site.token_bytes(name))
    for value in instruction.node.results:
        path = between(at_home(site.elements(value.name), first), site.homes(value.name))
        yield from moved("scatter", path, site.token_bytes(value.name))


_KERNELS: dict[KernelKind, Kernel] = {
    KernelKind.PRODUCT: _product,
    KernelKind.EXPERTS: _experts,
    KernelKind.LOOKUP: _lookup,
    KernelKind.ELEMENT: _element,
    KernelKind.MOVE: _move,
    KernelKind.REDUCTION: _reduction,
    KernelKind.COMBINE: _combine,
    KernelKind.EVERYWHERE: _everywhere,
    KernelKind.REFERENCE: _by_reference,
}
