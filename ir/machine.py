"""Clusters of wafer-scale machines as placement sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, order=True)
class OddWafer:
    """A wafer unlike the others: of another mesh (0 x 0 where it is out of service), or slower.

    ``slowness_permille`` is what its work takes, in thousandths of what it takes on the others.
    """

    wafer: int
    columns: int
    rows: int
    slowness_permille: int = 1000

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.columns * self.rows

    @property
    def in_service(self) -> bool:
        """Whether anything can lie there."""
        return self.tiles > 0


@dataclass(frozen=True, slots=True, order=True)
class OddLink:
    """Two wafers whose link costs ``cost`` times what others cost, in latency and in time for each byte."""

    one: int
    other: int
    cost: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster of wafers, each a mesh of tiles with memory of their own; equal, but for those named.

    Attributes:
        columns, rows: the mesh that an application can use on one wafer.
        tile_sram_bytes: memory of one tile, code and stack included.
        reserve_bytes: what code, stack and buffers take of it.
        systems: number of wafers.
        odd_wafers, odd_links: those unlike the others, sorted.
    """

    name: str
    description: str
    columns: int
    rows: int
    tile_sram_bytes: int
    reserve_bytes: int
    systems: int
    odd_wafers: tuple[OddWafer, ...] = ()
    odd_links: tuple[OddLink, ...] = ()

    def wafer(self, index: int) -> OddWafer:
        """Wafer number ``index``, odd or not."""
        usual = OddWafer(index, self.columns, self.rows)
        return next((odd for odd in self.odd_wafers if odd.wafer == index), usual)

    def link_cost(self, one: int, other: int) -> int:
        """What the link of two wafers costs, relative to an ordinary one."""
        pair = (min(one, other), max(one, other))
        return next((link.cost for link in self.odd_links if (link.one, link.other) == pair), 1)

    def bytes_of(self, index: int) -> int:
        """Bytes of wafer number ``index`` that a plan may fill."""
        return self.wafer(index).tiles * self.tile_bytes

    def resized(self, systems: int) -> Machine:
        """The cluster with so many systems: the first of its own, and ordinary ones behind them."""
        return replace(
            self,
            systems=systems,
            odd_wafers=tuple(odd for odd in self.odd_wafers if odd.wafer < systems),
            odd_links=tuple(link for link in self.odd_links if max(link.one, link.other) < systems),
        )

    def without(self, wafers: Iterable[int]) -> Machine:
        """The cluster with ``wafers`` out of service."""
        out = {wafer: OddWafer(wafer, 0, 0) for wafer in wafers}
        kept = (odd for odd in self.odd_wafers if odd.wafer not in out)
        return replace(self, odd_wafers=tuple(sorted((*kept, *out.values()))))

    @property
    def is_even(self) -> bool:
        """Whether all wafers are equal, and all links."""
        return not (self.odd_wafers or self.odd_links)

    @property
    def in_service(self) -> tuple[int, ...]:
        """The wafers that something can lie on."""
        out = {odd.wafer for odd in self.odd_wafers if not odd.in_service}
        return tuple(wafer for wafer in range(self.systems) if wafer not in out)

    @property
    def total_tiles(self) -> int:
        """Tiles of all wafers."""
        return (self.systems - len(self.odd_wafers)) * self.tiles + sum(odd.tiles for odd in self.odd_wafers)

    @property
    def total_bytes(self) -> int:
        """Bytes of all wafers that a plan may fill."""
        return self.total_tiles * self.tile_bytes

    @property
    def tiles(self) -> int:
        """Tiles of an ordinary wafer."""
        return self.columns * self.rows

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile that a plan may fill."""
        return self.tile_sram_bytes - self.reserve_bytes

    @property
    def wafer_bytes(self) -> int:
        """Bytes of an ordinary wafer that a plan may fill."""
        return self.tiles * self.tile_bytes


MOST_COST = 10_000
"""Of a link."""
MOST_SLOWNESS = 1_000_000
"""A thousandth of the ordinary speed."""
_Limits = Mapping[str, tuple[int, int, int]]
"""Figures by name: value, least and most."""


def absurdities(machine: Machine) -> tuple[str, ...]:
    """What makes ``machine`` impossible, in words; nothing if it could exist."""
    limits = {
        "columns": (machine.columns, 1, 10_000),
        "rows": (machine.rows, 1, 10_000),
        "tile_sram_bytes": (machine.tile_sram_bytes, 1, 1 << 40),
        "reserve_bytes": (machine.reserve_bytes, 0, machine.tile_sram_bytes - 1),
        "systems": (machine.systems, 1, 10_000),
    }
    found = [*_outside(limits), *_odd_wafers(machine), *_odd_links(machine)]
    if not found and not machine.in_service:
        found.append("no wafer is in service")
    return tuple(found)


def _outside(limits: _Limits) -> Iterator[str]:
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            yield f"{name} must be from {low:,} to {high:,}, not {value:,}"


def _odd_wafers(machine: Machine) -> Iterator[str]:
    numbers = [odd.wafer for odd in machine.odd_wafers]
    if sorted(set(numbers)) != numbers:
        yield "odd wafers must be told once each, sorted by their numbers"
    for odd in machine.odd_wafers:
        name = f"odd wafer {odd.wafer}:"
        least = 0 if (odd.columns, odd.rows) == (0, 0) else 1
        yield from _outside(
            {
                "the number of an odd wafer": (odd.wafer, 0, machine.systems - 1),
                f"{name} columns": (odd.columns, least, 10_000),
                f"{name} rows": (odd.rows, least, 10_000),
                f"{name} slowness_permille": (odd.slowness_permille, 1, MOST_SLOWNESS),
            }
        )


def _odd_links(machine: Machine) -> Iterator[str]:
    pairs = [(link.one, link.other) for link in machine.odd_links]
    if sorted(set(pairs)) != pairs:
        yield "odd links must be told once each, sorted by the wafers that they join"
    for link in machine.odd_links:
        name = f"odd link {link.one}-{link.other}:"
        if link.one >= link.other:
            yield f"{name} the lower number comes first, and no wafer has a link to itself"
        most = machine.systems - 1
        yield from _outside(
            {
                f"{name} one": (link.one, 0, most),
                f"{name} other": (link.other, 0, most),
                f"{name} cost": (link.cost, 1, MOST_COST),
            }
        )
