"""Products by weights that stay on their tiles, and look-ups in tables that do."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ir.diagnostics import CheckError, Diagnostic
from ir.layout import Ints, MatrixLayout, Split
from ir.plan import Rectangle
from targets.emulator.kernels.moves import broadcast, charge, collect, per_token
from targets.emulator.kernels.sums import product
from targets.emulator.memory import TileWeights
from targets.emulator.scope import Charge, Kernel, Scope, Tensor
from targets.emulator.ways import Vectors, enter_way, leave_way, look_up_way
from targets.program.instructions import Instruction, is_transposed
from targets.program.kinds import SUM_BYTES


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight on its tiles as a product reads it: ``inputs`` and ``outputs`` are the product's.

    A ``transposed`` weight is [in, out]: its inputs lie over columns of tiles.
    """

    inputs: Split
    outputs: Split
    transposed: bool
    region: Rectangle

    @staticmethod
    def of(layout: MatrixLayout, transposed: bool, region: Rectangle) -> Matrix:
        """The weight that lies so on ``region``."""
        splits = (layout.outputs, layout.inputs) if transposed else (layout.inputs, layout.outputs)
        return Matrix(*splits, transposed, region)


@lru_cache(maxsize=65536)
def product_moves(
    matrix: Matrix, x: Vectors | None, y: Vectors, home: Rectangle, element_bytes: int
) -> tuple[tuple[str, int, int], ...]:
    """What a product moves for one token (collective, hops, bytes over links): inputs from their homes in ``home`` onto
    their lines, partial sums across, results home.

    ``x`` and ``y`` are the token's vectors that it takes and yields; ``x`` is none where all tiles have them.
    """
    region, moved = matrix.region, []
    if x:
        way = enter_way(matrix.inputs, x, home, region, matrix.transposed)
        moved.append(("enter", way.hops, way.links * element_bytes))
    length = (region.columns if matrix.transposed else region.rows) - 1
    sums = len(y.which) * matrix.outputs.length
    moved.append(("chain", length, length * sums * max(SUM_BYTES, element_bytes)))
    way = leave_way(matrix.outputs, y, region, home, matrix.transposed)
    moved.append(("leave", way.hops, way.links * element_bytes))
    return tuple(moved)


def product_of(instruction: Instruction, scope: Scope) -> Kernel:
    """X [..., in] times a weight that stays on the block's tiles -> [..., out], plus a bias that lies at its homes."""
    name, _weight, *bias = instruction.node.inputs
    weight, own, home = instruction.weights[1], scope.memory.own, scope.program.placed.region
    matrix = Matrix.of(own.layouts[weight.parameter], is_transposed(instruction), home)
    count = scope.elements(name) // matrix.inputs.length
    vectors, element_bytes = Vectors(range(count), count), scope.element_bytes(name)
    enters = vectors if name in scope.program.apart else None
    moves = product_moves(matrix, enters, vectors, home, element_bytes)
    charges = [*collect((name, *bias), scope), *(Charge(*move, *per_token(name, scope)) for move in moves)]
    charges += [broadcast(b, scope) for b in bias if count > 1 and b in scope.program.apart]
    outputs, order = matrix.outputs.length, scope.arithmetic.order
    result = instruction.node.result
    dtype = scope.arithmetic.dtype(result.type.dtype, result.name)

    def run(scope: Scope) -> tuple[Tensor, ...]:
        x = scope.read(name)
        x = x if x.dtype is dtype else x.to(dtype)
        scope.meter.multiply_adds(x.numel() * outputs)
        parts = own.parts(weight.parameter, weight.casts, matrix.transposed)
        y = product(x, parts, matrix.inputs, matrix.transposed, order, scope.read(bias[0]) if bias else None)
        return (y,)

    return Kernel(run, charges)


