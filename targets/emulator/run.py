"""Running one instruction on the tiles of its block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.interpret import bind_attributes
from ir.ops import OPS
from ir.ops import evaluate as evaluate_op
from ir.types import TensorType, evaluate, for_one_token
from targets.emulator.arithmetic import Arithmetic
from targets.emulator.history import History
from targets.emulator.memory import TileWeights
from targets.emulator.mesh import Mesh
from targets.emulator.meter import Meter
from targets.emulator.products import count_product, product
from targets.emulator.ways import Vectors, look_up_way
from targets.program.instructions import CachedAttention, Instruction, Program, is_transposed
from targets.program.kinds import KernelKind

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """The weights of one block: on its own region, and on the region of each routed expert, by its number."""

    own: TileWeights
    experts: Mapping[int, TileWeights]

    def gather(self, name: str) -> Tensor | None:
        """A whole weight, a stacked one from all experts; ``None`` if it is not here."""
        if self.own.holds(name):
            return self.own.values(name)
        held = [weights for _, weights in sorted(self.experts.items()) if weights.holds(name)]
        return torch.stack([weights.values(name) for weights in held]) if held else None


@dataclass(frozen=True, slots=True)
class Scope:
    """Where an instruction runs: the values at hand, what the symbols stand for, and its block's memory."""

    program: Program
    memory: BlockMemory
    arithmetic: Arithmetic
    types: Mapping[str, TensorType]
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
        weight = self.memory.gather(name)
        if weight is None:
            message = f"{name} is read, but was neither computed on this wafer nor sent to it"
            help_ = ("the plan lacks a transfer, or has it in the wrong direction",)
            raise CheckError(Diagnostic("W0603", message, self.program.where, {}, help_))
        return weight

    @property
    def mesh(self) -> Mesh:
        """The mesh of the block's own region."""
        return Mesh(self.program.placed.region, self.meter)

    def element_bytes(self, name: str) -> int:
        """Bytes of an element of a value on the machine."""
        return self.types[name].dtype.held_bits // 8

    def elements(self, name: str) -> int:
        """Elements of a value for one token of one user."""
        return for_one_token(self.types[name].elements)

    def run(self, instruction: Instruction) -> None:
        """Run a node and keep its results."""
        self.meter.op = (self.program.placed.title, instruction.node.result.name)
        names = (value.name for value in instruction.node.results)
        self.values.update(zip(names, _KERNELS[instruction.kind](instruction, self), strict=True))


Kernel = Callable[[Instruction, Scope], tuple[Tensor, ...]]


