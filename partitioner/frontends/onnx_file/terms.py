"""Values of the graph under construction, written as in a formula: ``(x - mean) / deviation``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ir.graph import Attribute
from ir.types import DType, Shape, Size, product
from partitioner.frontends.onnx_file.constants import Known, UnfoldableError
from partitioner.frontends.onnx_file.lowering import Site

Other = "Term | int | float"


@dataclass(frozen=True, slots=True)
class Term:
    """A value of the graph, at the node whose rule computes with it; every method adds a node."""

    site: Site
    name: str

    @property
    def shape(self) -> Shape:
        """The shape."""
        return self.site.value_type(self.name).shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.site.value_type(self.name).dtype

    def apply(self, op: str, *others: Term, **attributes: Attribute) -> Term:
        """An operator of the graph on this value and ``others``."""
        return Term(self.site, self.site.step(op, [self.name, *(other.name for other in others)], **attributes))

    def with_(self, op: str, other: Term | int | float) -> Term:
        """An operator on this value and a number or another value."""
        return self.apply(op, other) if isinstance(other, Term) else self.apply(op, scalar=other)

    def __add__(self, other: Term | int | float) -> Term:
        return self.with_("add", other)

    def __sub__(self, other: Term | int | float) -> Term:
        return self.with_("sub", other)

    def __mul__(self, other: Term | int | float) -> Term:
        return self.with_("mul", other)

    def __truediv__(self, other: Term | int | float) -> Term:
        return self.with_("div", other)

    def __matmul__(self, other: Term) -> Term:
        return self.apply("matmul", other)

    def __neg__(self) -> Term:
        return self.apply("neg")

    def cast(self, dtype: DType) -> Term:
        """In another element type."""
        return self if self.dtype is dtype else self.apply("cast", dtype=dtype)

    def reshape(self, *shape: Size) -> Term:
        """In another shape."""
        return self if self.shape == shape else self.apply("reshape", shape=shape)

    def expand(self, *shape: Size) -> Term:
        """Repeated along axes of one element."""
        return self if self.shape == shape else self.apply("expand", shape=shape)

    def transpose(self, *order: int) -> Term:
        """With the axes in another order."""
        return self if order == tuple(range(len(order))) else self.apply("transpose", permutation=order)

    def cut(self, dim: int, start: int, end: int, step: int = 1) -> Term:
        """A part of an axis."""
        if (start, end, step) == (0, self.shape[dim], 1):
            return self
        return self.apply("slice", dim=dim, start=start, end=end, step=step)

    def reduce(self, op: str, dims: Sequence[int], keepdim: bool = False) -> Term:
        """A reduction over axes; for none of them, the value itself."""
        return self.apply(op, dims=tuple(dims), keepdim=keepdim) if dims or not self.shape else self

    def rows(self, indices: Term) -> Term:
        """The rows of this table [rows, width] that ``indices`` name."""
        return self.apply("embedding", indices)

    def axis_last(self, axis: int, last: int = -1) -> Term:
        """With the axis moved to another place."""
        order = [i for i in range(len(self.shape)) if i != axis]
        order.insert(last if last >= 0 else len(order), axis)
        return self.transpose(*order)

    def elements(self) -> int:
        """The number of elements.

        Raises:
            UnfoldableError: it is symbolic.
        """
        return fixed(product(self.shape))


def fixed(size: Size) -> int:
    """``size`` if it is a number.

    Raises:
        UnfoldableError: it is symbolic.
    """
    if not isinstance(size, int):
        raise UnfoldableError(f"a size must be fixed, and is {size}")
    return size


def term(site: Site, index: int) -> Term:
    """An input of the node."""
    return Term(site, site.tensor(index))


def optional(site: Site, index: int) -> Term | None:
    """An input of the node, if it is given."""
    return term(site, index) if site.has(index) else None


def full(site: Site, dtype: DType, shape: Shape, value: bool | int | float) -> Term:
    """A tensor of one number."""
    return Term(site, site.step("full", [], dtype=dtype, shape=shape, value=value))


def counting(site: Site, count: Size, start: int = 0, step: int = 1) -> Term:
    """The 64-bit integers from ``start`` on."""
    return Term(site, site.step("arange", [], dtype=DType.I64, shape=(count,), start=start, step=step))


def constant(site: Site, dtype: DType, values: object) -> Term:
    """A tensor of these numbers."""
    return Term(site, site.constant(Known.of(dtype, values)))


def join(parts: Sequence[Term], dim: int) -> Term:
    """Values joined along an axis, those without elements left out."""
    filled = [part for part in parts if part.shape[dim] != 0] or parts[:1]
    return filled[0].apply("concat", *filled[1:], dim=dim) if len(filled) > 1 else filled[0]


def flattened(x: Term, axes: int) -> Term:
    """``x`` with its first ``axes`` axes as one, and the others as one."""
    return x.reshape(product(x.shape[:axes]), product(x.shape[axes:]))


def volume(shape: Shape) -> int:
    """The number of elements of a fixed shape."""
    return math.prod(fixed(size) for size in shape)
