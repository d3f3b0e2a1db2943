"""Products that attention applies to queries and results, in the place of keys and values made from a latent.

The weight lies on its tiles like any matrix [out, in]: inputs over the rows of tiles, outputs over the columns. A head
has some of the outputs. Forward, a head's vector enters the rows of tiles and goes along as many columns as hold the
head's outputs; sums go down the columns. Backward, on a query, its elements enter the columns that hold them, and sums
of the inputs go along the rows, from the first of the head's columns to the last. (Where the weight lies as [in, out],
rows and columns change places.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from ir.layout import Ints
from ir.plan import Rectangle
from targets.emulator.arithmetic import Order
from targets.emulator.kernels.products import Matrix
from targets.emulator.scope import Scope
from targets.emulator.ways import Way, lines_of
from targets.program.homes import homes
from targets.program.instructions import CachedAttention, Instruction, is_transposed
from targets.program.remembered import Look, Piece, Table
from targets.program.spread import SUM_BYTES

Tensor = torch.Tensor


def to_keys(query: Tensor, look: Look, cached: CachedAttention, scope: Scope) -> list[Tensor]:
    """A query [stacks, heads, queries, width] as pieces that meet what is cached [stacks, heads, queries, elements]."""
    parts = torch.split(query, [piece.width for piece in look.keys], dim=-1)
    return [
        part if piece.product is None else _backward(part, piece, cached.products[piece.product], scope)
        for piece, part in zip(look.keys, parts, strict=True)
    ]


def from_values(seen: Tensor, look: Look, cached: CachedAttention, scope: Scope) -> Tensor:
    """Weighted elements of the cache [stacks, heads, queries, elements] as results [stacks, heads, queries, width]."""
    parts = torch.split(seen, [piece.seen for piece in look.values], dim=-1)
    made = [
        part if piece.product is None else _forward(part, piece, cached.products[piece.product], scope)
        for piece, part in zip(look.values, parts, strict=True)
    ]
    return made[0] if len(made) == 1 else torch.cat(made, dim=-1)


def _backward(query: Tensor, piece: Piece, product: Instruction, scope: Scope) -> Tensor:
    """Each head's query times the rows that make its key: [.., width] -> [.., inputs]."""
    rows = _rows(piece.rows, product, scope)  # [key heads, width, inputs]
    x = _by_key_head(query, len(rows))
    if scope.arithmetic.order is Order.HOST:
        return _as_heads(x @ rows, query)
    total = x.new_zeros(*x.shape[:2], rows.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    lines = lines_of(_matrix(product, scope).outputs)[piece.rows.numbers]
    for line in np.unique(lines):
        own = lines == line
        heads = torch.from_numpy(np.flatnonzero(own.any(axis=1)))
        mask = torch.from_numpy(own[own.any(axis=1)]).to(total)[:, None]
        total[heads] += (x[heads].to(total) * mask) @ rows[heads].to(total)
    return _as_heads(total.to(query.dtype), query)


def _forward(seen: Tensor, piece: Piece, product: Instruction, scope: Scope) -> Tensor:
    """Each head's weighted inputs times the rows that make its value: [.., inputs] -> [.., width]."""
    rows = _rows(piece.rows, product, scope).transpose(1, 2)
    x = _by_key_head(seen, len(rows))
    if scope.arithmetic.order is Order.HOST:
        return _as_heads(x @ rows, seen)
    total = x.new_zeros(*x.shape[:2], rows.shape[2], dtype=torch.promote_types(x.dtype, torch.float32))
    for start, end in pairwise(_matrix(product, scope).inputs.bounds().tolist()):
        if end > start:
            total += x[..., start:end].to(total) @ rows[:, start:end].to(total)
    return _as_heads(total.to(seen.dtype), seen)


def _by_key_head(x: Tensor, heads: int) -> Tensor:
    """X [1, heads, queries, width] as [key heads, queries of all heads that share one, width]."""
    return x.reshape(heads, -1, x.shape[-1])


def _as_heads(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(*like.shape[:-1], -1)


def _rows(table: Table, product: Instruction, scope: Scope) -> Tensor:
    """Rows of a product's weight, as [heads, width, inputs]: a view where they are evenly apart."""
    read = product.weights[1]
    weight = scope.memory.own.values(read.parameter, read.casts)
    weight = weight.T if is_transposed(product) else weight
    if table.steps is None:
        return weight[torch.from_numpy(table.numbers).to(weight.device)]
    start, by_head, by_element = table.steps
    outputs, inputs = weight.stride()
    shape = (*table.numbers.shape, weight.shape[1])
    offset = weight.storage_offset() + start * outputs
    return weight.as_strided(shape, (by_head * outputs, by_element * outputs, inputs), offset)


def _matrix(product: Instruction, scope: Scope) -> Matrix:
    own = scope.memory.own
    return Matrix.of(own.layouts[product.weights[1].parameter], is_transposed(product), own.region)


# --- what it moves ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the vectors of one piece have their homes among those of all: from ``rows`` on of ``width`` elements of a
    head's key or value, and from ``inputs`` on of ``seen`` elements that attention looks at.
    """

    heads: int
    rows: int
    width: int
    inputs: int
    seen: int


def count_by_head(
    pieces: tuple[Piece, ...], cached: CachedAttention, scope: Scope, name: str, heads: int, tokens: int, forward: bool
) -> None:
    """Count the products of ``pieces``, on the query or (``forward``) on the result ``name`` of ``heads`` heads."""
    element_bytes = scope.element_bytes(name)
    width, seen = sum(piece.width for piece in pieces), sum(piece.seen for piece in pieces)
    rows = inputs = 0
    for piece in pieces:
        if piece.product is not None:
            product = cached.products[piece.product]
            places = _Places(heads, rows, width, inputs, seen)
            ways = _ways(piece.rows, _matrix(product, scope), places, forward)
            sizes = {"enter": element_bytes, "chain": max(SUM_BYTES, element_bytes), "leave": element_bytes}
            for (collective, size), way in zip(sizes.items(), ways, strict=True):
                scope.mesh.move(collective, way, size, tokens)
            scope.meter.multiply_adds(tokens * heads * piece.width * piece.seen)
        rows, inputs = rows + piece.width, inputs + piece.seen


@lru_cache(maxsize=4096)
def _ways(table: Table, matrix: Matrix, places: _Places, forward: bool) -> tuple[Way, Way, Way]:
    """Of one token: onto the lines of tiles, along them where sums meet, and home."""
    flipped, region, heads, inputs = matrix.transposed, matrix.region, places.heads, matrix.inputs
    own = lines_of(matrix.outputs)[table.numbers]
    lines = np.repeat(own, heads // len(table.numbers), axis=0)  # [heads, width]
    first, last = lines.min(axis=1, keepdims=True), lines.max(axis=1, keepdims=True)
    tall = (region.columns if flipped else region.rows) - 1
    low_row, low_column = _homes_of(heads, places.width, places.rows, lines.shape[1], region, flipped)
    row, column = _homes_of(heads, places.seen, places.inputs, inputs.length, region, flipped)
    level = lines_of(inputs)[None]
    if forward:
        enter = np.abs(level - row) + np.maximum(0, np.maximum(first - column, column - last)) + last - first
        chain = np.full_like(lines, tall)
        leave = tall - low_row + np.abs(lines - low_column)
    else:
        enter = np.abs(lines - low_column) + tall
        chain = np.broadcast_to(last - first, row.shape)
        leave = np.abs(level - row) + np.abs(last - column)
    return Way.of(enter), Way.of(chain), Way.of(leave)


def _homes_of(heads: int, width: int, start: int, count: int, region: Rectangle, flipped: bool) -> tuple[Ints, Ints]:
    """Homes of ``count`` elements from ``start`` on of each head's ``width`` [heads, count], counted in the region."""
    row, column = (side.reshape(heads, width)[:, start : start + count] for side in homes(heads * width, region))
    row, column = row - region.row, column - region.column
    return (column, row) if flipped else (row, column)
