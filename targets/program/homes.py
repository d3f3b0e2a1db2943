"""Where the elements of a value lie: one rule for all of them.

Of a value with ``n`` elements for each token, element ``e`` lies on tile ``e * tiles // n`` of its block's region,
counted row by row. So shares differ by one element at most, as the plan's memory supposes; elements of a row of tiles
are neighbours, as a product's inputs are; and vectors of the same length lie alike, so that what treats elements alone
needs no mesh. Tokens change nothing: each token's elements lie where the others' do.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np

from ir.layout import Ints
from ir.plan import Rectangle

Tiles: TypeAlias = tuple[Ints, Ints]
"""Rows and columns of the wafer's mesh, one of each for every element."""


def shares(elements: int, region: Rectangle) -> Ints:
    """How many of ``elements`` elements each tile of ``region`` holds [rows, columns]."""
    bounds = -(-np.arange(region.tiles + 1, dtype=np.int64) * elements // region.tiles)
    return np.diff(bounds).reshape(region.rows, region.columns)


@lru_cache(maxsize=1024)
def homes(elements: int, region: Rectangle) -> Tiles:
    """The tiles of each of ``elements`` elements on ``region``: rows and columns of the wafer's mesh [elements]."""
    tile = np.arange(elements, dtype=np.int64) * region.tiles // max(1, elements)
    return region.row + tile // region.columns, region.column + tile % region.columns
