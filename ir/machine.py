"""Clusters of wafer-scale machines as placement sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster of equal wafers, each a mesh of tiles with memory of their own.

    Attributes:
        columns, rows: the mesh that an application can use on one wafer.
        tile_sram_bytes: memory of one tile, code and stack included.
        reserve_bytes: what code, stack and buffers take of it.
        systems: number of wafers.
    """

    name: str
    description: str
    columns: int
    rows: int
    tile_sram_bytes: int
    reserve_bytes: int
    systems: int

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
