"""A forecast: how fast a model is served on a machine, between which bounds, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A forecast figure, and between which bounds it lies as far as the machine's figures are known."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Limit:
    """What one stage takes for a step, and what most of it goes into.

    ``tiles`` are its own, or its devices. ``causes_s`` adds up to ``seconds``; ``critical`` stages lie on the longest
    path of a step.
    """

    stage: str
    system: int
    tiles: int
    seconds: float
    limited_by: str
    critical: bool
    causes_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AtUsers:
    """What each of ``users`` users gets on the same systems, and what all get together."""

    users: int
    tokens_per_s_per_user: float
    total_tokens_per_s: float
    request_s: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far one uncertain figure of the machine moves the speed of one user: at its lower and its upper bound;
    ``None`` where the model does not fit there.
    """

    figure: str
    low: float
    high: float
    tokens_per_s_at_low: float | None
    tokens_per_s_at_high: float | None
    trust: str
    source: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What users get from a model on a machine.

    Attributes:
        systems: wafers, or nodes of devices; ``layout`` says in words how the model lies on them.
        users: who are served at the same time, each with ``context`` tokens at most, and requests of ``input_tokens``
            and ``output_tokens``.
        prefill_chunk: tokens of a prompt that pass the stages at once.
        tokens_per_step: that one pass of the model yields; more than 1 under speculation.
        tokens_per_s_per_user: after the first token; ``total_tokens_per_s`` of all users, their prompts included.
        time_to_first_token_s, request_s: of a request; ``prefill_tokens_per_s`` of one alone.
        max_users: whose caches fit; ``users_at_full_speed`` can decode without waiting for each other.
        by_users: the same for other numbers of users, from one to as many as fit.
        step_s: of one pass by cause, along the longest path; its sum is one user's time between passes.
        limits: of every stage.
        sensitivities: of the machine's uncertain figures, those that matter most first.
        power_w: of all systems; ``joules_per_token`` of all users' output tokens.
        notes: what the reader should know, such as a forecast outside of what was validated.
    """

    model: str
    target: str
    layout: str
    systems: int
    users: int
    context: int
    input_tokens: int
    output_tokens: int
    prefill_chunk: int
    tokens_per_step: float
    tokens_per_s_per_user: Range
    total_tokens_per_s: Range
    time_to_first_token_s: Range
    request_s: Range
    prefill_tokens_per_s: Range
    max_users: int
    users_at_full_speed: int
    by_users: tuple[AtUsers, ...]
    step_s: Mapping[str, float]
    limits: tuple[Limit, ...]
    sensitivities: tuple[Sensitivity, ...]
    power_w: float
    joules_per_token: float
    usd_per_million_tokens: float | None
    notes: tuple[str, ...]


def numbers_of_users(most: int) -> tuple[int, ...]:
    """One, four, sixteen and so on, up to ``most`` (at most 2^20)."""
    powers = [4**power for power in range(11) if 4**power < most]
    return (*powers, min(most, 1 << 20)) if most >= 1 else ()
