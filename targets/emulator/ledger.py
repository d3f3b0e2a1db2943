"""What each tile of a wafer holds, in bytes, and the limit that it must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ir.diagnostics import CheckError, Diagnostic
from ir.graph import Parameter
from ir.layout import Ints, Split, tile_factors
from ir.machine import Machine
from ir.plan import Rectangle
from targets.program.homes import shares


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes on each tile [rows, columns] of a region."""

    weights: Ints
    caches: Ints
    activations: Ints


def weight_bytes(parameters: Sequence[Parameter], rows: int, columns: int, sliced: int = 0) -> Ints:
    """Bytes of ``parameters`` as stored on each tile [rows, columns], scales included.

    ``sliced`` experts with ``parameters`` each share the region, where it is not 0.
    """
    over_rows, over_columns = tile_factors(parameters, rows, columns, sliced)
    total = -(-(over_rows.T @ over_columns) // 8)
    for parameter in parameters:
        if len(parameter.shape) < 2:
            elements = shares(parameter.elements, Rectangle(0, 0, columns, rows))
            total += elements * parameter.encoding.bits // 8 * max(1, sliced)
    return total


def claim(
    parameters: Sequence[Parameter], cache_bytes: int, activation_bytes: int, region: Rectangle, sliced: int = 0
) -> Claim:
    """What the tiles of ``region`` must hold; caches and activations are spread evenly as one.

    ``sliced`` is as in :func:`weight_bytes`.
    """
    caches = evenly(cache_bytes, region)
    both = evenly(cache_bytes + activation_bytes, region)
    return Claim(weight_bytes(parameters, region.rows, region.columns, sliced), caches, both - caches)


def evenly(amount: int, region: Rectangle) -> Ints:
    """Bytes on each tile [rows, columns] of a region over which ``amount`` is spread."""
    return np.diff(Split(amount, region.tiles).bounds()).reshape(region.rows, region.columns)


class WaferLedger:
    """The tiles of one wafer: ``bytes`` [weights | caches | activations, row, column]."""

    def __init__(self, wafer: int, machine: Machine) -> None:
        self.wafer = wafer
        self.machine = machine
        self.mesh = Rectangle(0, 0, machine.wafer(wafer).columns, machine.wafer(wafer).rows)
        self.bytes = np.zeros((3, self.mesh.rows, self.mesh.columns), np.int64)

    def held(self, region: Rectangle) -> Ints:
        """What the tiles of ``region`` hold [weights | caches | activations, rows, columns], as a view."""
        rows = slice(region.row, region.row + region.rows)
        return self.bytes[:, rows, region.column : region.column + region.columns]

    def add(self, owner: str, region: Rectangle, amounts: Claim) -> None:
        """Claim memory for ``owner`` (a block, or an expert of one).

        Raises:
            CheckError: W0607, the region leaves the wafer; W0601, a tile would hold more than it can.
        """
        where = f"{owner} on wafer {self.wafer}"
        if not self.mesh.contains(region):
            raise CheckError(Diagnostic("W0607", f"the region {region} leaves the wafer", where))
        held = self.held(region)
        held += np.stack((amounts.weights, amounts.caches, amounts.activations))
        help_ = "give the block a larger region, or plan for less context or fewer users"
        require_fits(region, held.sum(axis=0), held, self.machine.tile_bytes, where, help_)


def require_fits(region: Rectangle, total: Ints, parts: Ints, limit: int, where: str, help_: str) -> None:
    """Check that no tile of ``region`` holds more than ``limit`` bytes in ``total`` [rows, columns], to which an owner
    adds the ``parts`` [weights | caches | activations, rows, columns].

    Raises:
        CheckError: W0601, a tile would.
    """
    row, column = (int(i) for i in np.unravel_index(int(total.argmax()), total.shape))
    if total[row, column] <= limit:
        return
    weights, caches, activations = (int(amount) for amount in parts[:, row, column])
    facts = {"weight_bytes": weights, "cache_bytes": caches, "activation_bytes": activations, "limit": limit}
    tile = f"tile (row {region.row + row}, column {region.column + column})"
    message = f"{tile} would hold {int(total[row, column]):,} bytes of {limit:,}"
    raise CheckError(Diagnostic("W0601", message, where, facts, (help_,)))
