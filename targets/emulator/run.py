"""Running one node in the memory of its block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.graph import Attributes
from ir.interpret import bind_attributes
from ir.ops import OPS, torch_dtype
from ir.ops import evaluate as evaluate_op
from ir.types import TensorType, evaluate
from targets.emulator import kernels
from targets.emulator.history import History
from targets.emulator.memory import RegionMemory, TileVector
from targets.emulator.mesh import Mesh, Meter
from targets.emulator.program import CachedAttention, Instruction, Program, TileWeight, distance, is_transposed

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """The weights of one block: on its own region, and on the region of each routed expert, by its number."""

    own: RegionMemory
    experts: Mapping[int, RegionMemory]

    def gather(self, name: str, meter: Meter) -> Tensor | None:
        """Collect a whole weight, a stacked one from all experts; ``None`` if it is not here."""
        if self.own.holds(name):
            return self.own.gather(name, mesh_of(self.own, meter))
        held = [memory for _, memory in sorted(self.experts.items()) if memory.holds(name)]
        return torch.stack([memory.gather(name, mesh_of(memory, meter)) for memory in held]) if held else None


def mesh_of(memory: RegionMemory, meter: Meter) -> Mesh:
    """The mesh of a region."""
    return Mesh(memory.region.rows, memory.region.columns, meter)


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a node runs: the values at hand, what the symbols stand for, and its block's memory."""

    program: Program
    memory: BlockMemory
    meter: Meter
    bindings: Mapping[str, int]
    values: dict[str, Tensor]

    def read(self, name: str) -> Tensor:
        """A value, or a weight of the block.

        Raises:
            CheckError: W0603, it is not at hand.
        """
        if name in self.values:
            return self.values[name]
        weight = self.memory.gather(name, self.meter)
        if weight is None:
            message = f"{name} is read, but was neither computed on this wafer nor sent to it"
            help_ = ("the plan lacks a transfer, or has it in the wrong direction",)
            raise CheckError(Diagnostic("W0603", message, self.program.where, {}, help_))
        return weight

    def mesh(self) -> Mesh:
        """The mesh of the block's own region."""
        return mesh_of(self.memory.own, self.meter)

    def run(self, instruction: Instruction) -> None:
        """Run a node and keep its results."""
        names = (value.name for value in instruction.node.results)
        self.values.update(zip(names, _results(instruction, self), strict=True))


def _results(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    node = instruction.node
    if instruction.weights:
        return (_KERNELS[node.op](instruction, scope),)
    operands = [scope.read(name) for name in node.inputs]
    return _reference(instruction, scope, operands)


def _reference(instruction: Instruction, scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
    node = instruction.node
    if node.op == "attention":
        scope.meter.multiply_adds += _attention_work(operands, node.attributes)
    elif instruction.work:
        scope.meter.multiply_adds += evaluate(instruction.work, scope.bindings)
    attributes = bind_attributes(node.attributes, scope.bindings)
    return evaluate_op(OPS[node.op], torch, operands, attributes, [value.type for value in node.results])


def _attention_work(operands: list[Tensor], attributes: Attributes) -> int:
    """Multiply-adds of attention to as many tokens as it sees at most, those not there yet left out."""
    query, key, value = operands[:3]
    seen = min(key.shape[2], attributes["window"] or attributes.get("chunk", 0) or key.shape[2])
    return query.shape[:3].numel() * seen * (query.shape[3] + value.shape[3])


def attend(
    instruction: Instruction, cached: CachedAttention, scope: Scope, history: History, types: Mapping[str, TensorType]
) -> None:
    """Let the new tokens' queries meet all of ``history``, whose keys and values are computed again."""
    node = instruction.node
    constants = {name: scope.read(name) for name in cached.constants}
    bindings = {**scope.bindings, "tokens": history.tokens}
    past = replace(scope, bindings=bindings, values={**constants, **history.values(types)})
    for earlier in cached.recompute:
        past.run(earlier)
    query, *sinks = (scope.read(name) for name in (node.inputs[0], *node.inputs[3:]))
    key, value = (past.read(name) for name in node.inputs[1:3])
    scope.values[node.result.name] = _reference(instruction, scope, [query, key, value, *sinks])[0]


def _linear(instruction: Instruction, scope: Scope) -> Tensor:
    x, _weight, *bias = instruction.node.inputs
    weight = instruction.weights[1]
    matrix = scope.memory.own.matrices[weight.parameter].cast(weight.casts)
    product = kernels.linear(scope.mesh(), matrix, scope.read(x), is_transposed(instruction))
    return product + scope.read(bias[0]) if bias else product


def _embedding(instruction: Instruction, scope: Scope) -> Tensor:
    weight = instruction.weights[0]
    table = scope.memory.own.matrices[weight.parameter].cast(weight.casts)
    return kernels.embedding(scope.mesh(), table, scope.read(instruction.node.inputs[1]))


def _grouped_linear(instruction: Instruction, scope: Scope) -> Tensor:
    node, weights = instruction.node, instruction.weights
    home = scope.program.placed.region

    def expert(index: int) -> kernels.Expert:
        memory = scope.memory.experts[index]
        matrix = memory.matrices[weights[1].parameter].cast(weights[1].casts)
        bias = _bias(memory, weights[3]) if 3 in weights else None
        return mesh_of(memory, scope.meter), matrix, bias, distance(home, memory.region)

    x, indices = scope.read(node.inputs[0]), scope.read(node.inputs[2])
    return kernels.grouped_linear(expert, x, indices, is_transposed(instruction))


def _bias(memory: RegionMemory, weight: TileWeight) -> TileVector:
    vector = memory.vectors[weight.parameter]
    shares = vector.shares
    for dtype in weight.casts:
        shares = shares.to(torch_dtype(torch, dtype))
    return replace(vector, shares=shares)


_KERNELS = {"linear": _linear, "grouped_linear": _grouped_linear, "embedding": _embedding}
