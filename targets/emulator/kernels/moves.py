"""What kernels move before and after they compute: settled for one token beforehand, counted in tokens while running."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from ir.types import TensorType, for_one_token
from targets.emulator.scope import Charge, Scope
from targets.emulator.ways import Way, layout_way


def counting(charges: Iterable[Charge]) -> Callable[[Scope], None]:
    """Records each of ``charges`` that crosses a link, whenever it is called."""
    plain = [(c.collective, c.hops, c.link_bytes, c.of, c.elements) for c in charges if c.hops and c.link_bytes]

    def count(scope: Scope) -> None:
        for collective, hops, link_bytes, of, elements in plain:
            tokens = scope.values[of].numel() // elements if of is not None else 1
            if tokens:
                scope.meter.record(collective, hops, link_bytes * tokens)

    return count


def charge(collective: str, way: Way, name: str, scope: Scope) -> Charge:
    """The elements of one token of ``name``, a value or a weight of the block, go their ``way``."""
    return Charge(collective, way.hops, way.links * scope.element_bytes(name), *per_token(name, scope))


def per_token(name: str, scope: Scope) -> tuple[str | None, int]:
    """What is counted in tokens of ``name`` is counted by this value and its elements for one token: weights have one."""
    if name in scope.program.block.parameters:
        return None, 1
    return name, max(1, scope.elements(name))


def broadcast(name: str, scope: Scope) -> Charge:
    """All tiles get a value that lies apart."""
    region = scope.program.placed.region
    way = Way(region.rows + region.columns - 2, scope.elements(name) * (region.tiles - 1))
    return charge("broadcast", way, name, scope)


def strangers(names: Iterable[str], elements: int, scope: Scope) -> list[Charge]:
    """Those of ``names`` that lie apart, and not as a value with so many ``elements`` for one token, go to all tiles."""
    apart = (name for name in dict.fromkeys(names) if name in scope.program.apart)
    return [broadcast(name, scope) for name in apart if scope.elements(name) != elements]


def collect(names: Iterable[str], scope: Scope) -> list[Charge]:
    """Matrices among the operands go from the tiles of their layouts to their elements' homes."""
    ways = {name: matrix_way(name, scope, to_homes=True) for name in names}
    return [charge("collect", way, name, scope) for name, way in ways.items() if way]


def matrix_way(name: str, scope: Scope, *, to_homes: bool) -> Way | None:
    """From the tiles of its layout to its elements' homes, or else to the first tile of the block's region.

    ``None`` for what is no weight that lies as a matrix.
    """
    found = scope.memory.layouts(name) if name in scope.program.block.parameters else ()
    elements = scope.elements(name) if to_homes else 0
    home, start = scope.program.placed.region, 0
    ways = []
    for region, layout in found:
        ways.append(layout_way(layout.inputs, layout.outputs, layout.shape, region, start, elements, home))
        start += prod(layout.shape)
    return Way(max(way.hops for way in ways), sum(way.links for way in ways)) if ways else None


def one_token_shape(type_: TensorType) -> tuple[int, ...]:
    """The shape for one token of one user."""
    return tuple(for_one_token(size) for size in type_.shape)
