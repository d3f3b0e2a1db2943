"""The kernel that one node makes: a product by a stored weight, a sum over a token's features, or none.

Sizes are for one token: every symbol of a shape is 1.
"""

from __future__ import annotations

import math

from ir.encoding import Encoding, plain
from ir.graph import Graph, Node
from ir.ops import ELEMENT_BY_ELEMENT, OPS, Kind
from ir.profile import Product, Reduction
from ir.types import for_one_token, one_token_shape

PRODUCTS = frozenset({"linear", "matmul", "grouped_linear", "convolution"})

_SUMS = {"sum": 1, "mean": 1, "amax": 1, "amin": 1, "argmax": 1, "argmin": 1, "prod": 1}
_ALONG = {"softmax": 2, "log_softmax": 2, "cumsum": 1, "cumprod": 1, "topk": 1}
_NORMS = {"rms_norm": 1, "layer_norm": 2, "group_norm": 2}
"""Values that each row of the operand is reduced to: a norm's mean and variance, a softmax's maximum and sum."""
REDUCTIONS = _SUMS.keys() | _ALONG.keys() | _NORMS.keys()
SPREADING = frozenset({"softmax", "log_softmax", "cumsum", "cumprod", *_NORMS})
"""Reductions that give a vector as long as the one they take: each element meets what all were reduced to."""
_ALONE = (ELEMENT_BY_ELEMENT | {"batch_norm"}) - {"cast", "bitcast"}


def product_of(graph: Graph, node: Node, computed: frozenset[str]) -> Product:
    """The product that a node of :data:`PRODUCTS` is; ``computed`` names the values that depend on tokens."""
    types = [graph.types[name] for name in node.inputs]
    parts, experts, active = 1, 0, 0
    weight = node.inputs[1]
    if node.op == "linear":
        rows, columns = one_token_shape(types[1].shape)
        inputs, outputs = (rows, columns) if node.attributes["transposed"] else (columns, rows)
    elif node.op == "matmul":
        left = weight in computed and node.inputs[0] not in computed
        weight = node.inputs[0] if left else weight
        *stack, rows, columns = one_token_shape(graph.types[weight].shape)
        inputs, outputs = (columns, rows) if left else (rows, columns)
        parts = math.prod(stack)
    elif node.op == "grouped_linear":
        experts, rows, columns = one_token_shape(types[1].shape)
        inputs, outputs = (rows, columns) if node.attributes["transposed"] else (columns, rows)
        active = for_one_token(types[2].shape[1])
    else:
        inputs, outputs, parts = _convolution(one_token_shape(types[1].shape), node)
    encoding = None if weight in computed else _stored_as(graph, weight)
    work = for_one_token(OPS[node.op].work(types, [value.type for value in node.results], node.attributes))
    return Product(
        inputs=inputs,
        outputs=outputs,
        weight_bits=encoding.bits if encoding else 0,
        group=encoding.align_in if encoding else 1,
        parts=parts,
        experts=experts,
        active=active,
        vectors=work // (inputs * outputs * parts * max(1, active)),
    )


def _convolution(shape: tuple[int, ...], node: Node) -> tuple[int, int, int]:
    """Inputs, outputs and groups of a kernel, see ``convolution`` of :mod:`ir.ops.spatial`: one window of the input for
    each position of the result, or, transposed, one window of the result for each position of the input.
    """
    groups = node.attributes["groups"]
    first, second, *reach = shape
    window = second * math.prod(reach)
    return (first // groups, window, groups) if node.attributes["transposed"] else (window, first // groups, groups)


def _stored_as(graph: Graph, name: str) -> Encoding:
    """How the weight is stored that ``name`` is, or is computed from."""
    while name not in graph.parameter:
        node = graph.nodes[graph.producer[name]]
        if not node.inputs:
            return plain(graph.types[name].dtype)
        name = node.inputs[0]
    return graph.parameter[name].encoding


def reduction_of(graph: Graph, node: Node) -> Reduction | None:
    """What a node of :data:`REDUCTIONS` reduces of a token's features, which lie along the last axis; ``None`` where
    nothing meets, or along another axis: the sum over the chosen experts is a part of bringing their results together.
    """
    shape = one_token_shape(graph.types[node.inputs[0]].shape)
    elements, last = math.prod(shape), len(shape) - 1
    if node.op == "group_norm":
        met, results = elements // node.attributes["groups"], _NORMS[node.op]
    elif node.op in _NORMS:
        met, results = shape[last], _NORMS[node.op]
    elif node.op in _SUMS:
        dims = node.attributes["dims"]
        met, results = math.prod(shape[dim] for dim in dims) if last in dims else 1, 1
    else:
        met = shape[last] if node.attributes["dim"] == last else 1
        results = node.attributes["k"] if node.op == "topk" else _ALONG[node.op]
    return None if met == 1 else Reduction(elements, elements // met * results)


def single_results(graph: Graph, node: Node) -> int:
    """Results of operators on single elements: of those themselves, and of those that a norm, a softmax (the square or
    the exponential, the scaling) or a sum along other axes than the last is made of.
    """
    results = for_one_token(node.result.type.elements)
    if node.op in _ALONE and OPS[node.op].kind is Kind.COMPUTE:
        return results
    if node.op in SPREADING:
        return results * (1 + len(node.inputs))
    if node.op in _SUMS and reduction_of(graph, node) is None:
        elements = for_one_token(graph.types[node.inputs[0]].elements)
        return elements if elements > results else 0
    return 0
