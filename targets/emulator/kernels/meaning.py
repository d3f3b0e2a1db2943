"""An operator's reference meaning, made ready to be computed many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ir.interpret import bind_attributes
from ir.ops import OPS, torch_dtype
from ir.ops import evaluate as evaluate_op
from ir.types import Dim, DType
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
    wanted = [arithmetic.dtype(value.type.dtype, value.name) for value in node.results]
    given_types = [arithmetic.dtype(scope.types[name].dtype, name) for name in node.inputs]
    alike = _alike([scope.types[name].dtype for name in node.inputs], given_types)
    reference = operation.reference

    def at_once(scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
        """The usual case, which runs often: one result, of types that torch computes with."""
        value: Tensor = reference(torch, operands, attributes(scope.bindings))
        return (value if value.dtype is wanted[0] else value.to(wanted[0]),)

    def in_general(scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
        operands = [operand.to(dtype) for operand, dtype in zip(operands, alike, strict=True)]
        found = evaluate_op(operation, torch, operands, attributes(scope.bindings), results)
        return tuple(value.to(dtype) for value, dtype in zip(found, wanted, strict=True))

    def cast(_scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
        return (operands[0].to(wanted[0]),)

    if arithmetic.recast and node.op == "cast" and wanted[0] != torch_dtype(torch, node.result.type.dtype):
        return cast
    is_usual = {*wanted, *given_types} <= _PLAIN and len(results) == 1 and alike == given_types
    compute = at_once if is_usual else in_general
    if node.inputs:
        return compute
    device = arithmetic.device
    return lambda scope, operands: tuple(value.to(device) for value in compute(scope, operands))


def _alike(stated: Sequence[DType], given: Sequence[torch.dtype]) -> list[torch.dtype]:
    """Types of operands, of which those that the graph states alike are as wide as the widest of them."""
    widest: dict[DType, torch.dtype] = {}
    for dtype, own in zip(stated, given, strict=True):
        widest[dtype] = torch.promote_types(widest.get(dtype, own), own)
    return [widest[dtype] for dtype in stated]


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
