"""The memories of the tiles: which share of each weight lies on which tile.

The shares are those that :mod:`ir.layout` names. The host keeps them in one array for each weight, so all shares are
padded with zeros to the largest one; padding takes no part in any result, and no memory in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ir.graph import Parameter
from ir.layout import Ints, MatrixLayout, Split, matrix_layouts
from ir.ops import torch_dtype
from ir.plan import Rectangle
from ir.types import DType
from targets.emulator.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Spread:
    """A :class:`Split` as the host stores it: ``parts`` shares of ``width`` elements, the last ones padding.

    ``stored`` [length] is where each element is stored; ``elements`` [parts * width] which element each place holds
    (element 0 for padding). ``even``: there is no padding.
    """

    bounds: Ints
    width: int
    stored: torch.Tensor
    elements: torch.Tensor
    even: bool

    @staticmethod
    def of(split: Split) -> Spread:
        """The storage of ``split``."""
        bounds = split.bounds()
        sizes = np.diff(bounds)
        width = max(1, int(sizes.max()))
        stored = np.arange(split.length) + np.repeat(np.arange(split.parts) * width - bounds[:-1], sizes)
        elements = np.zeros(split.parts * width, np.int64)
        elements[stored] = np.arange(split.length)
        even = len(elements) == split.length
        return Spread(bounds, width, torch.from_numpy(stored), torch.from_numpy(elements), even)

    @property
    def sizes(self) -> Ints:
        """Elements of each part."""
        return np.diff(self.bounds)

    def pad(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """``tensor`` with zeros between its shares along ``dim``."""
        shape = list(tensor.shape)
        shape[dim] = len(self.elements)
        return tensor.new_zeros(shape).index_copy_(dim, self.stored, tensor)

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        """The shares [parts, ..., width] of ``tensor`` [..., length]; what stands in the padding is not defined."""
        padded = tensor if self.even else tensor.index_select(-1, self.elements)
        return torch.unflatten(padded, -1, (-1, self.width)).movedim(-2, 0)

    def join(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` [..., parts * width] without the padding."""
        return tensor if self.even else tensor.index_select(-1, self.stored)


@dataclass(frozen=True, slots=True)
class TileMatrix:
    """A weight [..., out, in] on its tiles: ``shares`` [row, column, ..., out share, in share].

    ``inputs`` is spread over the rows of tiles, ``outputs`` over the columns; ``to_edge`` is the number of elements
    times the links that each must cross to leave the region; ``shape`` is the weight's own, where it is a kernel.
    """

    shares: torch.Tensor
    inputs: Spread
    outputs: Spread
    to_edge: int
    shape: tuple[int, ...]

    @staticmethod
    def load(weight: torch.Tensor, layout: MatrixLayout, by_columns: bool) -> TileMatrix:
        """Cut ``weight`` into the shares that ``layout`` names.

        ``by_columns`` orders the host's array for products that are reduced along the columns of tiles; it changes
        how fast they are, not what they are.
        """
        inputs, outputs = Spread.of(layout.inputs), Spread.of(layout.outputs)
        padded = inputs.pad(outputs.pad(weight.reshape(layout.shape), -2), -1)
        tiled = torch.unflatten(torch.unflatten(padded, -1, (-1, inputs.width)), -3, (-1, outputs.width))
        shares = tiled.movedim((-2, -4), (0, 1))
        stack = math.prod(layout.shape[:-2])
        to_edge = stack * _links_to_edge(inputs.sizes, outputs.sizes)
        held = shares if by_columns else shares.contiguous()
        return TileMatrix(held, inputs, outputs, to_edge, tuple(weight.shape))

    def cast(self, dtypes: Sequence[DType]) -> TileMatrix:
        """The matrix with each tile's share cast to ``dtypes``, one after the other."""
        shares = self.shares
        for dtype in dtypes:
            shares = shares.to(torch_dtype(torch, dtype))
        return self if shares is self.shares else replace(self, shares=shares)

    def lines(self, by_columns: bool) -> torch.Tensor:
        """The tiles' shares line by line, as factors [lines, products' inputs, products' outputs].

        A line is a row of tiles, whose tiles hold the same inputs; or, ``by_columns``, a column of tiles, whose tiles
        hold the same part of the second-last axis.
        """
        if by_columns:
            return self.shares.permute(1, 2, 0, 3).flatten(2)
        return self.shares.flatten(1, 2).transpose(1, 2)

    def gather(self) -> torch.Tensor:
        """The whole weight."""
        joined = self.shares.movedim((0, 1), (-2, -4)).flatten(-4, -3).flatten(-2, -1)
        whole = self.outputs.join(self.inputs.join(joined).transpose(-2, -1)).transpose(-2, -1)
        return whole.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class TileVector:
    """A weight of at most one axis, spread evenly over all tiles in row-major order [row, column, share]."""

    shares: torch.Tensor
    spread: Spread
    shape: tuple[int, ...]
    to_edge: int

    @staticmethod
    def load(weight: torch.Tensor, rows: int, columns: int) -> TileVector:
        """Cut ``weight`` into the shares of rows x columns tiles."""
        spread = Spread.of(Split(weight.numel(), rows * columns))
        shares = spread.pad(weight.reshape(-1), 0).reshape(rows, columns, spread.width)
        row, column = np.indices((rows, columns))
        to_edge = int((spread.sizes.reshape(rows, columns) * (rows + columns - 2 - row - column)).sum())
        return TileVector(shares, spread, tuple(weight.shape), to_edge)

    def gather(self) -> torch.Tensor:
        """The whole weight."""
        return self.spread.join(self.shares.flatten()).reshape(self.shape)


