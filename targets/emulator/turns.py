"""Users who take turns at the copies of blocks: user u is served by copy u mod n of each block that has n.

Users whose numbers leave the same remainder by the least common multiple of all n meet the same copies of all blocks.
They are one turn: a plan without copies, for their part of each value.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import lcm

import torch

from ir.model import Model
from ir.plan import Plan
from ir.types import TensorType, symbols_of

Tensor = torch.Tensor


def plans_of_turns(model: Model, plan: Plan) -> tuple[Plan, ...]:
    """What of ``plan`` each turn meets, by its number: as many as users can tell apart, and all copies in them."""
    copies = plan.copies
    counts = [len(own) for own in copies.values()]
    if max(counts, default=1) == 1:
        return (plan,)
    readers: defaultdict[str, set[str]] = defaultdict(set)
    for edge in model.edges:
        readers[edge.value].add(model.blocks[edge.target].name)
    return tuple(_turn(plan, readers, turn) for turn in range(max(*counts, min(lcm(*counts), plan.workload.users))))


def _turn(plan: Plan, readers: defaultdict[str, set[str]], turn: int) -> Plan:
    placed = {name: own[turn % len(own)] for name, own in plan.copies.items()}
    transfers = (
        transfer
        for transfer in plan.transfers
        if transfer.source in placed
        and placed[transfer.source].wafer == transfer.source_wafer
        and any(placed[name].wafer == transfer.target_wafer for name in readers[transfer.value] & placed.keys())
    )
    blocks = tuple(block for block in plan.blocks if placed[block.name] is block)
    return replace(plan, blocks=blocks, transfers=tuple(transfers))


def part_of(value: Tensor, type_: TensorType, users: range) -> Tensor:
    """The part of ``value`` that belongs to ``users`` (of so many as ``users.stop``); all of it if it has no users."""
    axis = _user_axis(type_)
    if axis is None:
        return value
    parted = torch.unflatten(value, axis, (users.stop, -1))
    return parted.index_select(axis, torch.tensor(users)).flatten(axis, axis + 1)


def joined(parts: list[tuple[range, Tensor]], type_: TensorType) -> Tensor:
    """The value whose parts for each turn's users are ``parts``: the inverse of :func:`part_of`."""
    axis = _user_axis(type_)
    if axis is None or len(parts) == 1:
        return parts[0][1]
    parted = [torch.unflatten(part, axis, (len(users), -1)) for users, part in parts]
    order = torch.tensor([user for users, _ in parts for user in users]).argsort()
    return torch.cat(parted, dim=axis).index_select(axis, order).flatten(axis, axis + 1)


def _user_axis(type_: TensorType) -> int | None:
    """The axis along which users lie, each with all that is its own."""
    return next((axis for axis, size in enumerate(type_.shape) if "users" in symbols_of(size)), None)
