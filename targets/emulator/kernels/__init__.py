"""The kernels: one maker for each kind, which settles what types, layouts and region decide and yields what runs.

Attention, which reads what is remembered too, is apart (:mod:`targets.emulator.attention`).
"""

from __future__ import annotations

from collections.abc import Callable

from targets.emulator.kernels.elements import everywhere, in_place, move
from targets.emulator.kernels.meeting import combine, reduction
from targets.emulator.kernels.moves import arrivals, counting
from targets.emulator.kernels.products import experts, lookup, product_of
from targets.emulator.kernels.reference import by_reference
from targets.emulator.scope import Kernel, Prepared, Scope
from targets.program.instructions import Instruction
from targets.program.kinds import KernelKind

__all__ = ["arrive", "run"]

_MAKERS: dict[KernelKind, Callable[[Instruction, Scope], Kernel]] = {
    KernelKind.PRODUCT: product_of,
    KernelKind.EXPERTS: experts,
    KernelKind.LOOKUP: lookup,
    KernelKind.ELEMENT: in_place,
    KernelKind.MOVE: move,
    KernelKind.REDUCTION: reduction,
    KernelKind.COMBINE: combine,
    KernelKind.EVERYWHERE: everywhere,
    KernelKind.REFERENCE: by_reference,
}


def run(instruction: Instruction, scope: Scope) -> None:
    """Run a node, keep its results, and count what it moved.

    Raises:
        CheckError: W0603, a value is not at hand; W0604, an index outside a table.
    """
    name = instruction.node.results[0].name
    kernel = scope.memory.kernels.get(name)
    if kernel is None:
        kernel = scope.memory.kernels[name] = _prepare(instruction, scope)
    scope.meter.op = kernel.op
    scope.values.update(zip(kernel.names, kernel.compute(scope), strict=True))
    kernel.count(scope)


def arrive(scope: Scope) -> None:
    """Bring what a block reads of others onto its tiles.

    Raises:
        CheckError: W0603, a value is not at hand.
    """
    # Users who meet other copies of the blocks that are read have other ways here.
    held, sources = scope.memory.arrivals, (scope.program.relays, scope.program.arrivals)
    if sources not in held:
        found = arrivals(scope)
        held[sources] = [((scope.program.placed.title, name), counting(charges)) for name, charges in found]
    for op, count in held[sources]:
        scope.read(op[1])
        scope.meter.op = op
        count(scope)


def _prepare(instruction: Instruction, scope: Scope) -> Prepared:
    names = tuple(value.name for value in instruction.node.results)
    kernel = _MAKERS[instruction.kind](instruction, scope)
    return Prepared((scope.program.placed.title, names[0]), names, kernel.compute, counting(kernel.charges))
