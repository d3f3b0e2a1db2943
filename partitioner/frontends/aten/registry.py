"""How rules are found, what they may use, and the nodes that many of them make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ir.graph import Attribute, Node
from ir.types import DType, Size, TensorType, product

Rule = Callable[..., Any]
F = TypeVar("F", bound=Rule)
RULES: dict[str, Rule] = {}


class Translator(Protocol):
    """What a rule may use: types of names, the result type that torch states, and adding nodes."""

    @property
    def result(self) -> TensorType:
        """Type of the (first) result, as torch states it."""

    def type(self, name: str) -> TensorType:
        """Type of a name in the graph."""

    def add(self, op: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node; the name of its first result."""

    def maker(self, name: str) -> Node | None:
        """The node that yields ``name``, unless it is an input or a weight."""

    def is_parameter(self, name: str) -> bool:
        """Whether ``name`` is a stored weight."""


def rule(*names: str) -> Callable[[F], F]:
    """Register a rule for the ATen operators ``names`` (``name`` or ``name.overload``)."""

    def register(function: F) -> F:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def positive(dim: int, rank: int) -> int:
    """An axis counted from the front."""
    return dim + rank if dim < 0 else dim


def rank(t: Translator, x: str) -> int:
    """Number of axes."""
    return len(t.type(x).shape)


def reshape(t: Translator, x: str, shape: Sequence[Size]) -> str:
    """``x`` in another shape."""
    return x if t.type(x).shape == tuple(shape) else t.add("reshape", x, shape=tuple(shape))


def cast(t: Translator, x: str, dtype: DType) -> str:
    """``x`` in another element type."""
    return x if t.type(x).dtype is dtype else t.add("cast", x, dtype=dtype)


def expand(t: Translator, x: str, shape: Sequence[Size]) -> str:
    """``x`` broadcast to ``shape``."""
    return x if t.type(x).shape == tuple(shape) else t.add("expand", x, shape=tuple(shape))


def part(t: Translator, x: str, dim: int, start: int, end: int, step: int = 1) -> str:
    """A part of one axis, within its bounds."""
    size = t.type(x).shape[dim]
    if start == 0 and step == 1 and end == size:
        return x
    return t.add("slice", x, dim=dim, start=start, end=end, step=step)


def taken(t: Translator, x: str, dim: int, rows: str) -> str:
    """The parts of one axis that ``rows`` [...] name: the axis gives way to the axes of ``rows``."""
    shape = t.type(x).shape
    order = (dim, *(i for i in range(len(shape)) if i != dim))
    first = x if dim == 0 else t.add("transpose", x, permutation=order)
    beside = tuple(size for i, size in enumerate(shape) if i != dim)
    found = t.add("embedding", reshape(t, first, (shape[dim], product(beside))), rows)
    axes = len(t.type(rows).shape)
    wide = reshape(t, found, (*t.type(rows).shape, *beside))
    back = (*range(axes, axes + dim), *range(axes), *range(axes + dim, axes + len(beside)))
    return wide if dim == 0 else t.add("transpose", wide, permutation=back)
