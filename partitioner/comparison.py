"""One model on several machines, for the workloads that everybody argues about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ir.diagnostics import InfeasibleError, UnsupportedModelError, UsageError
from ir.forecast import Forecast
from ir.profile import Profile
from ir.target import DeviceCluster, Target
from partitioner.estimate import Question
from partitioner.forecast import Answer, answer, estimate
from targets.speculation import Speculation


@dataclass(frozen=True, slots=True)
class Kind:
    """A workload: tokens of a request, and how long it may take (``None``: only the total counts)."""

    title: str
    input_tokens: int
    output_tokens: int
    target_s: float | None


WORKLOADS: Mapping[str, Kind] = {
    "coding": Kind("coding copilot", 4000, 1500, 3.0),
    "support": Kind("support agent", 2000, 400, 4.0),
    "documents": Kind("overnight documents", 1500, 200, None),
}
_REFINED = 3
"""Halvings, on a scale of ratios, of the last doubling of users: their number is right to within a tenth."""


@dataclass(frozen=True, slots=True)
class Row:
    """One workload on one machine.

    Attributes:
        alone_tokens_per_s: of one user who has the systems to himself.
        in_time: whether the request meets the workload's time, ``None`` where it has none.
        devices: of all systems; wafers count as one.
        forecast: for the users served; ``None`` where the model does not fit, and ``reason`` says why.
    """

    workload: str
    target: str
    devices: int
    alone_tokens_per_s: float
    in_time: bool | None
    forecast: Forecast | None
    reason: str = ""


def compare(
    profile: Profile,
    targets: Sequence[Target],
    workloads: Sequence[str],
    users: int | None = None,
    speculation: Speculation | None = None,
) -> Iterator[Row]:
    """A row for each workload and machine, on the fewest systems that hold the model.

    ``users`` are served; if ``None``, as many as the workload's time allows (one, if it allows none), or, where only
    the total counts, as many as yield the most.
    """
    for name in workloads:
        for target in targets:
            try:
                yield _row(profile, target, name, users, speculation)
            except (InfeasibleError, UnsupportedModelError, UsageError) as error:
                fault = error.diagnostics[0]
                reason = "; ".join((fault.message, *fault.help[:1]))
                yield Row(name, target.name, 0, 0.0, None, None, reason)


def _row(profile: Profile, target: Target, name: str, users: int | None, speculation: Speculation | None) -> Row:
    kind = WORKLOADS[name]
    question = Question(
        input_tokens=kind.input_tokens, output_tokens=kind.output_tokens, users=users or 1, speculation=speculation
    )
    one = answer(profile, target, replace(question, users=1))
    if users is None:
        question = replace(question, systems=one.systems, users=_users(profile, target, question, one, kind))
    found = estimate(profile, target, question)
    in_time = None if kind.target_s is None else found.request_s.value <= kind.target_s
    per_system = target.cluster.devices if isinstance(target.cluster, DeviceCluster) else 1
    return Row(name, target.name, found.systems * per_system, one.tokens_per_s_per_user, in_time, found)


def _users(profile: Profile, target: Target, question: Question, one: Answer, kind: Kind) -> int:
    def served(users: int) -> Answer | None:
        try:
            return answer(profile, target, replace(question, systems=one.systems, users=users))
        except InfeasibleError:
            return None

    limit = kind.target_s
    if limit is not None:
        return most_in_time(lambda users: (given := served(users)) is not None and given.request_s <= limit)

    def total(users: int) -> float | None:
        given = served(users)
        return given.total_tokens_per_s if given else None

    return most_in_all(total, one.max_users)


def most_in_time(in_time: Callable[[int], bool], most: int = 1 << 20) -> int:
    """The most users for whom ``in_time`` holds, to within a tenth; 1 if it holds for none."""
    low = 1
    if not in_time(low):
        return low
    while 2 * low <= most and in_time(2 * low):
        low *= 2
    high = 2 * low
    for _ in range(_REFINED):
        middle = round(math.sqrt(low * high))
        if not low < middle < high:
            break
        low, high = (middle, high) if in_time(middle) else (low, middle)
    return low


def most_in_all(total: Callable[[int], float | None], most: int) -> int:
    """The number of users, of powers of two and ``most``, with the greatest ``total``; the smallest of equals."""
    tried = [1 << power for power in range(min(most, 1 << 20).bit_length())]
    found = [(value, -users) for users in (*tried, min(most, 1 << 20)) if (value := total(users)) is not None]
    return -max(found)[1]
