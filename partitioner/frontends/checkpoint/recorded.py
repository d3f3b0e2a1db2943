"""What the library's operations do to stored weights on their way to a parameter, recorded instead of done.

So one can be read as it is stored, still packed, and of a stack of experts one expert alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from partitioner.frontends.checkpoint.reading import read_weight
from partitioner.frontends.checkpoint.schemes import StoredWeight
from targets.emulator.encodings import Transposed, joined, one_of, stacked
from targets.emulator.parts import rows_of
from targets.emulator.weights import Plain, Stored

Shape = tuple[int, ...]
_aten = torch.ops.aten
_SAME = frozenset({_aten.clone.default, _aten.detach.default, _aten.alias.default})
"""Operators that change no value."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored weight; ``place``: of a stack, the one there."""

    weight: StoredWeight
    place: int | None = None

    @property
    def shape(self) -> Shape:
        """Of its values."""
        return self.weight.shape if self.place is None else self.weight.shape[1:]


@dataclass(frozen=True, slots=True)
class Made:
    """What an operator of torch makes of others; ``result``: which of several it yields."""

    operator: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    result: int | None = None
    shape: Shape = ()


Value = Leaf | Made


class Recorded(torch.Tensor):
    """A tensor without values: what is done with it is recorded in ``value``."""

    value: Value

    @staticmethod
    def __new__(cls: Any, value: Value, dtype: torch.dtype) -> Any:
        """A tensor of the shape of ``value``."""
        made = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=dtype)
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Record ``func``; its results' shapes are those that torch works out without values."""
        if func._schema.is_mutable:
            raise NotImplementedError(f"{func} writes in place")
        options = kwargs or {}
        without = {"args": args, "kwargs": options}
        empty = pytree.tree_map_only(cls, lambda it: torch.empty(it.shape, dtype=it.dtype, device="meta"), without)
        found = func(*empty["args"], **{**empty["kwargs"], **({"device": "meta"} if "device" in options else {})})
        arguments, given = pytree.tree_map_only(cls, lambda it: it.value, (args, dict(options)))

        def recorded(tensor: torch.Tensor, result: int | None) -> Any:
            return cls(Made(func, tuple(arguments), given, result, tuple(tensor.shape)), tensor.dtype)

        if isinstance(found, torch.Tensor):
            return recorded(found, None)
        return type(found)(recorded(tensor, index) for index, tensor in enumerate(found))


def read(value: Value, expert: int | None = None, rows: range | None = None) -> Stored:
    """The values of ``value``, or of one expert's part along its first axis; packed where that is possible. Of these
    some ``rows`` alone.

    Raises:
        UsageError: W0221, a file cannot be read.
    """
    if expert is not None:
        part = _part(value, expert)
        stored = Plain(_dense(value)[expert]) if part is None else _whole(part)
    elif rows is not None and isinstance(value, Leaf) and value.weight.scheme is None:
        return read_weight(value.weight, rows)
    else:
        stored = _whole(value)
    return stored if rows is None else rows_of(stored, rows)


def _part(value: Value, place: int) -> Value | None:
    """What lies at ``place`` of the first axis; ``None`` where that is not told without the whole."""
    if isinstance(value, Leaf):
        alike = all(part.shape and part.shape[0] == value.shape[0] for part in value.weight.held)
        return Leaf(value.weight, place) if alike and value.place is None else None
    if value.operator in _SAME:
        return _part(value.arguments[0], place)
    parts, axis = _operands(value)
    if value.operator is _aten.stack.default and axis == 0:
        return parts[place]  # type: ignore[no-any-return]
    if value.operator is _aten.cat.default and axis > 0:
        inner = [_part(part, place) for part in parts]
        if all(part is not None for part in inner):
            return Made(value.operator, (inner, axis - 1), shape=value.shape[1:])
    if value.operator is _aten.transpose.int:
        axes = [axis % len(value.shape) for axis in value.arguments[1:]]
        below = _part(value.arguments[0], place) if 0 not in axes else None
        if below is not None:
            return Made(value.operator, (below, *(axis - 1 for axis in axes)), shape=value.shape[1:])
    return None


def _whole(value: Value) -> Stored:
    """All of it, packed where that is possible."""
    if isinstance(value, Leaf):
        if value.place is None:
            return read_weight(value.weight)
        return one_of(read_weight(value.weight, range(value.place, value.place + 1)), 0)
    rank = len(value.shape)
    if value.operator in _SAME:
        return _whole(value.arguments[0])
    if value.operator is _aten.transpose.int and {axis % rank for axis in value.arguments[1:]} == {rank - 1, rank - 2}:
        return Transposed(_whole(value.arguments[0]))
    packed: Stored | None = None
    parts, axis = _operands(value)
    if value.operator is _aten.cat.default:
        packed = joined([_whole(part) for part in parts], axis)
    elif value.operator is _aten.stack.default and axis == 0:
        packed = stacked([_whole(part) for part in parts])
    return Plain(_dense(value)) if packed is None else packed


def _operands(value: Made) -> tuple[Sequence[Any], int]:
    """The operands that ``stack`` or ``cat`` joins, and the axis; nothing of other operators."""
    if value.operator not in (_aten.cat.default, _aten.stack.default):
        return (), -1
    axis = value.arguments[1] if len(value.arguments) > 1 else value.options.get("dim", 0)
    return value.arguments[0], axis % len(value.shape)


def _dense(value: Value) -> torch.Tensor:
    """The values, unpacked: in their own type where they are stored as they are, else in f32, which holds them all."""
    if isinstance(value, Leaf):
        stored = _whole(value)
        return stored.tensor if isinstance(stored, Plain) else stored.unpack(torch.float32, "cpu")
    is_value: Callable[[Any], bool] = lambda it: isinstance(it, (Leaf, Made))  # noqa: E731 - a predicate
    arguments, options = pytree.tree_map(
        lambda it: _dense(it).contiguous() if is_value(it) else it,
        (value.arguments, dict(value.options)),
        is_leaf=is_value,
    )
    found = value.operator(*arguments, **options)
    return found if value.result is None else found[value.result]  # type: ignore[no-any-return]
