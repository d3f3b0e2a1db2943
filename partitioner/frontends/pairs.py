"""Complex numbers as pairs of real values: the graph has none, and rotary positions need only their arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ir.types import Shape
from partitioner.frontends.aten import RULES, Translator


@dataclass(frozen=True, slots=True)
class Pair:
    """The real and the imaginary part of a complex value, of one type."""

    real: str
    imaginary: str


Operand = Pair | str | float
PAIR_RULES: dict[str, Callable[..., Any]] = {}
_MOVES = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "expand", "permute"),
        *("transpose", "slice", "select", "clone", "alias", "detach", "contiguous", "repeat", "index"),
        *("repeat_interleave.self_int", "_to_copy", "to"),
    }
)
"""Operators that move elements without computing on them: they act on each part alone."""


def pair_rule(name: str) -> Callable[..., Any] | None:
    """The rule of an operator that reads or yields complex values."""
    base = name.split(".")[0]
    found = PAIR_RULES.get(base)
    if found is None and {name, base} & _MOVES:
        return lambda t, x, *args, **kwargs: _on_parts(t, name, x, *args, **kwargs)
    return found


def _on_parts(t: Translator, name: str, x: Pair, *args: Any, **kwargs: Any) -> Pair:
    rule = RULES.get(name) or RULES[name.split(".")[0]]
    return Pair(rule(t, x.real, *args, **kwargs), rule(t, x.imaginary, *args, **kwargs))


def _rule(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        PAIR_RULES[name] = function
        return function

    return register


@_rule("view_as_complex")
def _view_as_complex(t: Translator, x: str) -> Pair:
    """X [..., 2] -> [...]."""
    shape = t.type(x).shape
    real, imaginary = (_element(t, x, shape, index) for index in (0, 1))
    return Pair(real, imaginary)


def _element(t: Translator, x: str, shape: Shape, index: int) -> str:
    part = t.add("slice", x, dim=len(shape) - 1, start=index, end=index + 1, step=1)
    return t.add("reshape", part, shape=shape[:-1])


@_rule("view_as_real")
def _view_as_real(t: Translator, x: Pair) -> str:
    """[...] -> [..., 2]."""
    shape = (*t.type(x.real).shape, 1)
    parts = [t.add("reshape", part, shape=shape) for part in (x.real, x.imaginary)]
    return t.add("concat", *parts, dim=len(shape) - 1)


@_rule("polar")
def _polar(t: Translator, length: str, angle: str) -> Pair:
    return Pair(t.add("mul", length, t.add("cos", angle)), t.add("mul", length, t.add("sin", angle)))


@_rule("complex")
def _complex(_t: Translator, real: str, imaginary: str) -> Pair:
    return Pair(real, imaginary)


@_rule("real")
def _real(_t: Translator, x: Pair) -> str:
    return x.real


@_rule("imag")
def _imaginary(_t: Translator, x: Pair) -> str:
    return x.imaginary


@_rule("_conj")
def _conjugate(t: Translator, x: Pair) -> Pair:
    return Pair(x.real, t.add("neg", x.imaginary))


PAIR_RULES["conj"] = _conjugate


@_rule("mul")
def _mul(t: Translator, x: Operand, y: Operand) -> Pair:
    if not isinstance(x, Pair):
        x, y = y, x
    assert isinstance(x, Pair)
    if not isinstance(y, Pair):
        return Pair(_times(t, x.real, y), _times(t, x.imaginary, y))
    real = t.add("sub", _times(t, x.real, y.real), _times(t, x.imaginary, y.imaginary))
    return Pair(real, t.add("add", _times(t, x.real, y.imaginary), _times(t, x.imaginary, y.real)))


def _times(t: Translator, x: str, y: str | float) -> str:
    if isinstance(y, complex):
        raise NotImplementedError("a complex number as a factor")
    return t.add("mul", x, y) if isinstance(y, str) else t.add("mul", x, scalar=y)


def _sum(t: Translator, x: Operand, y: Operand, op: str) -> Pair:
    if not isinstance(x, Pair) or not isinstance(y, Pair):
        raise NotImplementedError("the sum of a complex and a real value")
    return Pair(t.add(op, x.real, y.real), t.add(op, x.imaginary, y.imaginary))


PAIR_RULES["add"] = lambda t, x, y: _sum(t, x, y, "add")
PAIR_RULES["sub"] = lambda t, x, y: _sum(t, x, y, "sub")
