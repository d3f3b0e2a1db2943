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
    """The torch element type that holds ``dtype``."""
    return getattr(torch, _TORCH_NAMES[dtype])


def evaluate(
    definition: OpDef, torch: ModuleType, tensors: Tensors, attributes: Any, results: Types
) -> tuple[Any, ...]:
    """The results of an operator, of the element types in ``results``.

    Torch has few operators on wide unsigned integers and narrow floats. They are computed in a wider type that holds
    all their values, and then wrapped or rounded; 64-bit unsigned integers in 64-bit signed ones, so that their order
    and quotients hold below 2**63.
    """
    wide = {getattr(torch, name): getattr(torch, wider) for name, wider in _WIDER.items()}
    is_narrow = any(tensor.dtype in wide for tensor in tensors) and definition.name not in _ON_ANY_TYPE
    if is_narrow:
        tensors = [tensor.to(wide.get(tensor.dtype, tensor.dtype)) for tensor in tensors]
    found = definition.reference(torch, tensors, attributes)
    found = found if isinstance(found, tuple) else (found,)
    if not is_narrow:
        return found
    return tuple(value.to(torch_dtype(torch, type_.dtype)) for value, type_ in zip(found, results, strict=True))


_WIDER = {
    "uint16": "int32",
    "uint32": "int64",
    "uint64": "int64",
    "float8_e4m3fn": "float32",
    "float8_e4m3fnuz": "float32",
    "float8_e5m2": "float32",
    "float8_e5m2fnuz": "float32",
    "float8_e8m0fnu": "float32",
}
_ON_ANY_TYPE = frozenset({"cast", "bitcast", "reshape", "transpose", "expand", "slice"})
"""Operators that read their operand in its own type."""

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
    DType.U64: "uint64",
    DType.U32: "uint32",
    DType.U16: "uint16",
    DType.I4: "int8",
    DType.U4: "uint8",
    DType.I2: "int8",
    DType.U2: "uint8",
    DType.F8E4M3: "float8_e4m3fn",
    DType.F8E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8E5M2: "float8_e5m2",
    DType.F8E5M2FNUZ: "float8_e5m2fnuz",
    DType.F8E8M0: "float8_e8m0fnu",
    DType.F4E2M1: "float8_e4m3fn",
}
"""Torch packs no narrow types that it computes with: they are held in the narrowest type that has all their values."""
