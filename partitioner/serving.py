"""A model on wafers as users meet it: stages to passes, passes to a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ir.profile import FlowProfile, Profile
from ir.target import LayerRegions, WaferSpeed
from targets.cost.pipeline import PipelineCost, pipeline_cost
from targets.cost.wafer import Stage
from targets.queue import Job, Pass, Request, prompt_chunks
from targets.speculation import Speculation

_PROMPT_POINTS = 5
"""Contexts at which a chunk of a prompt is costed; between them, time grows in proportion."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A model's stages, and those of its draft if there is one."""

    profile: Profile
    stages: tuple[Stage, ...]
    draft: Profile | None = None
    draft_stages: tuple[Stage, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step: the model's pass, and the draft's passes before it."""

    model: PipelineCost
    draft: PipelineCost | None
    drafted: int

    @property
    def latency_s(self) -> float:
        """From one step of a user to the next."""
        return self.model.latency_s + (self.drafted * (self.draft.latency_s - self.draft.host_s) if self.draft else 0)

    @property
    def stations(self) -> dict[str, float]:
        """How long each station is held."""
        held = dict(self.model.stations)
        if self.draft:
            for name, seconds in self.draft.stations.items():
                held[name] = held.get(name, 0.0) + self.drafted * seconds
        return held


def joined(profile: Profile, draft: Profile) -> Profile:
    """Both models in one: the draft's blocks behind the model's, together on one machine."""
    first = len(profile.blocks)
    blocks = tuple(replace(block, name=f"draft.{block.name}") for block in draft.blocks)
    flows = tuple(replace(flow, source=flow.source + first, target=flow.target + first) for flow in draft.flows)
    link = FlowProfile(first - 1, first, max((flow.bytes_per_token for flow in profile.flows), default=0))
    together = tuple(range(first, first + len(blocks)))
    return replace(
        profile,
        blocks=(*profile.blocks, *blocks),
        flows=(*profile.flows, link, *flows),
        items=(*profile.items, together),
    )


def decode_step(pipeline: Pipeline, speculation: Speculation | None, context: int, speed: WaferSpeed) -> Step:
    """One step of one user with ``context`` tokens before it."""
    tokens = speculation.verified_tokens if speculation else 1
    model = pipeline_cost(pipeline.profile, pipeline.stages, tokens, context, speed)
    if speculation is None or pipeline.draft is None:
        return Step(model, None, 0)
    draft = pipeline_cost(pipeline.draft, pipeline.draft_stages, 1, context, speed)
    return Step(model, draft, speculation.draft_tokens)


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
    """The passes of a prompt; layers that take turns on the whole mesh take it whole."""
    if speed.layers is LayerRegions.WHOLE_MESH:
        chunk = max(1, tokens)

    def costed(start: int, length: int) -> np.ndarray:
        cost = pipeline_cost(pipeline.profile, pipeline.stages, length, history + start + length, speed)
        return np.array([cost.latency_s, *(cost.stations.get(name, 0.0) for name in stations)])

    whole = tokens // chunk
    points = sorted({round(i * max(0, whole - 1) / (_PROMPT_POINTS - 1)) for i in range(_PROMPT_POINTS)})
    known = np.array([costed(point * chunk, chunk) for point in points]) if whole else np.zeros((0, 0))

    def pass_of(start: int, length: int) -> Pass:
        if length < chunk:
            times = costed(start, length)
        else:
            times = np.array([np.interp(start // chunk, points, column) for column in known.T])
        return Pass(float(times[0]), tuple(times[1:].tolist()))

    return prompt_chunks(tokens, chunk, pass_of)
