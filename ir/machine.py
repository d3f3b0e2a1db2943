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
