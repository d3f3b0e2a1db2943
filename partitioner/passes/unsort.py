"""Rows that are sorted, worked on one by one, and put back, are worked on where they are.

An input [n] may stand for any permutation (``orders``). A value is *in that order* if its row i is row order[i] of
another value, its counterpart; what works on each row alone keeps this. Looking rows up by the inverse of the order
gives the counterpart back. So a graph in which every ordered value ends so does not depend on the order, and is the
graph of the counterparts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Graph, Node, Value
from ir.interpret import interpret
from ir.ops import ELEMENT_BY_ELEMENT
from ir.types import Dim, Size, TensorType, exact_quotient, symbols_of

_ALONG = {"slice": "dim", "concat": "dim", "softmax": "dim", "log_softmax": "dim", "cumsum": "dim"}
_REDUCES = frozenset({"sum", "mean", "amax", "amin", "argmax"})
_ROWWISE = frozenset({"rms_norm", "layer_norm", "linear"})


def undo_orders(graph: Graph, orders: Collection[str]) -> Graph:
    """``graph`` without the inputs ``orders``.

    Raises:
        UnsupportedModelError: W0311, the order of rows is not undone.
    """
    if not orders:
        return by_token(graph)
    work = _Unsorting(graph)
    nodes = [made for node in graph.nodes for made in work.node(node)]
    left = work.ordered.intersection(graph.outputs)
    if left:
        raise _not_undone(graph.name)
    inputs = tuple(value for value in graph.inputs if value.name not in orders)
    counted = [_counting(value) for value in graph.inputs if value.name in orders]
    return by_token(replace(graph, inputs=inputs, nodes=(*counted, *nodes)))


def _counting(value: Value) -> Node:
    shape = value.type.shape
    return Node("arange", (), (value,), {"dtype": value.type.dtype, "shape": shape, "start": 0, "step": 1}, "")


def _not_undone(where: str) -> UnsupportedModelError:
    message = "tokens are sorted by their expert, and it cannot be told that they are put back"
    return UnsupportedModelError(Diagnostic("W0311", message, where))


class _Unsorting:
    """One pass over a graph: ``ordered`` values stand for their counterparts, ``inverse`` ones undo the order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._orders = {value.name for value in graph.inputs if value.name.startswith("any_order")}
        self.ordered: set[str] = set(self._orders)
        self._itself: dict[str, str] = {name: name for name in self._orders}
        self._inverse: dict[str, str] = {}

    def node(self, node: Node) -> list[Node]:
        """What takes the node's place."""
        if not (self.ordered | self._inverse.keys()).intersection(node.inputs):
            return [node]
        name = node.result.name
        if node.op in ("reshape", "expand", "cast") and node.inputs[0] in self._inverse:
            self._inverse[name] = self._inverse[node.inputs[0]]
            return [node]
        if node.op == "scatter" and self._is_inverse(node):
            self._inverse[name] = self._itself[node.inputs[1]]
            return [replace(node, op="reshape", inputs=(node.inputs[2],), attributes={"shape": node.result.type.shape})]
        if node.op == "embedding" and node.inputs[1] in self._inverse and node.inputs[0] in self.ordered:
            shaped = {"shape": node.result.type.shape}
            return [replace(node, op="reshape", inputs=node.inputs[:1], attributes=shaped)]
        if not self._keeps_order(node):
            raise _not_undone(node.origin)
        self.ordered |= {value.name for value in node.results}
        if node.op in ("reshape", "cast", "expand") and node.inputs[0] in self._itself:
            self._itself[name] = self._itself[node.inputs[0]]
        return [node]

    def _is_inverse(self, node: Node) -> bool:
        """Whether 0, 1, 2 ... is written to the places that the order names."""
        if len(node.inputs) != 3 or node.attributes["dim"] != 0 or node.inputs[1] not in self._itself:
            return False
        name = node.inputs[2]
        while name in self._graph.producer:
            source = self._graph.nodes[self._graph.producer[name]]
            if source.op == "arange":
                return bool(source.attributes["start"] == 0 and source.attributes["step"] == 1)
            if source.op not in ("reshape", "expand", "cast"):
                return False
            name = source.inputs[0]
        return False

    def _keeps_order(self, node: Node) -> bool:
        """Whether row i of the result is computed from rows i of the ordered operands, and from nothing else by row."""
        rows = node.result.type.shape[:1]
        types = [self._graph.types[name] for name in node.inputs]
        if node.op in ELEMENT_BY_ELEMENT:
            rank = len(node.result.type.shape)
            return all(
                (len(t.shape) == rank and t.shape[:1] == rows)
                if name in self.ordered
                else (len(t.shape) < rank or t.shape[0] == 1)
                for name, t in zip(node.inputs, types, strict=True)
            )
        if node.op == "embedding":
            return node.inputs[0] not in self.ordered
        first = node.inputs[0] in self.ordered and types[0].shape[:1] == rows
        others = [name for name in node.inputs[1:] if name in self.ordered]
        if node.op in ("reshape", "expand"):
            return first
        if node.op in _ALONG:
            return all(name in self.ordered for name in node.inputs) and node.attributes[_ALONG[node.op]] != 0
        if node.op in _REDUCES:
            return first and 0 not in node.attributes["dims"]
        if node.op == "transpose":
            return first and node.attributes["permutation"][0] == 0
        if node.op == "grouped_linear":
            return first and others == [node.inputs[2]]
        return node.op in _ROWWISE and first and not others and len(types[0].shape) > 1


# --- rows that count tokens several times ---------------------------------------------------------------------------


