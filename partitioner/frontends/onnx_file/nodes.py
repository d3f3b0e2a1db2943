"""What a file's nodes and values are while they are lowered."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeAlias

import onnx.helper

from ir.types import DType, TensorType
from partitioner.frontends.onnx_file.constants import Known, UnfoldableError, shortest
from partitioner.frontends.onnx_file.reading import DTYPES, Weight, type_name


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of values."""

    items: tuple[Operand, ...]


class Absent(Enum):
    """An optional value that is not there."""

    ABSENT = auto()


ABSENT = Absent.ABSENT

Operand: TypeAlias = str | Known | Weight | Listed | Absent
"""What an ONNX value became: a value of the graph, contents that are known, a weight that nobody has used yet, a list
of such, or nothing.
"""
Results = Operand | tuple[Operand, ...]


@dataclass(slots=True)
class Scope:
    """Names inside of a function or of a node's own graph, by what they are called in the whole model.

    ``opset`` is the version of ONNX's own operators there, ``prefix`` makes names unique.
    """

    opset: int
    prefix: str = ""
    outer: Scope | None = None
    names: dict[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        """The name in the whole model."""
        if name in self.names:
            return self.names[name]
        return self.outer.resolve(name) if self.outer is not None else name


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """A node of the file with its attributes decoded and its names resolved in its ``scope``."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    scope: Scope


def items_of(operand: Operand) -> tuple[Operand, ...]:
    """The single values that an operand is made of."""
    if isinstance(operand, Listed):
        return tuple(single for item in operand.items for single in items_of(item))
    return () if operand is ABSENT else (operand,)


def decode(node: Any, scope: Scope) -> OnnxNode:
    """A node of the file in plain Python."""
    attributes = {attribute.name: _plain(onnx.helper.get_attribute_value(attribute)) for attribute in node.attribute}
    domain = "" if node.domain == "ai.onnx" else node.domain
    inputs, outputs = (tuple(map(scope.resolve, names)) for names in (node.input, node.output))
    return OnnxNode(node.op_type, domain, f"{scope.prefix}{node.name}", inputs, outputs, attributes, scope)


def spelled(name: str) -> str:
    """``name`` in the characters that the graph's text accepts."""
    return re.sub(r"[^A-Za-z0-9_.\-/:]", "_", name) or "value"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return shortest(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def weight_dtype(weight: Weight) -> DType:
    """The element type of a weight.

    Raises:
        UnfoldableError: the graph has no such type.
    """
    dtype = DTYPES.get(weight.tensor.data_type)
    if dtype is None:
        raise UnfoldableError(f"the weight {weight.name} has the element type {type_name(weight.tensor.data_type)}")
    return dtype


def small_contents(weight: Weight) -> Known | None:
    """The contents of small integer weights and of single numbers."""
    dtype = DTYPES.get(weight.tensor.data_type)
    elements = TensorType(DType.U8, weight.shape).elements
    # A single float in another file may be trained, and is not worth opening that file while planning.
    most = 1024 if dtype is not None and not dtype.is_float else 0 if weight.is_external else 1
    if dtype is None or not isinstance(elements, int) or elements > most:
        return None
    return Known.from_array(dtype, weight.array())
