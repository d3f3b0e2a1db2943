"""How a block's bytes lie on its region of tiles, and what that takes of the fullest tile.

A weight [out, in] is split over the region like a matrix over a mesh: its inputs over the rows of tiles, its outputs
over the columns, each share equal to within one unit. The shares that are one unit larger start where those of the
weight before it ended, so that the remainders of a block's weights spread over all tiles instead of piling up on the
first. Vectors, caches and activations are spread evenly over all tiles. A convolution's weight [out, in, *kernel] lies
as the matrix [out, in * kernel].

Experts that share a region ("sliced") lie there one after the other: first the same matrix of every expert, then the
next matrix. From expert to expert the larger shares of inputs move on, so that 64 packed groups over 400 rows of tiles
leave no row empty; those of outputs move on from one round of neighbouring experts to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ir.graph import Parameter

Ints: TypeAlias = npt.NDArray[np.int64]
Factors: TypeAlias = tuple[Ints, Ints]
"""Per row [..., rows] and per column [..., columns]: their outer product is the bits on each tile."""
_ROUNDS = 8
"""In which the outputs of sliced experts move on: more would even out less than half a percent more."""


@dataclass(frozen=True, slots=True)
class Split:
    """``length`` elements over ``parts`` neighbours in multiples of ``unit``; the larger shares start at ``first``."""

    length: int
    parts: int
    unit: int = 1
    first: int = 0

    @property
    def extra(self) -> int:
        """How many parts hold one unit more than the others."""
        return -(-self.length // self.unit) % self.parts

    def bounds(self) -> Ints:
        """Offsets [parts + 1]: part i holds elements ``bounds[i]`` to ``bounds[i + 1]``."""
        units = _deal(-(-self.length // self.unit), self.parts, self.first)
        bounds = np.zeros(self.parts + 1, np.int64)
        np.cumsum(units * self.unit, out=bounds[1:])
        return np.minimum(bounds, self.length)

    @property
    def largest(self) -> int:
        """Elements of the largest share."""
        return min(self.length, -(-self.length // (self.unit * self.parts)) * self.unit)


def _deal(units: int, parts: int, first: int) -> Ints:
    """``units`` dealt out to ``parts``, the larger shares from ``first`` on."""
    base, extra = divmod(units, parts)
    shares = np.full(parts, base, np.int64)
    shares[first : first + extra] += 1
    shares[: max(0, first + extra - parts)] += 1
    return shares


@dataclass(frozen=True, slots=True)
class MatrixLayout:
    """One weight [out, in] on a region: ``inputs`` over its rows of tiles, ``outputs`` over its columns.

    ``shape`` is the weight's as matrices [..., out, in].
    """

    parameter: Parameter
    inputs: Split
    outputs: Split
    shape: tuple[int, ...]

    def bit_factors(self) -> tuple[Factors, ...]:
        """Factors whose outer products sum to the bits on each tile.

        The first pair stands for the elements, a second for scales, which are copied to each tile that needs them.
        """
        encoding = self.parameter.encoding
        rows, columns = self.inputs.bounds(), self.outputs.bounds()
        stack = math.prod(self.shape[:-2])
        elements = (np.diff(rows) * encoding.bits * stack, np.diff(columns))
        if not encoding.scale_bytes:
            return (elements,)
        scales = (
            _groups(rows, encoding.group_in) * encoding.scale_bytes * 8 * stack,
            _groups(columns, encoding.group_out),
        )
        return (elements, scales)

    @property
    def most_bits(self) -> int:
        """At least the bits on the fullest tile, without working out each tile's."""
        encoding = self.parameter.encoding
        inputs, outputs = self.inputs.largest, self.outputs.largest
        groups = _most_groups(inputs, encoding.group_in) * _most_groups(outputs, encoding.group_out)
        return math.prod(self.shape[:-2]) * (inputs * outputs * encoding.bits + groups * encoding.scale_bytes * 8)


def _most_groups(elements: int, group: int) -> int:
    """Groups of ``group`` that so many neighbours touch at most."""
    return (elements + group - 2) // group + 1


