"""Values that are known while a model is lowered: shapes, axes and scalars, and what is computed from them.

Exporters compute shapes with ONNX nodes (Shape, Gather, Concat and so on). Those nodes never reach the graph: they
are evaluated here, on arrays whose items are numbers or symbolic sizes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ir.types import Dim, DType, Size, exact_quotient

Number = bool | int | float
Items: TypeAlias = npt.NDArray[np.object_]
Attributes = dict[str, Any]


_TO_THE_END = 2**31 - 1
"""What exporters write for the end of a slice that has none: this, or the largest 64-bit integer."""


_LARGEST_POWER = 64

LARGEST_ELEMENTS = 4096
"""Elements of a tensor that is held item by item; shapes have ten."""


class UnfoldableError(ValueError):
    """The value of a node cannot be told while the model is lowered."""


@dataclass(frozen=True, slots=True)
class Known:
    """A small tensor whose items are known; sizes among them may be symbolic."""

    dtype: DType
    items: Items

    @staticmethod
    def of(dtype: DType, values: object) -> Known:
        """A tensor of ``values``: nested sequences, an array, or one item."""
        items = np.asarray(values, dtype=object)
        return Known(dtype, _rounded(dtype, items))

    @staticmethod
    def from_array(dtype: DType, array: npt.NDArray[Any]) -> Known:
        """The contents of a numpy array."""
        plain = array.astype(np.float64) if dtype.is_float else array
        return Known(dtype, np.asarray(plain.tolist(), dtype=object).reshape(array.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.items.shape

    @property
    def is_symbolic(self) -> bool:
        """Whether an item is a size that depends on the model's inputs."""
        return any(isinstance(item, Dim) for item in self.items.reshape(-1))

    def list(self) -> list[Any]:
        """All items, the last axis first."""
        return list(self.items.reshape(-1))

    def sizes(self) -> tuple[Size, ...]:
        """All items as sizes.

        Raises:
            UnfoldableError: an item is no size.
        """
        if any(not isinstance(item, int | Dim) for item in self.list()):
            raise UnfoldableError("a shape must be made of integers")
        return tuple(self.list())

    def ints(self) -> tuple[int, ...]:
        """All items as integers.

        Raises:
            UnfoldableError: an item is symbolic or no integer.
        """
        if any(not isinstance(item, int) for item in self.list()):
            raise UnfoldableError("an integer is symbolic, and must be known")
        return tuple(self.list())


def check_size(shape: Sequence[int]) -> None:
    """Refuse to hold a large tensor item by item.

    Raises:
        UnfoldableError: it is too large.
    """
    if math.prod(shape) > LARGEST_ELEMENTS:
        raise UnfoldableError(f"{math.prod(shape):,} elements are too many to be evaluated while lowering")


def shortest(value: float) -> float:
    """The number with the fewest digits that rounds to the same 32-bit float (1e-05, not 9.999999747378752e-06)."""
    return float(str(np.float32(value)))


_ROUNDERS: dict[DType, Callable[[float], float]] = {
    DType.F32: shortest,
    DType.F16: lambda value: float(np.float16(value)),
    DType.BF16: lambda value: float(np.asarray(value).astype(ml_dtypes.bfloat16)),
}


def _rounded(dtype: DType, items: Items) -> Items:
    """Numbers as their type holds them, so that folding rounds where the running model would."""
    if dtype not in _ROUNDERS or any(isinstance(item, Dim) for item in items.reshape(-1)):
        return items
    return _filled([_ROUNDERS[dtype](float(item)) for item in items.reshape(-1)], items.shape)


def normal_axis(axis: int, rank: int) -> int:
    """``axis`` counted from the front.

    Raises:
        UnfoldableError: it lies outside.
    """
    if not -rank <= axis < max(rank, 1):
        raise UnfoldableError(f"axis {axis} lies outside a tensor of {rank} dimensions")
    return axis + rank if axis < 0 else axis


def bounds(start: int, end: Size, step: int, size: Size) -> tuple[int, Size]:
    """First element and number of elements of an ONNX slice of an axis of ``size`` elements.

    A symbolic end is taken to lie within the axis: where a table is cut to the sequence's length, it does.

    Raises:
        UnfoldableError: the count depends on symbols in a way that is no polynomial.
    """
    if isinstance(size, int) and isinstance(end, int):
        chosen = range(size)[slice(start, end, step)]
        return chosen.start, len(chosen)
    if isinstance(size, int) and start < 0:
        start = max(0, start + size)
    last = _symbolic_end(end, size)
    count = None if start < 0 or step < 1 or last is None else exact_quotient(last - start, step)
    if count is None:
        raise UnfoldableError(f"the slice {start}:{end}:{step} of an axis of {size} elements depends on the symbols")
    return start, count


def _symbolic_end(end: Size, size: Size) -> Size | None:
    if isinstance(end, Dim):
        return end
    if end >= _TO_THE_END:
        return size
    if end < 0:
        return size + end
    # Every axis has at least one element, so the first one can be cut out whatever the size.
    return end if end <= 1 else None


def _elementwise(function: Callable[..., object]) -> Callable[[Sequence[Items], Attributes], Items]:
    def fold(operands: Sequence[Items], _attributes: Attributes) -> Items:
        if len(operands) == 1:
            return _filled([function(item) for item in operands[0].reshape(-1)], operands[0].shape)
        left, right = np.broadcast_arrays(*operands[:2])
        check_size(left.shape)
        return _filled([function(a, b) for a, b in zip(left.reshape(-1), right.reshape(-1), strict=True)], left.shape)

    return fold


