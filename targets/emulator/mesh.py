"""How data moves between the tiles of a region: the collectives, and what they cost.

A region is a mesh of tiles, rows x columns. A kernel may touch a tile's own memory and what arrived through one of the
collectives here, so whatever it does could be done by tiles. Two figures are counted for each: *hops*, the links on its
longest path, and *bytes*, summed over all links that they cross. Elements lie as :mod:`targets.program.homes` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from ir.plan import Rectangle
from targets.emulator.meter import Meter
from targets.emulator.ways import Way


@dataclass(frozen=True, slots=True)
class Mesh:
    """The tiles of one region and the meter that its collectives report to."""

    region: Rectangle
    meter: Meter

    def move(self, collective: str, way: Way, element_bytes: int, times: int = 1) -> None:
        """Elements of ``element_bytes`` go their way, for each of ``times`` tokens, which follow each other."""
        if way.hops and times:
            self.meter.record(collective, way.hops, way.links * element_bytes * times)

    def chain(self, length: int, payload_bytes: int) -> None:
        """Values pass from tile to tile along lines of ``length``; ``payload_bytes`` in all lines together."""
        if length > 1 and payload_bytes:
            self.meter.record("chain", length - 1, payload_bytes * (length - 1))

    def all_reduce(self, payload_bytes: int) -> None:
        """What all tiles add up, along each row and then down the first column, goes back to all of them."""
        if self.region.tiles > 1 and payload_bytes:
            hops = self.region.rows + self.region.columns - 2
            self.meter.record("all_reduce", 2 * hops, 2 * (self.region.tiles - 1) * payload_bytes)

    def broadcast(self, payload_bytes: int) -> None:
        """All tiles get the same."""
        if self.region.tiles > 1 and payload_bytes:
            hops = self.region.rows + self.region.columns - 2
            self.meter.record("broadcast", hops, (self.region.tiles - 1) * payload_bytes)
