"""Element types, symbolic sizes and tensor types.

A size is an ``int`` or a :class:`Dim`, a polynomial with integer coefficients over named symbols such as ``users``,
``tokens`` and ``context``. Polynomials are enough for token-wise models, where every symbolic size is a product of
the batch, the sequence and constants, and they have a canonical form, so equality is structural.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

Monomial = tuple[str, ...]
_MOST_TERMS = 64
"""Of a size in a text: products of longer ones would take for ever."""


class DType(StrEnum):
    """Element types of values. ``bits`` is the width in memory.

    The 8-bit floats are those of torch and of ONNX (OCP FP8, and the variants without negative zero); ``f8e8m0`` is
    the power of two that scales an MX block.
    """

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"
    U64 = "u64"
    U32 = "u32"
    U16 = "u16"
    I4 = "i4"
    U4 = "u4"
    I2 = "i2"
    U2 = "u2"
    F8E4M3 = "f8e4m3"
    F8E4M3FNUZ = "f8e4m3fnuz"
    F8E5M2 = "f8e5m2"
    F8E5M2FNUZ = "f8e5m2fnuz"
    F8E8M0 = "f8e8m0"
    F4E2M1 = "f4e2m1"

    @property
    def bits(self) -> int:
        """Bits of one element in memory (a boolean takes a byte, as in torch)."""
        return _BITS[self]

    @property
    def held_bits(self) -> int:
        """Bits of one element of a value that is computed with: narrow elements take a byte each."""
        return max(8, _BITS[self])

    @property
    def is_float(self) -> bool:
        """Whether this is a floating-point type."""
        return self in _FLOATS

    @property
    def integer_range(self) -> tuple[int, int]:
        """Least and greatest value of an integer type."""
        if self in _UNSIGNED:
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


_BITS = {
    DType.F64: 64,
    DType.F32: 32,
    DType.F16: 16,
    DType.BF16: 16,
    DType.I64: 64,
    DType.I32: 32,
    DType.I16: 16,
    DType.I8: 8,
    DType.U8: 8,
    DType.BOOL: 8,
    DType.U64: 64,
    DType.U32: 32,
    DType.U16: 16,
    DType.I4: 4,
    DType.U4: 4,
    DType.I2: 2,
    DType.U2: 2,
    DType.F8E4M3: 8,
    DType.F8E4M3FNUZ: 8,
    DType.F8E5M2: 8,
    DType.F8E5M2FNUZ: 8,
    DType.F8E8M0: 8,
    DType.F4E2M1: 4,
}
_NARROW_FLOATS = frozenset({DType.F8E4M3, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ, DType.F8E8M0, DType.F4E2M1})
_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16}) | _NARROW_FLOATS
_UNSIGNED = frozenset({DType.U8, DType.U16, DType.U32, DType.U64, DType.U4, DType.U2})
_WIDTH_ORDER = (DType.BOOL, DType.U8, DType.I8, DType.I16, DType.I32, DType.I64)


@dataclass(frozen=True, slots=True)
class Dim:
    """A polynomial over symbols: ``terms`` maps sorted monomials to non-zero coefficients, in canonical order."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def symbol(name: str) -> Dim:
        """The polynomial that is the one symbol ``name``."""
        return Dim((((name,), 1),))

    def __add__(self, other: Size) -> Size:
        return _from_terms(_merge((*self.terms, *_terms(other))))

    def __sub__(self, other: Size) -> Size:
        return _from_terms(_merge((*self.terms, *((m, -c) for m, c in _terms(other)))))

    def __rsub__(self, other: Size) -> Size:
        return _from_terms(_merge((*_terms(other), *((m, -c) for m, c in self.terms))))

    def __mul__(self, other: Size) -> Size:
        products = ((tuple(sorted(left + right)), a * b) for left, a in self.terms for right, b in _terms(other))
        return _from_terms(_merge(products))

    __radd__ = __add__
    __rmul__ = __mul__

    def coefficient(self, *symbols: str) -> int:
        """The coefficient of the monomial made of ``symbols``; 0 where it does not occur."""
        return dict(self.terms).get(tuple(sorted(symbols)), 0)

    def __str__(self) -> str:
        return " + ".join("*".join((str(c), *m) if c != 1 or not m else m) for m, c in self.terms)


Size = int | Dim
Shape = tuple[Size, ...]


def _terms(size: Size) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(size, Dim):
        return size.terms
    return (((), size),) if size else ()


def _merge(terms: Iterable[tuple[Monomial, int]]) -> dict[Monomial, int]:
    merged: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        merged[monomial] = merged.get(monomial, 0) + coefficient
    return merged


def _from_terms(terms: dict[Monomial, int]) -> Size:
    kept = {m: c for m, c in terms.items() if c}
    if not kept.keys() - {()}:
        return kept.get((), 0)
    return Dim(tuple(sorted(kept.items(), key=lambda term: (-len(term[0]), term[0]))))


def product(sizes: Iterable[Size]) -> Size:
    """The product of ``sizes``; 1 for none."""
    return math.prod(sizes, start=1)


