"""What a step takes, counted: multiply-adds, and bytes over the links of meshes and between wafers.

The emulator counts while it runs; :mod:`targets.cost.traffic` says the same beforehand. All bytes are those of the
machine, whose element types are the graph's, whatever the host computes with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
K = TypeVar("K")
Routing = Mapping[str, Ints]
"""How many tokens each expert served at each place of their choice [experts, k], by the value that it computed."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What collectives of one kind moved: how often they ran, hops added up over them, bytes over links."""

    calls: int = 0
    hops: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.calls + other.calls, self.hops + other.hops, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class OpCount:
    """One operator on one block's tiles: multiply-adds, and the traffic of each collective by name."""

    multiply_adds: int = 0
    mesh: Mapping[str, Traffic] = field(default_factory=dict)

    def __add__(self, other: OpCount) -> OpCount:
        return OpCount(self.multiply_adds + other.multiply_adds, _sum([self.mesh, other.mesh]))


@dataclass(frozen=True, slots=True)
class Counters:
    """What steps took.

    Attributes:
        ops: by block (:attr:`ir.plan.PlacedBlock.title`) and the name of the value that was computed there.
        links: bytes sent from wafer to wafer, by their numbers.
        by_reference: how often each operator ran on values gathered in one place, as it has no kernel for tiles.
        routing: which experts served how many tokens.
    """

    ops: Mapping[tuple[str, str], OpCount] = field(default_factory=dict)
    links: Mapping[tuple[int, int], int] = field(default_factory=dict)
    by_reference: Mapping[str, int] = field(default_factory=dict)
    routing: Routing = field(default_factory=dict)

    @property
    def multiply_adds(self) -> int:
        """In products and attention."""
        return sum(op.multiply_adds for op in self.ops.values())

    @property
    def transfer_bytes(self) -> int:
        """Sent from wafer to wafer."""
        return sum(self.links.values())

    @property
    def mesh(self) -> dict[str, Traffic]:
        """Traffic inside wafers by collective."""
        return _sum([op.mesh for op in self.ops.values()])

    @property
    def mesh_hops(self) -> int:
        """Hops of all collectives, one after another."""
        return sum(traffic.hops for traffic in self.mesh.values())

    @property
    def mesh_bytes(self) -> int:
        """Bytes over all links of all meshes."""
        return sum(traffic.bytes for traffic in self.mesh.values())

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            _added(self.ops, other.ops),
            _added(self.links, other.links),
            _added(self.by_reference, other.by_reference),
            _added(self.routing, other.routing),
        )


def added_up(parts: Sequence[Counters]) -> Counters:
    """What several steps took together."""
    return sum(parts[1:], start=parts[0]) if parts else Counters()


def _added(one: Mapping[K, Any], other: Mapping[K, Any]) -> dict[K, Any]:
    return {**one, **{key: one[key] + value if key in one else value for key, value in other.items()}}


def _sum(parts: Iterable[Mapping[str, Traffic]]) -> dict[str, Traffic]:
    total: dict[str, Traffic] = {}
    for part in parts:
        for name, traffic in part.items():
            total[name] = total.get(name, Traffic()) + traffic
    return total
