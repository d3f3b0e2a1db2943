"""Operators without a kernel for tiles: they run on the region's first tile, which is said in the counters."""

from __future__ import annotations

from ir.types import evaluate
from targets.emulator.kernels.meaning import meaning
from targets.emulator.kernels.moves import charge, matrix_way
from targets.emulator.scope import Kernel, Scope, Tensor
from targets.emulator.ways import corner_way
from targets.program.instructions import Instruction


def by_reference(instruction: Instruction, scope: Scope) -> Kernel:
    """Operands that lie apart go to the region's first tile, and results home from there."""
    node, region = instruction.node, scope.program.placed.region
    apart = [name for name in dict.fromkeys(node.inputs) if name in scope.program.apart]
    gathered = ((name, matrix_way(name, scope, to_homes=False)) for name in apart)
    charges = [charge("gather", way or corner_way(scope.elements(name), region), name, scope) for name, way in gathered]
    results = [value.name for value in node.results]
    charges += [charge("scatter", corner_way(scope.elements(name), region), name, scope) for name in results]
    compute, work = meaning(instruction, scope), instruction.work

    def run(scope: Scope) -> tuple[Tensor, ...]:
        scope.meter.by_reference[node.op] += 1
        if work:
            scope.meter.multiply_adds(evaluate(work, scope.bindings))
        return compute(scope, [scope.read(name) for name in node.inputs])

    return Kernel(run, charges)
