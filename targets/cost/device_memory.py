"""How much of a model fits on a device, and into which pipeline stages its blocks then fall."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ir.device_plan import Degrees
from ir.profile import BlockProfile
from ir.workload import Workload
from targets.cost.device_split import split_block
from targets.cost.devices import Outline


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of one rank: ``weight_bytes``, ``cache_bytes`` for each user of its group, and activations
    (``chunk_bytes`` for a prefill chunk, ``live_bytes`` for each user's one token).
    """

    weight_bytes: int = 0
    cache_bytes: int = 0
    chunk_bytes: int = 0
    live_bytes: int = 0

    def __add__(self, other: Room) -> Room:
        """Blocks side by side; they are worked on one after the other, so activations do not add up."""
        return Room(
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
            max(self.chunk_bytes, other.chunk_bytes),
            max(self.live_bytes, other.live_bytes),
        )

    def bytes(self, users: int) -> int:
        """All bytes while ``users`` users are served."""
        return self.weight_bytes + users * self.cache_bytes + self.activation_bytes(users)

    def activation_bytes(self, users: int) -> int:
        """Bytes of values that are alive while a chunk, or a token of each user, is worked on."""
        return max(self.chunk_bytes, users * self.live_bytes)

    def users(self, device_bytes: int) -> int | None:
        """The most users that fit; ``None``: any number."""
        free = device_bytes - self.weight_bytes
        if free < self.chunk_bytes:
            return 0
        limits = []
        if self.cache_bytes:
            limits.append((free - self.chunk_bytes) // self.cache_bytes)
        if self.cache_bytes + self.live_bytes:
            limits.append(free // (self.cache_bytes + self.live_bytes))
        return min(limits, default=None)


def block_room(block: BlockProfile, tensor: int, expert: int, context: int, chunk: int) -> Room:
    """The bytes of one block on its fullest rank."""
    split = split_block(block, tensor)
    experts_share = -(-block.experts // expert) / block.experts if block.experts else 1.0
    return Room(
        math.ceil(block.weight_bytes * split.weight_share * experts_share),
        math.ceil(block.cache_bytes(1, context) * split.cache_share),
        block.live_bytes(chunk),
        block.live_bytes(1),
    )


def item_rooms(plan: Outline, tensor: int, expert: int, workload: Workload) -> tuple[Room, ...]:
    """The bytes of each item on its fullest rank."""
    of_shape = [block_room(block, tensor, expert, workload.context, workload.chunk) for block, _ in plan.shapes]
    shapes = [tuple(plan.shape_of[i] for i in item) for item in plan.profile.items]
    of_item = {own: sum((of_shape[shape] for shape in own), Room()) for own in dict.fromkeys(shapes)}
    return tuple(of_item[own] for own in shapes)


def fewest_stages(rooms: Sequence[Room], users: int, device_bytes: int) -> int | None:
    """The fewest pipeline stages whose items, in order, fit; ``None`` if one item alone does not.

    Every stage is given room for the largest activations of any.
    """
    bounds = _fill(_kept(rooms, users), device_bytes - _activation_bytes(rooms, users))
    return None if bounds is None else len(bounds)


def balance(rooms: Sequence[Room], users: int, stages: int) -> tuple[tuple[int, int], ...]:
    """At most ``stages`` runs of items (first and last index) with the least bytes on the fullest."""
    kept = _kept(rooms, users)
    low, high = max(kept[i + 1] - kept[i] for i in range(len(rooms))), kept[-1]
    while low < high:
        middle = (low + high) // 2
        bounds = _fill(kept, middle)
        low, high = (low, middle) if bounds is not None and len(bounds) <= stages else (middle + 1, high)
    return _fill(kept, high) or ((0, len(rooms) - 1),)


def _kept(rooms: Sequence[Room], users: int) -> list[int]:
    """Bytes of weights and caches of the items before each, and of all."""
    return [0, *accumulate(room.weight_bytes + users * room.cache_bytes for room in rooms)]


def _activation_bytes(rooms: Sequence[Room], users: int) -> int:
    return max(room.activation_bytes(users) for room in rooms)


def _fill(kept: Sequence[int], stage_bytes: int) -> tuple[tuple[int, int], ...] | None:
    """Items in order, each stage as full as ``stage_bytes`` allow: the fewest stages."""
    bounds: list[tuple[int, int]] = []
    first = 0
    while first < len(kept) - 1:
        after = bisect_right(kept, kept[first] + stage_bytes) - 1
        if after <= first:
            return None
        bounds.append((first, after - 1))
        first = after
    return tuple(bounds)


def nodes_needed(degrees: Degrees, devices_in_node: int) -> int:
    """Nodes that all replicas take: those of less than a node share one."""
    if degrees.nodes(devices_in_node) > 1 or degrees.devices > devices_in_node:
        return degrees.replicas * degrees.nodes(devices_in_node)
    in_node = devices_in_node // degrees.devices
    return -(-degrees.replicas // in_node)