def _links_to_edge(over_rows: Ints, over_columns: Ints) -> int:
    """The sum over tiles of elements (an outer product) times links to the last tile."""
    down, right = (np.arange(len(sizes))[::-1] for sizes in (over_rows, over_columns))
    return int((over_rows @ down) * over_columns.sum() + over_rows.sum() * (over_columns @ right))


@dataclass(frozen=True, slots=True)
class RegionMemory:
    """The weights in the tiles of one region, by parameter name."""

    region: Rectangle
    matrices: Mapping[str, TileMatrix]
    vectors: Mapping[str, TileVector]

    def holds(self, name: str) -> bool:
        """Whether the weight lies here."""
        return name in self.matrices or name in self.vectors

    def gather(self, name: str, mesh: Mesh) -> torch.Tensor:
        """Collect a whole weight from the tiles, for an operator that needs all of it in one place."""
        held = self.matrices.get(name) or self.vectors[name]
        mesh.gather(held.to_edge * held.shares.element_size())
        return held.gather()


def load_region(
    parameters: Sequence[Parameter],
    weights: Mapping[str, torch.Tensor],
    region: Rectangle,
    flipped: frozenset[str],
    layouts: Sequence[MatrixLayout] | None = None,
) -> RegionMemory:
    """Place ``weights`` on the tiles of ``region``, in the element types that ``parameters`` state.

    ``flipped`` names those that are mostly read with inputs along the columns of tiles; ``layouts`` are those of the
    matrices, where they do not have the region for themselves.
    """
    tensors = {p.name: weights[p.name].detach().to(torch_dtype(torch, p.type.dtype)) for p in parameters}
    if layouts is None:
        layouts = matrix_layouts(parameters, region.rows, region.columns)
    matrices = {
        layout.parameter.name: TileMatrix.load(
            tensors[layout.parameter.name], layout, by_columns=layout.parameter.name in flipped
        )
        for layout in layouts
    }
    vectors = {
        p.name: TileVector.load(tensors[p.name], region.rows, region.columns)
        for p in parameters
        if p.name not in matrices
    }
    return RegionMemory(region, matrices, vectors)


def expert_slice(parameter: Parameter) -> Parameter:
    """One expert's part of a stacked weight."""
    return Parameter(parameter.name, parameter.type.with_shape(parameter.shape[1:]), parameter.encoding)
