"""Experts as exports compute them: tokens sorted by their expert, then one product for each expert's share of them.

Where an expert's share begins is data, so such a file has sizes that depend on the tokens. The products of all experts
(torch's ``grouped_mm`` as its ONNX exporter writes it: Range, Gather and MatMul for each expert, joined) are one
product ``grouped_linear`` of every row with its own expert's weights, whatever the order of the rows. The order stays
open, as an input of the graph that stands for any permutation, until :mod:`partitioner.passes.unsort` has proven that
it is undone at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx.helper

from ir.types import DType, TensorType, product
from partitioner.frontends.onnx_file.constants import UnfoldableError
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand, Results
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, term

DOMAIN = "waferc"
"""Of nodes that stand in the place of what a file spelled out; no file may hold them."""
ORDER = "any_order"
"""Begins the name of an input that stands for a permutation."""
_COUNTED = frozenset({"Clip", "Cast", "Div", "Reshape", "Sub", "Floor", "Identity", "Mul"})


def regroup(graph: Any, weights: Mapping[str, Any]) -> None:
    """Put one node in the place of the experts' products, and one in the place of each sort by expert."""
    reader = _Reader({name: node for node in graph.node for name in node.output}, weights)
    found = {group.joined.output[0]: group for node in graph.node for group in reader.groups(node)}
    if not found:
        return
    sorts = {group.sort.output[0] for group in found.values()}
    nodes = []
    for node in graph.node:
        if node.output and node.output[0] in found:
            group = found[node.output[0]]
            inputs = [group.rows, group.weight, group.sort.output[0]]
            nodes.append(_in_place_of(node, "SortedExperts", inputs))
        elif node.output and node.output[0] in sorts:
            nodes.append(_in_place_of(node, "SortByExpert", [node.input[0]]))
        else:
            nodes.append(node)
    live = _live(nodes, [value.name for value in graph.output])
    kept = [type(node).FromString(node.SerializeToString()) for node in live]
    del graph.node[:]
    graph.node.extend(kept)


def _in_place_of(node: Any, op_type: str, inputs: Sequence[str]) -> Any:
    made = onnx.helper.make_node(op_type, inputs, node.output, node.name, domain=DOMAIN)
    made.metadata_props.extend(node.metadata_props)
    return made


def _live(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    read = set(outputs)
    kept = []
    for node in reversed(nodes):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    return kept[::-1]


@dataclass(frozen=True, slots=True)
class _Group:
    """The products of all experts: where they are joined, the sorted rows, the stack of weights, and the sort."""

    joined: Any
    rows: str
    weight: str
    sort: Any


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the pattern off a file's nodes."""

    producer: Mapping[str, Any]
    weights: Mapping[str, Any]

    def groups(self, node: Any) -> Iterator[_Group]:
        """The group that ends at ``node``, if it is one."""
        if node.op_type != "Concat" or len(node.input) < 1 or self._attribute(node, "axis") != 0:
            return
        shares = [self._share(name) for name in node.input]
        if any(share is None for share in shares):
            return
        rows, starts, ends, stacks = zip(*(share for share in shares if share is not None), strict=True)
        chained = list(starts[1:]) == list(ends[:-1]) and self._is_zero(starts[0])
        splits = [self._part(name) for name in ends]
        parts = [self._part(name) for name in stacks]
        in_order = [part and part[1] for part in splits] == list(range(len(shares)))
        stacked = [part and part[1] for part in parts] == list(range(len(shares)))
        if len(set(rows)) != 1 or not chained or not in_order or not stacked:
            return
        bounds, weight = splits[0], parts[0]
        assert bounds is not None and weight is not None
        same = all(part and part[0] == weight[0] for part in parts) and all(s and s[0] == bounds[0] for s in splits)
        sort = self._counted(bounds[0]) if same else None
        if sort is not None:
            yield _Group(node, rows[0], weight[0], sort)

    def _share(self, name: str) -> tuple[str, str, str, str] | None:
        """Rows, bounds and weights of one expert's product."""
        product_ = self._by(name, "MatMul")
        gather = self._by(product_.input[0], "Gather") if product_ is not None else None
        if product_ is None or gather is None or self._attribute(gather, "axis", 0) != 0:
            return None
        counting = self._by(gather.input[1], "Range")
        if counting is None:
            return None
        return gather.input[0], counting.input[0], counting.input[1], product_.input[1]

    def _part(self, name: str) -> tuple[str, int] | None:
        """What ``name`` is a part of along the first axis, and which: an output of Split, its axis squeezed."""
        squeeze = self._by(name, "Squeeze")
        split = self._by(squeeze.input[0], "Split") if squeeze is not None else None
        if squeeze is None or split is None or self._attribute(split, "axis", 0) != 0:
            return None
        return split.input[0], list(split.output).index(squeeze.input[0])

    def _counted(self, bounds: str) -> Any:
        """The sort whose sorted experts are counted to give the bounds of their shares."""
        count = self._by(self._above(bounds, frozenset({"Cast"})), "CumSum")
        histogram = self._by(self._above(count.input[0], frozenset({"Cast"})), "ScatterElements") if count else None
        if histogram is None or self._attribute(histogram, "reduction", b"none") != b"add":
            return None
        name = self._above(histogram.input[1], _COUNTED)
        sort = self._by(name, "TopK")
        is_rising = sort is not None and self._attribute(sort, "largest", 1) == 0 and name == sort.output[0]
        return sort if is_rising else None

    def _above(self, name: str, through: frozenset[str]) -> str:
        while name in self.producer and self.producer[name].op_type in through:
            name = self.producer[name].input[0]
        return name

    def _by(self, name: str, op_type: str) -> Any:
        node = self.producer.get(name)
        return node if node is not None and node.op_type == op_type and not node.domain else None

    def _is_zero(self, name: str) -> bool:
        weight = self.weights.get(name)
        return weight is not None and not weight.is_external and weight.shape == () and not weight.array().any()

    def _attribute(self, node: Any, name: str, default: Any = None) -> Any:
        return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


@operator("SortedExperts", domain=DOMAIN)
def _sorted_experts(site: Site) -> Operand:
    """Rows [n, in], weights [experts, in, out], each row's expert [n] -> [n, out]."""
    rows, weight, experts = (term(site, index) for index in range(3))
    count, inputs = rows.shape
    products = Term(
        site,
        site.step(
            "grouped_linear",
            [rows.reshape(count, 1, inputs).name, weight.name, experts.reshape(count, 1).name],
            transposed=True,
        ),
    )
    return products.reshape(count, products.shape[-1]).name


@operator("SortByExpert", domain=DOMAIN)
def _sort(site: Site) -> Results:
    """Experts [n] -> experts in an order that stays open [n], and that order [n]."""
    experts = term(site, 0)
    if len(experts.shape) != 1:
        raise UnfoldableError("experts are sorted along one axis")
    (count,) = experts.shape
    builder = site.lowering.builder
    order = Term(site, builder.input(site.lowering.unique(ORDER), TensorType(DType.I64, (count,))))
    return experts.reshape(count, 1).rows(order).reshape(product((count,))).name, order.name
