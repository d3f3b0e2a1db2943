"""What the host computes with: element types, the order of sums, and the device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph, Node, Parameter
from ir.ops import OPS, Kind, torch_dtype
from ir.types import DType

_BF16_ROUNDING = 2.0**-8
"""The greatest relative error of a number that is rounded to bf16."""
_SPREAD = 8.0
"""Of thousands of outputs whose errors are spread like a normal distribution the worst is four times as far off as
their root mean square. Twice as much is left for layers that enlarge errors, as attention does whose softmax has one
sharp peak: transformers' own forward in bf16 of a random Llama of that kind is off by 0.15, where four gives 0.1.
"""
_EXACT = frozenset({"reshape", "transpose", "expand", "slice", "flip", "concat", "pad", "gather", "embedding", "topk"})
"""Operators that round nothing: they move elements, or choose some."""


def require_device(device: str) -> None:
    """Refuse a device that this computer does not have.

    Raises:
        UsageError: W0655, it is neither ``cpu`` nor a GPU that torch finds.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or device == "cpu:":
        message = f"a device is cpu or cuda, or cuda:1 for one of several, not {device!r}"
        raise UsageError(Diagnostic("W0655", message, "--device"))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= found:
        help_ = ("install a build of torch for CUDA, and a driver for the GPU", "--device cpu")
        message = f"torch {torch.__version__} finds {found} CUDA devices here"
        raise UsageError(Diagnostic("W0655", message, device, {"devices": found}, help_))


class Precision(StrEnum):
    """``float32``: all floating-point values and weights in 32 bit, to compare with an original in 32 bit. Casts of a
    model whose weights are of 16 bit round nothing then; those of any other model are meant, and round.

    ``native``: what the machine does. Weights as stored, values in 16 bit, products summed in 32 bit. Values that the
    model itself keeps in 32 bit beside its 16-bit ones, such as a router's scores, stay so. A model that states 32 bit
    throughout has its weights in bf16, and values where they leave the module that computes them, but for what
    positions alone decide and the angles of sines and cosines: bf16 tells no position beyond 256 from the next.
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
    """How the host computes. ``narrowed`` are the values and weights that the graph states in 32 bit and the machine
    has in 16; ``recast``: casts between floats are to the type that the host has the result in, and no other.
    """

    precision: Precision = Precision.FLOAT32
    order: Order = Order.HOST
    device: str = "cpu"
    narrowed: frozenset[str] = frozenset()
    recast: bool = False

    @staticmethod
    def of(
        graph: Graph, precision: Precision = Precision.FLOAT32, order: Order | None = None, device: str = "cpu"
    ) -> Arithmetic:
        """The arithmetic for ``graph``."""
        precision, order = Precision(precision), Order(order) if order else None
        default = Order.MESH if precision is Precision.NATIVE else Order.HOST
        is_narrow = not {parameter.type.dtype for parameter in graph.parameters}.isdisjoint((DType.BF16, DType.F16))
        if precision is Precision.NATIVE:
            narrowed = frozenset() if is_narrow else _narrowed(graph)
            return Arithmetic(precision, order or default, device, narrowed, bool(narrowed))
        return Arithmetic(precision, order or default, device, recast=is_narrow)

    def dtype(self, dtype: DType, name: str = "") -> torch.dtype:
        """The type in which the host has a value that the graph states as ``dtype``, under ``name``."""
        if name in self.narrowed:
            return torch.bfloat16
        if self.precision is Precision.FLOAT32 and dtype in (DType.BF16, DType.F16):
            return torch.float32
        return torch_dtype(torch, dtype)  # type: ignore[no-any-return]


def _narrowed(graph: Graph) -> frozenset[str]:
    """What a model that states 32 bit throughout has in 16: weights, and values where they meet one, are attended to or
    leave the module that computes them. Inside of a module, as in a norm, values stay in 32 bit, as they do in models
    that state 16 bit, whose code widens them there.
    """
    data = {parameter.name for parameter in graph.parameters}
    data |= {value.name for value in graph.inputs if value.type.dtype.is_float}
    angles: set[str] = set()
    for node in graph.nodes:
        if not data.isdisjoint(node.inputs):
            data.update(value.name for value in node.results)
    for node in reversed(graph.nodes):
        if node.op in ("cos", "sin") or any(value.name in angles for value in node.results):
            angles.update(node.inputs)
    kept = {value.name for node in graph.nodes for value in node.results if not _leaves(graph, node, value.name)}
    return frozenset(name for name in data - angles - kept if graph.types[name].dtype is DType.F32)


def _leaves(graph: Graph, node: Node, name: str) -> bool:
    """Whether a result of ``node`` is one of a product, meets a weight, or is read by another module."""
    readers = [graph.nodes[index] for index in graph.consumers.get(name, ())]
    together = [node, *readers]
    return not readers or any(OPS[n.op].kind in (Kind.MATRIX, Kind.STATE) or n.origin != node.origin for n in together)


def native_tolerance(graph: Graph, output: str) -> float:
    """How far a native run may be from the original in 32 bit: the greatest error of ``output``'s elements, as a share
    of the standard deviation of all that the original has there.

    Each rounding on the longest way from inputs to the output adds an error of its own; errors of ``n`` that do not
    know of each other add up to ``sqrt(n)`` of them. A token for which two experts have scores that are closer than
    such errors may meet the other one; of ``k`` experts that share its work, one's part is then another.
    """
    chosen = [graph.types[node.inputs[2]].shape[1] for node in graph.nodes if node.op == "grouped_linear"]
    other_expert = max((1 / k for k in chosen if isinstance(k, int)), default=0.0)
    return _SPREAD * _BF16_ROUNDING * sqrt(max(1, roundings(graph)[output])) + other_expert


def roundings(graph: Graph) -> dict[str, int]:
    """For each value, how many roundings to 16 bit follow each other at most on a way from inputs and weights to it."""
    arithmetic = Arithmetic.of(graph, Precision.NATIVE)

    def is_narrow(name: str) -> bool:
        return arithmetic.dtype(graph.types[name].dtype, name) in (torch.bfloat16, torch.float16)

    found = {parameter.name: int(is_narrow(parameter.name) and _rounds(parameter)) for parameter in graph.parameters}
    for node in graph.nodes:
        before = max((found.get(name, 0) for name in node.inputs), default=0)
        for value in node.results:
            found[value.name] = before + int(node.op not in _EXACT and is_narrow(value.name))
    return found


def _rounds(parameter: Parameter) -> bool:
    """Whether a weight is rounded when it is unpacked to 16 bit: its values are not exact there."""
    return parameter.encoding.name.startswith(("f32", "f64", "fp8"))
