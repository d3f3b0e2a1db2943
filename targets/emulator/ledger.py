"""What each tile of a wafer holds, in bytes, and the limit that it must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ir.diagnostics import CheckError, Diagnostic
from ir.graph import Parameter
from ir.layout import Ints, Split, matrix_layouts
from ir.machine import Machine
from ir.plan import Rectangle


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes on each tile [rows, columns] of a region."""

    weights: Ints
    caches: Ints
    activations: Ints


def weight_bytes(parameters: Sequence[Parameter], rows: int, columns: int) -> Ints:
    """Bytes of ``parameters`` as stored on each tile [rows, columns], scales included."""
    bits = np.zeros((rows, columns), np.int64)
    for layout in matrix_layouts(parameters, rows, columns):
        for over_rows, over_columns in layout.bit_factors():
            bits += np.outer(over_rows, over_columns)
    total = -(-bits // 8)
    for parameter in parameters:
        if len(parameter.shape) < 2:
            elements = np.diff(Split(parameter.elements, rows * columns).bounds())
            total += (elements * parameter.encoding.bits // 8).reshape(rows, columns)
    return total


def claim(parameters: Sequence[Parameter], cache_bytes: int, activation_bytes: int, rows: int, columns: int) -> Claim:
    """What a region of rows x columns tiles must hold; caches and activations are spread evenly as one."""
    tiles = rows * columns
    caches, both = (
        np.diff(Split(amount, tiles).bounds()).reshape(rows, columns)
        for amount in (cache_bytes, cache_bytes + activation_bytes)
    )
    return Claim(weight_bytes(parameters, rows, columns), caches, both - caches)


class WaferLedger:
    """The tiles of one wafer: ``bytes`` [weights | caches | activations, row, column]."""

    def __init__(self, wafer: int, machine: Machine) -> None:
        self.wafer = wafer
        self.machine = machine
        self.bytes = np.zeros((3, machine.rows, machine.columns), np.int64)

    def add(self, owner: str, region: Rectangle, amounts: Claim) -> None:
        """Claim memory for ``owner`` (a block, or an expert of one).

        Raises:
            CheckError: W0607, the region leaves the wafer; W0601, a tile would hold more than it can.
        """
        where = f"{owner} on wafer {self.wafer}"
        if not Rectangle(0, 0, self.machine.columns, self.machine.rows).contains(region):
            raise CheckError(Diagnostic("W0607", f"the region {region} leaves the wafer", where))
        held = self.bytes[
            :, region.row : region.row + region.rows, region.column : region.column + region.columns
        ]  # a view
        held += np.stack((amounts.weights, amounts.caches, amounts.activations))
        total = held.sum(axis=0)
        row, column = (int(i) for i in np.unravel_index(int(total.argmax()), total.shape))
        if total[row, column] <= self.machine.tile_bytes:
            return
        weights, caches, activations = (int(amount) for amount in held[:, row, column])
        tile = f"tile (row {region.row + row}, column {region.column + column})"
        facts = {"weight_bytes": weights, "cache_bytes": caches, "activation_bytes": activations}
        message = f"{tile} would hold {int(total[row, column]):,} bytes of {self.machine.tile_bytes:,}"
        help_ = ("give the block a larger region, or plan for less context or fewer users",)
        raise CheckError(Diagnostic("W0601", message, where, {**facts, "limit": self.machine.tile_bytes}, help_))
