"""Forecasts for every kind of machine, with ranges (:func:`estimate`) or, for searches, without (:func:`answer`)."""

from __future__ import annotations

from dataclasses import dataclass

from ir.diagnostics import Diagnostic, UsageError
from ir.forecast import Forecast
from ir.profile import Profile
from ir.target import Target, Wafers
from partitioner.estimate import (
    Placed,
    Question,
    estimate_wafers,
    place_sketch,
    require_context,
    serve_wafers,
    speed_of,
    wafer_job,
)
from partitioner.estimate_devices import device_answers, devices, estimate_devices, serve_devices, spread
from targets.queue import Simulated, simulate


def estimate(profile: Profile, target: Target, question: Question, placed: Placed | None = None) -> Forecast:
    """How fast users are served with ``profile`` on ``target``; on wafers as ``placed``, if it has been.

    Raises:
        UsageError: W0107, the context is longer than the model's; W0703, the machine file states no speed.
        InfeasibleError: W0701, the model does not fit.
        UnsupportedModelError: W0702, the model takes no tokens.
    """
    if isinstance(target.cluster, Wafers):
        return estimate_wafers(profile, target, question, placed)
    return estimate_devices(profile, target, question)


@dataclass(frozen=True, slots=True)
class Answer:
    """A forecast at the machine's own figures alone; see :class:`ir.forecast.Forecast`."""

    systems: int
    max_users: int
    power_w: float
    tokens_per_s_per_user: float
    total_tokens_per_s: float
    time_to_first_token_s: float
    request_s: float


def answer(profile: Profile, target: Target, question: Question) -> Answer:
    """:func:`estimate` without ranges and causes.

    Raises:
        WafercError: as :func:`estimate`.
    """
    require_context(profile, question)
    cluster = target.cluster
    if isinstance(cluster, Wafers):
        speed = speed_of(cluster, target)
        placed = place_sketch(profile, cluster, question)
        served = serve_wafers(placed.pipeline, question, speed)
        return Answer(
            placed.systems,
            placed.max_users,
            speed.power_w * placed.systems,
            served.tokens_per_s_per_user,
            served.total_tokens_per_s,
            served.time_to_first_token_s,
            served.request_s,
        )
    found = spread(profile, devices(target), question)
    figures = device_answers(serve_devices(profile, found, question))
    del figures["prefill_tokens_per_s"]
    nodes = found.placement.nodes
    return Answer(nodes, found.max_users, cluster.power_w * nodes, **figures)


def simulated(profile: Profile, target: Target, question: Question, placed: Placed | None = None) -> Simulated:
    """What requests get when each one is played through the pipeline, event by event.

    Raises:
        UsageError: W0708, on this machine users are batched; otherwise as :func:`estimate`.
    """
    cluster = target.cluster
    if not isinstance(cluster, Wafers):
        message = f"on {target.name} users decode in one batch: there is no pipeline of users to simulate"
        raise UsageError(Diagnostic("W0708", message, "--simulate"))
    speed = speed_of(cluster, target)
    require_context(profile, question)
    pipeline = (placed or place_sketch(profile, cluster, question)).slowest(question, speed).pipeline
    return simulate(wafer_job(pipeline, question, speed), question.users)
