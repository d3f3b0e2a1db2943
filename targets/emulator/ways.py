"""How far elements travel over a mesh: counted element by element, once for each weight and region."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch

from ir.layout import Ints, Split
from ir.ops import OPS
from ir.plan import Rectangle
from targets.program.homes import Tiles, homes


@dataclass(frozen=True, slots=True)
class Way:
    """``hops`` of the longest path, and ``links`` that the elements of one token cross, all together."""

    hops: int
    links: int

    @staticmethod
    def of(links: Ints) -> Way:
        """The way of elements that cross so many links each."""
        return Way(int(links.max(initial=0)), int(links.sum()))


def between(source: Tiles, target: Tiles) -> Ints:
    """Links from tile to tile for each element."""
    links: Ints = np.abs(source[0] - target[0]) + np.abs(source[1] - target[1])
    return links


@lru_cache(maxsize=65536)
def relay_way(elements: int, source: Rectangle, target: Rectangle) -> Way:
    """From the homes in one region to those in another."""
    return Way.of(between(homes(elements, source), homes(elements, target)))


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of a token that make the same way, by their numbers ``which`` among ``of`` that share the token's homes:
    all heads of a value [tokens, heads, width], or the one that an expert was chosen for.
    """

    which: range = range(1)
    of: int = 1

    def homes(self, length: int, region: Rectangle) -> Tiles:
        """The tiles of their elements, ``length`` each, on ``region``."""
        row, column = homes(self.of * length, region)
        place = slice(self.which.start * length, self.which.stop * length)
        return row[place], column[place]


@lru_cache(maxsize=65536)
def enter_way(inputs: Split, vectors: Vectors, home: Rectangle, region: Rectangle, by_columns: bool) -> Way:
    """From homes in ``home`` onto the lines of ``region`` that hold the inputs, and along each to its other end.

    A line is a row of tiles, or, ``by_columns``, a column of tiles.
    """
    row, column = vectors.homes(inputs.length, home)
    line = np.tile(lines_of(inputs), len(vectors.which))
    if by_columns:
        across, along = np.abs(region.column + line - column), _outside(row, region.row, region.rows)
        length = region.rows - 1
    else:
        across, along = np.abs(region.row + line - row), _outside(column, region.column, region.columns)
        length = region.columns - 1
    return Way.of(across + along + length)


def lines_of(split: Split) -> Ints:
    """The line of tiles, as parts of a split are, that each element belongs to."""
    return np.repeat(np.arange(split.parts), np.diff(split.bounds()))


def _outside(place: Ints, first: int, count: int) -> Ints:
    """How far each place lies outside of ``count`` neighbours from ``first`` on."""
    return np.maximum(0, np.maximum(first - place, place - (first + count - 1)))


@lru_cache(maxsize=65536)
def leave_way(outputs: Split, vectors: Vectors, region: Rectangle, home: Rectangle, by_columns: bool) -> Way:
    """From the last tiles of the lines of ``region`` that sum the outputs to their homes in ``home``."""
    line = np.tile(lines_of(outputs), len(vectors.which))
    last_row, last_column = region.row + region.rows - 1, region.column + region.columns - 1
    if by_columns:
        source = (region.row + line, np.full_like(line, last_column))
    else:
        source = (np.full_like(line, last_row), region.column + line)
    return Way.of(between(source, vectors.homes(outputs.length, home)))


@lru_cache(maxsize=65536)
def look_up_way(width: Split, vectors: Vectors, region: Rectangle) -> Way:
    """From the rows of tiles that hold a table's columns, along which all of them pass, to the homes."""
    row, _ = vectors.homes(width.length, region)
    line = np.tile(lines_of(width), len(vectors.which))
    return Way.of(np.abs(region.row + line - row) + region.columns - 1)