def exact_quotient(size: Size, divisor: Size) -> Size | None:
    """``size / divisor`` where ``divisor`` is a constant or one monomial that divides every term, else ``None``."""
    divisor_terms = _terms(divisor)
    if len(divisor_terms) != 1:
        return 1 if size == divisor and divisor_terms else None
    (symbols, factor) = divisor_terms[0]
    quotient: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(size):
        rest = list(monomial)
        if coefficient % factor or any(rest.count(s) < symbols.count(s) for s in symbols):
            return None
        for name in symbols:
            rest.remove(name)
        quotient[tuple(rest)] = coefficient // factor
    return _from_terms(quotient)


def evaluate(size: Size, bindings: Mapping[str, int]) -> int:
    """The value of ``size`` once its symbols are bound.

    Raises:
        KeyError: a symbol is not bound.
    """
    return sum(c * math.prod(bindings[s] for s in m) for m, c in _terms(size))


def symbols_of(size: Size) -> frozenset[str]:
    """The symbols that ``size`` depends on."""
    return frozenset(name for monomial, _ in _terms(size) for name in monomial)


def parse_size(text: str) -> Size:
    """The inverse of ``str(size)``.

    Raises:
        ValueError: ``text`` is not a sum of products of integers and symbols.
    """
    terms = text.split("+")
    if len(terms) > _MOST_TERMS:
        raise ValueError(f"a size of {len(terms)} terms")
    total: Size = 0
    for term in terms:
        factors = [factor.strip() for factor in term.split("*")]
        total = total + product(_parse_factor(factor) for factor in factors)
    return total


def _parse_factor(factor: str) -> Size:
    if factor.lstrip("-").isdigit():
        return int(factor)
    if factor.isidentifier():
        return Dim.symbol(factor)
    raise ValueError(f"not a size: {factor!r}")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of a tensor."""

    dtype: DType
    shape: Shape

    @property
    def elements(self) -> Size:
        """Number of elements."""
        return product(self.shape)

    @property
    def bytes(self) -> Size:
        """Bytes when stored densely."""
        return self.elements * (self.dtype.held_bits // 8)

    def with_shape(self, shape: Shape) -> Self:
        """The same element type in another shape."""
        return type(self)(self.dtype, shape)

    def with_dtype(self, dtype: DType) -> Self:
        """The same shape with another element type."""
        return type(self)(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def for_one_token(size: Size, context: int = 0) -> int:
    """The value of ``size`` for one token of one user: every symbol is 1, but ``context`` is as given."""
    return evaluate(size, {name: context if name == "context" else 1 for name in symbols_of(size)})


def one_token_shape(shape: Shape) -> tuple[int, ...]:
    """``shape`` for one token of one user."""
    return tuple(for_one_token(size) for size in shape)


def broadcast_shapes(shapes: Iterable[Shape]) -> Shape | None:
    """The common shape under numpy's broadcasting rules, or ``None`` where sizes clash."""
    result: list[Size] = []
    for shape in shapes:
        longer = max(len(shape), len(result))
        left = [1] * (longer - len(result)) + result
        right = [1] * (longer - len(shape)) + list(shape)
        result = []
        for a, b in zip(left, right, strict=True):
            if a != b and 1 not in (a, b):
                return None
            result.append(b if a == 1 else a)
    return tuple(result)


def promote(types: Iterable[TensorType]) -> DType:
    """The element type of an operation on ``types``, by torch's rule: a tensor without dimensions decides only
    where it is of a higher category (boolean, integer, float) than all tensors that have dimensions.
    """
    types = tuple(types)
    ranked = [_promote_all(t.dtype for t in types if bool(t.shape) is has_dims) for has_dims in (True, False)]
    dimensioned, scalars = ranked
    if dimensioned is None or scalars is None:
        return dimensioned or scalars or DType.F32
    return scalars if _category(scalars) > _category(dimensioned) else dimensioned


def promote_scalar(dtype: DType, scalar: float) -> DType:
    """The element type of an operation on a tensor of ``dtype``, with or without dimensions, and a Python number:
    the number decides only where it is of a higher category.
    """
    own = {bool: DType.BOOL, int: DType.I64}.get(type(scalar), DType.F32)
    return own if _category(own) > _category(dtype) else dtype


def _category(dtype: DType) -> int:
    return 2 if dtype.is_float else int(dtype is not DType.BOOL)


def _promote_all(dtypes: Iterable[DType]) -> DType | None:
    result: DType | None = None
    for dtype in dtypes:
        result = dtype if result is None else _promote_pair(result, dtype)
    return result


def _promote_pair(a: DType, b: DType) -> DType:
    if a == b:
        return a
    if {a, b} & _NARROW_FLOATS or (not (a.is_float or b.is_float) and {a, b} - set(_WIDTH_ORDER)):
        raise ValueError(f"{a} and {b} have no common type; cast one of them")
    if a.is_float and b.is_float:
        return DType.F32 if {a, b} == {DType.F16, DType.BF16} else max(a, b, key=lambda d: d.bits)
    if a.is_float or b.is_float:
        return a if a.is_float else b
    if {a, b} == {DType.U8, DType.I8}:
        return DType.I16
    return max(a, b, key=_WIDTH_ORDER.index)
