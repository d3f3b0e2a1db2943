"""Attention that an exporter spelled out, found again by its structure and put back as one operator.

Exports write attention as two products with a softmax between them, in many dialects: the scale before, after or on
both query and key; masks that are added, chosen by ``where`` or filled in; heads repeated, or not; a soft cap, sinks.
So the structure is only used to find candidates: a softmax that lies between two products of values. What it means is
then measured. The piece is run on small concrete sizes (:mod:`partitioner.passes.probe`): its scores tell the scale,
scores of zero tell who sees whom, and random operands must give what the operator gives. A piece that means something
else is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ir.graph import Graph, Node, Value
from ir.ops import OPS, Kind
from ir.types import Shape, Size, TensorType, exact_quotient
from partitioner.passes.probe import Meaning, Piece, measure

_DEPTH = 24
_AFTER_SOFTMAX = frozenset(
    {"cast", "slice", "where", "reshape", "transpose", "expand", "embedding", "mul", "masked_fill"}
)
_BEFORE_SOFTMAX = frozenset(
    {
        *("cast", "add", "sub", "mul", "div", "where", "masked_fill", "concat", "reshape", "transpose", "expand"),
        *("tanh", "amax", "maximum", "minimum", "clamp"),
    }
)
_SCALED = frozenset({"mul", "div", "cast"})
_SWAP = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class _Found:
    """A piece of the graph and the attention that it is."""

    piece: Piece
    meaning: Meaning
    origin: str


def recognise_attention(graph: Graph) -> Graph:
    """A graph with the same outputs in which spelled-out attention is the operator ``attention``."""
    graph = _with_heads_first(graph)
    found: dict[str, _Found] = {}
    known: dict[object, Meaning | None] = {}
    for index, node in enumerate(graph.nodes):
        if node.op == "matmul":
            for piece, softmax in _candidates(graph, index):
                key = piece.signature(graph)
                if key not in known:
                    known[key] = measure(graph, piece)
                meaning = known[key]
                if meaning is not None:
                    found[piece.result] = _Found(piece, meaning, graph.nodes[softmax].origin)
                    break
    return _replace(graph, found) if found else graph


def _with_heads_first(graph: Graph) -> Graph:
    """Keys that go from [users, tokens, heads, width] to [users, heads, width, tokens] at once, in two steps."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "transpose" and node.attributes["permutation"] == (0, 2, 3, 1):
            users, heads, width, tokens = node.result.type.shape
            between = Value(f"{node.result.name}.heads", node.result.type.with_shape((users, heads, tokens, width)))
            nodes.append(replace(node, results=(between,), attributes={"permutation": _SWAP}))
            node = replace(node, inputs=(between.name,), attributes={"permutation": (0, 1, 3, 2)})
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


# --- finding --------------------------------------------------------------------------------------------------------


def _candidates(graph: Graph, values_product: int) -> Iterator[tuple[Piece, int]]:
    """Pieces that end in the product with the values, most plausible first, each with its softmax."""
    node = graph.nodes[values_product]
    softmax = _above(graph, node.inputs[0], _AFTER_SOFTMAX, _is_softmax)
    if softmax is None:
        return
    logits = graph.nodes[softmax].inputs[0]
    scores = _above(graph, logits, _BEFORE_SOFTMAX, lambda other: other.op == "matmul")
    if scores is None:
        return
    result = _outermost(graph, values_product, scores)
    shape = graph.types[result].shape
    if len(shape) != 4:
        return
    left, right = graph.nodes[scores].inputs
    logits, sinks = _beside_sinks(graph, logits, shape[1])
    for query in _roots(graph, left):
        if graph.types[query].shape[:3] != shape[:3]:
            continue
        for key, value in _pairs(graph, right, node.inputs[1], shape):
            operands = (query, key, value, *((sinks,) if sinks else ()))
            yield (
                Piece(operands, graph.nodes[scores].result.name, logits, graph.nodes[softmax].result.name, result),
                softmax,
            )


def _is_softmax(node: Node) -> bool:
    return node.op == "softmax" and node.attributes["dim"] == len(node.result.type.shape) - 1


def _above(graph: Graph, name: str, through: frozenset[str], wanted: Callable[[Node], bool]) -> int | None:
    """The nearest node above ``name``, by operators in ``through``, that is ``wanted``; the first operand first."""
    pending, seen = [name], {name}
    for _ in range(_DEPTH * 4):
        if not pending:
            return None
        index = graph.producer.get(pending.pop(0))
        if index is None:
            continue
        node = graph.nodes[index]
        if wanted(node):
            return index
        if node.op in through:
            fresh = [operand for operand in node.inputs if operand not in seen]
            seen.update(fresh)
            pending += fresh
    return None


