"""Attention on tiles."""

from __future__ import annotations

from targets.emulator.kernels.meaning import meaning
from targets.emulator.scope import Kernel, Scope, Tensor
from targets.program.instructions import Instruction


def attention(instruction: Instruction, scope: Scope) -> Kernel:
    """Queries meet the keys and values at hand: all that are remembered, or those of the step alone."""
    node, compute = instruction.node, meaning(instruction, scope)
    window = node.attributes["window"] or node.attributes.get("chunk", 0)

    def run(scope: Scope) -> tuple[Tensor, ...]:
        query, key, value = operands = [scope.read(name) for name in node.inputs][:3]
        operands += [scope.read(name) for name in node.inputs[3:]]
        seen = min(key.shape[2], window or key.shape[2])
        scope.meter.multiply_adds(query.shape[:3].numel() * seen * (query.shape[3] + value.shape[3]))
        return compute(scope, operands)

    return Kernel(run)
