"""How far elements travel over a mesh, in closed form: by stretches of neighbours that make the same way.

Elements lie in order, so a value is a few stretches of them with one tile each, and what a whole value crosses follows
from how many elements cross each boundary between two columns of tiles, and between two rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ir.layout import Ints, MatrixLayout, Split
from ir.plan import Rectangle


@dataclass(frozen=True, slots=True)
class Path:
    """``hops`` of the longest path, and ``links`` that all elements cross together."""

    hops: int
    links: int


@dataclass(frozen=True, slots=True, eq=False)
class Stretches:
    """Elements in order: stretch i ends before element ``ends[i]`` and lies on the tile ``rows[i]``, ``columns[i]``.

    Stretches may be empty, where shares are.
    """

    ends: Ints
    rows: Ints
    columns: Ints

    @property
    def elements(self) -> int:
        """How many there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def part(self, start: int, end: int) -> Stretches:
        """Elements ``start`` to ``end``, numbered from 0."""
        return Stretches(np.clip(self.ends, start, end) - start, self.rows, self.columns)

    def tiles(self, elements: Ints) -> tuple[Ints, Ints]:
        """Rows and columns of single ``elements``."""
        stretch = np.searchsorted(self.ends, elements, side="right")
        return self.rows[stretch], self.columns[stretch]


def joined(parts: list[Stretches]) -> Stretches:
    """The elements of ``parts``, one after the other."""
    starts = np.cumsum([0, *(part.elements for part in parts[:-1])])
    ends = [part.ends + start for part, start in zip(parts, starts, strict=True)]
    rows, columns = ([getattr(part, name) for part in parts] for name in ("rows", "columns"))
    return Stretches(np.concatenate(ends), np.concatenate(rows), np.concatenate(columns))


