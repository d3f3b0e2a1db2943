"""Reading machine files: the bundled catalogue, or a file of the user's own in the same form.

A file names its ``kind`` (``wafers``, or ``devices`` for GPUs and LPUs) and gives figures in tables. A figure is a
number, or a table ``{ value, low, high, trust, source }`` where it is not certain or where it comes from matters. With
``extends = "cs2"`` a file states only what differs from another.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ir.diagnostics import Diagnostic, UsageError
from ir.machine import Machine
from ir.machine import absurdities as machine_absurdities
from ir.target import DeviceCluster, Figure, LayerRegions, Target, Trust, Wafers, WaferSpeed
from targets.odd import Odd, odd_of, parse_odd
from targets.schema import KINDS, Need, absurdities, contradictions, int_or_none

_MOST_FILE_BYTES = 1 << 20
Cluster = TypeVar("Cluster", Wafers, DeviceCluster)
_TEXTS = ("name", "description", "kind", "extends", "layers")
_LISTS = ("cluster.odd_wafer", "cluster.odd_link")
_MOST_SYSTEMS = 10_000
_FIGURE_ENTRIES = {"value", "low", "high", "trust", "source"}


def catalog() -> tuple[str, ...]:
    """Names of the bundled machines."""
    files = resources.files("targets").joinpath("catalog").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_target(target: str, changes: Mapping[str, float | None] | None = None) -> Target:
    """The machine named ``target`` (a name of the catalogue, or a path to a TOML file).

    ``changes`` are figures of the user's own, by name (``tile.clock_hz``); ``None`` leaves the file's.

    Raises:
        UsageError: W0110 (no such target), W0111 (the file is damaged, or a figure is missing, unknown, absurd, or
            contradicts another).
    """
    header, figures = _parse(_extended(_read(target), target), target)
    return _build(header, {**figures, **_given(header, changes or {}, target)}, target)


def with_changes(target: Target, changes: Mapping[str, float | None]) -> Target:
    """``target`` with figures of the user's own; they are certain.

    Raises:
        UsageError: W0111, a figure is unknown or absurd, or contradicts another.
    """
    header = _header(target)
    return _build(header, {**target.figures, **_given(header, changes, target.name)}, target.name)


def _given(header: _Header, changes: Mapping[str, float | None], where: str) -> dict[str, Figure]:
    known = KINDS[header.kind]
    for name in sorted(changes.keys() - known.keys()):
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        help_ = (f"did you mean {' or '.join(close)}?",) if close else (f"figures are {', '.join(known)}",)
        raise UsageError(Diagnostic("W0111", f"there is no figure {name}", where, help=help_))
    return {
        name: Figure(value, value, value, Trust.GIVEN, "given by the user")
        for name, value in changes.items()
        if value is not None
    }


def at(target: Target, values: Mapping[str, float]) -> Target:
    """``target`` with other ``values`` for some of its figures; their ranges stay.

    Raises:
        UsageError: W0111, a figure is absurd, or contradicts another.
    """
    figures = {name: replace(figure, value=values.get(name, figure.value)) for name, figure in target.figures.items()}
    return _build(_header(target), figures, target.name)


def load_wafers(
    target: str, systems: int | None = None, reserve_bytes: int | None = None, without: Sequence[int] = ()
) -> Wafers:
    """The wafers of :func:`load_target`; those that ``without`` names are out of service.

    Raises:
        UsageError: as :func:`load_target`; W0113, the target is no cluster of wafers; W0103, it has no wafer that
            ``without`` names, or would have none left.
    """
    changes = {"cluster.systems": systems, "tile.reserve_bytes": reserve_bytes}
    found = _of_kind(Wafers, "wafers", target, changes)
    unknown = sorted({wafer for wafer in without if not 0 <= wafer < found.machine.systems})
    if unknown:
        message = f"there is no wafer {', '.join(map(str, unknown))}: they count from 0 to {found.machine.systems - 1}"
        raise UsageError(Diagnostic("W0103", message, "--without"))
    left = replace(found, machine=found.machine.without(without))
    if not left.machine.in_service:
        raise UsageError(Diagnostic("W0103", "no wafer is left in service", "--without"))
    return left


def load_devices(target: str, nodes: int | None = None, reserve_bytes: int | None = None) -> DeviceCluster:
    """The devices of :func:`load_target`.

    Raises:
        UsageError: as :func:`load_target`; W0113, the target is no cluster of devices.
    """
    changes = {"cluster.nodes": nodes, "device.reserve_bytes": reserve_bytes}
    return _of_kind(DeviceCluster, "devices", target, changes)


def _of_kind(kind: type[Cluster], words: str, target: str, changes: Mapping[str, float | None]) -> Cluster:
    """The cluster of a target, which is told to be of the wrong kind whatever else was asked of it."""
    if isinstance(load_target(target).cluster, kind):
        cluster = load_target(target, changes).cluster
        if isinstance(cluster, kind):
            return cluster
    raise UsageError(Diagnostic("W0113", f"the target is no cluster of {words}", target))


def summary(target: Target) -> str:
    """The machine in a line."""
    cluster = target.cluster
    if isinstance(cluster, Wafers):
        m = cluster.machine
        out = m.systems - len(m.in_service)
        unlike = (
            f", {len(m.odd_wafers) - out} of {m.systems} wafers unlike the others" if len(m.odd_wafers) > out else ""
        )
        unlike += f", {out} of {m.systems} out of service" if out else ""
        return f"{target.description}: {m.columns} x {m.rows} tiles of {m.tile_sram_bytes:,} B{unlike}"
    memory = f"{cluster.memory_bytes / 1e9:g} GB at {cluster.memory_bytes_per_s / 1e12:g} TB/s"
    return f"{target.description}: {cluster.devices} devices of {memory} a node"


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Header:
    """What a machine file says in words."""

    name: str
    description: str
    kind: str
    layers: LayerRegions
    odd: Odd


def _read(target: str) -> dict[str, Any]:
    if target in catalog():
        text = resources.files("targets").joinpath("catalog", f"{target}.toml").read_text("utf-8")
    else:
        text = _read_file(target)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _fault([f"the machine file is not TOML: {error}"], target) from None


def _read_file(target: str) -> str:
    path = Path(target)
    if path.suffix != ".toml":
        known = f"targets are {', '.join(catalog())}, or the path of a .toml file"
        raise UsageError(Diagnostic("W0110", f"there is no target {target!r}", help=(known,)))
    try:
        if path.exists() and not path.is_file():
            raise UsageError(Diagnostic("W0110", "the machine file is no file", target))
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise _fault(["the machine file is larger than a megabyte"], target)
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(Diagnostic("W0110", f"the machine file cannot be read: {error}", target)) from None


def _extended(data: dict[str, Any], where: str) -> dict[str, Any]:
    """``data`` over the bundled file that it extends."""
    base = data.get("extends")
    if base is None:
        return data
    if base not in catalog():
        raise _fault([f"extends must name one of {', '.join(catalog())}, not {base!r}"], where)
    # What the maker states of the whole machine need not hold for a changed one.
    below = {key: value for key, value in _read(str(base)).items() if key != "stated"}
    joined = {
        key: {**table, **data[key]}
        for key, table in below.items()
        if isinstance(table, dict) and isinstance(data.get(key), dict)
    }
    return {**below, **data, **joined}


def _parse(data: dict[str, Any], where: str) -> tuple[_Header, dict[str, Figure]]:
    kind, layers = data.get("kind", "wafers"), data.get("layers", LayerRegions.OWN_TILES)
    for name, value, known in (("kind", kind, [*KINDS]), ("layers", layers, [*LayerRegions])):
        if value not in known:
            raise _fault([f"{name} must be {' or '.join(known)}, not {value!r}"], where)
    texts = [data.get(key) for key in ("name", "description")]
    if not all(isinstance(text, str) and text.isprintable() and text for text in texts):
        raise _fault(["name and description must be printable text"], where)
    odd = _odd(data, kind, where)
    entries = dict(_entries(data))
    unknown = sorted(entries.keys() - KINDS[kind].keys())
    if unknown:
        raise _fault([f"unknown entries: {', '.join(unknown)}"], where)
    figures = {name: _figure(name, value, where) for name, value in entries.items()}
    return _Header(str(texts[0]), str(texts[1]), kind, LayerRegions(layers), odd), figures


def _odd(data: dict[str, Any], kind: str, where: str) -> Odd:
    """The wafers and links that the file says are unlike the others."""
    cluster = data.get("cluster")
    if kind != "wafers" or not isinstance(cluster, dict):
        return Odd()
    stated = cluster.get("systems")
    systems: Any = stated.get("value") if isinstance(stated, dict) else stated
    is_number = _is_number(systems) and int_or_none(systems) is not None
    # A number of systems that is none is told where figures are.
    odd, faults = parse_odd(cluster, int(systems) if is_number else _MOST_SYSTEMS)
    if faults:
        raise _fault(faults, where)
    return odd


def _entries(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Entries of the file's tables by dotted name."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", entry) for name, entry in value.items() if f"{key}.{name}" not in _LISTS)
        elif key not in _TEXTS:
            yield key, value


def _figure(name: str, entry: object, where: str) -> Figure:
    stated: dict[str, Any] = entry if isinstance(entry, dict) else {"value": entry}
    faults = [f"{name} has an unknown entry {key!r}" for key in sorted(stated.keys() - _FIGURE_ENTRIES)]
    value: Any = stated.get("value")
    bounds = (stated.get("low", value), stated.get("high", value))
    faults += [f"{name} must be a number, not {n!r}" for n in dict.fromkeys((value, *bounds)) if not _is_number(n)]
    if stated.get("trust", Trust.GIVEN) not in [*Trust]:
        faults.append(f"the trust of {name} must be {' or '.join(Trust)}, not {stated['trust']!r}")
    source = stated.get("source", "")
    if not isinstance(source, str) or not source.isprintable():
        faults.append(f"the source of {name} must be printable text")
    if faults:
        raise _fault(faults, where)
    trust, source = Trust(stated.get("trust", Trust.GIVEN)), stated.get("source", "the machine file")
    return Figure(float(value), float(bounds[0]), float(bounds[1]), trust, source)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


# --- from figures to a machine ----------------------------------------------------------------------------------------


def _build(header: _Header, figures: Mapping[str, Figure], where: str) -> Target:
    values = {name: figure.value for name, figure in figures.items()}
    faults = [*_missing(header, values), *_badly_ranged(header, figures)]
    faults += [*absurdities(values, KINDS[header.kind])]
    faults = faults or [*contradictions(values)]
    if faults:
        raise _fault(faults, where)
    cluster = _wafers(header, values) if header.kind == "wafers" else _devices(header, values)
    if isinstance(cluster, Wafers) and (absurd := machine_absurdities(cluster.machine)):
        raise _fault([*absurd], where)
    price = values.get("cluster.usd_per_system_hour")
    return Target(header.name, header.description, cluster, dict(figures), price)


def _missing(header: _Header, values: Mapping[str, float]) -> Iterator[str]:
    rules = KINDS[header.kind]
    with_speed = any(rules[name].need is Need.FOR_SPEED for name in values)
    for name, rule in rules.items():
        if name not in values and (rule.need is Need.ALWAYS or (rule.need is Need.FOR_SPEED and with_speed)):
            yield f"{name} is missing"


def _badly_ranged(header: _Header, figures: Mapping[str, Figure]) -> Iterator[str]:
    for name, figure in figures.items():
        rule = KINDS[header.kind][name]
        if not figure.low <= figure.value <= figure.high:
            yield f"{name} is {figure.value:g}, outside of its own range from {figure.low:g} to {figure.high:g}"
        for which, bound in (("", figure.value), ("low of ", figure.low), ("high of ", figure.high)):
            if which and bound == figure.value:
                continue
            if rule.whole and int_or_none(bound) is None:
                yield f"{which}{name} must be an integer, not {bound:g}"
            elif which and not rule.low <= bound <= rule.high:
                yield f"{which}{name} must be from {rule.low:g} to {rule.high:g}, not {bound:g}"


def _wafers(header: _Header, values: Mapping[str, float]) -> Wafers:
    equal = Machine(
        name=header.name,
        description=header.description,
        columns=int(values["mesh.columns"]),
        rows=int(values["mesh.rows"]),
        tile_sram_bytes=int(values["tile.sram_bytes"]),
        reserve_bytes=int(values["tile.reserve_bytes"]),
        systems=int(values["cluster.systems"]),
    )
    machine = header.odd.on(equal)
    speeds = {name: values.get(key) for name, key in _keys(header.kind, WaferSpeed).items()}
    if None in speeds.values():
        return Wafers(machine, None)
    return Wafers(machine, WaferSpeed(layers=header.layers, **speeds))  # type: ignore[arg-type]


def _devices(header: _Header, values: Mapping[str, float]) -> DeviceCluster:
    rules = KINDS[header.kind]
    stated = {
        name: int(values[key]) if rules[key].whole else values[key]
        for name, key in _keys(header.kind, DeviceCluster).items()
    }
    return DeviceCluster(name=header.name, description=header.description, **stated)  # type: ignore[arg-type]


def _keys(kind: str, record: type[WaferSpeed] | type[DeviceCluster]) -> dict[str, str]:
    """Fields of ``record`` by the file's name of them, ``clock_hz`` by ``tile.clock_hz``."""
    by_field = {key.partition(".")[2]: key for key in KINDS[kind] if not key.startswith("stated.")}
    return {name: by_field[name] for name in (field.name for field in fields(record)) if name in by_field}


def _header(target: Target) -> _Header:
    is_wafers = isinstance(target.cluster, Wafers)
    speed = target.cluster.speed if isinstance(target.cluster, Wafers) else None
    layers = speed.layers if speed else LayerRegions.OWN_TILES
    odd = odd_of(target.cluster.machine) if isinstance(target.cluster, Wafers) else Odd()
    return _Header(target.name, target.description, "wafers" if is_wafers else "devices", layers, odd)


def _fault(messages: list[str], where: str) -> UsageError:
    return UsageError(*(Diagnostic("W0111", message, where) for message in messages))