def _filled(values: Sequence[object], shape: tuple[int, ...]) -> Items:
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result.reshape(shape)


def _numbers(function: Callable[..., object]) -> Callable[..., object]:
    """``function`` for numbers only; symbolic sizes have no order and no square root."""

    def checked(*items: object) -> object:
        if any(isinstance(item, Dim) for item in items):
            raise UnfoldableError("the result depends on the symbols")
        return function(*items)

    return checked


def _quotient(a: Size | float, b: Size | float) -> Size | float:
    if isinstance(a, float) or isinstance(b, float):
        return float(a) / float(b)  # type: ignore[arg-type]
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    quotient = exact_quotient(a, b)
    if quotient is None:
        raise UnfoldableError(f"{a} / {b} is no polynomial")
    return quotient


def _power(base: float, exponent: float) -> float:
    if isinstance(base, int) and abs(exponent) > _LARGEST_POWER:
        raise UnfoldableError(f"{base} ** {exponent} is not evaluated while lowering")
    return float(base**exponent) if isinstance(base, float) else int(base**exponent)


def _equal(a: Size | float, b: Size | float) -> bool:
    if a == b:
        return True
    for left, right in ((a, b), (b, a)):
        if isinstance(left, Dim) and not (isinstance(right, int) and right <= 0):
            raise UnfoldableError(f"whether {left} is {right} depends on the symbols")
    return False


def _gather(operands: Sequence[Items], attributes: Attributes) -> Items:
    data, indices = operands
    chosen = indices.astype(np.int64)
    return np.asarray(np.take(data, chosen, axis=attributes.get("axis", 0)), dtype=object)


def _concat(operands: Sequence[Items], attributes: Attributes) -> Items:
    return np.concatenate(operands, axis=attributes["axis"])


def _where(operands: Sequence[Items], _attributes: Attributes) -> Items:
    condition, left, right = np.broadcast_arrays(*operands)
    items = zip(condition.reshape(-1), left.reshape(-1), right.reshape(-1), strict=True)
    return _filled([a if chosen else b for chosen, a, b in items], condition.shape)


def _fold_many(function: Callable[..., object]) -> Callable[[Sequence[Items], Attributes], Items]:
    def fold(operands: Sequence[Items], attributes: Attributes) -> Items:
        result = operands[0]
        for operand in operands[1:]:
            result = _elementwise(_numbers(function))([result, operand], attributes)
        return result

    return fold


def _reduce(function: Callable[..., Items]) -> Callable[[Sequence[Items], Attributes], Items]:
    def fold(operands: Sequence[Items], attributes: Attributes) -> Items:
        given = operands[1].reshape(-1) if len(operands) > 1 else attributes.get("axes", ())
        axes = tuple(int(axis) for axis in given) or tuple(range(operands[0].ndim))
        return np.asarray(function(operands[0], axis=axes, keepdims=bool(attributes.get("keepdims", 1))), dtype=object)

    return fold


Fold = Callable[[Sequence[Items], Attributes], Items]

FOLDS: dict[str, Fold] = {
    "Identity": lambda operands, _attributes: operands[0],
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _elementwise(_quotient),
    "Mod": _elementwise(_numbers(operator.mod)),
    "Neg": _elementwise(lambda item: item * -1),
    "Abs": _elementwise(_numbers(abs)),
    "Sqrt": _elementwise(_numbers(math.sqrt)),
    "Exp": _elementwise(_numbers(math.exp)),
    "Log": _elementwise(_numbers(math.log)),
    "Reciprocal": _elementwise(_numbers(lambda item: 1 / item)),
    "Pow": _elementwise(_numbers(_power)),
    "Min": _fold_many(min),
    "Max": _fold_many(max),
    "Equal": _elementwise(_equal),
    "Less": _elementwise(_numbers(operator.lt)),
    "LessOrEqual": _elementwise(_numbers(operator.le)),
    "Greater": _elementwise(_numbers(operator.gt)),
    "GreaterOrEqual": _elementwise(_numbers(operator.ge)),
    "And": _elementwise(lambda a, b: bool(a and b)),
    "Or": _elementwise(lambda a, b: bool(a or b)),
    "Not": _elementwise(operator.not_),
    "Where": _where,
    "Gather": _gather,
    "Concat": _concat,
    "ReduceSum": _reduce(np.sum),
    "ReduceProd": _reduce(np.prod),
}
"""What computes on contents. Operators that only move or cast elements fold in :mod:`movement` itself."""

_COMPARISONS = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"})


def fold(op_type: str, operands: Sequence[Known], attributes: Attributes) -> Known:
    """The result of a node whose operands are all known.

    Raises:
        UnfoldableError: the operator or the symbols in its operands forbid it.
    """
    function = FOLDS.get(op_type)
    if function is None or attributes.get("fmod"):
        raise UnfoldableError(f"{op_type} is not evaluated while lowering")
    dtype = operands[1 if op_type == "Where" else 0].dtype
    try:
        items = function([operand.items for operand in operands], attributes)
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise UnfoldableError(str(error)) from None
    check_size(items.shape)
    return Known.of(DType.BOOL if op_type in _COMPARISONS else dtype, items)
