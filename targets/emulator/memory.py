"""The memories of the tiles: which share of each weight lies on which tile.

The shares are those that :mod:`ir.layout` names. The host keeps each weight in one array, of which the tiles' shares
are rectangles; what each tile holds in bytes stands in the ledger (:mod:`targets.emulator.ledger`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ir.graph import Parameter
from ir.layout import MatrixLayout, matrix_layouts
from ir.plan import Rectangle
from ir.types import DType
from targets.emulator.arithmetic import Arithmetic, Precision
from targets.emulator.weights import Plain, Stored, WeightSource

Tensor = torch.Tensor


@dataclass(slots=True)
class HostMemory:
    """What the host holds of the weights: each when it is first used, and at most ``limit_bytes`` of them, the last
    used ones. In ``float32`` they are held unpacked, else as stored.
    """

    source: WeightSource
    arithmetic: Arithmetic
    limit_bytes: int | None = None
    _held: OrderedDict[tuple[str, int | None], Stored] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def get(self, parameter: Parameter, expert: int | None) -> Stored:
        """A weight, or one expert's part of a stacked one."""
        key = (parameter.name, expert)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        stored = self.source.read(parameter.name, expert)
        if self.arithmetic.precision is Precision.FLOAT32:
            dtype = self.arithmetic.dtype(parameter.type.dtype)
            stored = Plain(stored.unpack(dtype, self.arithmetic.device).contiguous())
        self._held[key] = stored
        self._bytes += stored.nbytes
        while self.limit_bytes is not None and self._bytes > self.limit_bytes and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= oldest.nbytes
        return stored


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
        parameter, arithmetic = self.parameters[name], self.host.arithmetic
        stored = self.host.get(parameter, self.expert)
        values = stored.unpack(arithmetic.dtype(parameter.type.dtype), arithmetic.device)
        for dtype in casts:
            values = values.to(arithmetic.dtype(dtype))
        return values


def expert_slice(parameter: Parameter) -> Parameter:
    """One expert's part of a stacked weight."""
    return Parameter(parameter.name, parameter.type.with_shape(parameter.shape[1:]), parameter.encoding)
