"""What changed between two plans: blocks on other wafers, what each wafer holds, and the figures around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ir.machine import OddWafer
from ir.plan import PlacedBlock, Plan, Transfer


@dataclass(frozen=True, slots=True)
class Move:
    """A block whose weights lie on other wafers than before."""

    block: str
    layer: int | None
    weight_bytes: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Change:
    """A figure, such as ``workload.users``; ``None`` on the side that does not have it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class WaferChange:
    """Bytes that one wafer holds; ``None`` where it holds no block."""

    wafer: int
    bytes_before: int | None
    bytes_after: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """All that two plans differ in.

    Attributes:
        changes: of the model's name, the machine, the workload and what the solver says.
        moves: blocks of both plans on different wafers, in the order of the newer plan.
        added, removed: blocks that only one of the plans has.
        resized: blocks on the same wafer whose weights have another size.
        reshaped: other blocks on the same wafer, in another region or with experts in others.
        kept: number of blocks whose wafer and regions are the same, ``kept_bytes`` the weights that do not move.
        wafers: those of either plan that hold other bytes than before.
        transfers_added, transfers_removed: values between wafers that only one of the plans sends.
        traffic_before, traffic_after: bytes between wafers for each token.
    """

    changes: tuple[Change, ...]
    moves: tuple[Move, ...]
    added: tuple[PlacedBlock, ...]
    removed: tuple[PlacedBlock, ...]
    resized: tuple[str, ...]
    reshaped: tuple[str, ...]
    kept: int
    kept_bytes: int
    wafers: tuple[WaferChange, ...]
    transfers_added: tuple[Transfer, ...]
    transfers_removed: tuple[Transfer, ...]
    traffic_before: int
    traffic_after: int

    @property
    def moved_bytes(self) -> int:
        """Bytes of weights that lie on another wafer than before."""
        return sum(move.weight_bytes for move in self.moves)

    @property
    def is_empty(self) -> bool:
        """Whether the plans say the same."""
        parts = (self.changes, self.moves, self.added, self.removed, self.resized, self.reshaped)
        return not any((*parts, self.transfers_added, self.transfers_removed))

    @property
    def wafers_added(self) -> tuple[int, ...]:
        """Wafers that hold blocks now and held none."""
        return tuple(change.wafer for change in self.wafers if change.bytes_before is None)

    @property
    def wafers_dropped(self) -> tuple[int, ...]:
        """Wafers that held blocks and hold none now."""
        return tuple(change.wafer for change in self.wafers if change.bytes_after is None)


def difference(before: Plan, after: Plan) -> Difference:
    """What changed from ``before`` to ``after``; blocks are the same if their names are, and the numbers of copies."""
    old, new = ({block.title: block for block in plan.blocks} for plan in (before, after))
    both = [(old[name], block) for name, block in new.items() if name in old]
    stayed = [(was, now) for was, now in both if was.wafer == now.wafer]
    resized = [now.title for was, now in stayed if was.weight_bytes != now.weight_bytes]
    reshaped = [now.title for was, now in stayed if _lies(was) != _lies(now) and now.title not in set(resized)]
    sent = (dict.fromkeys(before.transfers), dict.fromkeys(after.transfers))
    return Difference(
        changes=tuple(_changes(before, after)),
        moves=tuple(
            Move(now.title, now.layer, now.weight_bytes, was.wafer, now.wafer)
            for was, now in both
            if was.wafer != now.wafer
        ),
        added=tuple(block for name, block in new.items() if name not in old),
        removed=tuple(block for name, block in old.items() if name not in new),
        resized=tuple(resized),
        reshaped=tuple(reshaped),
        kept=len(stayed) - len(resized) - len(reshaped),
        kept_bytes=sum(now.weight_bytes for _was, now in stayed),
        wafers=tuple(_wafers(before, after)),
        transfers_added=tuple(transfer for transfer in sent[1] if transfer not in sent[0]),
        transfers_removed=tuple(transfer for transfer in sent[0] if transfer not in sent[1]),
        traffic_before=sum(transfer.bytes_per_token for transfer in before.transfers),
        traffic_after=sum(transfer.bytes_per_token for transfer in after.transfers),
    )


def _lies(block: PlacedBlock) -> object:
    return block.region, block.experts


def _wafers(before: Plan, after: Plan) -> Iterator[WaferChange]:
    held = [{wafer: plan.wafer_bytes(wafer) for wafer in plan.wafers_used} for plan in (before, after)]
    for wafer in sorted({*held[0], *held[1]}):
        if held[0].get(wafer) != held[1].get(wafer):
            yield WaferChange(wafer, held[0].get(wafer), held[1].get(wafer))


def _changes(before: Plan, after: Plan) -> Iterator[Change]:
    """Figures that differ, in the order in which plans state them."""
    old, new = (dict(_figures(_stated(plan))) for plan in (before, after))
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Change(name, old.get(name), new.get(name))


def _stated(plan: Plan) -> dict[str, Any]:
    """All that a plan states beside blocks and transfers."""
    machine = plan.machine
    parts: dict[str, Any] = {"model": plan.model_name, "machine": machine, "workload": plan.workload}
    stated = msgspec.to_builtins({**parts, "solver": plan.solver, "rules": {str(rule): True for rule in plan.rules}})
    stated["machine"]["odd_wafers"] = {str(odd.wafer): _described(odd) for odd in machine.odd_wafers}
    stated["machine"]["odd_links"] = {f"{link.one}-{link.other}": f"{link.cost} times" for link in machine.odd_links}
    return dict(stated)


def _described(odd: OddWafer) -> str:
    if not odd.in_service:
        return "out of service"
    slower = f", {odd.slowness_permille / 1000:g} times as slow" if odd.slowness_permille != 1000 else ""
    return f"{odd.columns} x {odd.rows}{slower}"


def _figures(stated: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Each figure with the path to it; records in a list go by their first entry."""
    for name, value in stated.items():
        path = f"{within}{name}"
        if isinstance(value, Mapping):
            yield from _figures(value, f"{path}.")
        elif isinstance(value, list | tuple) and all(isinstance(entry, Mapping) for entry in value):
            yield from _figures(_by_name(value), f"{path}.")
        else:
            yield path, value


def _by_name(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Records by their first entry, such as the objective of a score."""
    return {str(next(iter(record.values()))): dict([*record.items()][1:]) for record in records}
