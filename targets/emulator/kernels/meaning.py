"""An operator's reference meaning, made ready to be computed many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ir.interpret import bind_attributes
from ir.ops import OPS
from ir.ops import evaluate as evaluate_op
from ir.types import Dim
from targets.emulator.scope import Scope, Tensor
from targets.program.instructions import Instruction

Compute = Callable[[Scope, list[Tensor]], tuple[Tensor, ...]]
_PLAIN = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool})
"""Types that torch computes with as they are."""


def meaning(instruction: Instruction, scope: Scope) -> Compute:
    """Computes the operator on whole operands, in the types that the host computes with."""
    node, arithmetic = instruction.node, scope.arithmetic
    operation, results = OPS[node.op], [value.type for value in node.results]
    attributes = bound(instruction)
    wanted = [arithmetic.dtype(type_.dtype) for type_ in results]
    types = {arithmetic.dtype(type_.dtype) for type_ in (*results, *(scope.types[name] for name in node.inputs))}
    reference, is_plain = operation.reference, types <= _PLAIN

    def compute(scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
        given = attributes(scope.bindings)
        found: Any = (
            reference(torch, operands, given) if is_plain else evaluate_op(operation, torch, operands, given, results)
        )
        values: tuple[Tensor, ...] = found if isinstance(found, tuple) else (found,)
        return tuple(v if v.dtype is dtype else v.to(dtype) for v, dtype in zip(values, wanted, strict=True))

    if node.inputs:
        return compute
    device = arithmetic.device
    return lambda scope, operands: tuple(value.to(device) for value in compute(scope, operands))


def bound(instruction: Instruction) -> Callable[[Mapping[str, int]], Mapping[str, Any]]:
    """The node's attributes as a function of what symbols stand for; the last ones are kept."""
    attributes = instruction.node.attributes
    if not any(isinstance(item, Dim) for value in attributes.values() if isinstance(value, tuple) for item in value):
        return lambda _bindings: attributes
    last: list[Any] = [None, attributes]

    def bind(bindings: Mapping[str, int]) -> Mapping[str, Any]:
        key = tuple(bindings.items())
        if last[0] != key:
            last[:] = key, bind_attributes(attributes, bindings)
        return last[1]  # type: ignore[no-any-return]

    return bind
