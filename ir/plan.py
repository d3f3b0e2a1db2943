"""A plan: which wafer and rectangle of tiles holds every block and expert, and what flows between wafers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd

from ir.machine import Machine
from ir.model import BlockKind
from ir.objective import Objective
from ir.rules import Rule
from ir.workload import Workload


@dataclass(frozen=True, slots=True, order=True)
class Rectangle:
    """Tiles of one wafer: the corner nearest the origin, and the size in tiles."""

    column: int
    row: int
    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.columns * self.rows

    @property
    def at_origin(self) -> Rectangle:
        """As many rows and columns in the mesh's first corner."""
        return Rectangle(0, 0, self.columns, self.rows)

    def contains(self, other: Rectangle) -> bool:
        """Whether ``other`` lies inside."""
        return (
            self.column <= other.column
            and self.row <= other.row
            and other.column + other.columns <= self.column + self.columns
            and other.row + other.rows <= self.row + self.rows
        )


@dataclass(frozen=True, slots=True)
class PlacedExpert:
    """One routed expert: its number in the group, and where its weights lie."""

    index: int
    wafer: int
    region: Rectangle


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """A block on its wafer. Byte counts are claims that the checker derives again.

    ``tile_bytes`` is what its fullest tile holds, the reserve for code, stack and buffers left out. Routed experts have
    regions of their own inside the block's, or all of them the block's, each on all of its tiles (``sliced``).
    A block that has several copies is listed once for each, ``copy`` counting them from 0. They serve users in turn,
    user u by copy u mod their number: each has all weights and activations, and caches for its share of the users.
    """

    name: str
    kind: BlockKind
    layer: int | None
    wafer: int
    region: Rectangle
    parameters: tuple[str, ...]
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    tile_bytes: int
    macs_per_token: int
    experts: tuple[PlacedExpert, ...] = ()
    active_experts: int = 0
    copy: int = 0

    @property
    def title(self) -> str:
        """The name, with the number of a further copy: ``embedding #1``."""
        return f"{self.name} #{self.copy}" if self.copy else self.name

    @property
    def bytes(self) -> int:
        """Everything that the block keeps on its wafer."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def sliced(self) -> bool:
        """Whether the experts share the block's region."""
        return bool(self.experts) and all(expert.region == self.region for expert in self.experts)


def pairs(sources: Sequence[PlacedBlock], targets: Sequence[PlacedBlock]) -> Iterator[tuple[PlacedBlock, PlacedBlock]]:
    """The copies of one block and of another (all of each, in order) that serve a user in common: those whose numbers
    are equal modulo the greatest common divisor of how many there are, as user u is served by copy u mod that many.
    """
    common = gcd(len(sources), len(targets))
    for source in sources:
        for target in targets:
            if (source.copy - target.copy) % common == 0:
                yield source, target


@dataclass(frozen=True, slots=True)
class Transfer:
    """``value`` goes from the wafer of block ``source`` to another wafer, once, for all blocks there that read it.

    A copy of a block sends to those copies of its readers that serve some of its users (:func:`pairs`).
    """

    value: str
    source: str
    source_wafer: int
    target_wafer: int
    bytes_per_token: int


def relative_gap(value: int, bound: int) -> float:
    """Distance of ``value`` from ``bound``, relative to the value."""
    return abs(value - bound) / max(1, abs(value))


@dataclass(frozen=True, slots=True)
class Score:
    """What a placement reaches in one objective, those before it being kept.

    ``bound`` is what no such placement can do better than; ``proof`` names the arguments that agree that the value is
    the best, and is empty where that is not known.
    """

    objective: Objective
    value: int
    bound: int
    proof: str

    @property
    def gap(self) -> float:
        """Relative distance of the value from the bound."""
        return relative_gap(self.value, self.bound)


OPTIMAL, FEASIBLE = "optimal", "feasible"


@dataclass(frozen=True, slots=True)
class SolverRecord:
    """What the solver says of the placement: its scores in the order of the objectives.

    ``status`` is ``optimal`` where every score is proven, else ``feasible``; ``interrupted`` where the user ended the
    search before its limit.
    """

    status: str
    scores: tuple[Score, ...]
    seed: int
    deterministic_time_limit: float
    interrupted: bool = False

    def value(self, objective: Objective) -> int | None:
        """What the placement reaches in ``objective``; ``None`` if it was none of them."""
        return next((score.value for score in self.scores if score.objective is objective), None)


def status_of(scores: Iterable[Score]) -> str:
    """What may be said of a placement with these scores."""
    return OPTIMAL if all(score.proof for score in scores) else FEASIBLE


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything lies, for one model on one machine under one workload, and the user's rules that it keeps."""

    model_name: str
    machine: Machine
    workload: Workload
    blocks: tuple[PlacedBlock, ...]
    transfers: tuple[Transfer, ...]
    solver: SolverRecord
    rules: tuple[Rule, ...] = ()

    def on_wafer(self, wafer: int) -> tuple[PlacedBlock, ...]:
        """The blocks of one wafer, in pipeline order."""
        return tuple(block for block in self.blocks if block.wafer == wafer)

    @property
    def copies(self) -> dict[str, tuple[PlacedBlock, ...]]:
        """The copies of each block by its name, one for most."""
        found: dict[str, list[PlacedBlock]] = {}
        for block in self.blocks:
            found.setdefault(block.name, []).append(block)
        return {name: tuple(sorted(own, key=lambda block: block.copy)) for name, own in found.items()}

    @property
    def wafers_used(self) -> tuple[int, ...]:
        """Wafers that hold a block, in the order in which values flow; the one that stays closest to the blocks'.

        Numbers of wafers are names alone. Where values flow back, the wafer of the earliest block goes first.
        """
        first: dict[int, int] = {}
        for index, block in enumerate(self.blocks):
            first.setdefault(block.wafer, index)
        before: dict[int, set[int]] = {wafer: set() for wafer in first}
        for transfer in self.transfers:
            if transfer.source_wafer in first and transfer.target_wafer in first:
                before[transfer.target_wafer].add(transfer.source_wafer)
        order: list[int] = []
        left = sorted(first, key=first.__getitem__)
        while left:
            ready = next((wafer for wafer in left if before[wafer].isdisjoint(left)), left[0])
            order.append(ready)
            left.remove(ready)
        return tuple(order)

    def wafer_bytes(self, wafer: int) -> int:
        """Bytes kept on one wafer."""
        return sum(block.bytes for block in self.on_wafer(wafer))

    @property
    def largest_wafer_bytes(self) -> int:
        """Bytes of the fullest wafer."""
        return max(self.wafer_bytes(wafer) for wafer in {block.wafer for block in self.blocks})