def lookup(instruction: Instruction, scope: Scope) -> Kernel:
    """Rows of a table [rows, width]. All of a row of tiles passes along it; each tile keeps what is at home there.

    Running raises:
        CheckError: W0604, an index outside the table.
    """
    weight, indices, result = instruction.weights[0], instruction.node.inputs[1], instruction.node.result.name
    own = scope.memory.own
    layout = own.layouts[weight.parameter]
    rows, count = layout.outputs.length, scope.elements(result) // layout.inputs.length
    way = look_up_way(layout.inputs, Vectors(range(count), count), scope.program.placed.region)

    def run(scope: Scope) -> tuple[Tensor, ...]:
        wanted = scope.read(indices)
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < rows:
            raise CheckError(Diagnostic("W0604", f"an index lies outside the table's {rows} rows", scope.program.where))
        return (own.rows(weight.parameter, wanted, weight.casts),)

    return Kernel(run, [charge("lookup", way, result, scope)])


def experts(instruction: Instruction, scope: Scope) -> Kernel:
    """X [tokens, 1 or k, in] times the weights of each token's experts [tokens, k] -> [tokens, k, out].

    Each chosen expert's product runs on that expert's own region: its tokens' inputs go there from their homes, and
    its results to theirs.
    """
    node, home, order = instruction.node, scope.program.placed.region, scope.arithmetic.order
    name, _weights, choice, *_bias = node.inputs
    weight, bias = instruction.weights[1], instruction.weights.get(3)
    own_inputs = scope.types[name].shape[1] != 1
    is_apart, element_bytes = name in scope.program.apart, scope.element_bytes(name)
    held, matrices = scope.memory.experts, dict[int, Matrix]()

    def matrix_of(expert: int) -> Matrix:
        if expert not in matrices:
            tiles = held[expert]
            matrices[expert] = Matrix.of(tiles.layouts[weight.parameter], is_transposed(instruction), tiles.region)
        return matrices[expert]

    def run(scope: Scope) -> tuple[Tensor, ...]:
        x, chosen = scope.read(name), scope.read(choice)
        tokens, places = chosen.shape
        routing = _routing(chosen, len(held))
        scope.meter.routing[node.result.name] = routing
        for expert, place in np.argwhere(routing).tolist():
            of_place = Vectors(range(place, place + 1), places)
            enters = (of_place if own_inputs else Vectors()) if is_apart else None
            for collective, hops, link_bytes in product_moves(matrix_of(expert), enters, of_place, home, element_bytes):
                scope.meter.record(collective, hops, link_bytes * int(routing[expert, place]))
        outputs = int(scope.types[node.result.name].shape[-1])  # type: ignore[arg-type]
        scope.meter.multiply_adds(chosen.numel() * x.shape[-1] * outputs)
        by_expert = chosen.flatten().argsort(stable=True)
        given = x.expand(-1, places, -1).reshape(tokens * places, -1)[by_expert]
        result = x.new_empty(tokens * places, outputs)
        start = 0
        for expert, count in enumerate(routing.sum(axis=1).tolist()):
            if count:
                mine = by_expert[start : start + count]
                result[mine] = _expert(held[expert], matrix_of(expert), given[start : start + count])
                start += count
        return (result.reshape(tokens, places, outputs),)

    def _expert(tiles: TileWeights, matrix: Matrix, x: Tensor) -> Tensor:
        parts = tiles.parts(weight.parameter, weight.casts, matrix.transposed)
        added = tiles.values(bias.parameter, bias.casts) if bias else None
        return product(x, parts, matrix.inputs, matrix.transposed, order, added)

    return Kernel(run)


def _routing(chosen: Tensor, experts: int) -> Ints:
    """How many tokens each expert serves at each place of the choice [experts, k]."""
    places = chosen.shape[1]
    pairs = chosen.cpu().numpy().astype(np.int64) * places + np.arange(places)
    return np.bincount(pairs.ravel(), minlength=experts * places).reshape(experts, places)
