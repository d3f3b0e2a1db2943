"""The fewest of a user's rules that cannot all be kept.

A smallest set in conflict hits every set of rules whose absence makes the rest fit, so it is found among the smallest
sets that hit those known so far: each that fits is grown as far as it does, and what is left over must be hit too
(Ignatiev, Previti, Liffiton and Marques-Silva, "Smallest MUS extraction with minimal hitting set dualization", CP
2015). Many rules are halved instead, which gives a set none of which can be left out (Junker,
"QuickXplain", AAAI 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

Verdict = bool | None
"""Whether a placement exists: found, proven not to be, or neither."""
Decide = Callable[[Sequence[int]], Verdict]
"""The verdict on the rules with these numbers alone."""
MOST_RULES = 16
"""For which the smallest set is sought, rather than one without a rule to spare."""


def smallest_conflict(count: int, decide: Decide) -> tuple[tuple[int, ...], bool]:
    """Of ``count`` rules that cannot all be kept, numbers of the fewest that cannot; and whether fewer surely can.

    Rules on which no verdict is found count as if they could be kept, so what is returned is always proven.
    """
    known: dict[tuple[int, ...], Verdict] = {tuple(range(count)): False}

    def verdict(rules: Sequence[int]) -> Verdict:
        key = tuple(sorted(rules))
        if key not in known:
            known[key] = decide(key)
        return known[key]

    everything = tuple(range(count))
    if count > MOST_RULES:
        found, all_compared = _halved((), everything, verdict, tested=True), False
    else:
        found, all_compared = _smallest(everything, verdict), None not in known.values()
    return found, all_compared or len(found) == 1


def _smallest(rules: tuple[int, ...], verdict: Callable[[Sequence[int]], Verdict]) -> tuple[int, ...]:
    """The fewest of ``rules``, which are in conflict, that are."""
    to_hit: list[frozenset[int]] = []
    for size in range(1, len(rules) + 1):
        for candidate in combinations(rules, size):
            if not all(one.intersection(candidate) for one in to_hit):
                continue
            if verdict(candidate) is False:
                return candidate
            to_hit.append(frozenset(rules) - _grown(candidate, rules, verdict))
    return rules


def _grown(kept: Sequence[int], rules: Sequence[int], verdict: Callable[[Sequence[int]], Verdict]) -> frozenset[int]:
    """``kept`` and as many of ``rules`` as still fit with it, one after the other."""
    grown = list(kept)
    for rule in rules:
        if rule not in grown and verdict([*grown, rule]):
            grown.append(rule)
    return frozenset(grown)


def _halved(
    background: tuple[int, ...],
    rules: tuple[int, ...],
    verdict: Callable[[Sequence[int]], Verdict],
    *,
    tested: bool = False,
) -> tuple[int, ...]:
    """A part of ``rules`` in conflict with ``background``, none of which can be left out."""
    if not tested and background and verdict(background) is False:
        return ()
    if len(rules) == 1:
        return rules
    middle = len(rules) // 2
    left, right = rules[:middle], rules[middle:]
    of_right = _halved((*background, *left), right, verdict)
    of_left = _halved((*background, *of_right), left, verdict, tested=not of_right)
    return tuple(sorted((*of_left, *of_right)))
