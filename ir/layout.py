"""How a block's bytes lie on its region of tiles, and what that takes of the fullest tile.

A weight [out, in] is split over the region like a matrix over a mesh: its inputs over the rows of tiles, its outputs
over the columns, each share equal to within one unit. The shares that are one unit larger start where those of the
weight before it ended, so that the remainders of a block's weights spread over all tiles instead of piling up on the
first. Vectors, caches and activations are spread evenly over all tiles. A convolution's weight [out, in, *kernel] lies
as the matrix [out, in * kernel].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ir.graph import Parameter

Ints: TypeAlias = npt.NDArray[np.int64]


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
        base = -(-self.length // self.unit) // self.parts
        larger = (np.arange(self.parts) - self.first) % self.parts < self.extra
        ends = np.cumsum((base + larger) * self.unit)
        return np.minimum(np.concatenate(([0], ends)), self.length)


@dataclass(frozen=True, slots=True)
class MatrixLayout:
    """One weight [out, in] on a region: ``inputs`` over its rows of tiles, ``outputs`` over its columns.

    ``shape`` is the weight's as matrices [..., out, in].
    """

    parameter: Parameter
    inputs: Split
    outputs: Split
    shape: tuple[int, ...]

    def bit_factors(self) -> tuple[tuple[Ints, Ints], ...]:
        """Pairs (per row [rows], per column [columns]) whose outer products sum to the bits on each tile.

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


def fullest_tile_bytes(parameters: Sequence[Parameter], spread_bytes: int, rows: int, columns: int) -> int:
    """Bytes on the fullest tile of a region that holds ``parameters`` and ``spread_bytes`` of caches and the like."""
    tiles = rows * columns
    vectors = sum(-(-p.elements // tiles) * p.encoding.bits // 8 for p in parameters if len(p.shape) < 2)
    spread = -(-spread_bytes // tiles) + vectors
    factors = [pair for layout in matrix_layouts(parameters, rows, columns) for pair in layout.bit_factors()]
    if not factors:
        return spread
    over_rows = np.stack([row for row, _ in factors], axis=1).astype(np.float64)
    over_columns = np.stack([column for _, column in factors], axis=0).astype(np.float64)
    return spread + -(-int((over_rows @ over_columns).max()) // 8)
