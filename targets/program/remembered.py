"""What attention looks at: which elements of the cached values are which of its keys and values.

Keys and values come from the cache by views (reshaped, transposed, cut, joined, repeated) and by products with stored
weights. Both are read off the graph by following the number of each element, for one token, from the cached values to
the attention node. Where a product lies between (DeepSeek-V2, section 2.1.2), q . (W c) = (W' q) . c: the rows of W
that make a key are applied to the query, and those that make a value to the result, so that nothing is computed again
for the tokens that are remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ir.graph import Graph, Node
from ir.layout import Ints
from ir.model import Cache
from ir.types import one_token_shape, symbols_of

_TOKENS = 2
_PRODUCTS = frozenset({"linear", "matmul"})


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers of elements [heads, elements]."""

    numbers: Ints

    @cached_property
    def steps(self) -> tuple[int, int, int] | None:
        """The first number, and the steps from head to head and from element to element, if they are all alike."""
        heads, width = self.numbers.shape
        start = int(self.numbers[0, 0])
        by_head = int(self.numbers[1, 0]) - start if heads > 1 else 0
        by_element = int(self.numbers[0, 1]) - start if width > 1 else 0
        even = start + by_head * np.arange(heads)[:, None] + by_element * np.arange(width)
        alike = np.array_equal(even, self.numbers) and min(by_head, by_element) >= 0
        return (start, by_head, by_element) if alike else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring elements of each head's key or value.

    Attributes:
        source: the cached value that they come from.
        at: which of its elements, for one token, attention looks at, for each head that has its own: those that the
            piece is, or that the product takes.
        product: the index of the node that makes the piece; ``None``: it is what is cached.
        rows: which of the product's outputs the piece is, for each head of keys and values.
    """

    source: str
    at: Table
    product: int | None
    rows: Table

    @property
    def width(self) -> int:
        """Elements of one head's key or value."""
        return int(self.rows.numbers.shape[1])

    @property
    def seen(self) -> int:
        """Elements of one head that attention looks at."""
        return int(self.at.numbers.shape[1])


@dataclass(frozen=True, slots=True)
class Look:
    """An attention's keys and values as pieces, one after the other.

    ``heads``: what attention looks at, as the cache holds it; all heads may share it.
    """

    keys: tuple[Piece, ...]
    values: tuple[Piece, ...]
    heads: int

    @property
    def products(self) -> frozenset[int]:
        """The nodes whose weights go to the query and to the result."""
        return frozenset(p.product for p in (*self.keys, *self.values) if p.product is not None)


@dataclass(frozen=True, slots=True)
class _Elements:
    """For each element of a value, for one token: what it comes from (an index into the origins; -1: nothing that is
    known), and which element of that it is.
    """

    origin: Ints
    which: Ints


def look_at_cache(graph: Graph, node: Node, cache: Cache) -> Look | None:
    """How the attention ``node`` can look at what is cached; ``None`` where keys and values must be computed again.

    That is where they come from the cache in another way, where heads do not share what a product takes, or where a
    product makes more than keys and values.
    """
    reading = _Reading(graph, cache)
    keys, values = (reading.pieces(name) for name in node.inputs[1:3])
    if keys is None or values is None:
        return None
    pieces = (*keys, *values)
    made: dict[int, int] = {}
    for piece in pieces:
        if piece.product is not None:
            made[piece.product] = made.get(piece.product, 0) + piece.rows.numbers.size
    if any(reading.outputs(product) != count for product, count in made.items()):
        return None
    repeats = _repeats([piece.at.numbers for piece in pieces])
    heads = len(pieces[0].at.numbers) // repeats
    if made and heads > 1:
        return None
    keys, values = ([replace(p, at=Table(p.at.numbers[::repeats])) for p in part] for part in (keys, values))
    return Look(tuple(keys), tuple(values), heads)


def _repeats(tables: list[Ints]) -> int:
    """How many neighbouring heads look at the same, in all ``tables`` [heads, elements]."""
    heads = len(tables[0])
    return next(
        n
        for n in range(heads, 0, -1)
        if heads % n == 0 and all(np.array_equal(table, np.repeat(table[::n], n, axis=0)) for table in tables)
    )


