"""Products and look-ups on tiles: the operators that read a weight where it lies.

Each kernel moves activations through the collectives of :class:`~targets.emulator.mesh.Mesh` and computes on each
tile with that tile's share. What a product yields is left along the region's edge; how the next operator wants it
spread over the region is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ir.diagnostics import CheckError, Diagnostic
from targets.emulator.memory import TileMatrix, TileVector
from targets.emulator.mesh import Axis, Mesh

FEW_TOKENS = 16
"""Up to so many tokens all tiles' products are one batched operation; beyond, that would write more partial sums than
it saves in calls, and each tile adds its product to what arrives instead."""


def linear(mesh: Mesh, matrix: TileMatrix, x: torch.Tensor, transposed: bool) -> torch.Tensor:
    """X [..., in] times a weight [out, in] on its tiles ([in, out] where ``transposed``) -> [..., out].

    Each slice of x enters at the edge and travels along its line of tiles; each tile multiplies it with its share;
    the partial sums travel across the lines, and each tile adds its own.
    """
    axis = _input_axis(transposed)
    inputs, outputs = (matrix.outputs, matrix.inputs) if transposed else (matrix.inputs, matrix.outputs)
    tokens = x.reshape(-1, x.shape[-1])
    slices = mesh.broadcast(inputs.split(tokens), axis.other, tokens.numel() * tokens.element_size())
    factors = matrix.lines(transposed)
    result_elements = len(tokens) * len(outputs.stored)
    payload_bytes = result_elements * tokens.element_size()
    if len(tokens) <= FEW_TOKENS:
        padded = mesh.chain_reduce(torch.bmm(slices, factors), axis, payload_bytes)
    else:
        first = slices[0] @ factors[0]
        padded = mesh.chain(axis, first, lambda n, arrived: arrived.addmm_(slices[n], factors[n]), payload_bytes)
    mesh.meter.multiply_adds += result_elements * x.shape[-1]
    return outputs.join(padded).reshape(*x.shape[:-1], -1)


def embedding(mesh: Mesh, table: TileMatrix, indices: torch.Tensor) -> torch.Tensor:
    """Rows of a table [rows, width] for ``indices`` [...] -> [..., width].

    A chain runs along each row of tiles; the column of tiles that holds a token's row puts its shares on it.

    Raises:
        CheckError: W0604, an index outside the table.
    """
    rows = indices.reshape(-1).numpy()
    if rows.size and not 0 <= rows.min() <= rows.max() < table.outputs.bounds[-1]:
        raise CheckError(Diagnostic("W0604", f"an index lies outside the table's {table.outputs.bounds[-1]} rows"))
    column = np.searchsorted(table.outputs.bounds, rows, side="right") - 1
    offset = torch.from_numpy(rows - table.outputs.bounds[column])
    held = {int(holder): torch.from_numpy(np.flatnonzero(column == holder)) for holder in np.unique(column)}

    def put(holder: int, arrived: torch.Tensor) -> torch.Tensor:
        if holder in held:
            arrived[:, held[holder]] = table.shares[:, holder, offset[held[holder]]]
        return arrived

    empty = table.shares.new_zeros(mesh.rows, len(rows), table.inputs.width)
    payload_bytes = len(rows) * len(table.inputs.stored) * table.shares.element_size()
    passed = mesh.chain(Axis.COLUMNS, put(0, empty), put, payload_bytes)
    return table.inputs.join(passed.transpose(0, 1).flatten(1)).reshape(*indices.shape, -1)


Expert = tuple[Mesh, TileMatrix, TileVector | None, int]
"""An expert's region, its weight and bias there, and the links between it and the region of its block."""


def grouped_linear(
    expert: Callable[[int], Expert], x: torch.Tensor, indices: torch.Tensor, transposed: bool
) -> torch.Tensor:
    """X [tokens, 1 or k, in] times the weights of each token's experts ``indices`` [tokens, k] -> [tokens, k, out].

    Each chosen expert's product runs on that expert's own region: its tokens go there, and the results come back.
    """
    x = x.expand(-1, indices.shape[1], -1)
    chosen = sorted(set(indices.flatten().tolist()))
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index in chosen:
        mesh, matrix, bias, links = expert(index)
        mine = indices == index
        tokens = x[mine]
        mesh.shift(tokens.numel() * tokens.element_size(), links)
        product = linear(mesh, matrix, tokens, transposed)
        if bias is not None:
            mesh.gather(bias.to_edge * bias.shares.element_size())
            product = product + bias.gather()
        mesh.shift(product.numel() * product.element_size(), links)
        parts.append((mine, product))
    result = x.new_empty(*indices.shape, parts[0][1].shape[-1] if parts else 0)
    for mine, product in parts:
        result[mine] = product
    return result


def _input_axis(transposed: bool) -> Axis:
    """The axis of the mesh over which a product's inputs are split, and along which it is reduced.

    The last axis of a weight lies over the rows of tiles: its inputs, or, where it is stored transposed, its outputs.
    """
    return Axis.COLUMNS if transposed else Axis.ROWS
