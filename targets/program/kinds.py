"""How an operator runs on tiles, told from the graph alone.

A value either lies apart, each element on its home tile (:mod:`targets.program.homes`), or every tile has it: what the
step hands to all (token ids, positions), what an all-reduce yields, and what is computed from these alone.

What each kind moves is said at :class:`KernelKind`, for the operands that lie apart; what all tiles have needs no way.
Each operand of an operator counts once, and the way of each is one collective, but for those of a MOVE, which go as
one. Weights of two axes and more lie by :mod:`ir.layout`. Where an operator other than REFERENCE reads one, and not on
its tiles, all of its elements go to their homes first, each time (``collect``). Of a value's elements, those for one
token are as many as there would be if all symbols were 1, and how often they are there is its number of tokens; so what
has no symbols has one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from enum import StrEnum
from math import prod

from ir.graph import Graph, Node
from ir.ops import ELEMENT_BY_ELEMENT
from ir.types import TensorType, for_one_token, one_token_shape, symbols_of


class KernelKind(StrEnum):
    """What an operator does on tiles, and what moves."""

    PRODUCT = "product"
    """A vector times a matrix that stays: inputs travel along lines of tiles (``enter``), partial sums of four bytes,
    or of the elements' if these are wider, across them (``chain``), and results home (``leave``). A bias lies where
    the results do; where there are several vectors for each token, it goes to all tiles (``broadcast``)."""
    EXPERTS = "experts"
    """Such products by the matrices of each token's experts: for each expert and each place of the choice that has
    tokens. Biases lie where the sums end. Each row of a graph without symbols counts as a token."""
    LOOKUP = "lookup"
    """Rows of a table that lies on the tiles: each passes along its rows of tiles, and goes home from there."""
    ATTENTION = "attention"
    """Queries stream past the remembered tokens, which lie over all tiles of the region."""
    ELEMENT = "element"
    """Each element alone, on its home tile. An operand with as many elements for one token as the result lies there;
    any other goes to all tiles (``broadcast``)."""
    MOVE = "move"
    """The same elements in another order, number or shape: they change their tiles (``move``)."""
    REDUCTION = "reduction"
    """Elements of a token meet: on each tile, then by an ``all_reduce`` of four bytes, or of the elements' if these are
    wider, for each value: one for each row that meets; two for a layer norm, for a softmax, and for the place of the
    greatest element, which goes with it; of a top-k, k elements and their places; of a gather, its results. Every tile
    has the sums (or choices). Further operands go to all tiles (``broadcast``), unless they have as many elements for
    one token as the first."""
    COMBINE = "combine"
    """Elements of a token meet along an axis that is not the last: those of one sum travel to where it lies."""
    EVERYWHERE = "everywhere"
    """Every tile computes what it needs of it, from what all tiles have."""
    REFERENCE = "reference"
    """No kernel for tiles: operands go to the region's first tile (``gather``), which computes by the operator's
    reference meaning, and results go home from there (``scatter``), each by itself."""


SUM_BYTES = 4
"""Of a partial sum, a maximum or a sum of a softmax on the mesh: they are held in 32 bit."""
SUMS = frozenset({"sum", "mean", "amax", "amin", "argmax", "argmin", "prod"})
NORMS = frozenset({"layer_norm", "rms_norm"})
ALONG = frozenset({"softmax", "log_softmax", "topk"})
"""Operators that meet along one axis."""
MOVES = frozenset({"reshape", "transpose", "expand", "slice", "flip", "concat", "pad"})


def is_apart(node: Node, kind: KernelKind) -> bool:
    """Whether the results of ``node`` lie apart, and not on every tile."""
    if kind is KernelKind.REDUCTION:
        return node.op in NORMS or node.op in ("softmax", "log_softmax")
    return kind is not KernelKind.EVERYWHERE


def kind_of(graph: Graph, node: Node, on_tiles: bool, apart: Set[str]) -> KernelKind:
    """How ``node`` runs; ``on_tiles``: its weights are read on their tiles, ``apart`` the values that lie apart."""
    if on_tiles:
        return {
            "linear": KernelKind.PRODUCT,
            "grouped_linear": KernelKind.EXPERTS,
            "embedding": KernelKind.LOOKUP,
        }[node.op]
    if node.op == "attention":
        return KernelKind.ATTENTION
    if apart.isdisjoint(node.inputs):
        return KernelKind.EVERYWHERE
    if node.op in ELEMENT_BY_ELEMENT:
        return KernelKind.ELEMENT
    if node.op in MOVES:
        return KernelKind.MOVE
    return _meeting(graph, node)


def _meeting(graph: Graph, node: Node) -> KernelKind:
    """How an operator runs whose elements meet."""
    shape = graph.types[node.inputs[0]].shape
    last = len(shape) - 1
    if node.op in NORMS:
        return KernelKind.REDUCTION
    if node.op == "gather":
        chosen = node.attributes["dim"] % len(shape) == last and not symbols_of(shape[last])
        return KernelKind.REDUCTION if chosen else KernelKind.REFERENCE
    if node.op not in SUMS | ALONG:
        return KernelKind.REFERENCE
    axes = node.attributes["dims"] if node.op in SUMS else (node.attributes["dim"],)
    axes = {axis % len(shape) for axis in axes}
    if any(symbols_of(shape[axis]) for axis in axes):
        return KernelKind.REFERENCE
    if last in axes:
        return KernelKind.REDUCTION
    return KernelKind.COMBINE if node.op in SUMS and node.op not in ("argmax", "argmin") else KernelKind.REFERENCE


def values_that_meet(types: Mapping[str, TensorType], node: Node) -> int:
    """Of one token's elements, how many sums or choices all tiles must agree on, where ``node`` is a reduction."""
    chosen = for_one_token(types[node.result.name].elements)
    if node.op == "topk":
        return 2 * chosen
    if node.op == "gather":
        return chosen
    shape = one_token_shape(types[node.inputs[0]].shape)
    axes = node.attributes["dims"] if node.op in SUMS else (-1,)
    met = {axis % len(shape) for axis in axes}
    rows = prod(size for axis, size in enumerate(shape) if axis not in met)
    return rows * (1 if node.op in SUMS - {"argmax", "argmin"} or node.op == "rms_norm" else 2)
