"""The mixture of experts of one layer by itself, on the tiles that the whole model's plan gives it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph, Value
from ir.model import Block, BlockKind, Model
from ir.plan import Plan

_KINDS = (BlockKind.ROUTER, BlockKind.SHARED_EXPERT, BlockKind.EXPERTS)


@dataclass(frozen=True, slots=True)
class Mixture:
    """Router, shared expert and routed experts of a layer as a model of its own, and their part of the plan.

    ``hidden`` is the value that enters, ``module`` the path of the layer in the library's own model.
    """

    model: Model
    plan: Plan
    hidden: Value
    module: str

    def forward(self, library: Any, hidden: torch.Tensor) -> torch.Tensor:
        """What the library's own modules make of the hidden state after attention [users, tokens, width]."""
        layer = library.get_submodule(self.module)
        found: torch.Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return found


def mixture_of(model: Model, plan: Plan, layer: int) -> Mixture:
    """The mixture of a layer.

    Raises:
        UsageError: W0642, the layer has none, or more goes in and out of it than one hidden state.
    """
    chosen = [block for block in model.blocks if block.layer == layer and block.kind in _KINDS]
    graph, places = _part(model.graph, chosen)
    floats = [value for value in graph.inputs if value.type.dtype.is_float]
    if len(graph.inputs) != 1 or len(floats) != 1 or len(graph.outputs) != 1:
        message = f"layer {layer} is no mixture of experts between two hidden states"
        raise UsageError(Diagnostic("W0642", message, model.graph.name))
    blocks = tuple(replace(block, nodes=tuple(places[index] for index in block.nodes)) for block in chosen)
    names = {block.name for block in blocks}
    kept = tuple(block for block in plan.blocks if block.name in names)
    maker = graph.nodes[graph.producer[graph.outputs[0]]]
    part = Model(graph, blocks, (), (tuple(range(len(blocks))),), model.granularity)
    return Mixture(part, replace(plan, blocks=kept, transfers=()), floats[0], maker.origin)


def _part(graph: Graph, blocks: list[Block]) -> tuple[Graph, dict[int, int]]:
    """The graph of ``blocks`` alone, and the new index of each node."""
    indices = sorted({index for block in blocks for index in block.nodes})
    nodes = tuple(graph.nodes[index] for index in indices)
    computed = {value.name for node in nodes for value in node.results}
    read = dict.fromkeys(name for node in nodes for name in node.inputs if name not in computed)
    inside = set(indices)
    outputs = tuple(
        name for name in computed if name in graph.outputs or not inside.issuperset(graph.consumers.get(name, ()))
    )
    part = Graph(
        graph.name,
        tuple(Value(name, graph.types[name]) for name in read if name not in graph.parameter),
        tuple(graph.parameter[name] for name in read if name in graph.parameter),
        nodes,
        outputs,
    )
    return part, {index: place for place, index in enumerate(indices)}
