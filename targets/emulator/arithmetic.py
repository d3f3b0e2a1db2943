"""What the host computes with: element types, the order of sums, and the device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch

from ir.graph import Graph
from ir.ops import torch_dtype
from ir.types import DType


class Precision(StrEnum):
    """``float32``: all floating-point values and weights in 32 bit, to compare with an original in 32 bit.

    ``native``: what the machine does. Weights as stored, values in 16 bit, products summed in 32 bit. Values that the
    model itself keeps in 32 bit beside its 16-bit ones, such as a router's scores, stay so. A model that states 32 bit
    throughout has its values in bf16, but for what positions alone decide and the angles of sines and cosines: bf16
    tells no position beyond 256 from the next.
    """

    FLOAT32 = "float32"
    NATIVE = "native"


class Order(StrEnum):
    """``mesh``: sums are taken tile after tile, as the mesh takes them. ``host``: by the host's own routine at once.

    They differ by the rounding of 32-bit sums alone; a test holds them together.
    """

    MESH = "mesh"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the host computes. ``narrowed`` are the values and weights that the graph states in 32 bit and the machine has
    in 16.
    """

    precision: Precision = Precision.FLOAT32
    order: Order = Order.HOST
    device: str = "cpu"
    narrowed: frozenset[str] = frozenset()

    @staticmethod
    def of(
        graph: Graph, precision: Precision = Precision.FLOAT32, order: Order | None = None, device: str = "cpu"
    ) -> Arithmetic:
        """The arithmetic for ``graph``."""
        default = Order.MESH if precision is Precision.NATIVE else Order.HOST
        narrowed = _narrowed(graph) if precision is Precision.NATIVE else frozenset()
        return Arithmetic(precision, order or default, device, narrowed)

    def dtype(self, dtype: DType, name: str = "") -> torch.dtype:
        """The type in which the host has a value that the graph states as ``dtype``, under ``name``."""
        if name in self.narrowed:
            return torch.bfloat16
        if self.precision is Precision.FLOAT32 and dtype in (DType.BF16, DType.F16):
            return torch.float32
        return torch_dtype(torch, dtype)  # type: ignore[no-any-return]


def _narrowed(graph: Graph) -> frozenset[str]:
    """What a model that states 32 bit throughout has in 16."""
    if {parameter.type.dtype for parameter in graph.parameters} & {DType.BF16, DType.F16}:
        return frozenset()
    data = {parameter.name for parameter in graph.parameters}
    data |= {value.name for value in graph.inputs if value.type.dtype.is_float}
    angles: set[str] = set()
    for node in graph.nodes:
        if not data.isdisjoint(node.inputs):
            data.update(value.name for value in node.results)
    for node in reversed(graph.nodes):
        if node.op in ("cos", "sin") or any(value.name in angles for value in node.results):
            angles.update(node.inputs)
    return frozenset(name for name in data - angles if graph.types[name].dtype is DType.F32)
