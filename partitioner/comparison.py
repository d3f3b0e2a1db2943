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
_REFINED = 4
"""Halvings, on a scale of ratios, of the last fourfold step of users: their number is right to within a tenth."""
_RATIOS = (1, 1.25, 1.5, 2)
"""Systems that are tried, as multiples of the fewest that hold the model: more room for caches serves more users."""


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
    """A row for each workload and machine, on the fewest systems that hold the model or up to twice as many, whichever
    yields the most tokens for each system in time.

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
    fewest = answer(profile, target, question)
    chosen = _choose(profile, target, question, fewest, kind, searched=users is None)
    alone = answer(profile, target, replace(chosen, users=1))
    found = estimate(profile, target, chosen)
    in_time = None if kind.target_s is None else found.request_s.value <= kind.target_s
    per_system = target.cluster.devices if isinstance(target.cluster, DeviceCluster) else 1
    return Row(name, target.name, found.systems * per_system, alone.tokens_per_s_per_user, in_time, found)


def _choose(
    profile: Profile, target: Target, question: Question, fewest: Answer, kind: Kind, *, searched: bool
) -> Question:
    """The systems and users to compare with: in time if that can be, then the most tokens for each system."""
    best: tuple[tuple[bool, float], Question] | None = None
    for systems in sorted({math.ceil(fewest.systems * ratio) for ratio in _RATIOS}):
        if best is not None and best[0][0] and fewest.systems == 1:
            break  # a second system beside one that holds all serves others in the same way
        asked = replace(question, systems=systems)
        if searched:
            asked = replace(asked, users=_users(profile, target, asked, kind))
        given = _served(profile, target, asked)
        if given is None:
            continue
        in_time = kind.target_s is None or given.request_s <= kind.target_s
        score = in_time, given.total_tokens_per_s / systems
        if best is None or score > best[0]:
            best = score, asked
    return best[1] if best else replace(question, systems=fewest.systems)


def _served(profile: Profile, target: Target, question: Question) -> Answer | None:
    try:
        return answer(profile, target, question)
    except InfeasibleError:
        return None


def _users(profile: Profile, target: Target, question: Question, kind: Kind) -> int:
    def served(users: int) -> Answer | None:
        return _served(profile, target, replace(question, users=users))

    def in_time(users: int) -> bool:
        given = served(users)
        return given is not None and given.request_s <= (kind.target_s or math.inf)

    def total(users: int) -> float | None:
        given = served(users)
        return given.total_tokens_per_s if given else None

    if kind.target_s is not None:
        return most_in_time(in_time)
    one = served(1)
    return most_in_all(total, one.max_users) if one else 1


def most_in_time(in_time: Callable[[int], bool], most: int = 1 << 20) -> int:
    """The most users for whom ``in_time`` holds, to within a tenth; 1 if it holds for none."""
    low = 1
    if not in_time(low):
        return low
    while 4 * low <= most and in_time(4 * low):
        low *= 4
    high = 4 * low
    for _ in range(_REFINED):
        middle = round(math.sqrt(low * high))
        if not low < middle < high:
            break
        low, high = (middle, high) if in_time(middle) else (low, middle)
    return low


def most_in_all(total: Callable[[int], float | None], most: int) -> int:
    """Of powers of four, ``most``, and some beside the best of them, the users with the greatest ``total``."""
    most = min(most, 1 << 20)
    powers = [1 << power for power in range(0, most.bit_length(), 2)]
    tried = {users: total(users) or 0.0 for users in (*powers, most)}
    best = max(tried, key=lambda users: tried[users])
    near = {users: total(users) or 0.0 for users in (best // 2, 3 * best // 2, 2 * best) if 1 <= users <= most}
    tried |= near
    return max(tried, key=lambda users: (tried[users], -users))
