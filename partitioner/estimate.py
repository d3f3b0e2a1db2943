"""The forecast of a model on wafers: a service at the machine's figures, and at the bounds of each uncertain one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ir.diagnostics import Diagnostic, InfeasibleError, UnsupportedModelError, UsageError
from ir.forecast import AtUsers, Forecast, Limit, Range, Sensitivity, numbers_of_users
from ir.profile import Attention, Profile
from ir.target import LayerRegions, Target, Wafers, WaferSpeed
from ir.workload import Workload
from partitioner.serving import Pipeline, Step, as_draft, decode_step, job, joined
from partitioner.sketch import Sketch, most_users, sketch
from partitioner.validated import outside
from targets.cost.cycles import CAUSES
from targets.cost.pipeline import StageCost
from targets.machines import at
from targets.queue import Alone, Job, Request, Service, alone
from targets.speculation import Speculation, draft_profile

_CHUNKS = (1, 4, 16, 64)
"""Tokens of a prompt in one pass that are tried; there is room for the activations of the most of them."""
_MOST = 1 << 40
_MOST_SYSTEMS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a forecast is asked for.

    Attributes:
        users: served at the same time, each starting the next request when the last one ends.
        context: tokens that a user's cache holds at the end of a request, earlier turns included; the request alone if
            ``None``.
        input_tokens, output_tokens: of a request.
        systems: wafers or nodes; the fewest that hold the model if ``None``.
        prefill_chunk: tokens of a prompt that pass the stages at once; on wafers those that end requests soonest, on
            devices as is usual, if ``None``.
        experts: ``apart`` (each routed expert on tiles of its own), ``sliced`` (each over all tiles of its group), or
            ``auto`` for the faster.
        speculation: how tokens are drafted, if they are.

    Raises:
        UsageError: W0103, a figure is not positive or absurd; W0107, the context is shorter than the request.
    """

    users: int = 1
    context: int | None = None
    input_tokens: int = 1000
    output_tokens: int = 500
    systems: int | None = None
    prefill_chunk: int | None = None
    experts: str = "auto"
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        least = {"users": 1, "context": 1, "input_tokens": 0, "output_tokens": 1, "systems": 1, "prefill_chunk": 1}
        faults = []
        for name, low in least.items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            most = _MOST_SYSTEMS if name == "systems" else _MOST
            if value is not None and not low <= value <= most:
                faults.append(Diagnostic("W0103", f"{flag} must be from {low} to {most:,}, not {value:,}", flag))
        if self.experts not in ("auto", "apart", "sliced"):
            faults.append(Diagnostic("W0104", f"--experts is auto, apart or sliced, not {self.experts!r}", "--experts"))
        if not faults and self.context is not None and self.context < self.input_tokens + self.output_tokens:
            facts = {"context": self.context, "input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
            faults.append(Diagnostic("W0107", "the context is shorter than the request", "--context", facts))
        if faults:
            raise UsageError(*faults)

    @property
    def request(self) -> Request:
        """The request as the queue sees it."""
        return Request(self.input_tokens, self.output_tokens)

    @property
    def tokens(self) -> int:
        """Tokens in a user's cache at the end of a request."""
        return self.context or self.input_tokens + self.output_tokens

    @property
    def history(self) -> int:
        """Tokens of earlier turns in a user's cache."""
        return self.tokens - self.input_tokens - self.output_tokens

    @property
    def workload(self) -> Workload:
        """What must be kept in memory."""
        return Workload(self.users, self.tokens, self.prefill_chunk or max(_CHUNKS))


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on wafers, and on how many; ``max_users`` have room for their caches.

    Where blocks have copies, users take turns at them: ``pipeline`` is what the first meets, ``turns`` what the others.
    """

    pipeline: Pipeline
    systems: int
    max_users: int
    turns: tuple[Pipeline, ...] = ()

    def slowest(self, question: Question, speed: WaferSpeed) -> Placed:
        """As those users meet it whose steps take longest."""

        def latency_s(pipeline: Pipeline) -> float:
            return decode_step(pipeline, question.speculation, question.tokens, speed).latency_s

        if not self.turns:
            return self
        return replace(self, pipeline=max((self.pipeline, *self.turns), key=latency_s), turns=())


def place_sketch(profile: Profile, wafers: Wafers, question: Question) -> Placed:
    """Where the model would lie without solving, its draft beside it.

    Raises:
        InfeasibleError: W0701, it does not fit.
    """
    draft = as_draft(draft_profile(profile, question.speculation)) if question.speculation else None
    whole = joined(profile, draft) if draft else profile
    workload = _workload(profile, question, wafers)
    found: Sketch = sketch(whole, wafers, workload, question.systems, question.experts)
    count = len(profile.blocks)
    pipeline = Pipeline(
        profile,
        found.stages[:count],
        draft,
        tuple(replace(stage, block=stage.block - count) for stage in found.stages[count:]),
        wafers.machine.odd_links,
    )
    machine = wafers.machine.resized(question.systems or wafers.machine.systems)
    users = most_users(whole, machine, workload, found.systems)
    return Placed(pipeline, found.systems, users)


def _workload(profile: Profile, question: Question, wafers: Wafers) -> Workload:
    """What must be kept in memory. Layers that take turns on the whole mesh take prompts whole, but one buffer for the
    prompt serves all blocks in turn, so each counts its part of it.
    """
    if wafers.speed is not None and wafers.speed.layers is LayerRegions.WHOLE_MESH:
        return replace(question.workload, chunk=max(1, -(-question.input_tokens // len(profile.blocks))))
    return question.workload


def require_context(profile: Profile, question: Question) -> None:
    """Refuse a context that the model does not have.

    Raises:
        UsageError: W0107.
        UnsupportedModelError: W0702, the model takes whole texts or none, as encoders do.
    """
    if profile.max_context is not None and question.tokens > profile.max_context:
        facts = {"context": question.tokens, "model_limit": profile.max_context}
        raise UsageError(Diagnostic("W0107", "the context is longer than the model's", "--context", facts))
    draft = question.speculation.draft if question.speculation else None
    for each in (profile, draft):
        if isinstance(each, Profile) and not _generates(each):
            message = "a forecast needs models that generate token after token"
            raise UnsupportedModelError(Diagnostic("W0702", message, each.name))


def _generates(profile: Profile) -> bool:
    """Whether a model takes tokens, and remembers those before them if it has attention."""
    looks = any(isinstance(kernel, Attention) for block in profile.blocks for kernel in block.kernels)
    return any(block.takes_tokens for block in profile.blocks) and (not looks or profile.cache_bytes(1, 1) > 0)


def estimate_wafers(profile: Profile, target: Target, question: Question, placed: Placed | None = None) -> Forecast:
    """The forecast for ``profile`` on the wafers of ``target``, as ``placed``, or where a sketch puts it.

    Raises:
        UsageError: W0107, the context is longer than the model's; W0703, the machine file states no speed.
        InfeasibleError: W0701, the model does not fit.
        UnsupportedModelError: W0702, the model takes no tokens.
    """
    wafers = _wafers(target)
    require_context(profile, question)
    speed = speed_of(wafers, target)
    found = (placed or place_sketch(profile, wafers, question)).slowest(question, speed)
    step = decode_step(found.pipeline, question.speculation, question.tokens - question.output_tokens // 2, speed)
    jobs = _jobs(found.pipeline, question, speed)
    chunk = _soonest(jobs, question.users)
    service = jobs[chunk].serve(question.users)
    # The bounds of figures are looked at with the same chunks.
    asked = replace(question, prefill_chunk=chunk)

    def answers(other: Target) -> Mapping[str, float]:
        changed = _wafers(other)
        pipeline = found.pipeline
        if changed.machine != wafers.machine and placed is None:
            pipeline = _place_again(profile, changed, question, found.systems).pipeline
        return _answers(pipeline, asked, speed_of(changed, other))

    ranges, sensitivities = ranged(target, answers)
    tokens_per_s = service.total_tokens_per_s
    power_w = speed.power_w * found.systems
    return Forecast(
        model=profile.name,
        target=target.name,
        layout=_layout(found, speed),
        systems=found.systems,
        users=question.users,
        context=question.tokens,
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
        tokens_per_step=question.speculation.tokens_per_step if question.speculation else 1.0,
        max_users=found.max_users,
        users_at_full_speed=service.users_at_full_speed,
        by_users=tuple(_at_users(users, jobs) for users in numbers_of_users(found.max_users)),
        prefill_chunk=chunk,
        step_s=_step_s(step, speed),
        limits=tuple(_limit(profile, cost, on_path, speed) for cost, on_path in _stages(step)),
        sensitivities=sensitivities,
        power_w=power_w,
        joules_per_token=power_w / tokens_per_s,
        usd_per_million_tokens=price(target, found.systems, tokens_per_s),
        notes=tuple(
            outside(profile, target, question.tokens, question.users, is_speculative=question.speculation is not None)
        ),
        **ranges,
    )


def _at_users(users: int, jobs: Mapping[int, Alone]) -> AtUsers:
    service = jobs[_soonest(jobs, users)].serve(users)
    return AtUsers(users, service.tokens_per_s_per_user, service.total_tokens_per_s, service.request_s)


def _place_again(profile: Profile, wafers: Wafers, question: Question, systems: int) -> Placed:
    """On as many systems as before, though fewer might do; on more only where nobody asked for a number."""
    try:
        return place_sketch(profile, wafers, replace(question, systems=systems))
    except InfeasibleError:
        if question.systems is not None:
            raise
        return place_sketch(profile, wafers, question)


def price(target: Target, systems: int, tokens_per_s: float) -> float | None:
    """US dollars for a million output tokens, if the machine file states what a system costs in an hour."""
    if target.usd_per_system_hour is None:
        return None
    return target.usd_per_system_hour * systems / 3600 / tokens_per_s * 1e6


def ranged(
    target: Target, answers: Callable[[Target], Mapping[str, float]]
) -> tuple[dict[str, Range], tuple[Sensitivity, ...]]:
    """Each answer with its range, and what each uncertain figure of ``target`` does to the speed of one user.

    Figures are moved to their bounds one at a time. They are independent, so deviations add up as the root of their
    squares, upwards and downwards apart. A bound at which the model does not fit says so, and moves nothing.
    """
    value = answers(target)
    below, above = dict.fromkeys(value, 0.0), dict.fromkeys(value, 0.0)
    found = []
    for name, figure in target.figures.items():
        if figure.certain:
            continue
        ends = [_if_it_fits(answers, at(target, {name: bound})) for bound in (figure.low, figure.high)]
        for key, middle in value.items():
            moved = [end[key] - middle for end in ends if end is not None]
            below[key] += min([0.0, *moved]) ** 2
            above[key] += max([0.0, *moved]) ** 2
        speeds = [None if end is None else end["tokens_per_s_per_user"] for end in ends]
        found.append(
            Sensitivity(name, figure.low, figure.high, speeds[0], speeds[1], figure.trust.value, figure.source)
        )
    ranges = {
        key: Range(middle, max(0.0, middle - math.sqrt(below[key])), middle + math.sqrt(above[key]))
        for key, middle in value.items()
    }
    found.sort(key=lambda each: -_swing(each))
    return ranges, tuple(found)


def _if_it_fits(answers: Callable[[Target], Mapping[str, float]], target: Target) -> Mapping[str, float] | None:
    try:
        return answers(target)
    except InfeasibleError:
        return None


def _swing(each: Sensitivity) -> float:
    """How far a figure moves the speed; where the model does not fit at a bound, further than any speed."""
    if each.tokens_per_s_at_low is None or each.tokens_per_s_at_high is None:
        return math.inf
    return abs(each.tokens_per_s_at_high - each.tokens_per_s_at_low)


def serve_wafers(pipeline: Pipeline, question: Question, speed: WaferSpeed) -> Service:
    """What users get of a placed model."""
    return _chosen(pipeline, question, speed).serve(question.users)


def wafer_job(pipeline: Pipeline, question: Question, speed: WaferSpeed) -> Job:
    """One user's request as passes through the stages."""
    return _chosen(pipeline, question, speed).job


def _chosen(pipeline: Pipeline, question: Question, speed: WaferSpeed) -> Alone:
    """The request in the chunks that suit its users."""
    jobs = _jobs(pipeline, question, speed)
    return jobs[_soonest(jobs, question.users)]


def _jobs(pipeline: Pipeline, question: Question, speed: WaferSpeed) -> dict[int, Alone]:
    """The request alone, for each size of chunks that may be chosen. Small ones let other users' tokens pass between
    them and reach the last stage sooner; large ones start fewer kernels.
    """
    chunks = _CHUNKS if question.prefill_chunk is None else (question.prefill_chunk,)
    if speed.layers is LayerRegions.WHOLE_MESH:
        chunks = (max(1, question.input_tokens),)
    return {
        chunk: alone(job(pipeline, question.request, question.history, chunk, question.speculation, speed))
        for chunk in chunks
    }


def _soonest(jobs: Mapping[int, Alone], users: int) -> int:
    """The size of chunks with which requests end soonest."""
    return min(jobs, key=lambda chunk: jobs[chunk].serve(users).request_s)


def _answers(pipeline: Pipeline, question: Question, speed: WaferSpeed) -> dict[str, float]:
    chosen = _chosen(pipeline, question, speed)
    service, one = chosen.serve(question.users), chosen.serve(1)
    return {
        "tokens_per_s_per_user": service.tokens_per_s_per_user,
        "total_tokens_per_s": service.total_tokens_per_s,
        "time_to_first_token_s": service.time_to_first_token_s,
        "request_s": service.request_s,
        "prefill_tokens_per_s": question.input_tokens / one.time_to_first_token_s,
    }


def _wafers(target: Target) -> Wafers:
    if not isinstance(target.cluster, Wafers):
        raise TypeError("not a cluster of wafers")
    return target.cluster


def speed_of(wafers: Wafers, target: Target) -> WaferSpeed:
    """The speed that a machine file states.

    Raises:
        UsageError: W0703, it states none.
    """
    if wafers.speed is None:
        help_ = ('extends = "cs3" takes the speeds of a bundled machine; targets/catalog lists what they are',)
        raise UsageError(Diagnostic("W0703", "the machine file states no speed", target.name, help=help_))
    return wafers.speed


def _layout(placed: Placed, speed: WaferSpeed) -> str:
    stages = placed.pipeline.stages
    if speed.layers is LayerRegions.WHOLE_MESH:
        return f"{_wafers_told(len({stage.system for stage in stages}))}, each layer over the whole mesh"
    groups = [stage for stage in stages if stage.expert_rows]
    apart = f", experts on {groups[0].expert_rows} x {groups[0].expert_columns} tiles each" if groups else ""
    return f"{_wafers_told(placed.systems)}, each block on tiles of its own{apart}"


def _wafers_told(number: int) -> str:
    return "1 wafer" if number == 1 else f"{number:,} wafers in a pipeline"


def _stages(step: Step) -> list[tuple[StageCost, bool]]:
    return list(zip(step.model.stages, step.model.critical, strict=True))


def _step_s(step: Step, speed: WaferSpeed) -> dict[str, float]:
    """Seconds of a step by cause, along its longest path."""
    model = step.model
    causes = {
        cause: sum(getattr(cost.cycles, cause) for cost, on_path in _stages(step) if on_path) / speed.clock_hz
        for cause in CAUSES
    }
    causes |= {"hand_over": model.hand_over_s, "host": model.host_s}
    rest = model.latency_s - sum(causes.values())  # between regions of one wafer
    causes["communication"] += rest
    return causes | ({"verify": step.verify_s, "draft": step.draft_s} if step.draft else {})


def _limit(profile: Profile, cost: StageCost, on_path: bool, speed: WaferSpeed) -> Limit:
    stage = cost.stage
    causes = {cause: getattr(cost.cycles, cause) / speed.clock_hz for cause in CAUSES}
    most = max(causes, key=lambda cause: causes[cause]) if cost.seconds else "nothing"
    return Limit(profile.blocks[stage.block].name, stage.system, stage.tiles, cost.seconds, most, on_path, causes)
