"""How many rows of tiles a block needs for each width: the shapes that a floor plan chooses from.

A shape is large enough when its fullest tile, with every weight split over rows and columns as the layout says, stays
within the tile's memory. Bytes alone are not enough: 2,048 outputs over 250 columns put 9 on some and 8 on others.
Where a block is to have more tiles than it needs, each width gets the rows that make so many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ir.graph import Parameter
from ir.layout import fullest_bytes, fullest_tile_bytes, matrix_layouts, spread_tile_bytes, tile_factors

Heights: TypeAlias = npt.NDArray[np.int64]
NEVER = 1 << 40
"""More rows than any mesh has: the width is too small."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one region must hold: weights (those of one expert, for experts), bytes spread evenly over each region, and
    how many equal regions there are (0: the block is not a group of experts). ``sliced`` experts share one region.
    """

    parameters: tuple[Parameter, ...]
    spread_bytes: int
    experts: int = 0
    sliced: bool = False

    @property
    def regions(self) -> int:
        """Number of equal regions."""
        return 1 if self.sliced else max(1, self.experts)

    @property
    def region_bytes(self) -> int:
        """Bytes in each region, as stored."""
        weights = sum(parameter.stored_bytes for parameter in self.parameters)
        return weights * (self.experts if self.sliced else 1) + self.spread_bytes

    def tile_bytes(self, rows: int, columns: int) -> int:
        """Bytes on the fullest tile of a region of ``rows`` x ``columns``."""
        shared_by = self.experts if self.sliced else 0
        return fullest_tile_bytes(self.parameters, self.spread_bytes, rows, columns, shared_by)


@dataclass(frozen=True, slots=True)
class Shape:
    """A block's rectangle: ``across`` x ``down`` cells of ``columns`` x ``rows`` tiles (one cell if not experts)."""

    columns: int
    rows: int
    across: int = 1
    down: int = 1

    @property
    def aspect(self) -> float:
        """Length over breadth, of one cell or of the whole rectangle, whichever is greater."""
        sides = ((self.columns, self.rows), (self.columns * self.across, self.rows * self.down))
        return max(max(side) / min(side) for side in sides)


