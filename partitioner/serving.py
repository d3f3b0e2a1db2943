"""A model on wafers as users meet it: stages to passes, passes to a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ir.machine import OddLink
from ir.profile import FlowProfile, Profile
from ir.target import LayerRegions, WaferSpeed
from targets.cost.pipeline import LinkCosts, PipelineCost, pipeline_cost
from targets.cost.wafer import Stage
from targets.queue import Job, Pass, Request
from targets.speculation import Speculation

_PROMPT_POINTS = 3
"""Contexts at which a chunk of a prompt is costed; between them, time grows in proportion."""
_MOST_PASSES = 64
"""Of one prompt, in the queue."""
Times: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A model's stages, and those of its draft if there is one; links that are ``odd`` cost more than others."""

    profile: Profile
    stages: tuple[Stage, ...]
    draft: Profile | None = None
    draft_stages: tuple[Stage, ...] = ()
    odd: tuple[OddLink, ...] = ()

    @property
    def links(self) -> LinkCosts:
        """What the odd links cost, in both directions."""
        ways = (((link.one, link.other), (link.other, link.one), link.cost) for link in self.odd)
        return {pair: cost for there, back, cost in ways for pair in (there, back)}


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step: the model's passes of as many tokens each, one behind the other, and the draft's before them.

    Attributes:
        model: one of ``passes`` passes; the next enters a station when it has left it.
        draft: one of ``drafted`` passes, each of which waits for the one before.
        way_s: to the draft's wafer, where it is not the model's last one.
    """

    model: PipelineCost
    passes: int = 1
    draft: PipelineCost | None = None
    drafted: int = 0
    way_s: float = 0.0

    @property
    def verify_s(self) -> float:
        """What passes behind the first one add."""
        return (self.passes - 1) * max(self.model.stations.values())

    @property
    def draft_s(self) -> float:
        """What drafting takes, and the way to the draft; drafted tokens never leave the wafers."""
        return self.drafted * (self.draft.latency_s - self.draft.host_s) + self.way_s if self.draft else 0.0

    @property
    def latency_s(self) -> float:
        """From one step of a user to the next."""
        return self.model.latency_s + self.verify_s + self.draft_s

    @property
    def stations(self) -> dict[str, float]:
        """How long each station is held."""
        held = {name: self.passes * seconds for name, seconds in self.model.stations.items()}
        for name, seconds in self.draft.stations.items() if self.draft else ():
            held[name] = held.get(name, 0.0) + self.drafted * seconds
        return held


def as_draft(profile: Profile) -> Profile:
    """A draft's profile, its blocks named apart from those of the model."""
    return replace(profile, blocks=tuple(replace(block, name=f"draft.{block.name}") for block in profile.blocks))


def joined(profile: Profile, draft: Profile) -> Profile:
    """Both models in one: the draft's blocks behind the model's."""
    first = len(profile.blocks)
    flows = tuple(replace(flow, source=flow.source + first, target=flow.target + first) for flow in draft.flows)
    link = FlowProfile(first - 1, first, max((flow.bytes_per_token for flow in profile.flows), default=0))
    return replace(
        profile,
        blocks=(*profile.blocks, *draft.blocks),
        flows=(*profile.flows, link, *flows),
        items=(*profile.items, *(tuple(block + first for block in item) for item in draft.items)),
    )


def decode_step(pipeline: Pipeline, speculation: Speculation | None, context: int, speed: WaferSpeed) -> Step:
    """One step of one user with ``context`` tokens before it.

    Tokens to verify go through the stages one behind the other, as a prompt's chunks do, or all at once, whichever is
    sooner done.
    """
    profile, stages, links = pipeline.profile, pipeline.stages, pipeline.links
    one = Step(pipeline_cost(profile, stages, 1, context, speed, link_costs=links))
    if speculation is None or pipeline.draft is None:
        return one
    tokens = speculation.verified_tokens
    draft = pipeline_cost(pipeline.draft, pipeline.draft_stages, 1, context, speed, link_costs=links)
    way = (stages[-1].system, pipeline.draft_stages[0].system)
    is_away = way[0] != way[1]
    behind = replace(
        one,
        passes=tokens,
        draft=draft,
        drafted=speculation.draft_tokens,
        way_s=speed.system_latency_s * links.get(way, 1) if is_away else 0.0,
    )
    at_once = replace(behind, model=pipeline_cost(profile, stages, tokens, context, speed, link_costs=links), passes=1)
    return min(behind, at_once, key=lambda step: step.latency_s)


def job(
    pipeline: Pipeline, request: Request, history: int, chunk: int, speculation: Speculation | None, speed: WaferSpeed
) -> Job:
    """A request of a user who already has ``history`` tokens in the cache, as passes through the pipeline."""
    context = history + request.middle_context
    step = decode_step(pipeline, speculation, context, speed)
    stations = tuple(step.stations)
    prefill = _prefill(pipeline, request.input_tokens, history, chunk, stations, speed)
    decode = Pass(step.latency_s, tuple(step.stations.values()))
    return Job(request, prefill, decode, speculation.tokens_per_step if speculation else 1.0)


def _prefill(
    pipeline: Pipeline, tokens: int, history: int, chunk: int, stations: Sequence[str], speed: WaferSpeed
) -> tuple[Pass, ...]:
    """The passes of a prompt, the draft's behind the model's; layers that take turns on the whole mesh take it whole.

    Of a prompt of very many chunks, neighbours are one pass that holds each station for as long as all of them.
    """
    if speed.layers is LayerRegions.WHOLE_MESH:
        chunk = max(1, tokens)

    links = pipeline.links

    def costed(start: int, length: int) -> Times:
        context = history + start + length
        cost = pipeline_cost(
            pipeline.profile, pipeline.stages, length, context, speed, is_prompt=True, link_costs=links
        )
        latency_s, held = cost.latency_s, dict(cost.stations)
        if pipeline.draft is not None:
            beside = pipeline_cost(
                pipeline.draft, pipeline.draft_stages, length, context, speed, is_prompt=True, link_costs=links
            )
            latency_s += beside.latency_s - beside.host_s
            for name, seconds in beside.stations.items():
                held[name] = held.get(name, 0.0) + seconds
        return np.array([latency_s, *(held.get(name, 0.0) for name in stations)])

    whole = tokens // chunk
    points = sorted({round(i * max(0, whole - 1) / (_PROMPT_POINTS - 1)) for i in range(_PROMPT_POINTS)})[:whole]
    known = [costed(point * chunk, chunk) for point in points]
    group = -(-whole // _MOST_PASSES)
    passes = []
    for first in range(0, whole, max(1, group)):
        count = min(group, whole - first)
        middle = first + (count - 1) / 2
        shares = np.array([np.interp(middle, points, row) for row in np.eye(len(points))])
        passes.append(_convoy(shares @ np.array(known), count))
    if tokens % chunk:
        passes.append(_convoy(costed(whole * chunk, tokens % chunk), 1))
    return tuple(passes)


def _convoy(times: Times, count: int) -> Pass:
    """``count`` equal passes one behind the other, as one; ``times`` are one's latency and its stations' seconds."""
    latency_s, held = float(times[0]), times[1:]
    return Pass(latency_s + (count - 1) * float(held.max()), tuple((held * count).tolist()))
