"""What machine files may state: every figure's name, its limits, and which figures contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto


class Need(Enum):
    """When a figure must be stated."""

    ALWAYS = auto()
    FOR_SPEED = auto()
    """A wafer's file states all of these or none; without them models can be placed, but no speed forecast."""
    NEVER = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """Limits of a figure; ``whole`` ones are integers."""

    low: float
    high: float
    whole: bool = False
    need: Need = Need.FOR_SPEED


def _whole(low: int, high: int) -> Rule:
    return Rule(low, high, whole=True, need=Need.ALWAYS)


_PRICE = Rule(0, 1e9, need=Need.NEVER)
_SPEED = Rule(1, 1e21)
_LATENCY_S = Rule(0, 1)
_OPTIONAL = Rule(1, 1e24, need=Need.NEVER)

WAFERS: Mapping[str, Rule] = {
    "mesh.columns": _whole(1, 10_000),
    "mesh.rows": _whole(1, 10_000),
    "tile.sram_bytes": _whole(1, 1 << 40),
    "tile.reserve_bytes": _whole(0, 1 << 40),
    "cluster.systems": _whole(1, 10_000),
    "tile.clock_hz": Rule(1e6, 1e11),
    "tile.peak_macs_per_cycle": Rule(1e-3, 1e4),
    "tile.read_bytes_per_cycle": Rule(1e-3, 1e5),
    "tile.write_bytes_per_cycle": Rule(1e-3, 1e5),
    "tile.issue_cycles": Rule(0, 1e4),
    "tile.unpack_cycles": Rule(0, 1e3),
    "tile.launch_cycles": Rule(0, 1e6),
    "fabric.hop_cycles": Rule(0, 1e4),
    "fabric.link_bytes_per_cycle": Rule(1e-3, 1e5),
    "fabric.ramp_cycles": Rule(0, 1e4),
    "fabric.shift_cycles": Rule(0, 1e6),
    "cluster.system_latency_s": _LATENCY_S,
    "cluster.system_bytes_per_s": _SPEED,
    "cluster.host_latency_s": _LATENCY_S,
    "cluster.sampling_s": _LATENCY_S,
    "cluster.power_w": Rule(0, 1e9),
    "cluster.usd_per_system_hour": _PRICE,
    # What the maker states of a whole wafer, to hold the other figures against.
    "stated.sram_bytes": _OPTIONAL,
    "stated.sram_bytes_per_s": _OPTIONAL,
    "stated.flops_16": _OPTIONAL,
}

DEVICES: Mapping[str, Rule] = {
    "device.memory_bytes": _whole(1, 1 << 50),
    "device.reserve_bytes": _whole(0, 1 << 50),
    "device.memory_bytes_per_s": Rule(1, 1e21, need=Need.ALWAYS),
    "device.memory_efficiency": Rule(0.01, 1, need=Need.ALWAYS),
    "device.flops_16": Rule(1, 1e24, need=Need.ALWAYS),
    "device.flops_8": Rule(0, 1e24, need=Need.ALWAYS),
    "device.flops_4": Rule(0, 1e24, need=Need.ALWAYS),
    "device.compute_efficiency": Rule(0.01, 1, need=Need.ALWAYS),
    "device.kernel_s": Rule(0, 1, need=Need.ALWAYS),
    "node.devices": _whole(1, 10_000),
    "node.link_bytes_per_s": Rule(1, 1e21, need=Need.ALWAYS),
    "node.link_latency_s": Rule(0, 1, need=Need.ALWAYS),
    "node.power_w": Rule(0, 1e9, need=Need.ALWAYS),
    "cluster.nodes": _whole(1, 10_000),
    "cluster.network_bytes_per_s": Rule(1, 1e21, need=Need.ALWAYS),
    "cluster.network_latency_s": Rule(0, 1, need=Need.ALWAYS),
    "cluster.sampling_s": Rule(0, 1, need=Need.ALWAYS),
    "cluster.usd_per_system_hour": _PRICE,
}

KINDS: Mapping[str, Mapping[str, Rule]] = {"wafers": WAFERS, "devices": DEVICES}


def absurdities(values: Mapping[str, float], rules: Mapping[str, Rule]) -> Iterator[str]:
    """Figures outside of what could exist, in words."""
    for name, value in values.items():
        rule = rules[name]
        if not rule.low <= value <= rule.high:  # also where it is no number
            yield f"{name} must be from {_number(rule.low)} to {_number(rule.high)}, not {_number(value)}"


def contradictions(values: Mapping[str, float]) -> Iterator[str]:
    """Figures that cannot hold together, in words."""
    for part, whole in _PARTS:
        if part in values and whole in values and values[part] > values[whole]:
            yield f"{part} ({_number(values[part])}) is more than {whole} ({_number(values[whole])})"
    for memory, reserve in (("tile.sram_bytes", "tile.reserve_bytes"), ("device.memory_bytes", "device.reserve_bytes")):
        if values.get(memory) is not None and values.get(memory) == values.get(reserve):
            yield f"{reserve} leaves nothing of {memory}"
    if "mesh.columns" in values and "mesh.rows" in values:
        yield from _against_stated(values)


_PARTS = (
    ("tile.reserve_bytes", "tile.sram_bytes"),
    ("device.reserve_bytes", "device.memory_bytes"),
)
_MOST_ABOVE_STATED = 1.3
"""Makers round, and state either all cores or those that work; 30 % more than stated is another machine."""


def _against_stated(values: Mapping[str, float]) -> Iterator[str]:
    """Products of a tile's figures that exceed what is stated of the wafer."""
    tiles = values["mesh.columns"] * values["mesh.rows"]
    clock = values.get("tile.clock_hz")
    products = {
        "stated.sram_bytes": tiles * values.get("tile.sram_bytes", 0),
        "stated.sram_bytes_per_s": tiles * _port_bytes(values) * (clock or 0),
        "stated.flops_16": tiles * values.get("tile.peak_macs_per_cycle", 0) * 2 * (clock or 0),
    }
    for name, product in products.items():
        stated = values.get(name)
        if stated is not None and product > stated * _MOST_ABOVE_STATED:
            yield f"{name} is {_number(stated)}, but the tiles' figures make {_number(product)}"


def _port_bytes(values: Mapping[str, float]) -> float:
    """Bytes that a tile's memory moves in a cycle: makers count reads and writes."""
    return values.get("tile.read_bytes_per_cycle", 0) + values.get("tile.write_bytes_per_cycle", 0)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int_or_none(value) and abs(value) < 1e15 else f"{value:g}"


def int_or_none(value: float) -> int | None:
    """``value`` as an integer, if it is one."""
    try:
        return int(value) if value == int(value) else None
    except (ValueError, OverflowError):
        return None