@lru_cache(maxsize=4096)
def at_home(elements: int, region: Rectangle) -> Stretches:
    """``elements`` of one token on ``region``: tile t has those from t n / tiles to (t + 1) n / tiles, rounded up.
    Where there are fewer than tiles, each is a stretch.
    """
    if elements < region.tiles:
        ends = np.arange(1, elements + 1, dtype=np.int64)
        tile = (ends - 1) * region.tiles // max(1, elements)
    else:
        tile = np.arange(region.tiles, dtype=np.int64)
        ends = -(-(tile + 1) * elements // region.tiles)
    return Stretches(ends, region.row + tile // region.columns, region.column + tile % region.columns)


def on_layout(layout: MatrixLayout, region: Rectangle) -> Stretches:
    """The elements of a weight [..., out, in], in its own order, on the tiles of its layout on ``region``."""
    (*stack, outputs, inputs), columns = layout.shape, _parts(layout.outputs)
    lines = int(np.prod(stack, dtype=np.int64)) * outputs
    ends = np.arange(lines)[:, None] * inputs + layout.inputs.bounds()[1:]
    rows = region.row + np.tile(np.arange(region.rows), lines)
    return Stretches(ends.ravel(), rows, region.column + np.tile(columns, lines // outputs).repeat(region.rows))


def _merged(ends: Ints, others: Ints) -> Ints:
    """The ends of what two rows of stretches cut each other into, of which some are empty."""
    return np.sort(np.concatenate((ends, others)))


def _parts(split: Split) -> Ints:
    """The part that each element belongs to."""
    return np.repeat(np.arange(split.parts), np.diff(split.bounds()))


def crossings(start: Ints, end: Ints, counts: Ints) -> Ints:
    """How many elements cross each boundary between neighbours, of ``counts`` elements that go from ``start`` to
    ``end`` each.
    """
    low, high = np.minimum(start, end), np.maximum(start, end)
    size = int(high.max(initial=0)) + 1
    return np.cumsum(np.bincount(low, counts, size) - np.bincount(high, counts, size)).astype(np.int64)


def travel(source: tuple[Ints, Ints], target: tuple[Ints, Ints], counts: Ints) -> Path:
    """The path of ``counts`` elements each from tiles (rows, columns) to others: along the row, then the column."""
    distance = np.abs(source[0] - target[0]) + np.abs(source[1] - target[1])
    links = sum(int(crossings(a, b, counts).sum()) for a, b in zip(source, target, strict=True))
    return Path(int(distance[counts > 0].max(initial=0)), links)


def between(source: Stretches, target: Stretches) -> Path:
    """From where elements lie to where they shall lie."""
    ends = _merged(source.ends, target.ends)
    counts = np.diff(ends, prepend=0)
    return travel(source.tiles(ends - 1), target.tiles(ends - 1), counts) if len(ends) else Path(0, 0)


@lru_cache(maxsize=65536)
def relay(elements: int, source: Rectangle, target: Rectangle) -> Path:
    """From the homes in one region to those in another."""
    return between(at_home(elements, source), at_home(elements, target))


def spread(elements: int, source: Rectangle, region: Rectangle) -> Path:
    """From the corner of a region where all tiles have them to all tiles of another."""
    apart = abs(source.row - region.row) + abs(source.column - region.column)
    return Path(apart + across(region), elements * (apart + region.tiles - 1))


def across(region: Rectangle) -> int:
    """Hops from one corner of ``region`` to the opposite one."""
    return region.rows + region.columns - 2


@dataclass(frozen=True, slots=True)
class Vectors:
    """``count`` vectors of a token from number ``first`` on, of ``all`` that share its homes."""

    count: int = 1
    first: int = 0
    all: int = 1

    def at_home(self, length: int, region: Rectangle) -> Stretches:
        """Their elements, ``length`` each."""
        start = self.first * length
        return at_home(self.all * length, region).part(start, start + self.count * length)


def _lines(split: Split, vectors: int) -> tuple[Ints, Ints]:
    """The ends of the shares of ``vectors`` vectors one after the other, and the part that has each."""
    ends = np.arange(vectors)[:, None] * split.length + split.bounds()[1:]
    return ends.ravel(), np.tile(np.arange(split.parts), vectors)


@lru_cache(maxsize=65536)
def enter(inputs: Split, vectors: Vectors, home: Rectangle, region: Rectangle, by_columns: bool) -> Path:
    """From homes in ``home`` to the nearest tile of the line of ``region`` that holds the input, and along all of it.

    A line is a row of tiles, or, ``by_columns``, a column of tiles.
    """
    source = vectors.at_home(inputs.length, home)
    line_ends, part = _lines(inputs, vectors.count)
    ends = _merged(source.ends, line_ends)
    rows, columns = source.tiles(ends - 1)
    line = part[np.searchsorted(line_ends, ends - 1, side="right")]
    if by_columns:
        target = (np.clip(rows, region.row, region.row + region.rows - 1), region.column + line)
    else:
        target = (region.row + line, np.clip(columns, region.column, region.column + region.columns - 1))
    length = (region.rows if by_columns else region.columns) - 1
    path = travel((rows, columns), target, np.diff(ends, prepend=0))
    return Path(path.hops + length, path.links + length * vectors.count * inputs.length)


@lru_cache(maxsize=65536)
def leave(outputs: Split, vectors: Vectors, region: Rectangle, home: Rectangle, by_columns: bool) -> Path:
    """From the last tiles of the lines of ``region`` that sum the outputs to their homes in ``home``."""
    ends, part = _lines(outputs, vectors.count)
    if by_columns:
        rows, columns = region.row + part, np.full_like(part, region.column + region.columns - 1)
    else:
        rows, columns = np.full_like(part, region.row + region.rows - 1), region.column + part
    return between(Stretches(ends, rows, columns), vectors.at_home(outputs.length, home))


@lru_cache(maxsize=65536)
def look_up(width: Split, vectors: Vectors, region: Rectangle) -> Path:
    """From the rows of tiles that hold a table's columns, along which all of them pass, to the homes."""
    home = vectors.at_home(width.length, region)
    line_ends, part = _lines(width, vectors.count)
    ends = _merged(home.ends, line_ends)
    rows, columns = home.tiles(ends - 1)
    source = region.row + part[np.searchsorted(line_ends, ends - 1, side="right")]
    path = travel((source, columns), (rows, columns), np.diff(ends, prepend=0))
    length = region.columns - 1
    return Path(path.hops + length, path.links + length * vectors.count * width.length)
