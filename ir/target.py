"""Machines with all that is known of them: figures with their ranges, sources and trust, and the speeds they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ir.machine import Machine


class Trust(StrEnum):
    """How far to trust a figure.

    ``stated``: by the machine's maker; ``measured``: by others; ``derived``: from such figures; ``fitted``: to
    published speeds; ``assumed``: nobody says, so the range matters; ``given``: by the machine file's author alone.
    """

    STATED = "stated"
    MEASURED = "measured"
    DERIVED = "derived"
    FITTED = "fitted"
    ASSUMED = "assumed"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a machine: its value, between which bounds it may really lie, and where it comes from."""

    value: float
    low: float
    high: float
    trust: Trust
    source: str

    @property
    def certain(self) -> bool:
        """Whether it has no range."""
        return self.low == self.high


class LayerRegions(StrEnum):
    """On which tiles of a wafer a layer lies.

    ``own_tiles``: each block has tiles of its own, so that every one can serve another user at the same time.
    ``whole_mesh``: every block lies on all tiles, and they take turns (WaferLLM, OSDI 2025).
    """

    OWN_TILES = "own_tiles"
    WHOLE_MESH = "whole_mesh"


@dataclass(frozen=True, slots=True)
class WaferSpeed:
    """What decides the speed of wafers. Cycles are those of ``clock_hz``; machine files say where each comes from.

    Attributes:
        peak_macs_per_cycle: 16-bit multiply-adds of one tile; its memory ports allow fewer.
        read_bytes_per_cycle, write_bytes_per_cycle: of a tile's own memory.
        issue_cycles: to start one vector instruction.
        unpack_cycles: to widen one stored weight of 8 bits or less to 16 bits.
        launch_cycles: to start one kernel on a region: tasks, routes, and what they wait for.
        hop_cycles: from one router to the next; ``link_bytes_per_cycle`` for each direction.
        ramp_cycles: between a router and its tile's processor, T_R of Luczynski et al. (HPDC 2024).
        shift_cycles: of one step of a matrix product by cyclic shifts, beside its arithmetic and its bytes.
        system_latency_s, system_bytes_per_s: from one wafer to the next.
        host_latency_s: to take a token from the host and hand one back; ``sampling_s`` to choose it.
        power_w: of one system.
    """

    layers: LayerRegions
    clock_hz: float
    peak_macs_per_cycle: float
    read_bytes_per_cycle: float
    write_bytes_per_cycle: float
    issue_cycles: float
    unpack_cycles: float
    launch_cycles: float
    hop_cycles: float
    link_bytes_per_cycle: float
    ramp_cycles: float
    shift_cycles: float
    system_latency_s: float
    system_bytes_per_s: float
    host_latency_s: float
    sampling_s: float
    power_w: float


@dataclass(frozen=True, slots=True)
class DeviceCluster:
    """Nodes of equal devices (GPUs, LPUs) that stream weights from their memory for every step.

    Attributes:
        devices: in one node, linked to each other; ``nodes`` of them.
        memory_bytes: of one device; ``reserve_bytes`` of them hold no weights or caches.
        memory_bytes_per_s: of one device, as stated; ``memory_efficiency`` of it is reached.
        flops_16, flops_8, flops_4: operations per second of one device on operands of so many bits, two for a
            multiply-add; 0 where it has no such arithmetic (narrower weights are widened first).
        compute_efficiency: share of them that is reached.
        kernel_s: from the start of one kernel to the next, beside its bytes and operations.
        link_bytes_per_s, link_latency_s: in a node, for one device and direction; the latency is that of a collective.
        network_bytes_per_s, network_latency_s: between nodes, for one device.
        sampling_s: to choose a token and start the next step.
        power_w: of one node, under load.
    """

    name: str
    description: str
    devices: int
    nodes: int
    memory_bytes: int
    reserve_bytes: int
    memory_bytes_per_s: float
    memory_efficiency: float
    flops_16: float
    flops_8: float
    flops_4: float
    compute_efficiency: float
    kernel_s: float
    link_bytes_per_s: float
    link_latency_s: float
    network_bytes_per_s: float
    network_latency_s: float
    sampling_s: float
    power_w: float

    @property
    def device_bytes(self) -> int:
        """Bytes of one device that a plan may fill."""
        return self.memory_bytes - self.reserve_bytes

    @property
    def all_devices(self) -> int:
        """Devices of all nodes."""
        return self.devices * self.nodes

    @property
    def read_bytes_per_s(self) -> float:
        """Of one device's memory, as reached."""
        return self.memory_bytes_per_s * self.memory_efficiency

    def flops(self, weight_bits: int) -> float:
        """Operations per second of one device, as reached, on weights of ``weight_bits``: of the narrowest arithmetic
        that holds them; wider weights are narrowed to 16 bits.
        """
        fitting = ((4, self.flops_4), (8, self.flops_8))
        stated = next((flops for bits, flops in fitting if weight_bits <= bits and flops), self.flops_16)
        return stated * self.compute_efficiency


@dataclass(frozen=True, slots=True)
class Wafers:
    """Wafer-scale systems: what placement needs of them, and their speed (``None``: the machine file states none)."""

    machine: Machine
    speed: WaferSpeed | None


@dataclass(frozen=True, slots=True)
class Target:
    """A machine file: the cluster it describes, and every figure by its name in the file, ``tile.clock_hz``.

    ``usd_per_system_hour`` is a price, where one is known.
    """

    name: str
    description: str
    cluster: Wafers | DeviceCluster
    figures: Mapping[str, Figure]
    usd_per_system_hour: float | None = None

    @property
    def systems(self) -> int:
        """Number of systems: wafers, or nodes of devices."""
        return self.cluster.machine.systems if isinstance(self.cluster, Wafers) else self.cluster.nodes
