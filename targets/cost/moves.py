"""Which element of its operands each element of a result is: the seven operators that move, read on numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ir.layout import Ints

NOTHING = -1
"""The number of an element that comes from no operand, such as padding."""


def sources(op: str, operands: Sequence[Ints], attributes: Mapping[str, Any]) -> Ints:
    """The result of ``op`` on arrays of numbers; all sizes in ``attributes`` are bound.

    Raises:
        KeyError: ``op`` computes.
    """
    return _MOVES[op](operands, attributes)


def _sliced(operands: Sequence[Ints], attributes: Mapping[str, Any]) -> Ints:
    """From ``start`` to before ``end`` along ``dim``."""
    kept = slice(attributes["start"], attributes["end"], attributes["step"])
    return operands[0][(*(slice(None),) * attributes["dim"], kept)]


def _padded(operands: Sequence[Ints], attributes: Mapping[str, Any]) -> Ints:
    """With so many elements more ``before`` and ``after`` along each axis, or fewer where that is negative."""
    (x,), sides = operands, list(zip(attributes["before"], attributes["after"], strict=True))
    mode = _PAD_MODES[attributes["mode"]]
    if mode != "constant":
        return np.pad(x, sides, mode)  # type: ignore[call-overload,no-any-return]
    kept = tuple(
        slice(max(0, -before), size - max(0, -after)) for size, (before, after) in zip(x.shape, sides, strict=True)
    )
    return np.pad(x[kept], [(max(0, b), max(0, a)) for b, a in sides], constant_values=NOTHING)


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_MOVES: dict[str, Callable[[Sequence[Ints], Mapping[str, Any]], Ints]] = {
    "reshape": lambda operands, attributes: operands[0].reshape(attributes["shape"]),
    "transpose": lambda operands, attributes: operands[0].transpose(attributes["permutation"]),
    "expand": lambda operands, attributes: np.broadcast_to(operands[0], attributes["shape"]),
    "slice": _sliced,
    "flip": lambda operands, attributes: np.flip(operands[0], attributes["dim"]),
    "concat": lambda operands, attributes: np.concatenate(operands, attributes["dim"]),
    "pad": _padded,
}
