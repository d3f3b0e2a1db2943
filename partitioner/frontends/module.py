"""Modules of PyTorch, as they are in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ir.diagnostics import Diagnostic, UnsupportedModelError
from partitioner.frontends.exported import Names, lower_exported, tied_names
from partitioner.frontends.lowered import Lowered, Origin, stacked
from partitioner.passes.experts import group_experts
from partitioner.passes.simplify import simplify


def lower_module(
    module: nn.Module, example_inputs: Sequence[torch.Tensor], dynamic_shapes: Any = None, name: str | None = None
) -> Lowered:
    """Lower a module by exporting it.

    Args:
        module: what to lower; its weights stay where they are.
        example_inputs: positional inputs of its forward.
        dynamic_shapes: as for ``torch.export.export``; sizes are fixed as in the example where it says nothing.
        name: the graph's name; the class's if not given.

    Raises:
        UnsupportedModelError: W0206, the module cannot be exported; W0201, an operator.
    """
    name = name or type(module).__name__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module.eval(), tuple(example_inputs), dynamic_shapes=dynamic_shapes, strict=False
            ).run_decompositions({})
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        fault = Diagnostic("W0206", f"the module cannot be exported: {type(error).__name__}: {reason}", name)
        raise UnsupportedModelError(fault) from None
    graph = lower_exported(program, name, Names({}, tied_names(module), _computed(module)))
    grouped = group_experts(simplify(graph))
    return Lowered(grouped.graph, Origin("module", {}), stacks=grouped.stacks)


def module_weights(module: nn.Module, lowered: Lowered) -> dict[str, torch.Tensor]:
    """The module's weights by the names that its graph has for them."""
    tensors: Mapping[str, torch.Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
    return stacked({name: tensor.detach() for name, tensor in tensors.items()}, lowered.stacks)


def _computed(module: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that checkpoints do not keep."""
    stored = module.state_dict(keep_vars=True)
    return {name: buffer.detach() for name, buffer in module.named_buffers() if name not in stored}
