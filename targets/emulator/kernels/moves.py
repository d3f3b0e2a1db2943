"""What kernels move before and after they compute: settled for one token, counted in tokens while running."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from targets.emulator.scope import Charge, Scope
from targets.emulator.ways import Way, layout_way, relay_way, spread_way, vector_way


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
    """What counts the tokens of ``name``: the value itself and its elements for one token; nothing for weights."""
    if name in scope.program.block.parameters:
        return None, 1
    return name, max(1, scope.elements(name))


def broadcast(name: str, scope: Scope) -> Charge:
    """All tiles get a value that lies apart."""
    region = scope.program.placed.region
    way = Way(region.rows + region.columns - 2, scope.elements(name) * (region.tiles - 1))
    return charge("broadcast", way, name, scope)


def strangers(names: Iterable[str], elements: int, scope: Scope) -> list[Charge]:
    """Those of ``names`` that lie apart, but not as a value of ``elements`` for each token, go to all tiles."""
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
        if layout is None:
            length = scope.elements(name) // len(found)
            ways.append(vector_way(length, region, start, elements, home))
        else:
            length = prod(layout.shape)
            ways.append(layout_way(layout.inputs, layout.outputs, layout.shape, region, start, elements, home))
        start += length
    return Way(max(way.hops for way in ways), sum(way.links for way in ways)) if ways else None


def arrivals(scope: Scope) -> list[tuple[str, list[Charge]]]:
    """What a block moves to read values of other blocks, by value: from their region on its wafer, or, of other wafers,
    from its edge, whose links bring home what lies apart.
    """
    region, apart = scope.program.placed.region, scope.program.apart
    found = []
    for name, source in scope.program.relays:
        way = (relay_way if name in apart else spread_way)(scope.elements(name), source, region)
        found.append((name, [charge("relay", way, name, scope)]))
    return found + [(name, [broadcast(name, scope)]) for name in scope.program.arrivals if name not in apart]
