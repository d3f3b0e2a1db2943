"""Operators whose elements meet: on each tile first, then from tile to tile, in the order of the mesh or at once."""

from __future__ import annotations

from collections.abc import Callable

from ir.types import one_token_shape
from targets.emulator.arithmetic import Order
from targets.emulator.kernels.elements import moving
from targets.emulator.kernels.moves import charge, collect, per_token, strangers
from targets.emulator.kernels.reductions import MESH_MEANINGS
from targets.emulator.kernels.tokens import Tokens, token_shape
from targets.emulator.kernels.tree import Tree, at_homes, over_mesh
from targets.emulator.scope import Charge, Kernel, Scope, Tensor
from targets.emulator.ways import combine_way
from targets.program.instructions import Instruction
from targets.program.kinds import SUM_BYTES, SUMS, values_that_meet


def reduction(instruction: Instruction, scope: Scope) -> Kernel:
    """Elements of a row meet by an all-reduce: every tile then has the sums, or what was chosen."""
    node, region = instruction.node, scope.program.placed.region
    first, *others = node.inputs
    hops = 2 * (region.rows + region.columns - 2)
    payload = values_that_meet(scope.types, node) * max(SUM_BYTES, scope.element_bytes(first))
    charges = [
        *collect(node.inputs, scope),
        *strangers(others, scope.elements(first), scope),
        Charge("all_reduce", hops, 2 * (region.tiles - 1) * payload, *per_token(first, scope)),
    ]
    device = scope.arithmetic.device
    return _in_order(instruction, scope, charges, lambda shape, axes: over_mesh(shape, axes, region, device))


def combine(instruction: Instruction, scope: Scope) -> Kernel:
    """Elements that meet along an axis other than the last go to where their sum lies, and are added up there."""
    (name,), region = instruction.node.inputs, scope.program.placed.region
    shape, axes = one_token_shape(scope.types[name].shape), _axes(instruction, scope)
    charges = [*collect((name,), scope), charge("combine", combine_way(shape, axes, region), name, scope)]
    device = scope.arithmetic.device
    return _in_order(instruction, scope, charges, lambda shape, axes: at_homes(shape, axes, device))


def _in_order(
    instruction: Instruction,
    scope: Scope,
    charges: list[Charge],
    tree: Callable[[tuple[int, ...], tuple[int, ...]], Tree],
) -> Kernel:
    """The operator with its elements meeting as ``tree`` says, or by the host's routine at once."""
    node, arithmetic = instruction.node, scope.arithmetic
    compute = MESH_MEANINGS.get(node.op)
    if arithmetic.order is Order.HOST or compute is None:  # a gather picks elements, and meets none
        return moving(instruction, scope, charges)
    first, *others = node.inputs
    dtypes = [arithmetic.dtype(value.type.dtype, value.name) for value in node.results]
    shape, axes = token_shape(scope.types[first]), _axes(instruction, scope)
    found_shape = token_shape(node.result.type)
    gone = axes if len(found_shape) < len(shape) else ()
    meeting = tree(shape, axes)

    def run(scope: Scope) -> tuple[Tensor, ...]:
        x = scope.read(first)
        tokens = Tokens.of(x, shape)
        found = compute(tokens.split(x), [scope.read(name) for name in others], node.attributes, meeting)
        results = Tokens(tokens.without(gone), found_shape)
        return tuple(results.join(value).to(dtype) for value, dtype in zip(found, dtypes, strict=True))

    return Kernel(run, charges)


def _axes(instruction: Instruction, scope: Scope) -> tuple[int, ...]:
    """Along which elements meet."""
    node = instruction.node
    rank = len(scope.types[node.inputs[0]].shape)
    axes = node.attributes["dims"] if node.op in SUMS else (rank - 1,)
    return tuple(sorted(axis % rank for axis in axes))