class Shapes:
    """Shapes of one demand on a mesh of ``width`` x ``height`` tiles."""

    def __init__(self, demand: Demand, tile_bytes: int, width: int, height: int) -> None:
        self._demand = demand
        self._tile_bytes = tile_bytes
        self._mesh = (width, height)
        self._limited: dict[float, Widths] = {}
        self._needed = [_rows_needed(demand, tile_bytes, columns, height) for columns in range(1, width + 1)]

    @cached_property
    def least_tiles(self) -> int:
        """Tiles of the smallest shape, experts' regions counted one by one; ``NEVER`` if none fits the mesh."""
        least = min((columns * rows for columns, rows in enumerate(self._needed, start=1) if rows < NEVER), default=0)
        return least * self._demand.regions or NEVER

    def limited(self, aspect: float, tiles: int = 0) -> Widths:
        """The lowest shape for each width, of those whose cells and rectangle are at most ``aspect`` times longer than
        wide, and that have at least about ``tiles`` tiles.
        """
        if tiles <= self.least_tiles:
            if aspect not in self._limited:
                self._limited[aspect] = self._widths(aspect, 0)
            return self._limited[aspect]
        return self._widths(aspect, tiles)

    def settled(self, shape: Shape) -> Shape:
        """The highest shape, at most as high as ``shape``, whose fullest tile is within its memory.

        More rows than needed can put more on the fullest tile, where the larger shares of several weights then meet.
        """
        for rows in range(shape.rows, self._needed[shape.columns - 1], -1):
            if self._demand.tile_bytes(rows, shape.columns) <= self._tile_bytes:
                return replace(shape, rows=rows)
        return replace(shape, rows=self._needed[shape.columns - 1])

    def _widths(self, aspect: float, tiles: int) -> Widths:
        width, height = self._mesh
        wanted = tiles // self._demand.regions
        cells = [max(rows, -(-wanted // columns)) for columns, rows in enumerate(self._needed, start=1)]
        apart = 0 if self._demand.sliced else self._demand.experts
        options = (
            option
            for columns, rows in enumerate(cells, start=1)
            if rows <= height
            for option in _arrangements(apart, columns, rows, width)
        )
        return Widths(_best_by_width([shape for shape in options if shape.aspect <= aspect], width, height))


class Widths:
    """The lowest shape of a block for each width of the room that it may take."""

    def __init__(self, best: list[Shape | None]) -> None:
        self._best = best
        self.heights: Heights = np.array([_height(shape) for shape in best], dtype=np.int64)

    def at(self, width: int) -> Shape:
        """The lowest shape that is at most ``width`` columns wide.

        Raises:
            ValueError: no shape is as narrow.
        """
        shape = self._best[width - 1]
        if shape is None:
            raise ValueError(f"no shape is {width} columns wide")
        return shape


def _height(shape: Shape | None) -> int:
    return shape.rows * shape.down if shape else NEVER


def _arrangements(experts: int, columns: int, rows: int, width: int) -> list[Shape]:
    """The arrangements of cells of one size that fit the mesh's width."""
    if not experts:
        return [Shape(columns, rows)]
    most = min(experts, width // columns)
    return [Shape(columns, rows, across, -(-experts // across)) for across in range(1, most + 1)]


def _best_by_width(options: Sequence[Shape], width: int, height: int) -> list[Shape | None]:
    """For each width the lowest shape that is not wider; of equally low ones the one whose cells are most square."""
    best: list[Shape | None] = [None] * width
    for shape in options:
        taken = shape.columns * shape.across
        if _height(shape) <= height and _rank(shape) < _rank(best[taken - 1]):
            best[taken - 1] = shape
    for index in range(1, width):
        if _rank(best[index - 1]) < _rank(best[index]):
            best[index] = best[index - 1]
    return best


def _rank(shape: Shape | None) -> tuple[int, int, int]:
    if shape is None:
        return (NEVER, 0, 0)
    return (_height(shape), max(shape.columns, shape.rows), shape.columns)


def _rows_needed(demand: Demand, tile_bytes: int, columns: int, height: int) -> int:
    """Fewest rows at which the fullest tile of a region ``columns`` wide stays within ``tile_bytes``."""
    least = max(1, -(-demand.region_bytes // (tile_bytes * columns)))
    return next((rows for rows in range(least, height + 1) if _fits(demand, tile_bytes, rows, columns)), NEVER)


def _fits(demand: Demand, tile_bytes: int, rows: int, columns: int) -> bool:
    """Whether the fullest tile of ``rows`` x ``columns`` holds at most ``tile_bytes``; clear cases are told sooner."""
    shared_by = demand.experts if demand.sliced else 0
    spread = spread_tile_bytes(demand.parameters, demand.spread_bytes, rows * columns, shared_by)
    room = 8 * (tile_bytes - spread)
    if not shared_by and _largest_shares_bits(demand.parameters, rows, columns) <= room:
        return True
    over_rows, over_columns = tile_factors(demand.parameters, rows, columns, shared_by)
    fullest_row = int((over_columns.sum(axis=1) @ over_rows).max())
    fullest_column = int((over_rows.sum(axis=1) @ over_columns).max())
    if fullest_row > room * columns or fullest_column > room * rows:
        return False  # a whole row or column of tiles is too full
    return spread + fullest_bytes(over_rows, over_columns) <= tile_bytes


def _largest_shares_bits(parameters: Sequence[Parameter], rows: int, columns: int) -> int:
    """At most the bits on the fullest tile: the largest shares of all weights, as if they met there."""
    return sum(layout.most_bits for layout in matrix_layouts(parameters, rows, columns))
