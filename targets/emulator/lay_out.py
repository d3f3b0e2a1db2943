"""Laying out a block: its weights onto its tiles and its experts', and what they take into the ledger of its wafer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ir.graph import Graph, Parameter
from ir.layout import MatrixLayout, sliced_layouts
from ir.plan import PlacedBlock
from targets.emulator.ledger import WaferLedger, claim
from targets.emulator.memory import HostMemory, TileWeights, expert_slice
from targets.emulator.scope import BlockMemory
from targets.program.instructions import Program


def lay_out(program: Program, graph: Graph, ledger: WaferLedger, host: HostMemory, cache_bytes: int) -> BlockMemory:
    """Place a block's weights, and claim memory for them, for its full caches and for the activations of its plan.

    Where experts have regions of their own, caches and activations are shared out among them.

    Raises:
        CheckError: W0601, a tile would hold more than it can; W0607, a region leaves the wafer.
    """
    block, placed = program.block, program.placed
    parameters = [graph.parameter[name] for name in block.parameters]
    own = [p for p in parameters if p.name not in program.stacked]
    slices = [expert_slice(p) for p in parameters if p.name in program.stacked]
    spread = (cache_bytes, placed.activation_bytes)
    shared = (0, 0) if placed.experts else spread
    ledger.add(placed.title, placed.region, claim(own, *shared, placed.region))
    layouts: Mapping[int, Sequence[MatrixLayout]] = {}
    if placed.sliced:
        region, count = placed.region, len(placed.experts)
        ledger.add(f"{placed.title}, experts", region, claim(slices, *spread, region, count))
        layouts = dict(enumerate(sliced_layouts(slices, count, region.rows, region.columns)))
    else:
        caches, activations = (-(-amount // max(1, len(placed.experts))) for amount in spread)
        for expert in placed.experts:
            amounts = claim(slices, caches, activations, expert.region)
            ledger.add(f"{placed.title}.{expert.index}", expert.region, amounts)
    return BlockMemory(TileWeights.on(placed.region, own, host), _experts(placed, slices, layouts, host))


def _experts(
    placed: PlacedBlock, slices: Sequence[Parameter], layouts: Mapping[int, Sequence[MatrixLayout]], host: HostMemory
) -> dict[int, TileWeights]:
    return {
        expert.index: TileWeights.on(expert.region, slices, host, expert.index, layouts.get(expert.index))
        for expert in placed.experts
    }