def _outermost(graph: Graph, values_product: int, scores: int) -> str:
    """The result [users, heads, tokens, width] of the product with the values: reshaped to four axes, and where rows
    that see nothing are set to zero, after that.
    """
    name = graph.nodes[values_product].result.name
    while len(readers := graph.consumers.get(name, ())) == 1 and name not in graph.outputs:
        node = graph.nodes[readers[0]]
        guards = node.op == "where" and node.inputs[2] == name and not _depends(graph, node.inputs[:2], scores)
        if not guards and not (node.op == "reshape" and len(graph.types[name].shape) != 4):
            break
        name = node.result.name
    return name


def _depends(graph: Graph, names: tuple[str, ...], index: int) -> bool:
    """Whether any of ``names`` is computed from the result of the node ``index``."""
    pending, seen = list(names), set(names)
    while pending:
        producer = graph.producer.get(pending.pop(), -1)
        if producer == index:
            return True
        if producer > index:
            fresh = set(graph.nodes[producer].inputs) - seen
            seen |= fresh
            pending += fresh
    return False


def _roots(graph: Graph, name: str) -> Iterator[str]:
    """``name`` and what it is a scaled view of, from the farthest to the nearest."""
    chain = [name]
    for _ in range(_DEPTH):
        index = graph.producer.get(chain[-1])
        if index is None:
            break
        node = graph.nodes[index]
        is_scaled = node.op in _SCALED and (len(node.inputs) == 1 or not graph.types[node.inputs[1]].shape)
        if OPS[node.op].kind is not Kind.VIEW and not is_scaled:
            break
        chain.append(node.inputs[0])
    yield from reversed(chain)


def _pairs(graph: Graph, key: str, value: str, result: Shape) -> Iterator[tuple[str, str]]:
    """What keys [users, kv heads, tokens, width] and values are views of, the fewest heads first."""
    users, heads = result[:2]
    keys = [name for name in _roots(graph, key) if len(graph.types[name].shape) == 4]
    for name in sorted(keys, key=lambda n: str(graph.types[n].shape[1]).zfill(9)):
        shape = graph.types[name].shape
        if shape[0] != users or exact_quotient(heads, shape[1]) is None:
            continue
        for other in _roots(graph, value):
            its = graph.types[other].shape
            if len(its) == 4 and its[:3] == shape[:3] and its[3] == result[3]:
                yield name, other


def _beside_sinks(graph: Graph, logits: str, heads: Size) -> tuple[str, str | None]:
    """The scaled scores, and the parameter [heads] that takes part in the softmax beside them."""
    joined = _above(graph, logits, frozenset({"sub", "cast"}), lambda node: node.op == "concat")
    if joined is None:
        return logits, None
    scores, *others = graph.nodes[joined].inputs
    for name in others:
        root = next(iter(_roots(graph, name)))
        if root in graph.parameter and graph.types[root].elements == heads:
            return scores, root
    return logits, None


# --- putting it back ------------------------------------------------------------------------------------------------


def _replace(graph: Graph, found: dict[str, _Found]) -> Graph:
    swapped: dict[str, str] = {}
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        name = node.result.name
        if name in found:
            made = _attention(graph, found[name])
            swapped[name] = made[-2].result.name
            nodes += made
        elif node.op == "transpose" and node.inputs[0] in swapped and node.attributes["permutation"] == _SWAP:
            renamed[name] = swapped[node.inputs[0]]
        else:
            nodes.append(node)
    return replace(graph, nodes=tuple(nodes), outputs=tuple(renamed.get(name, name) for name in graph.outputs))


def _attention(graph: Graph, found: _Found) -> list[Node]:
    """The operator, and its result in the order of axes that the piece had."""
    name, type_ = found.piece.result, graph.types[found.piece.result]
    meaning = found.meaning
    attributes = {
        "scale": meaning.scale,
        "causal": meaning.causal,
        "window": meaning.window,
        "softcap": meaning.softcap,
    }
    query, key, value, *sinks = found.piece.operands
    users, heads, tokens, width = type_.shape
    nodes: list[Node] = []
    if sinks and graph.types[sinks[0]].shape != (heads,):
        flat = Value(f"{name}.sinks", graph.types[sinks[0]].with_shape((heads,)))
        nodes.append(Node("reshape", tuple(sinks), (flat,), {"shape": (heads,)}, found.origin))
        sinks = [flat.name]
    inner = Value(f"{name}.attention", TensorType(graph.types[query].dtype, (users, tokens, heads, width)))
    nodes.append(Node("attention", (query, key, value, *sinks), (inner,), attributes, found.origin))
    return [*nodes, Node("transpose", (inner.name,), (Value(name, type_),), {"permutation": _SWAP}, found.origin)]
