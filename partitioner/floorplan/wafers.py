"""Laying out every wafer of a placement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ir.graph import Parameter
from ir.machine import Machine
from ir.model import Block, Model
from ir.plan import PlacedBlock, PlacedExpert, Plan, Rectangle
from ir.workload import Workload
from partitioner.floorplan.shapes import Demand, Shape, Shapes
from partitioner.floorplan.strips import Placement, arrange
from partitioner.floorplan.wishes import Wish, Wishes
from partitioner.problem import Copy, ExpertLayout, Footprint, footprint

Mesh = tuple[int, int]
"""Columns and rows of a wafer."""


@dataclass(frozen=True, slots=True)
class TooTight:
    """No floor plan was found for the blocks of one wafer."""

    wafer: int
    blocks: tuple[Copy, ...]


class FloorPlanner:
    """Lays out wafers of one machine; shapes of equal blocks, and layouts of equal wafers, are worked out once.

    ``experts`` says how routed experts lie: ``auto`` is as ``wishes`` has it, else sliced, else apart, whichever fits
    first. With ``wishes``, blocks get more tiles than they need where there is room. A wafer that holds what one of the
    ``former`` plan held, on a mesh of the same size, keeps its floor plan.
    """

    def __init__(
        self,
        model: Model,
        machine: Machine,
        workload: Workload,
        experts: ExpertLayout = ExpertLayout.AUTO,
        wishes: Wishes | None = None,
        former: Plan | None = None,
    ) -> None:
        self._model = model
        self._machine = machine
        self._workload = workload
        self._experts = experts
        self._wishes = wishes
        self._former = _floor_plans(former) if former else {}
        self._layouts: dict[tuple[tuple[Demand, ...], tuple[int, ...], Mesh], list[Placement] | None] = {}

    def lay_out(self, wafers: Sequence[Sequence[Copy]]) -> list[PlacedBlock] | TooTight:
        """A rectangle for each copy of a block, given those of each wafer by its number; in the model's order."""
        placed: dict[Copy, PlacedBlock] = {}
        for wafer, blocks in enumerate(wafers):
            mesh = self.mesh(wafer)
            kept = self._kept(blocks, wafer)
            if kept:
                placed |= zip(blocks, kept, strict=True)
                continue
            regions = self._arrange(blocks, mesh, self._wishes.of(blocks, mesh) if self._wishes else ())
            if regions is None:
                return TooTight(wafer, tuple(blocks))
            for copy, (region, shape, demand) in zip(blocks, regions, strict=True):
                placed[copy] = self._place(copy, wafer, region, shape, demand)
        return [placed[copy] for copy in sorted(placed)]

    def _kept(self, blocks: Sequence[Copy], wafer: int) -> list[PlacedBlock]:
        """The former floor plan for these blocks, on any wafer of this mesh; nothing if there was none."""
        needed = {copy: footprint(*self._served(copy)) for copy in blocks}
        contents = frozenset((self._model.blocks[copy.block].name, copy.number, size) for copy, size in needed.items())
        former = self._former.get((contents, self.mesh(wafer)), {})
        names = [(self._model.blocks[copy.block].name, copy.number) for copy in blocks]
        return [_moved(former[name], wafer) for name in names] if former else []

    def _served(self, copy: Copy) -> tuple[Block, Workload]:
        """A block, and what this copy of it serves."""
        return self._model.blocks[copy.block], self._workload.share(copy.number, copy.copies)

    def mesh(self, wafer: int) -> Mesh:
        """Columns and rows of a wafer."""
        odd = self._machine.wafer(wafer)
        return odd.columns, odd.rows

    def fits(self, blocks: Sequence[Copy], mesh: Mesh | None = None) -> bool:
        """Whether a floor plan is found for these blocks on one wafer of ``mesh``, by default an ordinary one."""
        return self._arrange(blocks, mesh or (self._machine.columns, self._machine.rows), ()) is not None

    def _arrange(
        self, blocks: Sequence[Copy], mesh: Mesh, wishes: Sequence[Wish]
    ) -> list[tuple[Rectangle, Shape, Demand]] | None:
        """A region for each block, and what lies there in which shape."""
        targets = tuple(wish.tiles for wish in wishes)
        for way in self._ways(blocks, wishes):
            demands = tuple(self._demand(copy, sliced) for copy, sliced in zip(blocks, way, strict=True))
            found = self._lay_out_one(demands, targets, mesh)
            if found is not None:
                return [(*placed, demand) for placed, demand in zip(found, demands, strict=True)]
        return None

    def _ways(self, blocks: Sequence[Copy], wishes: Sequence[Wish]) -> list[tuple[bool, ...]]:
        """Which blocks' experts to slice, in the order in which it is tried."""
        grouped = [self._model.blocks[copy.block].experts > 0 for copy in blocks]
        allowed = {ExpertLayout.AUTO: (True, False), ExpertLayout.APART: (False,), ExpertLayout.SLICED: (True,)}
        ways = [tuple(sliced and has_experts for has_experts in grouped) for sliced in allowed[self._experts]]
        if wishes and self._experts is ExpertLayout.AUTO:
            wished = (wish.sliced and has_experts for wish, has_experts in zip(wishes, grouped, strict=True))
            ways.insert(0, tuple(wished))
        return list(dict.fromkeys(ways))

    def _lay_out_one(self, demands: tuple[Demand, ...], targets: tuple[int, ...], mesh: Mesh) -> list[Placement] | None:
        """The placements on one wafer; those of an equal wafer, if there was one."""
        if not demands:
            return []
        # Names do not change the shape: repeated layers share it.
        unnamed = tuple(replace(d, parameters=tuple(replace(p, name="") for p in d.parameters)) for d in demands)
        if (unnamed, targets, mesh) not in self._layouts:
            shapes = [_shapes_of(demand, self._machine.tile_bytes, mesh) for demand in unnamed]
            self._layouts[unnamed, targets, mesh] = arrange(shapes, *mesh, targets or None)
        return self._layouts[unnamed, targets, mesh]

    def _demand(self, copy: Copy, sliced: bool) -> Demand:
        block = self._model.blocks[copy.block]
        parameters = [self._model.graph.parameter[name] for name in block.parameters]
        needed = footprint(block, self._workload.share(copy.number, copy.copies))
        spread = needed.cache_bytes + needed.activation_bytes
        if not block.experts:
            return Demand(tuple(parameters), spread)
        own = tuple(one_expert(parameter) for parameter in parameters)
        return Demand(own, spread if sliced else -(-spread // block.experts), block.experts, sliced)

    def _place(self, copy: Copy, wafer: int, region: Rectangle, shape: Shape, demand: Demand) -> PlacedBlock:
        block = self._model.blocks[copy.block]
        needed = footprint(block, self._workload.share(copy.number, copy.copies))
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
            tile_bytes=demand.tile_bytes(shape.rows, shape.columns),
            macs_per_token=block.macs_per_token,
            experts=tuple(
                PlacedExpert(index, wafer, region if demand.sliced else _cell(index, region, shape))
                for index in range(block.experts)
            ),
            active_experts=block.active_experts,
            copy=copy.number,
        )


@lru_cache(maxsize=1024)
def _shapes_of(demand: Demand, tile_bytes: int, mesh: Mesh) -> Shapes:
    """Shapes of a demand. They take a second of a large block's time, and who asks for other users, or for more wafers,
    asks for most of them again.
    """
    return Shapes(demand, tile_bytes, *mesh)


_Contents = frozenset[tuple[str, int, Footprint]]
"""What a wafer holds: name, number of the copy, and bytes of each block."""


def _floor_plans(plan: Plan) -> dict[tuple[_Contents, Mesh], dict[tuple[str, int], PlacedBlock]]:
    """The blocks of each wafer of ``plan``, by name and copy, found by what the wafer holds and its mesh."""
    found = {}
    for wafer in plan.wafers_used:
        blocks, odd = plan.on_wafer(wafer), plan.machine.wafer(wafer)
        contents = frozenset(
            (block.name, block.copy, Footprint(block.weight_bytes, block.cache_bytes, block.activation_bytes))
            for block in blocks
        )
        found[contents, (odd.columns, odd.rows)] = {(block.name, block.copy): block for block in blocks}
    return found


def _moved(block: PlacedBlock, wafer: int) -> PlacedBlock:
    experts = tuple(replace(expert, wafer=wafer) for expert in block.experts)
    return replace(block, wafer=wafer, experts=experts)


def one_expert(parameter: Parameter) -> Parameter:
    """The share of one expert in weights [experts, ...] that are stacked."""
    return replace(parameter, type=parameter.type.with_shape(parameter.type.shape[1:]))


def _cell(index: int, region: Rectangle, shape: Shape) -> Rectangle:
    down, across = divmod(index, shape.across)
    corner = (region.column + across * shape.columns, region.row + down * shape.rows)
    return Rectangle(*corner, shape.columns, shape.rows)
