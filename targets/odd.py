"""Wafers and links unlike the others in a machine file: ``[[cluster.odd_wafer]]`` and ``[[cluster.odd_link]]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ir.machine import Machine, OddLink, OddWafer

_MOST = 10_000


@dataclass(frozen=True, slots=True, order=True)
class StatedWafer:
    """What a file states of one wafer; ``None`` for a mesh that is as the others'."""

    wafer: int
    columns: int | None
    rows: int | None
    slowness_permille: int


@dataclass(frozen=True, slots=True)
class Odd:
    """Wafers and links unlike the others, as they are stated."""

    wafers: tuple[StatedWafer, ...] = ()
    links: tuple[OddLink, ...] = ()

    def on(self, machine: Machine) -> Machine:
        """``machine`` with them; those beyond its systems are left out."""
        wafers = (
            OddWafer(
                stated.wafer,
                machine.columns if stated.columns is None else stated.columns,
                machine.rows if stated.rows is None else stated.rows,
                stated.slowness_permille,
            )
            for stated in self.wafers
        )
        return replace(machine, odd_wafers=tuple(sorted(wafers)), odd_links=self.links).resized(machine.systems)


def odd_of(machine: Machine) -> Odd:
    """What a file would state to make ``machine``."""

    def stated(size: int, usual: int) -> int | None:
        return None if size == usual else size

    wafers = (
        StatedWafer(
            odd.wafer, stated(odd.columns, machine.columns), stated(odd.rows, machine.rows), odd.slowness_permille
        )
        for odd in machine.odd_wafers
    )
    return Odd(tuple(wafers), machine.odd_links)


def parse_odd(cluster: Mapping[str, Any], systems: int) -> tuple[Odd, list[str]]:
    """The odd wafers and links of a file's table ``cluster`` of ``systems`` wafers, and what is wrong with them."""
    faults: list[str] = []
    wafers = [
        _wafer(entry, f"cluster.odd_wafer {number}", systems, faults)
        for number, entry in enumerate(_tables(cluster, "odd_wafer", faults), start=1)
    ]
    links = [
        _link(entry, f"cluster.odd_link {number}", systems, faults)
        for number, entry in enumerate(_tables(cluster, "odd_link", faults), start=1)
    ]
    if faults:
        return Odd(), faults
    odd = Odd(tuple(sorted(wafers)), tuple(sorted(links)))
    faults += _twice("wafer", [str(stated.wafer) for stated in odd.wafers])
    faults += _twice("link", [f"{link.one}-{link.other}" for link in odd.links])
    return odd, faults


def _twice(what: str, names: list[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"cluster.odd_{what} states {what} {name} twice"


def _tables(cluster: Mapping[str, Any], name: str, faults: list[str]) -> list[dict[str, Any]]:
    found = cluster.get(name, [])
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        return found
    faults.append(f"cluster.{name} must be tables, each headed [[cluster.{name}]]")
    return []


def _wafer(entry: Mapping[str, Any], where: str, systems: int, faults: list[str]) -> StatedWafer:
    faults += _unknown(entry, where, ("wafer", "columns", "rows", "speed", "out_of_service"))
    wafer = _whole(entry, "wafer", where, 0, systems - 1, faults)
    out = entry.get("out_of_service", False)
    if not isinstance(out, bool):
        faults.append(f"{where}: out_of_service must be true or false, not {out!r}")
    elif out and entry.keys() & {"columns", "rows", "speed"}:
        faults.append(f"{where}: a wafer out of service has neither mesh nor speed")
    if out is True:
        return StatedWafer(wafer, 0, 0, 1000)
    is_none = entry.get("columns") == 0 and entry.get("rows") == 0
    columns, rows = (
        _whole(entry, side, where, 0 if is_none else 1, _MOST, faults) if side in entry else None
        for side in ("columns", "rows")
    )
    return StatedWafer(wafer, columns, rows, _slowness(entry.get("speed", 1.0), where, faults))


def _slowness(speed: object, where: str, faults: list[str]) -> int:
    """Thousandths of the others' time; ``speed`` is relative to theirs."""
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0.001 <= speed <= 1000:
        faults.append(f"{where}: speed must be a number from 0.001 to 1,000, not {speed!r}")
        return 1000
    return round(1000 / speed)


def _link(entry: Mapping[str, Any], where: str, systems: int, faults: list[str]) -> OddLink:
    faults += _unknown(entry, where, ("between", "cost"))
    ends = entry.get("between")
    if not isinstance(ends, list) or len(ends) != 2 or not all(_is_whole(end) for end in ends):
        faults.append(f"{where}: between must be two wafers, for example [9, 10], not {ends!r}")
        return OddLink(0, 1, 1)
    low, high = sorted(ends)
    if low == high:
        faults.append(f"{where}: no wafer has a link to itself")
    faults += [_outside(f"{where}: between", end, 0, systems - 1) for end in (low, high) if not 0 <= end < systems]
    return OddLink(low, high, _whole(entry, "cost", where, 1, _MOST, faults))


def _unknown(entry: Mapping[str, Any], where: str, known: tuple[str, ...]) -> Iterator[str]:
    for key in sorted(entry.keys() - set(known)):
        yield f"{where} has an unknown entry {key!r}: known are {', '.join(known)}"


def _whole(entry: Mapping[str, Any], name: str, where: str, low: int, high: int, faults: list[str]) -> int:
    value = entry.get(name)
    if name not in entry:
        faults.append(f"{where}: {name} is missing")
    elif not _is_whole(value):
        faults.append(f"{where}: {name} must be an integer, not {value!r}")
    elif not low <= entry[name] <= high:
        faults.append(_outside(f"{where}: {name}", entry[name], low, high))
    else:
        return int(entry[name])
    return low


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _outside(name: str, value: int, low: int, high: int) -> str:
    return f"{name} must be from {low:,} to {high:,}, not {value:,}"
