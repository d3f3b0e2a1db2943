"""What one pass through a model costs on a cluster of devices, from bytes, operations, messages and kernels.

For each kernel the roofline (Williams et al., 2009): the longer of reading its weights or caches and of its operations;
then what it takes to start it, and the collectives between ranks. Values that flow between kernels are left out, as
they stay in caches near the arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ir.device_plan import Degrees
from ir.model import BlockKind
from ir.profile import Attention, BlockProfile, Product, Profile
from ir.target import DeviceCluster
from targets.cost.device_links import all_gather_s, all_reduce_s, all_to_all_s, send_s
from targets.cost.device_split import ACTIVATION_BYTES, BlockSplit, split_block
from targets.cost.routing import touched_share


@dataclass(frozen=True, slots=True)
class Seconds:
    """Time by its cause: arithmetic, reading memory, messages between devices, and starting kernels."""

    compute: float = 0.0
    memory: float = 0.0
    communication: float = 0.0
    launch: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.compute + other.compute,
            self.memory + other.memory,
            self.communication + other.communication,
            self.launch + other.launch,
        )

    def __mul__(self, times: int) -> Seconds:
        return Seconds(self.compute * times, self.memory * times, self.communication * times, self.launch * times)

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.communication + self.launch


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage. ``blocks`` are shapes, with the bytes that each hands on for a token and how many there are;
    ``sent_bytes`` go to the next stage for each token.
    """

    blocks: tuple[tuple[BlockProfile, int, int], ...]
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one pass takes: ``tokens`` of each of ``users`` users, who have ``context`` tokens behind them."""

    users: int
    tokens: int
    context: int


@dataclass(frozen=True, slots=True)
class DevicePass:
    """One pass: the seconds of each pipeline stage, its sending included. Stages work on different passes at once."""

    stages: tuple[Seconds, ...]

    @property
    def busy_s(self) -> tuple[float, ...]:
        """Of each stage."""
        return tuple(stage.total for stage in self.stages)

    @property
    def latency_s(self) -> float:
        """From the first stage's begin to the last one's end."""
        return sum(self.busy_s)

    @property
    def seconds(self) -> Seconds:
        """All stages together, by cause."""
        return sum(self.stages, Seconds())


@dataclass(frozen=True, slots=True)
class Outline:
    """A profile in which equal blocks are one: ``shapes``, each with the bytes that it hands on for a token, and for
    every block the index of its own in ``shape_of``.
    """

    profile: Profile
    shapes: tuple[tuple[BlockProfile, int], ...]
    shape_of: tuple[int, ...]


def outline(profile: Profile) -> Outline:
    """The outline of ``profile``."""
    handed_on = {flow.source: flow.bytes_per_token for flow in profile.flows}
    known: dict[tuple[BlockProfile, int], int] = {}
    shape_of = tuple(
        known.setdefault((replace(block, name="", layer=None), handed_on.get(index, 0)), len(known))
        for index, block in enumerate(profile.blocks)
    )
    return Outline(profile, tuple(known), shape_of)


def make_stages(plan: Outline, members: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """The pipeline stages that hold the blocks ``members`` (indices), in order."""
    stage_of = {block: stage for stage, own in enumerate(members) for block in own}
    crossing = [
        (stage_of[flow.source], stage_of[flow.target], flow.bytes_per_token)
        for flow in plan.profile.flows
        if stage_of[flow.source] != stage_of[flow.target]
    ]
    stages = []
    known: dict[Stage, Stage] = {}
    for number, own in enumerate(members):
        alike = Counter(plan.shape_of[block] for block in own)
        sent_bytes = sum(size for source, target, size in crossing if source <= number < target)
        stage = Stage(tuple((*plan.shapes[shape], count) for shape, count in alike.items()), sent_bytes)
        stages.append(known.setdefault(stage, stage))  # equal stages are one object: their cost is worked out once
    return tuple(stages)


def device_pass(stages: tuple[Stage, ...], cluster: DeviceCluster, degrees: Degrees, batch: Batch) -> DevicePass:
    """The cost of one pass of ``batch``, all of it on one replica, through ``stages``."""
    known: dict[tuple[int, bool], Seconds] = {}
    found = []
    for number, stage in enumerate(stages):
        key = id(stage), _is_far(number, cluster, degrees)
        if key not in known:
            known[key] = stage_seconds(stage, cluster, degrees, batch, is_far=key[1])
        found.append(known[key])
    return DevicePass(tuple(found))


def stage_seconds(
    stage: Stage, cluster: DeviceCluster, degrees: Degrees, batch: Batch, *, is_far: bool = False
) -> Seconds:
    """The cost of one pass of ``batch`` on one stage; the next one is on another node where it ``is_far``."""
    seconds = Seconds()
    for block, handed_on, count in stage.blocks:
        seconds += block_seconds(block, cluster, degrees, batch, handed_on) * count
    if stage.sent_bytes:
        group_tokens = -(-batch.users // degrees.expert) * batch.tokens
        sent = send_s(cluster, stage.sent_bytes * group_tokens, far=is_far)
        seconds += Seconds(communication=sent)
    return seconds


def block_seconds(
    block: BlockProfile, cluster: DeviceCluster, degrees: Degrees, batch: Batch, handed_on_bytes: int = 0
) -> Seconds:
    """The cost of one pass of ``batch`` through one block, on its busiest rank."""
    split = split_block(block, degrees.tensor, handed_on_bytes)
    load = _expert_load(block, degrees, batch) if block.experts else _plain_load(degrees, batch)
    seconds = Seconds(
        launch=cluster.kernel_s * max(1, len(block.kernels) + bool(block.elementwise)),
        communication=_communication_s(block, split, cluster, degrees, load),
    )
    bytes_of = _streamed_bytes(block, split, load)
    for kernel, share, streamed in zip(block.kernels, split.shares, bytes_of, strict=True):
        if isinstance(kernel, Product):
            work = 2 * kernel.macs * share * load.worked_tokens / cluster.flops(kernel.weight_bits)
        elif isinstance(kernel, Attention):
            seen = kernel.tokens(batch.context + (batch.tokens + 1) // 2)
            work = 2 * kernel.macs_per_cached_token * seen * share * load.tokens / cluster.flops(16)
            cached = kernel.bytes_per_token * kernel.tokens(batch.context + batch.tokens)
            streamed = load.users * cached * split.cache_share
        else:
            continue
        reading = streamed / cluster.read_bytes_per_s
        seconds += Seconds(memory=reading) if reading >= work else Seconds(compute=work)
    return seconds


@dataclass(frozen=True, slots=True)
class _Load:
    """What falls to the busiest group of ranks.

    ``users`` and ``tokens`` are its own. Of a mixture, ``worked_tokens`` are those of all groups, as far as their
    experts lie here, and ``weights_read`` is the share of all experts that they touch.
    """

    users: int
    tokens: int
    worked_tokens: float
    weights_read: float


def _plain_load(degrees: Degrees, batch: Batch) -> _Load:
    users = -(-batch.users // degrees.expert)
    return _Load(users, users * batch.tokens, users * batch.tokens, 1.0)


def _expert_load(block: BlockProfile, degrees: Degrees, batch: Batch) -> _Load:
    """Each token picks ``active_experts`` of ``experts``, evenly; the group with the most picked ones decides."""
    plain = _plain_load(degrees, batch)
    tokens = batch.users * batch.tokens
    touched = touched_share(block.experts, block.active_experts, tokens)
    busiest = busiest_group(-(-block.experts // degrees.expert), degrees.expert, touched)
    read = min(busiest, float(block.active_experts * tokens)) / block.experts
    # Where a group has more than its part of the touched experts, it has as much more of the tokens.
    return _Load(plain.users, plain.tokens, tokens * min(1.0, read / touched if touched else 0.0), read)


def busiest_group(own: int, groups: int, touched: float) -> float:
    """Expected number of touched experts in the group with the most, of ``groups`` of ``own`` experts each.

    Each expert is touched with probability ``touched``, independently: E[max] = sum over m of 1 - P(count <= m)^groups.
    """
    if groups == 1 or touched <= 0 or touched >= 1:
        return own * touched
    # In logarithms, as binomial coefficients of many experts exceed any float.
    whole, hit, missed = math.lgamma(own + 1), math.log(touched), math.log1p(-touched)
    expected, at_most = 0.0, 0.0
    for count in range(own):
        chosen = whole - math.lgamma(count + 1) - math.lgamma(own - count + 1)
        at_most += math.exp(chosen + count * hit + (own - count) * missed)
        expected += 1 - min(1.0, at_most) ** groups
    return expected


def _streamed_bytes(block: BlockProfile, split: BlockSplit, load: _Load) -> list[float]:
    """Bytes of weights that each kernel reads on one rank: the block's, scales included, as its products have weights.

    Tables are looked up, which reads next to nothing.
    """
    stored = [k.weights * k.weight_bits / 8 if isinstance(k, Product) else 0.0 for k in block.kernels]
    total = sum(stored)
    beside = block.weight_bytes / total if total and block.kind is not BlockKind.EMBEDDING else 1.0
    return [size * beside * share * load.weights_read for size, share in zip(stored, split.shares, strict=True)]


def _communication_s(
    block: BlockProfile, split: BlockSplit, cluster: DeviceCluster, degrees: Degrees, load: _Load
) -> float:
    seconds = 0.0
    for meeting in split.meetings:
        collective = all_reduce_s if meeting.is_sum else all_gather_s
        seconds += collective(cluster, degrees.tensor, meeting.payload_bytes * load.tokens)
    first = next((kernel for kernel in block.kernels if isinstance(kernel, Product)), None)
    if block.experts and first and degrees.expert > 1:
        # A token goes to each other group that holds experts of its; the group's ranks share the vector. Then back.
        groups = min(block.active_experts, degrees.expert) * (degrees.expert - 1) / degrees.expert
        sent_bytes = load.tokens * groups * first.inputs * ACTIVATION_BYTES / degrees.tensor
        seconds += 2 * all_to_all_s(cluster, degrees.expert, degrees.tensor, sent_bytes)
    return seconds


def _is_far(number: int, cluster: DeviceCluster, degrees: Degrees) -> bool:
    """Whether stage ``number`` and the next lie on different nodes."""
    if degrees.stage_devices >= cluster.devices:
        return True
    stages_in_node = cluster.devices // degrees.stage_devices
    return (number + 1) % stages_in_node == 0
