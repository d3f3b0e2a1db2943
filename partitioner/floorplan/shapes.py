"""How many rows of tiles a block needs for each width: the shapes that a floor plan chooses from.

A shape is large enough when its fullest tile, with every weight split over rows and columns as the layout says, stays
within the tile's memory. Bytes alone are not enough: 2,048 outputs over 250 columns put 9 on some and 8 on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ir.graph import Parameter
from ir.layout import fullest_tile_bytes, matrix_layouts

Heights: TypeAlias = npt.NDArray[np.int64]
NEVER = 1 << 40
"""More rows than any mesh has: the width is too small."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one region must hold: weights (those of one expert, for experts), bytes spread evenly over each region, and
    how many equal regions there are (0: the block is not a group of experts).
    """

    parameters: tuple[Parameter, ...]
    spread_bytes: int
    experts: int = 0


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
        self._mesh = (width, height)
        self._limited: dict[float, Widths] = {}
        cells = [_rows_needed(demand, tile_bytes, columns, height) for columns in range(1, width + 1)]
        self._options = [
            option
            for columns, rows in enumerate(cells, start=1)
            if rows < NEVER
            for option in _arrangements(demand.experts, columns, rows, width)
        ]

    def limited(self, aspect: float) -> Widths:
        """The lowest shape for each width, of those whose cells and rectangle are at most ``aspect`` times longer than
        wide.
        """
        if aspect not in self._limited:
            kept = [shape for shape in self._options if shape.aspect <= aspect]
            self._limited[aspect] = Widths(_best_by_width(kept, *self._mesh))
        return self._limited[aspect]


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
    total = sum(parameter.stored_bytes for parameter in demand.parameters) + demand.spread_bytes
    for rows in range(max(1, -(-total // (tile_bytes * columns))), height + 1):
        if _surely_fits(demand, tile_bytes, rows, columns):
            return rows
        if fullest_tile_bytes(demand.parameters, demand.spread_bytes, rows, columns) <= tile_bytes:
            return rows
    return NEVER


def _surely_fits(demand: Demand, tile_bytes: int, rows: int, columns: int) -> bool:
    """A cheap sufficient condition: the largest shares of all weights, as if they met on one tile."""
    bits = sum(
        int(over_rows.max()) * int(over_columns.max())
        for layout in matrix_layouts(demand.parameters, rows, columns)
        for over_rows, over_columns in layout.bit_factors()
    )
    vectors = [p for p in demand.parameters if len(p.shape) < 2]
    return -(-bits // 8) + fullest_tile_bytes(vectors, demand.spread_bytes, rows, columns) <= tile_bytes