def reference(instruction: Instruction, scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
    """The operator's reference meaning, in the types that the host computes with."""
    node, arithmetic = instruction.node, scope.arithmetic
    attributes = bind_attributes(node.attributes, scope.bindings)
    found = evaluate_op(OPS[node.op], torch, operands, attributes, [value.type for value in node.results])
    wanted = [arithmetic.dtype(value.type.dtype) for value in node.results]
    return tuple(value if value.dtype is dtype else value.to(dtype) for value, dtype in zip(found, wanted, strict=True))


def _in_place(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    """Each element alone, where it lies."""
    return reference(instruction, scope, [scope.read(name) for name in instruction.node.inputs])


def _by_reference(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    """No kernel for tiles."""
    scope.meter.by_reference[instruction.node.op] += 1
    if instruction.work:
        scope.meter.multiply_adds(evaluate(instruction.work, scope.bindings))
    return _in_place(instruction, scope)


def attend(instruction: Instruction, cached: CachedAttention, scope: Scope, history: History) -> None:
    """Let the new tokens' queries meet all of ``history``, whose keys and values are computed again."""
    node = instruction.node
    constants = {name: scope.read(name) for name in cached.constants}
    bindings = {**scope.bindings, "tokens": history.tokens}
    past = replace(scope, bindings=bindings, values={**constants, **history.values})
    for earlier in cached.recompute:
        past.run(earlier)
    query, *sinks = (scope.read(name) for name in (node.inputs[0], *node.inputs[3:]))
    key, value = (past.read(name) for name in node.inputs[1:3])
    scope.meter.op = (scope.program.placed.title, node.result.name)
    scope.values[node.result.name] = _attention(instruction, scope, [query, key, value, *sinks])[0]


def _attention(instruction: Instruction, scope: Scope, operands: list[Tensor]) -> tuple[Tensor, ...]:
    query, key, value = operands[:3]
    attributes = instruction.node.attributes
    seen = min(key.shape[2], attributes["window"] or attributes.get("chunk", 0) or key.shape[2])
    scope.meter.multiply_adds(query.shape[:3].numel() * seen * (query.shape[3] + value.shape[3]))
    return reference(instruction, scope, operands)


def _attention_in_step(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    """Attention that remembers nothing: of an encoder, or among a picture's patches."""
    return _attention(instruction, scope, [scope.read(name) for name in instruction.node.inputs])


def _product(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    name, _weight, *bias = instruction.node.inputs
    weight, transposed = instruction.weights[1], is_transposed(instruction)
    layout = scope.memory.own.layouts[weight.parameter]
    inputs = layout.outputs if transposed else layout.inputs
    x = scope.read(name)
    parts = scope.memory.own.parts(weight.parameter, weight.casts, transposed)
    y = product(x.reshape(-1, x.shape[-1]), parts, inputs, transposed, scope.arithmetic.order)
    count = scope.elements(name) // inputs.length
    vectors = Vectors(range(count), count)
    tokens = x.numel() // (inputs.length * count)
    count_product(
        scope.mesh, layout, transposed, vectors, vectors, scope.program.placed.region, tokens, scope.element_bytes(name)
    )
    y = y.reshape(*x.shape[:-1], -1)
    return (y + scope.read(bias[0]) if bias else y,)


def _lookup(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    """Rows of a table [rows, width]. All of a row of tiles passes along it; each tile keeps what is at home there.

    Raises:
        CheckError: W0604, an index outside the table.
    """
    weight, indices = instruction.weights[0], scope.read(instruction.node.inputs[1])
    layout = scope.memory.own.layouts[weight.parameter]
    rows = layout.outputs.length
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < rows:
        raise CheckError(Diagnostic("W0604", f"an index lies outside the table's {rows} rows", scope.program.where))
    way = look_up_way(layout.inputs, scope.program.placed.region)
    scope.mesh.move("lookup", way, scope.element_bytes(instruction.node.result.name), indices.numel())
    return (scope.memory.own.rows(weight.parameter, indices, weight.casts),)


def _experts(instruction: Instruction, scope: Scope) -> tuple[Tensor, ...]:
    """X [tokens, 1 or k, in] times the weights of each token's experts [tokens, k] -> [tokens, k, out].

    Each chosen expert's product runs on that expert's own region: its tokens' inputs go there from their homes, and
    its results to theirs.
    """
    node, weights = instruction.node, instruction.weights
    transposed, home = is_transposed(instruction), scope.program.placed.region
    x, chosen = scope.read(node.inputs[0]), scope.read(node.inputs[2])
    given, places = x.shape[1], chosen.shape[1]
    x = x.expand(-1, places, -1)
    element_bytes = scope.element_bytes(node.inputs[0])
    parts: list[tuple[Tensor, Tensor]] = []
    routing = torch.zeros(len(scope.memory.experts), places, dtype=torch.int64)
    for expert in sorted(set(chosen.flatten().tolist())):
        tiles = scope.memory.experts[expert]
        layout = tiles.layouts[weights[1].parameter]
        mine = chosen == expert
        routing[expert] = mine.sum(dim=0)
        shares = tiles.parts(weights[1].parameter, weights[1].casts, transposed)
        inputs = layout.outputs if transposed else layout.inputs
        y = product(x[mine], shares, inputs, transposed, scope.arithmetic.order)
        if 3 in weights:
            y = y + tiles.values(weights[3].parameter, weights[3].casts)
        parts.append((mine, y))
        for place, tokens in enumerate(routing[expert].tolist()):
            if tokens:
                enters = Vectors(range(place, place + 1), places) if given > 1 else Vectors()
                leaves = Vectors(range(place, place + 1), places)
                mesh = Mesh(tiles.region, scope.meter)
                count_product(mesh, layout, transposed, enters, leaves, home, tokens, element_bytes)
    scope.meter.routing[node.result.name] = routing.numpy()
    result = x.new_empty(*chosen.shape, parts[0][1].shape[-1] if parts else 0)
    for mine, y in parts:
        result[mine] = y
    return (result,)


_KERNELS: dict[KernelKind, Kernel] = {
    KernelKind.PRODUCT: _product,
    KernelKind.EXPERTS: _experts,
    KernelKind.LOOKUP: _lookup,
    KernelKind.ATTENTION: _attention_in_step,
    KernelKind.ELEMENT: _in_place,
    KernelKind.MOVE: _in_place,
    KernelKind.REDUCTION: _in_place,
    KernelKind.COMBINE: _in_place,
    KernelKind.EVERYWHERE: _in_place,
    KernelKind.REFERENCE: _by_reference,
}
