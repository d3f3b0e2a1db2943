"""How many systems a service needs: the fewest that hold the model and give every user a speed, and what more would do.

A copy of the model takes ``n`` systems and serves its part of the users; there are as many copies as are needed. More
systems for a copy can make it slower (longer ways on the mesh), so each ``n`` is tried; more copies never do, as each
then serves fewer users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from ir.diagnostics import Diagnostic, InfeasibleError, UsageError
from ir.profile import Profile
from ir.target import Target, Wafers
from partitioner.estimate import Question, price
from partitioner.forecast import Answer, answer
from targets.speculation import Speculation

_EACH = 16
"""So many numbers of nodes above the fewest are tried one by one; then steps grow by an eighth, up to eight times."""
_SPECULATION = Speculation(3, 0.7)
"""What an answer that cannot be had is tried with."""


@dataclass(frozen=True, slots=True)
class Option:
    """``copies`` copies of a model on ``systems`` systems in all. Figures of speed are a user's in the copy with the
    most users; the others are of all copies.
    """

    systems: int
    copies: int
    tokens_per_s_per_user: float
    total_tokens_per_s: float
    time_to_first_token_s: float
    request_s: float
    max_users: int
    power_w: float
    usd_per_million_tokens: float | None


@dataclass(frozen=True, slots=True)
class Sizing:
    """The answer, the question that each of its copies is asked, and the options around it."""

    option: Option
    copy: Question
    curve: tuple[Option, ...]


Ask = Callable[[int, int], Answer | None]
"""What one copy on so many systems gives so many users; ``None`` if it does not fit."""


def size(profile: Profile, target: Target, question: Question, tokens_per_s: float) -> Sizing:
    """The fewest systems on which each of ``question.users`` users gets ``tokens_per_s``.

    Raises:
        UsageError: W0103, the speed is not positive; and as :func:`partitioner.forecast.answer`.
        InfeasibleError: W0701, the model does not fit; W0709, no number of systems is so fast.
    """
    if not 0 < tokens_per_s < 1e12:  # also where it is no number
        message = f"--min-tokens-per-s must be positive, not {tokens_per_s:g}"
        raise UsageError(Diagnostic("W0103", message, "--min-tokens-per-s"))
    fewest = answer(profile, target, replace(question, users=1, systems=None)).systems
    numbers = tuple(_numbers(profile, target, fewest))
    ask = _asker(profile, target, question)
    found = fewest_systems(ask, numbers, question.users, tokens_per_s)
    if found is None:
        raise InfeasibleError(_too_slow(profile, target, question, tokens_per_s, numbers, ask))
    number, copies = found
    option = _option(ask, target, question.users, number, copies)
    if option is None:
        raise AssertionError("an option that was found fits")
    totals = _around(number * copies, min(numbers))
    curve = [each for total in totals if (each := _best(ask, target, question.users, total, numbers, copies))]
    copy = replace(question, users=-(-question.users // copies), systems=number)
    return Sizing(option, copy, tuple(option if each.systems == option.systems else each for each in curve))


def fewest_systems(ask: Ask, numbers: Iterable[int], users: int, tokens_per_s: float) -> tuple[int, int] | None:
    """Systems of a copy (one of the ascending ``numbers``) and copies, with the least product; ``None`` if none do."""

    def enough(number: int, copies: int) -> bool:
        given = ask(number, -(-users // copies))
        return given is not None and given.tokens_per_s_per_user >= tokens_per_s

    best: tuple[int, int] | None = None
    for number in numbers:
        most = users if best is None else min(users, (best[0] * best[1] - 1) // number)
        if most < 1:
            break
        if not enough(number, most):
            continue
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(number, middle) else (middle, high)
        best = (number, high)
    return best


def _numbers(profile: Profile, target: Target, fewest: int) -> Iterator[int]:
    """Systems that a copy may take: on wafers all from the fewest to one for each item of the pipeline."""
    if isinstance(target.cluster, Wafers):
        yield from range(fewest, max(fewest, len(profile.items)) + 1)
        return
    number = fewest
    while number <= max(8 * fewest, fewest + _EACH):
        yield number
        number += 1 if number < fewest + _EACH else max(1, number // 8)


def _asker(profile: Profile, target: Target, question: Question) -> Ask:
    known: dict[tuple[int, int], Answer | None] = {}

    def ask(number: int, users: int) -> Answer | None:
        key = number, users
        if key not in known:
            try:
                known[key] = answer(profile, target, replace(question, systems=number, users=users))
            except InfeasibleError:
                known[key] = None
        return known[key]

    return ask


def _option(ask: Ask, target: Target, users: int, number: int, copies: int) -> Option | None:
    each = -(-users // copies)
    given = ask(number, each)
    if given is None:
        return None
    total = given.total_tokens_per_s * users / each
    return Option(
        systems=number * copies,
        copies=copies,
        tokens_per_s_per_user=given.tokens_per_s_per_user,
        total_tokens_per_s=total,
        time_to_first_token_s=given.time_to_first_token_s,
        request_s=given.request_s,
        max_users=given.max_users * copies,
        power_w=given.power_w / given.systems * number * copies,
        usd_per_million_tokens=price(target, number * copies, total),
    )


def _best(ask: Ask, target: Target, users: int, total: int, numbers: tuple[int, ...], copies: int) -> Option | None:
    """The fastest option on ``total`` systems: in one copy, in as many as the answer has, or in the most that fit."""
    splits = {1, copies, total // min(numbers)}
    found = [
        option
        for split in splits
        if 1 <= split <= users
        and total % split == 0
        and min(numbers) <= total // split <= max(numbers)
        and (option := _option(ask, target, users, total // split, split))
    ]
    return max(found, key=lambda option: option.tokens_per_s_per_user, default=None)


def _around(answer_systems: int, fewest: int) -> list[int]:
    """Numbers of systems to show: the fewest, those next to the answer, and up to twice as many."""
    near = range(answer_systems - 2, answer_systems + 3)
    beyond = (-(-answer_systems * quarters // 4) for quarters in (5, 6, 8))
    return sorted({fewest, (fewest + answer_systems) // 2, *near, *beyond} - set(range(fewest)))


def _too_slow(
    profile: Profile, target: Target, question: Question, tokens_per_s: float, numbers: tuple[int, ...], ask: Ask
) -> Diagnostic:
    given = [(number, one) for number in numbers if (one := ask(number, 1))]
    number, best = max(given, key=lambda each: each[1].tokens_per_s_per_user)
    facts = {
        "tokens_per_s_asked": tokens_per_s,
        "tokens_per_s_reachable": round(best.tokens_per_s_per_user, 1),
        "systems_of_a_copy": number,
        "users_of_a_copy": 1,
    }
    help_ = [f"--min-tokens-per-s {int(best.tokens_per_s_per_user)} can be had"]
    alone = replace(question, users=1, systems=number)
    for text, changed in _levers(alone):
        try:
            speed = answer(profile, target, changed).tokens_per_s_per_user
        except (InfeasibleError, UsageError):
            continue
        if speed >= tokens_per_s:
            help_.append(f"{text} gives one user {speed:,.0f}")
        elif speed > best.tokens_per_s_per_user * 1.02:
            help_.append(f"{text} gives one user {speed:,.0f}, which is not enough")
    message = f"{profile.name} is not so fast on any number of {target.name} systems, even for one user"
    return Diagnostic("W0709", message, target.name, facts, tuple(help_))


def _levers(question: Question) -> Iterator[tuple[str, Question]]:
    if question.speculation is None:
        text = f"speculation with --draft-tokens {_SPECULATION.draft_tokens} --acceptance {_SPECULATION.acceptance}"
        yield text, replace(question, speculation=_SPECULATION)
    if question.input_tokens + question.history > 1:
        shorter = question.input_tokens // 4
        text = f"a quarter of the context (--input-tokens {shorter})"
        yield text, replace(question, input_tokens=shorter, context=None)