def _groups(bounds: Ints, group: int) -> Ints:
    """How many groups of ``group`` elements each part touches."""
    starts, ends = bounds[:-1], bounds[1:]
    return np.where(ends > starts, (ends - 1) // group - starts // group + 1, 0)


def matrix_shape(parameter: Parameter) -> tuple[int, ...]:
    """The shape of a weight of two axes or more as matrices [..., out, in].

    Three axes are a stack of matrices where the last is longer than the first; else, like four and more, they are a
    kernel with its outputs first, whose few positions would leave most tiles empty. Scaled groups stay in their rows.
    """
    shape = parameter.shape
    kernel = len(shape) > 3 or (len(shape) == 3 and shape[2] < shape[0])
    if kernel and not parameter.encoding.scale_bytes:
        return shape[0], math.prod(shape[1:])
    return shape


def matrix_layouts(parameters: Sequence[Parameter], rows: int, columns: int) -> tuple[MatrixLayout, ...]:
    """Where the matrices among ``parameters`` lie on a region of ``rows`` x ``columns`` tiles.

    Of a stack of matrices, each tile holds its share of every one (experts, whose matrices lie apart, are given one by
    one).
    """
    layouts = []
    first_row = first_column = 0
    for parameter in parameters:
        if len(parameter.shape) < 2:
            continue
        shape = matrix_shape(parameter)
        outputs, inputs = shape[-2:]
        over_rows = Split(inputs, rows, parameter.encoding.align_in, first_row)
        over_columns = Split(outputs, columns, 1, first_column)
        first_row = (first_row + over_rows.extra) % rows
        first_column = (first_column + over_columns.extra) % columns
        layouts.append(MatrixLayout(parameter, over_rows, over_columns, shape))
    return tuple(layouts)


@dataclass(frozen=True, slots=True)
class _Round:
    """The same matrix of ``experts`` neighbouring experts on a region that all share; ``first`` is the first one's."""

    first: MatrixLayout
    experts: int

    def layout(self, number: int) -> MatrixLayout:
        """That of expert ``number`` of the round: its larger shares of inputs start where those before it ended."""
        inputs = self.first.inputs
        start = (inputs.first + number * inputs.extra) % inputs.parts
        return replace(self.first, inputs=replace(inputs, first=start))


def _rounds(parameters: Sequence[Parameter], experts: int, rows: int, columns: int) -> Iterator[_Round]:
    """All matrices of sliced experts, in the order in which they are laid out."""
    size = -(-experts // _ROUNDS)
    first_row = first_column = 0
    for parameter in parameters:
        if len(parameter.shape) < 2:
            continue
        shape = matrix_shape(parameter)
        outputs, inputs = shape[-2:]
        encoding = parameter.encoding
        # As experts even out what one of them leaves uneven, groups that share a scale need not be parted.
        whole = encoding.scale_bytes and encoding.group_in < inputs
        unit = encoding.group_in if whole else encoding.align_in
        for start in range(0, experts, size):
            count = min(size, experts - start)
            over_rows, over_columns = Split(inputs, rows, unit, first_row), Split(outputs, columns, 1, first_column)
            first_row = (first_row + count * over_rows.extra) % rows
            first_column = (first_column + over_columns.extra) % columns
            yield _Round(MatrixLayout(parameter, over_rows, over_columns, shape), count)


def sliced_layouts(
    parameters: Sequence[Parameter], experts: int, rows: int, columns: int
) -> tuple[tuple[MatrixLayout, ...], ...]:
    """For each of ``experts`` that share a region of ``rows`` x ``columns`` tiles, where its matrices lie there.

    ``parameters`` are those of one expert.
    """
    rounds = list(_rounds(parameters, experts, rows, columns))
    by_parameter = [
        [r.layout(number) for r in rounds if r.first.parameter is parameter for number in range(r.experts)]
        for parameter in parameters
        if len(parameter.shape) >= 2
    ]
    return tuple(tuple(own[expert] for own in by_parameter) for expert in range(experts))


def tile_factors(parameters: Sequence[Parameter], rows: int, columns: int, sliced: int = 0) -> Factors:
    """``over_rows`` [n, rows] and ``over_columns`` [n, columns]: ``over_rows.T @ over_columns`` is the bits of all
    matrices on each tile of a region.

    ``sliced`` experts with ``parameters`` each share the region, where it is not 0. Of inputs that no unit divides,
    their last unit then counts whole.
    """
    if sliced:
        return _sliced_factors(list(_rounds(parameters, sliced, rows, columns)), rows, columns)
    factors = [pair for layout in matrix_layouts(parameters, rows, columns) for pair in layout.bit_factors()]
    return _stacked([row for row, _ in factors], rows), _stacked([column for _, column in factors], columns)


def _sliced_factors(rounds: Sequence[_Round], rows: int, columns: int) -> Factors:
    inputs, outputs = ([r.first.inputs for r in rounds], [r.first.outputs for r in rounds])
    # Consecutive experts deal out their units as one long row of units would be.
    counts = [r.experts * -(-split.length // split.unit) for r, split in zip(rounds, inputs, strict=True)]
    dealt = [_deal(count, rows, split.first) for count, split in zip(counts, inputs, strict=True)]
    units = _stacked(dealt, rows)
    over_columns = _stacked([_deal(split.length, columns, split.first) for split in outputs], columns)
    over_rows = units * np.array([_unit_bits(r) for r in rounds], np.int64)[:, None]
    apart = [index for index, r in enumerate(rounds) if r.first.parameter.encoding.scale_bytes and not _scaled(r)]
    if not apart:
        return over_rows, over_columns
    scale_rows, scale_columns = [], []
    for index in apart:
        own, encoding = rounds[index], rounds[index].first.parameter.encoding
        groups = units[index] if own.first.inputs.unit == encoding.group_in else np.minimum(units[index], own.experts)
        scale_rows.append(groups * encoding.scale_bytes * 8 * math.prod(own.first.shape[:-2]))
        scale_columns.append(_groups(own.first.outputs.bounds(), encoding.group_out))
    return np.vstack((over_rows, scale_rows)), np.vstack((over_columns, scale_columns))


def _scaled(own: _Round) -> bool:
    """Whether every output has a scale of its own for each unit of inputs."""
    encoding = own.first.parameter.encoding
    return bool(encoding.scale_bytes) and encoding.group_out == 1 and own.first.inputs.unit == encoding.group_in


def _unit_bits(own: _Round) -> int:
    """Bits that one unit of inputs takes for each output, its scale included where it has one of its own."""
    encoding = own.first.parameter.encoding
    scale = encoding.scale_bytes * 8 if _scaled(own) else 0
    return (own.first.inputs.unit * encoding.bits + scale) * math.prod(own.first.shape[:-2])


def _stacked(factors: Sequence[Ints], length: int) -> Ints:
    return np.stack(factors) if factors else np.zeros((0, length), np.int64)


def fullest_tile_bytes(
    parameters: Sequence[Parameter], spread_bytes: int, rows: int, columns: int, sliced: int = 0
) -> int:
    """Bytes on the fullest tile of a region that holds ``parameters`` and ``spread_bytes`` of caches and the like.

    ``sliced`` experts with ``parameters`` each share the region, where it is not 0.
    """
    spread = spread_tile_bytes(parameters, spread_bytes, rows * columns, sliced)
    over_rows, over_columns = tile_factors(parameters, rows, columns, sliced)
    return spread + fullest_bytes(over_rows, over_columns)


def fullest_bytes(over_rows: Ints, over_columns: Ints) -> int:
    """Bytes of the matrices with these factors on the fullest tile."""
    # Floating-point products are much faster, and exact up to 2**53 bits.
    return -(-int((over_rows.T.astype(np.float64) @ over_columns.astype(np.float64)).max()) // 8)


def spread_tile_bytes(parameters: Sequence[Parameter], spread_bytes: int, tiles: int, sliced: int = 0) -> int:
    """Bytes on the fullest of ``tiles`` tiles of vectors and what is spread evenly."""
    vectors = sum(-(-p.elements // tiles) * p.encoding.bits // 8 for p in parameters if len(p.shape) < 2)
    return -(-spread_bytes // tiles) + vectors * max(1, sliced)