@dataclass(slots=True)
class _Reading:
    """Elements of the values between cache and attention, by name; ``origins``: cached values, then products."""

    graph: Graph
    cache: Cache
    origins: list[str | int] = field(default_factory=list)
    known: dict[str, _Elements | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.origins += self.cache.values
        self.known |= {name: self._numbered(index, name) for index, name in enumerate(self.cache.values)}

    def outputs(self, product: int) -> int:
        """Elements that a product makes for one token."""
        return int(np.prod(one_token_shape(self.graph.nodes[product].result.type.shape)))

    def pieces(self, name: str) -> list[Piece] | None:
        """The key or value ``name`` [users, heads, tokens, width] from its first element to its last."""
        found = self._elements(name)
        if found is None or found.origin.ndim != 4 or found.origin.shape[0] * found.origin.shape[_TOKENS] != 1:
            return None
        origin, which = found.origin[0, :, 0], found.which[0, :, 0]
        if not (origin == origin[0]).all():
            return None
        cuts = np.flatnonzero(np.diff(origin[0])) + 1
        pieces = []
        for start, end in zip([0, *cuts], [*cuts, origin.shape[1]], strict=True):
            piece = self._piece(self.origins[int(origin[0, start])], which[:, start:end])
            if piece is None:
                return None
            pieces.append(piece)
        return pieces

    def _piece(self, origin: str | int, which: Ints) -> Piece | None:
        if isinstance(origin, str):
            return Piece(origin, Table(which), None, Table(which))
        node = self.graph.nodes[origin]
        taken = self._elements(node.inputs[0])
        assert taken is not None
        inputs, outputs = taken.which.shape[-1], one_token_shape(node.result.type.shape)[-1]
        vector = which // outputs
        if not (vector == vector[:, :1]).all():
            return None
        at = taken.which.reshape(-1, inputs)[vector[:, 0]]
        source = self.cache.values[int(taken.origin.flat[0])]
        return Piece(source, Table(at), origin, Table(which % outputs))

    def _numbered(self, origin: int, name: str) -> _Elements:
        shape = one_token_shape(self.graph.types[name].shape)
        which = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        return _Elements(np.full_like(which, origin), which)

    def _elements(self, name: str) -> _Elements | None:
        if name not in self.known:
            index = self.graph.producer.get(name)
            made = index is not None and index in self.cache.recompute
            self.known[name] = self._computed(index, name) if made and index is not None else None
        return self.known[name]

    def _computed(self, index: int, name: str) -> _Elements | None:
        node = self.graph.nodes[index]
        if node.op in _PRODUCTS:
            taken = self._elements(node.inputs[0])
            if taken is None or (taken.origin != taken.origin.flat[0]).any() or self._is_product(taken):
                return None
            self.origins.append(index)
            return self._numbered(len(self.origins) - 1, name)
        view = _VIEWS.get(node.op)
        operands = [self._elements(operand) for operand in node.inputs]
        if view is None or any(operand is None for operand in operands) or _cuts_tokens(self.graph, node):
            return None
        shape = one_token_shape(self.graph.types[name].shape)
        origins = view([o.origin for o in operands if o], node, shape)
        return _Elements(origins, view([o.which for o in operands if o], node, shape))

    def _is_product(self, elements: _Elements) -> bool:
        return isinstance(self.origins[int(elements.origin.flat[0])], int)


def _reshape(numbers: list[Ints], _node: Node, shape: tuple[int, ...]) -> Ints:
    return numbers[0].reshape(shape)


def _transpose(numbers: list[Ints], node: Node, _shape: tuple[int, ...]) -> Ints:
    return numbers[0].transpose(node.attributes["permutation"])


def _expand(numbers: list[Ints], _node: Node, shape: tuple[int, ...]) -> Ints:
    return np.broadcast_to(numbers[0], shape)


def _slice(numbers: list[Ints], node: Node, _shape: tuple[int, ...]) -> Ints:
    start, end, step = (node.attributes[name] for name in ("start", "end", "step"))
    return np.take(numbers[0], np.arange(start, end, step), axis=node.attributes["dim"])


def _concat(numbers: list[Ints], node: Node, _shape: tuple[int, ...]) -> Ints:
    return np.concatenate(numbers, axis=node.attributes["dim"])


def _cast(numbers: list[Ints], _node: Node, _shape: tuple[int, ...]) -> Ints:
    return numbers[0]


_VIEWS: dict[str, Callable[[list[Ints], Node, tuple[int, ...]], Ints]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "expand": _expand,
    "slice": _slice,
    "concat": _concat,
    "cast": _cast,
}


def _cuts_tokens(graph: Graph, node: Node) -> bool:
    """Whether a node cuts or joins along an axis of symbolic size."""
    if node.op not in ("slice", "concat"):
        return False
    shape = graph.types[node.inputs[0]].shape
    return bool(symbols_of(shape[node.attributes["dim"] % len(shape)]))
