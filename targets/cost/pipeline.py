"""A pass of tokens through all stages: when its result is back, and how long each station is held."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm

from ir.model import BlockKind
from ir.profile import Profile
from ir.target import LayerRegions, WaferSpeed
from targets.cost.cycles import Cycles
from targets.cost.wafer import Stage, block_cycles


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a pass costs on one stage, by cause in cycles, and in seconds."""

    stage: Stage
    cycles: Cycles
    seconds: float


@dataclass(frozen=True, slots=True)
class PipelineCost:
    """A pass through an otherwise empty pipeline.

    Attributes:
        latency_s: from the token at the host to the next token there.
        hand_over_s: the part of it between wafers; ``host_s`` the part at the host and for choosing the token.
        stages: in topological order.
        critical: whether each stage lies on the longest path.
        stations: how long each is held, in seconds by name: a stage where blocks have tiles of their own, a wafer
            where they share the mesh, and each link between wafers.
    """

    latency_s: float
    hand_over_s: float
    host_s: float
    stages: tuple[StageCost, ...]
    critical: tuple[bool, ...]
    stations: dict[str, float]


LinkCosts = Mapping[tuple[int, int], int]
"""What links that are not ordinary cost, relative to an ordinary one, by their wafers in both directions."""
_ORDINARY: LinkCosts = {}


def pipeline_cost(
    profile: Profile,
    stages: Sequence[Stage],
    tokens: int,
    context: int,
    speed: WaferSpeed,
    *,
    is_prompt: bool = False,
    link_costs: LinkCosts = _ORDINARY,
) -> PipelineCost:
    """What a pass of ``tokens`` tokens of one user costs, the last of them with ``context`` tokens before it.

    Of a prompt, the head sees the last token alone. Blocks that take no tokens (a vision tower) are left out.
    ``stages`` has one for each of the profile's blocks, in order.
    """
    costs = _stage_costs(profile, stages, tokens, context, speed, is_prompt=is_prompt)
    ends, came_from, handed = _longest_paths(profile, costs, tokens, speed, link_costs)
    last = max(range(len(ends)), key=ends.__getitem__)
    path = []
    block: int | None = last
    while block is not None:
        path.append(block)
        block = came_from[block]
    host_s = speed.host_latency_s + speed.sampling_s
    on_path = set(path)
    return PipelineCost(
        latency_s=ends[last] + host_s,
        hand_over_s=sum(handed[block] for block in path),
        host_s=host_s,
        stages=costs,
        critical=tuple(index in on_path for index in range(len(costs))),
        stations=_stations(profile, costs, tokens, speed, link_costs),
    )


def _stage_costs(
    profile: Profile, stages: Sequence[Stage], tokens: int, context: int, speed: WaferSpeed, *, is_prompt: bool
) -> tuple[StageCost, ...]:
    known: dict[tuple[int, Stage], tuple[Cycles, float]] = {}
    costs = []
    for stage in stages:
        alike = (profile.alike[stage.block], replace(stage, block=0, system=0, copies=1))
        if alike not in known:
            block = profile.blocks[stage.block]
            taken = 1 if is_prompt and block.kind is BlockKind.HEAD else tokens
            cycles = Cycles()
            if block.takes_tokens:
                cycles = block_cycles(block, stage, taken, context, speed, is_prompt=is_prompt)
                cycles = cycles.slowed(stage.slowness_permille)
            known[alike] = (cycles, cycles.total / speed.clock_hz)
        costs.append(StageCost(stage, *known[alike]))
    return tuple(costs)


def _longest_paths(
    profile: Profile, costs: Sequence[StageCost], tokens: int, speed: WaferSpeed, link_costs: LinkCosts
) -> tuple[list[float], list[int | None], list[float]]:
    """For each block: when it is done, the block it waited for last, and the way from there, in seconds."""
    ends: list[float] = []
    came_from: list[int | None] = []
    handed: list[float] = []
    for block, cost in enumerate(costs):
        waits: list[tuple[float, int | None, float]] = [(0.0, None, 0.0)]
        for flow in profile.incoming[block]:
            way = _way_s(costs[flow.source].stage, cost.stage, flow.bytes_per_token * tokens, speed, link_costs)
            waits.append((ends[flow.source] + way[0] + way[1], flow.source, way[0]))
        ready, source_block, between = max(waits, key=lambda wait: wait[0])
        ends.append(ready + cost.seconds)
        came_from.append(source_block)
        handed.append(between)
    return ends, came_from, handed


def _way_s(source: Stage, target: Stage, size: int, speed: WaferSpeed, link_costs: LinkCosts) -> tuple[float, float]:
    """Seconds for ``size`` bytes from one stage to another: between wafers, and over the mesh of one."""
    if source.system != target.system:
        cost = link_costs.get((source.system, target.system), 1)
        return cost * (speed.system_latency_s + size / speed.system_bytes_per_s), 0.0
    if speed.layers is LayerRegions.WHOLE_MESH:
        return 0.0, 0.0
    hops = target.rows + target.columns
    return 0.0, hops * speed.hop_cycles / speed.clock_hz * target.slowness_permille / 1000


def _stations(
    profile: Profile, costs: Sequence[StageCost], tokens: int, speed: WaferSpeed, link_costs: LinkCosts
) -> dict[str, float]:
    """How long each is held by a pass. Of copies, and of links between them, only every so-manieth pass holds each."""
    held: defaultdict[str, float] = defaultdict(float)
    for cost in costs:
        name = profile.blocks[cost.stage.block].name
        shared = speed.layers is LayerRegions.WHOLE_MESH
        held[f"wafer {cost.stage.system}" if shared else name] += cost.seconds / cost.stage.copies
    sent = {
        (flow.source, costs[flow.source].stage.system, costs[flow.target].stage.system): (
            flow.bytes_per_token,
            costs[flow.target].stage.copies,
        )
        for flow in profile.flows
        if costs[flow.source].stage.system != costs[flow.target].stage.system
    }
    for (block, source, target), (size, copies) in sent.items():
        between = lcm(costs[block].stage.copies, copies)
        cost_of_link = link_costs.get((source, target), 1)
        held[f"link {source}-{target}"] += cost_of_link * size * tokens / speed.system_bytes_per_s / between
    return dict(held)
