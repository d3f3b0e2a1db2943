"""How data moves between the tiles of a region: the collectives, and what they cost.

A region is a mesh of tiles, rows x columns. Arrays that live on it have the leading axes (row, column) and then a
tile's own memory. A kernel may touch a tile's own memory and what arrived through one of the collectives here, so
whatever it does could be done by tiles.

Two figures are counted for each collective: *hops*, the links on its longest path, and *bytes*, summed over all links
that they cross. Padding that only the host's arrays have is never counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

import torch


class Axis(IntEnum):
    """An axis of the mesh: ``ROWS`` numbers the rows (moving along it is moving down), ``COLUMNS`` the columns."""

    ROWS = 0
    COLUMNS = 1

    @property
    def other(self) -> Axis:
        """The axis across."""
        return Axis(1 - self)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What collectives of one kind moved: how often they ran, hops added up over them, bytes over links."""

    calls: int = 0
    hops: int = 0
    bytes: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.calls + other.calls, self.hops + other.hops, self.bytes + other.bytes)


@dataclass(slots=True)
class Meter:
    """Counts while a step runs. ``moved`` maps the collective's name to its traffic."""

    multiply_adds: int = 0
    transfer_bytes: int = 0
    moved: dict[str, Traffic] = field(default_factory=dict)

    def record(self, collective: str, hops: int, link_bytes: int) -> None:
        """Count one run of ``collective``."""
        self.moved[collective] = self.moved.get(collective, Traffic()) + Traffic(1, hops, link_bytes)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The tiles of one region and the meter that its collectives report to."""

    rows: int
    columns: int
    meter: Meter

    def length(self, axis: Axis) -> int:
        """Tiles along ``axis``."""
        return (self.rows, self.columns)[axis]

    def broadcast(self, slices: torch.Tensor, along: Axis, payload_bytes: int) -> torch.Tensor:
        """Slices [lines, ...] enter at the region's edge, one for each line of tiles that runs ``along`` an axis.

        Each travels its line to the end, so that all tiles of the line hold it afterwards.

        Returns:
            What each line's tiles hold [lines, ...]: one copy stands for all tiles of the line.
        """
        links = self.length(along) - 1
        self.meter.record("broadcast", links, payload_bytes * links)
        return slices

    def chain(
        self, along: Axis, first: torch.Tensor, step: Callable[[int, torch.Tensor], torch.Tensor], payload_bytes: int
    ) -> torch.Tensor:
        """Pass a value through the tiles ``along`` an axis, in all lines at once.

        Args:
            along: the axis that the value travels.
            first: what the first tile of each line passes on.
            step: ``step(n, arrived)`` is what tile ``n`` >= 1 passes on; it may touch that tile's memory only.
            payload_bytes: bytes that cross from one tile to the next, all lines together.
        """
        links = self.length(along) - 1
        self.meter.record("chain", links, payload_bytes * links)
        passed = first
        for position in range(1, links + 1):
            passed = step(position, passed)
        return passed

    def chain_reduce(self, partials: torch.Tensor, along: Axis, payload_bytes: int) -> torch.Tensor:
        """The sum of ``partials`` [tiles along the axis, ...], accumulated tile after tile in mesh order."""
        shares = partials.unbind()
        return self.chain(along, shares[0].clone(), lambda n, arrived: arrived.add_(shares[n]), payload_bytes)

    def gather(self, link_bytes: int) -> None:
        """Count the collection of something spread over the region: along the rows to the edge, then down it.

        Args:
            link_bytes: each share's bytes times the links between its tile and the last tile of the region.
        """
        self.meter.record("gather", self.rows + self.columns - 2, link_bytes)

    def shift(self, payload_bytes: int, links: int) -> None:
        """Count the way of ``payload_bytes`` over ``links`` links from one region of the wafer to another."""
        self.meter.record("shift", links, payload_bytes * links)
