"""What an operator is: one definition that says which types it yields, what it means and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType
from typing import Any

from ir.graph import Attributes
from ir.types import DType, Size, TensorType

Types = Sequence[TensorType]
Tensors = Sequence[Any]
"""Torch tensors. Typed loosely so that this package can be imported without torch."""

Infer = Callable[[Types, Attributes], tuple[TensorType, ...]]
Reference = Callable[[Any, Tensors, Any], Any]
Work = Callable[[Types, Types, Attributes], Size]
Axes = tuple[tuple[int | None, ...], ...]
"""For each operand, for each of its axes: the result's axis that moves along with it, or ``None`` where elements along
that axis meet in one element of the result.
"""
Follow = Callable[[Types, Types, Attributes], Axes]


class OpTypeError(ValueError):
    """The operands or attributes do not fit the operator."""


class Kind(Enum):
    """How an operator treats data, as far as analyses need to know."""

    COMPUTE = auto()
    VIEW = auto()
    """Names the same elements in another order or shape; takes no memory of its own."""
    MATRIX = auto()
    """Multiplies by a stored weight, token by token; tiles split it and reduce along the mesh."""
    STATE = auto()
    """Lets tokens of one user meet; the only kind that owns a cache."""


@dataclass(frozen=True, slots=True)
class OpDef:
    """An operator.

    Attributes:
        name: the operator's name in the graph and in its text.
        infer: result types from operand types and attributes; raises :class:`OpTypeError`.
        reference: ``reference(torch, tensors, attributes)``, the meaning in torch; sizes in the attributes are bound.
        operands: least and greatest number of operands (``None``: no upper bound).
        work: multiply-adds as a polynomial in the graph's symbols and ``context``; none for data movement.
        kind: see :class:`Kind`.
        follow: how the results' axes follow the operands', see :data:`Axes`; the same for every result. Unless an
            operator says otherwise, all elements of its operands meet in each element of its results.
    """

    name: str
    infer: Infer
    reference: Reference
    operands: tuple[int, int | None]
    work: Work = lambda _operands, _results, _attributes: 0
    kind: Kind = Kind.COMPUTE
    follow: Follow = lambda operands, _results, _attributes: tuple((None,) * len(t.shape) for t in operands)


def follow_broadcast(operands: Types, results: Types, _attributes: Attributes) -> Axes:
    """Axes of an operator that treats each element alone: aligned at the last, as numpy broadcasts."""
    rank = len(results[0].shape)
    return tuple(tuple(range(rank - len(operand.shape), rank)) for operand in operands)


def follow_except(*names: str) -> Follow:
    """Axes of an operator whose operands and results agree but for those that the attributes ``names`` give, along
    which elements meet; without names the last.
    """

    def follow(operands: Types, _results: Types, attributes: Attributes) -> Axes:
        rank = len(operands[0].shape)
        meet = {attributes[name] % rank for name in names} if names else {rank - 1}
        return tuple(
            tuple(None if axis in meet else axis for axis in range(len(operand.shape))) for operand in operands
        )

    return follow


def require(condition: bool, message: str) -> None:
    """Raise :class:`OpTypeError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise OpTypeError(message)


def attribute(attributes: Attributes, name: str, *kinds: type) -> Any:
    """The attribute ``name``, which must be of one of ``kinds`` (a boolean is no number).

    Raises:
        OpTypeError: it is missing or of another kind.
    """
    value = attributes.get(name)
    require(
        type(value) in kinds, f"the attribute {name} must be {' or '.join(k.__name__ for k in kinds)}, not {value!r}"
    )
    return value


def torch_dtype(torch: ModuleType, dtype: DType) -> Any:
    """The torch element type of ``dtype``."""
    return getattr(torch, _TORCH_NAMES[dtype])


_TORCH_NAMES = {
    DType.F64: "float64",
    DType.F32: "float32",
    DType.F16: "float16",
    DType.BF16: "bfloat16",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.BOOL: "bool",
}
