"""Building a graph node by node, with types inferred as it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.encoding import Encoding
from ir.graph import Attribute, Graph, Node, Parameter, Value
from ir.ops import OPS, OpTypeError
from ir.types import TensorType


class GraphBuilder:
    """Collects inputs, parameters and nodes; every frontend writes its graph through it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[Value] = []
        self._parameters: list[Parameter] = []
        self._nodes: list[Node] = []
        self._types: dict[str, TensorType] = {}
        self._producers: dict[str, int] = {}

    def input(self, name: str, type_: TensorType) -> str:
        """Add an input of the graph."""
        self._define(name, type_, name)
        self._inputs.append(Value(name, type_))
        return name

    def parameter(self, name: str, type_: TensorType, encoding: Encoding) -> str:
        """Add a weight."""
        self._define(name, type_, name)
        self._parameters.append(Parameter(name, type_, encoding))
        return name

    def type(self, name: str) -> TensorType:
        """The type of a name that is already defined."""
        return self._types[name]

    def maker(self, name: str) -> Node | None:
        """The node that yields ``name``, unless it is an input or a weight."""
        return next((node for node in reversed(self._nodes) if any(v.name == name for v in node.results)), None)

    def add(
        self, op: str, inputs: Sequence[str], origin: str, names: Sequence[str] = (), **attributes: Attribute
    ) -> str:
        """Add a node and return the name of its first result; ``names`` are its results' names, else made up.

        Raises:
            UnsupportedModelError: W0303, the operands do not fit the operator.
        """
        try:
            types = OPS[op].infer([self._types[name] for name in inputs], attributes)
        except (OpTypeError, KeyError, TypeError, ValueError) as error:
            raise UnsupportedModelError(Diagnostic("W0303", f"{op} cannot be lowered: {error}", origin)) from None
        made_up = [f"v{len(self._nodes)}" if i == 0 else f"v{len(self._nodes)}.{i}" for i in range(len(types))]
        results = tuple(Value(name, type_) for name, type_ in zip(list(names) or made_up, types, strict=True))
        for value in results:
            self._define(value.name, value.type, origin)
            self._producers[value.name] = len(self._nodes)
        self._nodes.append(Node(op, tuple(inputs), results, attributes, origin))
        return results[0].name

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes so far."""
        return self._nodes

    def producer(self, name: str) -> int | None:
        """The index of the node that computes ``name``; ``None`` for an input or a parameter."""
        return self._producers.get(name)

    def rename(self, names: Mapping[str, str], since: int) -> None:
        """Give results of the nodes from index ``since`` on other names; nothing outside of these nodes reads them."""
        for old, new in names.items():
            self._define(new, self._types.pop(old), new)
            self._producers[new] = self._producers.pop(old)
        for index in range(since, len(self._nodes)):
            node = self._nodes[index]
            results = tuple(Value(names.get(value.name, value.name), value.type) for value in node.results)
            inputs = tuple(names.get(name, name) for name in node.inputs)
            self._nodes[index] = replace(node, inputs=inputs, results=results)

    def finish(self, outputs: Sequence[str]) -> Graph:
        """The graph built so far, with these outputs."""
        return Graph(self._name, tuple(self._inputs), tuple(self._parameters), tuple(self._nodes), tuple(outputs))

    def _define(self, name: str, type_: TensorType, origin: str) -> None:
        if name in self._types:
            raise UnsupportedModelError(Diagnostic("W0304", f"the name {name} is defined twice", origin))
        self._types[name] = type_