def by_token(graph: Graph) -> Graph:
    """Look-ups by counting, such as every row k times in a row, as views; products by expert as [tokens, k]."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op == "embedding":
            nodes += _repeated(graph, node)
        elif node.op == "grouped_linear":
            nodes += _with_slots(graph, node)
        else:
            nodes.append(node)
    return _with_biases(replace(graph, nodes=tuple(nodes)))


def _repeated(graph: Graph, node: Node) -> list[Node]:
    table, indices = node.inputs
    count, (rows, *rest) = graph.types[indices].elements, graph.types[table].shape
    times = exact_quotient(count, rows)
    if not isinstance(times, int) or not isinstance(rows, Dim) or not _counts(graph, indices, times):
        return [node]
    name, type_ = node.result.name, graph.types[table]
    once = Value(f"{name}.once", type_.with_shape((rows, 1, *rest)))
    each = Value(f"{name}.each", type_.with_shape((rows, times, *rest)))
    return [
        Node("reshape", (table,), (once,), {"shape": once.type.shape}, node.origin),
        Node("expand", (once.name,), (each,), {"shape": each.type.shape}, node.origin),
        Node("reshape", (each.name,), node.results, {"shape": node.result.type.shape}, node.origin),
    ]


def _counts(graph: Graph, name: str, times: int) -> bool:
    """Whether ``name`` is 0, ..., 0, 1, ..., 1, and so on, each number ``times`` times, tried on two sizes."""
    needed: set[int] = set()
    pending = [name]
    while pending:
        index = graph.producer.get(pending.pop())
        if index is None:
            return False
        if index not in needed:
            needed.add(index)
            pending += graph.nodes[index].inputs
    symbols = sorted(
        {s for index in needed for v in graph.nodes[index].results for d in v.type.shape for s in symbols_of(d)}
    )
    sizes = Value("?sizes", TensorType(graph.types[name].dtype, tuple(Dim.symbol(symbol) for symbol in symbols)))
    nodes = tuple(graph.nodes[index] for index in sorted(needed))
    for size in (2, 3):
        from_counting = interpret(
            Graph("count", (sizes,), (), nodes, (name,)), {"?sizes": _Sizes([size] * len(symbols))}
        )
        items = from_counting[name].reshape(-1).tolist()
        if items != [index // times for index in range(len(items))]:
            return False
    return True


class _Sizes:
    """Something of a shape, for the interpreter to read sizes off."""

    def __init__(self, shape: list[int]) -> None:
        self.shape = tuple(shape)


def _with_slots(graph: Graph, node: Node) -> list[Node]:
    """A product of [tokens * k] rows with one expert each as one of [tokens] rows with k experts."""
    x, weight, indices, *bias = node.inputs
    chosen = _unflattened(graph, indices)
    if chosen is None or graph.types[x].shape[1] != 1 or graph.types[indices].shape[1] != 1:
        return [node]
    shape: tuple[Size, ...] = graph.types[chosen].shape
    name, type_ = node.result.name, node.result.type
    rows = Value(f"{name}.rows", graph.types[x].with_shape((*shape, graph.types[x].shape[-1])))
    products = Value(f"{name}.products", type_.with_shape((*shape, type_.shape[-1])))
    return [
        Node("reshape", (x,), (rows,), {"shape": rows.type.shape}, node.origin),
        replace(node, inputs=(rows.name, weight, chosen, *bias), results=(products,)),
        Node("reshape", (products.name,), node.results, {"shape": type_.shape}, node.origin),
    ]


def _unflattened(graph: Graph, name: str) -> str | None:
    """The choice [tokens, k] that ``name`` is a flat view of."""
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        shape = node.result.type.shape
        if len(shape) == 2 and shape[1] != 1:
            return name
        is_same = node.op == "embedding" and _counts(graph, node.inputs[1], 1)
        if node.op not in ("reshape", "expand") and not is_same:
            return name if len(shape) == 2 and shape[1] == 1 else None
        name = node.inputs[0]
    return None


def _with_biases(graph: Graph) -> Graph:
    """Sums of a product by expert and its experts' rows of a bias as the product's own bias."""
    biases: dict[str, tuple[str, str]] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "add" or len(node.inputs) != 2:
            continue
        for product, added in (node.inputs, node.inputs[::-1]):
            group, bias = _above(graph, product), _above(graph, added)
            if group is None or bias is None or group.op != "grouped_linear" or bias.op != "embedding":
                continue
            if len(group.inputs) == 3 and bias.inputs[0] in graph.parameter and _same_choice(graph, group, bias):
                biases[group.result.name] = (bias.inputs[0], product)
                renamed[node.result.name] = product
    nodes = []
    for node in graph.nodes:
        if node.result.name in renamed:
            continue
        extra = (biases[node.result.name][0],) if node.result.name in biases else ()
        nodes.append(replace(node, inputs=(*(renamed.get(name, name) for name in node.inputs), *extra)))
    return replace(graph, nodes=tuple(nodes), outputs=tuple(renamed.get(name, name) for name in graph.outputs))


def _above(graph: Graph, name: str) -> Node | None:
    """The node that ``name`` is a reshaped result of, which nobody else reads."""
    while name in graph.producer and len(graph.consumers.get(name, ())) == 1:
        node = graph.nodes[graph.producer[name]]
        if node.op != "reshape":
            return node
        name = node.inputs[0]
    return None


def _same_choice(graph: Graph, group: Node, bias: Node) -> bool:
    chosen = _unflattened(graph, bias.inputs[1])
    return (
        chosen is not None
        and chosen == group.inputs[2]
        and graph.types[bias.inputs[0]].shape
        == (
            graph.types[group.inputs[1]].shape[0],
            group.result.type.shape[-1],
        )
    )
