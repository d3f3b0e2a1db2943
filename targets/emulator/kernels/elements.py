"""Operators that treat elements alone, or move them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ir.types import Dim, for_one_token, one_token_shape
from targets.emulator.kernels.meaning import meaning
from targets.emulator.kernels.moves import charge, collect, strangers
from targets.emulator.scope import Charge, Kernel, Scope
from targets.emulator.ways import move_way
from targets.program.instructions import Instruction


def everywhere(instruction: Instruction, scope: Scope) -> Kernel:
    """Every tile computes what it needs, from what all of them have."""
    return moving(instruction, scope, ())


def in_place(instruction: Instruction, scope: Scope) -> Kernel:
    """Each element alone on its home tile; operands whose elements lie elsewhere go to all tiles."""
    node = instruction.node
    elements = scope.elements(node.result.name)
    return moving(instruction, scope, [*collect(node.inputs, scope), *strangers(node.inputs, elements, scope)])


def move(instruction: Instruction, scope: Scope) -> Kernel:
    """Elements go from their homes as operands to their homes as results."""
    node = instruction.node
    attributes = tuple((name, _for_one_token(value)) for name, value in sorted(node.attributes.items()))
    operands = tuple((one_token_shape(scope.types[name].shape), name in scope.program.apart) for name in node.inputs)
    way = move_way(node.op, operands, attributes, scope.program.placed.region)
    return moving(instruction, scope, [*collect(node.inputs, scope), charge("move", way, node.result.name, scope)])


def _for_one_token(value: Any) -> Any:
    """An attribute with 1 in the place of its symbols."""
    if not isinstance(value, tuple):
        return value
    return tuple(for_one_token(item) if isinstance(item, Dim) else item for item in value)


def moving(instruction: Instruction, scope: Scope, charges: Sequence[Charge]) -> Kernel:
    """The operator's meaning, after its operands moved as ``charges`` say."""
    inputs, compute = instruction.node.inputs, meaning(instruction, scope)
    return Kernel(lambda scope: compute(scope, [scope.read(name) for name in inputs]), charges)