@lru_cache(maxsize=65536)
def spread_way(elements: int, source: Rectangle, region: Rectangle) -> Way:
    """From the corner of a region that has all of them to all tiles of another."""
    links = abs(source.row - region.row) + abs(source.column - region.column)
    hops = links + region.rows + region.columns - 2
    return Way(hops, elements * (links + region.tiles - 1))


@lru_cache(maxsize=65536)
def corner_way(elements: int, region: Rectangle) -> Way:
    """Between the homes and the region's first tile."""
    row, column = homes(elements, region)
    return Way.of(row - region.row + column - region.column)


_MOST_AT_ONCE = 1 << 22
"""Elements of a matrix whose way is counted at once."""


@lru_cache(maxsize=4096)
def layout_way(
    inputs: Split, outputs: Split, shape: tuple[int, ...], region: Rectangle, start: int, elements: int, home: Rectangle
) -> Way:
    """From the tiles of ``region`` on which a matrix [..., out, in] lies to the homes of its elements, number ``start``
    and so on of ``elements``, in ``home``; to the first tile of ``home`` if there are none.
    """
    stack, columns = int(np.prod(shape[:-2])), region.column + lines_of(outputs)
    rows, at_once = region.row + lines_of(inputs), max(1, _MOST_AT_ONCE // inputs.length)
    ways = []
    for first in range(0, stack * outputs.length, at_once):
        lines = np.arange(first, min(first + at_once, stack * outputs.length))
        element = start + lines[:, None] * inputs.length + np.arange(inputs.length)
        source = (rows, columns[lines % outputs.length, None])
        ways.append(Way.of(between(source, _homes_of(element, elements, home))))
    return Way(max((way.hops for way in ways), default=0), sum(way.links for way in ways))


def vector_way(length: int, region: Rectangle, start: int, elements: int, home: Rectangle) -> Way:
    """From the homes of a vector's elements on ``region`` to where :func:`layout_way` says."""
    return Way.of(between(homes(length, region), _homes_of(start + np.arange(length), elements, home)))


def _homes_of(element: Ints, elements: int, home: Rectangle) -> Tiles:
    """The tiles of single ones of ``elements`` on ``home``, or its first tile if there are none."""
    tile = element * home.tiles // elements if elements else np.zeros_like(element)
    return home.row + tile // home.columns, home.column + tile % home.columns


Operands = tuple[tuple[tuple[int, ...], bool], ...]
"""The shape of each for one token, and whether it lies apart."""
_NOWHERE = -1


@lru_cache(maxsize=65536)
def move_way(op: str, operands: Operands, attributes: tuple[tuple[str, Any], ...], region: Rectangle) -> Way:
    """From the homes of the operands' elements to those that they have in the result of ``op``.

    Which element is which is found by running the operator on their numbers.
    """
    numbers: list[torch.Tensor] = []
    sources: list[Tiles] = []
    for shape, is_apart in operands:
        own = np.arange(prod(shape)) + sum(len(row) for row, _ in sources)
        numbers.append(torch.from_numpy(own if is_apart else np.full_like(own, _NOWHERE)).reshape(shape))
        sources.append(homes(len(own), region))
    given = dict(attributes)
    if "value" in given:
        given["value"] = _NOWHERE
    found = OPS[op].reference(torch, numbers, given).flatten().numpy()
    coming = np.flatnonzero(found != _NOWHERE)
    rows, columns = (np.concatenate([source[axis] for source in sources])[found[coming]] for axis in (0, 1))
    row, column = homes(len(found), region)
    return Way.of(between((rows, columns), (row[coming], column[coming])))


@lru_cache(maxsize=65536)
def combine_way(shape: tuple[int, ...], axes: tuple[int, ...], region: Rectangle) -> Way:
    """From the homes of the elements of a value to those of the elements that they are summed to, along ``axes``."""
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    sums = np.broadcast_to(np.arange(prod(kept)).reshape(kept), shape).ravel()
    row, column = homes(prod(kept), region)
    return Way.of(between(homes(prod(shape), region), (row[sums], column[sums])))
