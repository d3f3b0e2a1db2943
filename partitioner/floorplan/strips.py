"""Floor plans made of vertical strips: blocks stand on each other in strips, strips stand side by side.

For blocks in a given order and any number of strips, dynamic programming finds the strips of least total width; a
wafer can be laid out this way if that width is at most the mesh's. Blocks in pipeline order keep neighbours close; if
they do not fit, other orders are tried, largest blocks first. Blocks that are to have more tiles than they need get
them where there is room.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ir.plan import Rectangle
from partitioner.floorplan.shapes import NEVER, Shape, Shapes, Widths

Placement = tuple[Rectangle, Shape]
"""A block's rectangle, and the shape that fills it."""


_ASPECTS = (4.0, 12.0, math.inf)
"""Limits on how elongated a region may be, tried in turn: compact regions need fewer hops."""


_HALVINGS = 6
"""Of the share of the targets that a wafer has room for."""


def arrange(
    shapes: Sequence[Shapes], width: int, height: int, targets: Sequence[int] | None = None
) -> list[Placement] | None:
    """A rectangle for each block on a mesh of ``width`` x ``height`` tiles; ``None`` if no order of strips fits.

    With ``targets``, each block gets about so many tiles; if there is no room, the largest share of what the blocks
    would have beyond their least need, the same for all.
    """
    for aspect in _ASPECTS:
        found = _at(aspect, shapes, width, height, None)
        if found is not None:
            return found if targets is None else _grown(found, aspect, shapes, width, height, targets)
    return None


def _grown(
    least: list[Placement], aspect: float, shapes: Sequence[Shapes], width: int, height: int, targets: Sequence[int]
) -> list[Placement]:
    """The arrangement with the largest share of ``targets`` beyond the ``least`` need, found by bisection."""
    best, low, high = least, 0.0, 1.0
    share = high
    for _ in range(_HALVINGS):
        wanted = [
            round(shape.least_tiles + share * max(0, target - shape.least_tiles))
            for shape, target in zip(shapes, targets, strict=True)
        ]
        found = _at(aspect, shapes, width, height, wanted)
        if found is None:
            high = share
        else:
            best, low = found, share
        if low == high:
            break
        share = (low + high) / 2
    return [_settle(own, placed) for own, placed in zip(shapes, best, strict=True)]


def _settle(shapes: Shapes, placed: Placement) -> Placement:
    rectangle, shape = placed
    settled = shapes.settled(shape)
    return replace(rectangle, rows=settled.rows * settled.down), settled


def _at(
    aspect: float, shapes: Sequence[Shapes], width: int, height: int, tiles: Sequence[int] | None
) -> list[Placement] | None:
    """The arrangement of shapes of at most ``aspect`` with ``tiles`` each (``None``: the least), if an order fits."""
    blocks = [shape.limited(aspect, own) for shape, own in zip(shapes, tiles or [0] * len(shapes), strict=True)]
    for order in _orders(blocks):
        strips = _narrowest([blocks[index] for index in order], width, height)
        if strips is not None:
            placed = _stack([blocks[index] for index in order], strips)
            return [placed[order.index(index)] for index in range(len(blocks))]
    return None


def _orders(blocks: Sequence[Widths]) -> list[list[int]]:
    """Orders to stack blocks in: as the pipeline has them; large before small; and large and small in turn."""
    areas = [int(np.min(block.heights * np.arange(1, len(block.heights) + 1))) for block in blocks]
    by_area = sorted(range(len(blocks)), key=lambda index: -areas[index])
    in_turn = [index for pair in zip(by_area, reversed(by_area), strict=True) for index in pair]
    return [list(range(len(blocks))), by_area, list(dict.fromkeys(in_turn))]


def _narrowest(shapes: Sequence[Widths], width: int, height: int) -> list[tuple[int, int, int]] | None:
    """Strips (first block, end, width) of least total width, or ``None`` if that is more than ``width``."""
    count = len(shapes)
    heights = np.stack([shape.heights for shape in shapes], axis=1)
    sums = np.concatenate((np.zeros((width, 1), dtype=np.int64), np.cumsum(heights, axis=1)), axis=1)
    least = [0] + [NEVER] * count
    begin = [0] * (count + 1)
    strip_width = [0] * (count + 1)
    for start in range(count):
        if least[start] >= NEVER:
            continue
        fits = sums[:, start + 1 :] - sums[:, start : start + 1] <= height
        narrow = np.where(fits.any(axis=0), fits.argmax(axis=0) + 1, NEVER)
        for end, needed in enumerate(narrow.tolist(), start=start + 1):
            if least[start] + needed < least[end]:
                least[end], begin[end], strip_width[end] = least[start] + needed, start, needed
    if least[count] > width:
        return None
    strips: list[tuple[int, int, int]] = []
    end = count
    while end:
        strips.append((begin[end], end, strip_width[end]))
        end = begin[end]
    return strips[::-1]


def _stack(shapes: Sequence[Widths], strips: Sequence[tuple[int, int, int]]) -> list[Placement]:
    placed: list[Placement] = []
    column = 0
    for start, end, width in strips:
        row = 0
        for index in range(start, end):
            shape = shapes[index].at(width)
            rectangle = Rectangle(column, row, shape.columns * shape.across, shape.rows * shape.down)
            placed.append((rectangle, shape))
            row += rectangle.rows
        column += width
    return placed
