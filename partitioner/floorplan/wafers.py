"""Laying out every wafer of a placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ir.graph import Parameter
from ir.layout import fullest_tile_bytes
from ir.machine import Machine
from ir.model import Block, Model
from ir.plan import PlacedBlock, PlacedExpert, Rectangle
from ir.workload import Workload
from partitioner.floorplan.shapes import Demand, Shape, Shapes
from partitioner.floorplan.strips import arrange
from partitioner.problem import footprint


@dataclass(frozen=True, slots=True)
class TooTight:
    """No floor plan was found for the blocks (indices into the model's) of one wafer."""

    wafer: int
    blocks: tuple[int, ...]


class FloorPlanner:
    """Lays out wafers of one machine; shapes of equal blocks are worked out once."""

    def __init__(self, model: Model, machine: Machine, workload: Workload) -> None:
        self._model = model
        self._machine = machine
        self._workload = workload
        self._shapes: dict[Demand, Shapes] = {}

    def lay_out(self, wafers: Sequence[Sequence[int]]) -> list[PlacedBlock] | TooTight:
        """A rectangle for each block, given the blocks (indices) of each wafer; in the model's order."""
        placed: dict[int, PlacedBlock] = {}
        for wafer, blocks in enumerate(wafers):
            regions = self._arrange(blocks)
            if regions is None:
                return TooTight(wafer, tuple(blocks))
            for index, (region, shape) in zip(blocks, regions, strict=True):
                placed[index] = self._place(self._model.blocks[index], wafer, region, shape)
        return [placed[index] for index in sorted(placed)]

    def fits(self, blocks: Sequence[int]) -> bool:
        """Whether a floor plan is found for these blocks on one wafer."""
        return self._arrange(blocks) is not None

    def _arrange(self, blocks: Sequence[int]) -> list[tuple[Rectangle, Shape]] | None:
        shapes = [self._shapes_of(self._model.blocks[index]) for index in blocks]
        return arrange(shapes, self._machine.columns, self._machine.rows) if blocks else []

    def _shapes_of(self, block: Block) -> Shapes:
        demand = self._demand(block)
        # Names do not change the shape: repeated layers share it.
        key = replace(demand, parameters=tuple(replace(p, name="") for p in demand.parameters))
        if key not in self._shapes:
            mesh = (self._machine.columns, self._machine.rows)
            self._shapes[key] = Shapes(demand, self._machine.tile_bytes, *mesh)
        return self._shapes[key]

    def _demand(self, block: Block) -> Demand:
        parameters = [self._model.graph.parameter[name] for name in block.parameters]
        needed = footprint(block, self._workload)
        spread = needed.cache_bytes + needed.activation_bytes
        if not block.experts:
            return Demand(tuple(parameters), spread)
        own = tuple(one_expert(parameter) for parameter in parameters)
        return Demand(own, -(-spread // block.experts), block.experts)

    def _place(self, block: Block, wafer: int, region: Rectangle, shape: Shape) -> PlacedBlock:
        demand, needed = self._demand(block), footprint(block, self._workload)
        return PlacedBlock(
            name=block.name,
            kind=block.kind,
            layer=block.layer,
            wafer=wafer,
            region=region,
            parameters=block.parameters,
            weight_bytes=needed.weight_bytes,
            cache_bytes=needed.cache_bytes,
            activation_bytes=needed.activation_bytes,
            tile_bytes=fullest_tile_bytes(demand.parameters, demand.spread_bytes, shape.rows, shape.columns),
            macs_per_token=block.macs_per_token,
            experts=tuple(_cell(index, wafer, region, shape) for index in range(block.experts)),
            active_experts=block.active_experts,
        )


def one_expert(parameter: Parameter) -> Parameter:
    """The share of one expert in weights [experts, ...] that are stacked."""
    return replace(parameter, type=parameter.type.with_shape(parameter.type.shape[1:]))


def _cell(index: int, wafer: int, region: Rectangle, shape: Shape) -> PlacedExpert:
    down, across = divmod(index, shape.across)
    corner = (region.column + across * shape.columns, region.row + down * shape.rows)
    return PlacedExpert(index, wafer, Rectangle(*corner, shape.columns, shape.rows))
