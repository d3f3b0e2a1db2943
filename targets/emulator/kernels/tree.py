"""Who meets whom when elements of a row meet: on a tile, along rows of tiles to the first column, then down it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch

from ir.layout import Ints
from ir.plan import Rectangle
from targets.emulator.scope import Tensor
from targets.program.homes import homes


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """Sums of a token's elements, level by level: what meets in each is a row of an index [groups, most] into what the
    level before it yielded, filled up with an index one beyond the last.

    ``local`` is what a tile does with its own share; each of ``across`` is a chain, one after the other. ``rows`` is
    the sum that each element belongs to, ``places`` its number among those of it.
    """

    local: Tensor
    across: tuple[Tensor, ...]
    rows: Tensor
    places: Tensor

    def fold(
        self, values: Tensor, neutral: float, on_tile: Callable[[Tensor], Tensor], pair: Callable[..., Tensor]
    ) -> Tensor:
        """Values [tokens, elements, ...] -> sums [tokens, rows, ...]: ``on_tile`` adds up an axis -2 of a tile's own
        elements, ``pair`` what arrives from a neighbour.
        """
        found = on_tile(taken(values, self.local, neutral))
        for level in self.across:
            first, *others = taken(found, level, neutral).unbind(2)
            for other in others:
                first = pair(first, other)
            found = first
        return found


def taken(values: Tensor, index: Tensor, neutral: float) -> Tensor:
    """Values [tokens, n, ...] by an index [groups, most] -> [tokens, groups, most, ...]; ``neutral`` for number n."""
    none = values.new_full((values.shape[0], 1, *values.shape[2:]), neutral)
    return torch.cat((values, none), dim=1)[:, index]


@lru_cache(maxsize=4096)
def over_mesh(shape: tuple[int, ...], axes: tuple[int, ...], region: Rectangle, device: str) -> Tree:
    """For a token's elements of ``shape``, which lie at their homes in ``region`` and meet along ``axes``."""
    rows, places = _rows(shape, axes)
    row, column = homes(len(rows), region)
    # Sums travel against the order of columns, to the first one, and then down it.
    tiles = (row - region.row) * region.columns + (region.columns - 1 - (column - region.column))
    keys = rows * region.tiles + tiles
    order = np.argsort(keys, kind="stable")
    local, keys = _groups(keys[order])
    along, keys = _groups(keys // region.columns)
    down, _ = _groups(keys // region.rows)
    local = np.append(order, len(order))[local]
    return _tree(local, (along, down), rows, places, device)


@lru_cache(maxsize=4096)
def at_homes(shape: tuple[int, ...], axes: tuple[int, ...], device: str) -> Tree:
    """For elements that travel to where their sum lies, and are added up there in their order."""
    rows, places = _rows(shape, axes)
    order = np.argsort(rows, kind="stable")
    index, _ = _groups(rows[order])
    return _tree(np.arange(len(rows))[:, None], (np.append(order, len(order))[index],), rows, places, device)


def _rows(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Ints, Ints]:
    """For each element the number of the sum that it belongs to, and its own among those that meet there."""
    ones = (1,) * len(shape)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    met = tuple(size if axis in axes else 1 for axis, size in enumerate(shape))
    rows, places = (np.arange(prod(part)).reshape(part or ones) for part in (kept, met))
    return np.broadcast_to(rows, shape).ravel(), np.broadcast_to(places, shape).ravel()


def _groups(keys: Ints) -> tuple[Ints, Ints]:
    """Positions with equal keys, which are neighbours, as an index [groups, most], and the groups' keys."""
    found, starts, counts = np.unique(keys, return_index=True, return_counts=True)
    reach = np.arange(counts.max(initial=1))
    index = np.where(reach < counts[:, None], starts[:, None] + reach, len(keys))
    return index, found


def _tree(local: Ints, across: tuple[Ints, ...], rows: Ints, places: Ints, device: str) -> Tree:
    local_, rows_, places_ = (torch.tensor(index, device=device) for index in (local, rows, places))
    return Tree(local_, tuple(torch.tensor(index, device=device) for index in across), rows_, places_)
