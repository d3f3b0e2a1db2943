"""Lowered graphs of any kind over several emulated wafers: nodes are dealt out in order, in runs of equal length."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ir.graph import Graph, Node, Value
from ir.machine import Machine
from ir.model import Block, BlockKind, Model
from ir.plan import FEASIBLE, PlacedBlock, Plan, Rectangle, SolverRecord, Transfer
from ir.verify import verify
from ir.workload import Workload
from targets.emulator import Arithmetic, Emulator, Order, Precision
from targets.program.kinds import KernelKind

Tensors = Mapping[str, torch.Tensor]
MACHINE = Machine("roomy", "wafers of two regions", 6, 5, 1 << 30, 0, 3)
REGIONS = (Rectangle(0, 0, 2, 3), Rectangle(3, 2, 2, 3))


@dataclass
class Tally:
    """What ran: graphs by number of wafers, and nodes by kind of kernel."""

    graphs: Counter[int] = field(default_factory=Counter)
    kinds: Counter[KernelKind] = field(default_factory=Counter)

    def evaluate(self, graph: Graph, weights: Tensors, inputs: Tensors) -> Tensors:
        """The outputs of ``graph``, from two wafers or, where there are nodes enough, three."""
        whole = with_exits(graph if graph.nodes else with_exits(graph))
        emulator = Emulator(*over_wafers(whole, 3 if len(whole.nodes) > 2 else 2), weights, EXACT)
        outputs = emulator.step({value.name: inputs[value.name] for value in whole.inputs})
        self.graphs[len(emulator.plan.wafers_used)] += 1
        programs = [program for stage in emulator.stages(0) for program in stage.programs]
        self.kinds.update(instruction.kind for program in programs for instruction in program.instructions)
        return dict(zip(graph.outputs, outputs.values(), strict=True))


EXACT = Arithmetic(Precision.NATIVE, Order.HOST)
"""Every value in the type that the graph states."""


def with_exits(graph: Graph) -> Graph:
    """``graph`` with each output handed out by a node of its own, so that even a single node's results travel."""
    exits = []
    for number, name in enumerate(graph.outputs):
        type_ = graph.types[name]
        result = Value(f"exit {len(graph.nodes)}.{number}", type_)
        exits.append(Node("reshape", (name,), (result,), {"shape": type_.shape}, "exit"))
    names = tuple(node.result.name for node in exits)
    return verify(replace(graph, nodes=(*graph.nodes, *exits), outputs=names))


def over_wafers(graph: Graph, wafers: int) -> tuple[Model, Plan]:
    """Nodes in order, twice as many blocks as wafers (where there are so many nodes), dealt out in turn."""
    count = min(2 * wafers, len(graph.nodes))
    bounds = [index * len(graph.nodes) // count for index in range(count + 1)]
    blocks = [
        _block(graph, f"block.{number}", range(start, end))
        for number, (start, end) in enumerate(itertools.pairwise(bounds))
    ]
    model = Model(graph, tuple(blocks), (), ())
    placed = [_placed(block, number, wafers) for number, block in enumerate(blocks)]
    transfers = tuple(_transfers(graph, blocks, placed))
    solver = SolverRecord(FEASIBLE, (), 0, 0.0)
    return model, Plan(graph.name, MACHINE, Workload(1, 1, 1), tuple(placed), transfers, solver)


def _block(graph: Graph, name: str, nodes: range) -> Block:
    read = {operand for index in nodes for operand in graph.nodes[index].inputs}
    parameters = tuple(p.name for p in graph.parameters if p.name in read)
    size = sum(graph.parameter[p].stored_bytes for p in parameters)
    return Block(name, BlockKind.OTHER, None, tuple(nodes), parameters, size, 0, 0, (), 0, 0, 0)


def _placed(block: Block, number: int, wafers: int) -> PlacedBlock:
    wafer, region = number % wafers, REGIONS[number // wafers]
    return PlacedBlock(
        block.name, block.kind, None, wafer, region, block.parameters, block.weight_bytes, 0, 0, 0, 0, (), 0
    )


def _transfers(graph: Graph, blocks: Sequence[Block], placed: Sequence[PlacedBlock]) -> set[Transfer]:
    maker = {value.name: n for n, b in enumerate(blocks) for i in b.nodes for value in graph.nodes[i].results}
    return {
        Transfer(name, blocks[maker[name]].name, placed[maker[name]].wafer, here.wafer, 0)
        for block, here in zip(blocks, placed, strict=True)
        for index in block.nodes
        for name in graph.nodes[index].inputs
        if name in maker and placed[maker[name]].wafer != here.wafer
    }
