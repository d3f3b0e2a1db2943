"""The graph: typed, in static single assignment form, in topological order, and functional.

A graph describes one step of the model for symbolic ``users`` and ``tokens``. Parameters are named by their module
path; every node remembers the module path or ONNX node that it came from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ir.encoding import Encoding
from ir.types import DType, Size, TensorType, for_one_token

Attribute = bool | int | float | str | DType | tuple[Size, ...] | tuple[float, ...]
Attributes = Mapping[str, Any]
"""Attributes by name, each an :data:`Attribute`; operators check what they read."""


@dataclass(frozen=True, slots=True)
class Value:
    """A name that is assigned once, and its type."""

    name: str
    type: TensorType


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight of the model: ``type`` is what operators see, ``encoding`` how its bytes are stored."""

    name: str
    type: TensorType
    encoding: Encoding

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; parameters have no symbolic sizes."""
        return tuple(int(size) for size in self.type.shape)  # type: ignore[arg-type]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return int(self.type.elements)  # type: ignore[arg-type]

    @property
    def stored_bytes(self) -> int:
        """Bytes as stored, scales included."""
        return self.encoding.bytes(self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: ``op`` names its definition in :mod:`ir.ops`."""

    op: str
    inputs: tuple[str, ...]
    results: tuple[Value, ...]
    attributes: Attributes
    origin: str

    @property
    def result(self) -> Value:
        """The first (usually the only) result."""
        return self.results[0]


@dataclass(frozen=True)
class Graph:
    """Inputs and parameters, the nodes that compute from them, and which values are the outputs."""

    name: str
    inputs: tuple[Value, ...]
    parameters: tuple[Parameter, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def types(self) -> dict[str, TensorType]:
        """The type of every name: inputs, parameters and results."""
        return {value.name: value.type for value in self.values()}

    @cached_property
    def parameter(self) -> dict[str, Parameter]:
        """Parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def producer(self) -> dict[str, int]:
        """Index of the node that assigns each computed value."""
        return {value.name: index for index, node in enumerate(self.nodes) for value in node.results}

    @cached_property
    def consumers(self) -> dict[str, tuple[int, ...]]:
        """Indices of the nodes that read each name, in order, each once."""
        readers: defaultdict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.inputs):
                readers[name].append(index)
        return {name: tuple(indices) for name, indices in readers.items()}

    @cached_property
    def token_bytes(self) -> dict[str, int]:
        """Bytes of every name's value for one token of one user; types that occur often are measured once."""
        known: dict[TensorType, int] = {}
        for type_ in self.types.values():
            if type_ not in known:
                known[type_] = for_one_token(type_.bytes)
        return {name: known[type_] for name, type_ in self.types.items()}

    def values(self) -> Iterator[Value]:
        """Every name with its type, in order of definition."""
        yield from self.inputs
        yield from (Value(parameter.name, parameter.type) for parameter in self.parameters)
        for node in self.nodes:
            yield from node.results
