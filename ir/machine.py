"""Clusters of wafer-scale machines as placement sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class OddWafer:
    """A wafer unlike the others: of another mesh (0 x 0 where it is out of service), or slower.

    ``slowness_permille`` is what its work takes, in thousandths of what it takes on the others.
    """

    wafer: int
    columns: int
    rows: int
    slowness_permille: int = 1000


@dataclass(frozen=True, slots=True, order=True)
class OddLink:
    """Two wafers whose link costs ``cost`` times what others cost, in latency and in time for each byte."""

    one: int
    other: int
    cost: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster of wafers, each a mesh of tiles with memory of their own; equal, but for those named.

    Attributes:
        columns, rows: the mesh that an application can use on one wafer.
        tile_sram_bytes: memory of one tile, code and stack included.
        reserve_bytes: what code, stack and buffers take of it.
        systems: number of wafers.
        odd_wafers, odd_links: those unlike the others, sorted.
    """

    name: str
    description: str
    columns: int
    rows: int
    tile_sram_bytes: int
    reserve_bytes: int
    systems: int
    odd_wafers: tuple[OddWafer, ...] = ()
    odd_links: tuple[OddLink, ...] = ()

    def wafer(self, index: int) -> OddWafer:
        """Wafer number ``index``, odd or not."""
        usual = OddWafer(index, self.columns, self.rows)
        return next((odd for odd in self.odd_wafers if odd.wafer == index), usual)

    def link_cost(self, one: int, other: int) -> int:
        """What the link of two wafers costs, relative to an ordinary one."""
        pair = (min(one, other), max(one, other))
        return next((link.cost for link in self.odd_links if (link.one, link.other) == pair), 1)

    @property
    def tiles(self) -> int:
        """Tiles of one wafer."""
        return self.columns * self.rows

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile that a plan may fill."""
        return self.tile_sram_bytes - self.reserve_bytes

    @property
    def wafer_bytes(self) -> int:
        """Bytes of one wafer that a plan may fill."""
        return self.tiles * self.tile_bytes


def absurdities(machine: Machine) -> tuple[str, ...]:
    """What makes ``machine`` impossible, in words; nothing if it could exist."""
    limits = {
        "columns": (machine.columns, 1, 10_000),
        "rows": (machine.rows, 1, 10_000),
        "tile_sram_bytes": (machine.tile_sram_bytes, 1, 1 << 40),
        "reserve_bytes": (machine.reserve_bytes, 0, machine.tile_sram_bytes - 1),
        "systems": (machine.systems, 1, 10_000),
    }
    return tuple(
        f"{name} must be from {low:,} to {high:,}, not {value:,}"
        for name, (value, low, high) in limits.items()
        if not low <= value <= high
    )
