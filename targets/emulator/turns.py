"""The parts of a step's values that belong to each user."""

from __future__ import annotations

import torch

from ir.types import TensorType, symbols_of

Tensor = torch.Tensor


def part_of(value: Tensor, type_: TensorType, users: range) -> Tensor:
    """The part of ``value`` that belongs to ``users`` (of so many as ``users.stop``); all of it if it has no users."""
    axis = _user_axis(type_)
    if axis is None:
        return value
    parted = torch.unflatten(value, axis, (users.stop, -1))
    return parted.index_select(axis, torch.tensor(users, device=value.device)).flatten(axis, axis + 1)


def joined(parts: list[tuple[range, Tensor]], type_: TensorType) -> Tensor:
    """The value whose parts for each turn's users are ``parts``: the inverse of :func:`part_of`."""
    axis = _user_axis(type_)
    if axis is None or len(parts) == 1:
        return parts[0][1]
    parted = [torch.unflatten(part, axis, (len(users), -1)) for users, part in parts]
    order = torch.tensor([user for users, _ in parts for user in users], device=parts[0][1].device).argsort()
    return torch.cat(parted, dim=axis).index_select(axis, order).flatten(axis, axis + 1)


def _user_axis(type_: TensorType) -> int | None:
    """The axis along which users lie, each with all that is its own."""
    return next((axis for axis, size in enumerate(type_.shape) if "users" in symbols_of(size)), None)
