"""The memories of the tiles: which share of each weight lies on which tile.

The shares are those that :mod:`ir.layout` names. The host keeps each weight in one array, of which the tiles' shares
are rectangles; what each tile holds in bytes stands in the ledger (:mod:`targets.emulator.ledger`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ir.graph import Parameter
from ir.layout import MatrixLayout, matrix_layouts
from ir.plan import Rectangle
from ir.types import DType
from targets.emulator.arithmetic import Arithmetic, Precision
from targets.emulator.parts import ahead, row_parts, rows_of
from targets.emulator.weights import Plain, Stored, WeightSource

Tensor = torch.Tensor


@dataclass(slots=True)
class HostMemory:
    """What the host holds of the weights: each when it is first used, and at most ``limit_bytes`` of them, the last
    used ones. In ``float32`` they are held unpacked, else as stored; those that take no memory stay so.
    ``held_bytes`` are what it holds now.
    """

    source: WeightSource
    arithmetic: Arithmetic
    limit_bytes: int | None = None
    _held: OrderedDict[tuple[str, int | None], Stored] = field(default_factory=OrderedDict)
    held_bytes: int = 0

    def get(self, parameter: Parameter, expert: int | None) -> Stored:
        """A weight, or one expert's part of a stacked one."""
        key = (parameter.name, expert)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        stored = self._as_held(parameter, self.source.read(parameter.name, expert))
        self._held[key] = stored
        self.held_bytes += stored.nbytes
        while self.limit_bytes is not None and self.held_bytes > self.limit_bytes and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self.held_bytes -= oldest.nbytes
        return stored

    def rows(self, parameter: Parameter, indices: Sequence[int]) -> Iterator[Stored]:
        """Rows of a table one by one; of a table that would take much of what may be held, no others are read."""
        size = parameter.elements * self.arithmetic.dtype(parameter.type.dtype, parameter.name).itemsize
        whole = self.limit_bytes is None or size <= self.limit_bytes // 8
        for index in indices:
            taken = range(index, index + 1)
            if whole:
                yield rows_of(self.get(parameter, None), taken)
            else:
                yield self._as_held(parameter, self.source.read(parameter.name, None, taken))

    def _as_held(self, parameter: Parameter, stored: Stored) -> Stored:
        if self.arithmetic.precision is Precision.NATIVE or not stored.nbytes:
            return stored
        dtype = self.arithmetic.dtype(parameter.type.dtype, parameter.name)
        return Plain(stored.unpack(dtype, self.arithmetic.device).contiguous())


@dataclass(frozen=True, slots=True)
class TileWeights:
    """The weights in the tiles of one region, by parameter name; ``expert``: those of one expert.

    ``layouts`` says where the matrices lie; all other weights lie at their elements' homes.
    """

    region: Rectangle
    expert: int | None
    parameters: Mapping[str, Parameter]
    layouts: Mapping[str, MatrixLayout]
    host: HostMemory

    @staticmethod
    def on(
        region: Rectangle,
        parameters: Sequence[Parameter],
        host: HostMemory,
        expert: int | None = None,
        layouts: Sequence[MatrixLayout] | None = None,
    ) -> TileWeights:
        """``parameters`` on ``region``; ``layouts`` where the matrices do not have it for themselves."""
        if layouts is None:
            layouts = matrix_layouts(parameters, region.rows, region.columns)
        by_name = {layout.parameter.name: layout for layout in layouts}
        return TileWeights(region, expert, {p.name: p for p in parameters}, by_name, host)

    def holds(self, name: str) -> bool:
        """Whether the weight lies here."""
        return name in self.parameters

    def values(self, name: str, casts: Sequence[DType] = ()) -> Tensor:
        """A weight as the tiles compute with it, cast to ``casts`` one after the other."""
        return self._unpacked(name, self.host.get(self.parameters[name], self.expert), casts)

    def parts(self, name: str, casts: Sequence[DType], whole: bool) -> Iterator[Tensor]:
        """A matrix [out, in] as :meth:`values` gives it, some rows at a time, so that little is unpacked at once;
        at once where it is held unpacked, or where the ``whole`` is wanted.
        """
        stored = self.host.get(self.parameters[name], self.expert)
        at_once = whole or isinstance(stored, Plain)
        parts = iter([stored]) if at_once else row_parts(stored)
        return ahead(self._unpacked(name, part, casts) for part in parts)

    def rows(self, name: str, indices: Tensor, casts: Sequence[DType]) -> Tensor:
        """The rows of a table [rows, width] that ``indices`` [...] name: [..., width]."""
        chosen, place = torch.unique(indices, return_inverse=True)
        found = [self._unpacked(name, row, casts) for row in self.host.rows(self.parameters[name], chosen.tolist())]
        return torch.cat(found)[place] if found else self.values(name, casts)[indices]

    def _unpacked(self, name: str, stored: Stored, casts: Sequence[DType]) -> Tensor:
        arithmetic = self.host.arithmetic
        values = stored.unpack(arithmetic.dtype(self.parameters[name].type.dtype, name), arithmetic.device)
        for dtype in casts:
            values = values.to(arithmetic.dtype(dtype))
        return values


def expert_slice(parameter: Parameter) -> Parameter:
    """One expert's part of a stacked weight."""
    return Parameter(parameter.name, parameter.type.with_shape(parameter.shape[1:]), parameter.encoding)
