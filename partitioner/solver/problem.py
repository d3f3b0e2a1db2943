"""What is placed and where: integers and curves only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ir.objective import Objective
from ir.rules import RuleKind

Assignment = tuple[int, ...]
"""The wafer of each item."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A time as a function of tiles, in femtoseconds: falling, convex, in pieces of integer slope.

    ``time_fs`` with the fewest tiles that the item can do with; then, for each (tiles, fs) of ``drops``, so many more
    tiles that save so much each. What each saves falls from piece to piece.
    """

    time_fs: int = 0
    drops: tuple[tuple[int, int], ...] = ()

    def time(self, spare: int) -> int:
        """Femtoseconds with ``spare`` tiles beyond the fewest."""
        left, time_fs = spare, self.time_fs
        for tiles, saved in self.drops:
            time_fs -= min(left, tiles) * saved
            left -= min(left, tiles)
        return time_fs

    def spare(self, most_fs: int) -> int | None:
        """The fewest tiles beyond the fewest with which it takes ``most_fs`` at most; ``None`` if no number does."""
        spare, time_fs = 0, self.time_fs
        for tiles, saved in self.drops:
            if time_fs <= most_fs or saved <= 0:
                break
            taken = min(tiles, -(-(time_fs - most_fs) // saved))
            spare, time_fs = spare + taken, time_fs - taken * saved
        return spare if time_fs <= most_fs else None

    def slowed(self, permille: int) -> Curve:
        """The curve on a wafer where all takes ``permille`` thousandths of the time."""
        if permille == 1000:
            return self
        drops = tuple((tiles, saved * permille // 1000) for tiles, saved in self.drops)
        return Curve(-(-self.time_fs * permille // 1000), drops)

    def shared(self, copies: int) -> Curve:
        """The mean over all tokens, where each of ``copies`` serves as many of them."""
        if copies == 1:
            return self
        return Curve(-(-self.time_fs // copies), tuple((tiles, saved // copies) for tiles, saved in self.drops))


@dataclass(frozen=True, slots=True)
class Item:
    """Blocks (indices into the model's) that must share a wafer, and what they need of it at least.

    Attributes:
        bytes, tiles: what it keeps, and the fewest tiles that hold that.
        alike: items of the same number need the same shapes of tiles, as repeated layers do.
        state_bytes: what each user adds to ``bytes``; ``weight_bytes``: the part that is weights.
        latency: of one token on its tiles, in a wafer of ordinary speed; ``slowest``: of the slowest of its blocks.
        copy: number of this copy, of an item that has several, each for its share of the users.
    """

    blocks: tuple[int, ...]
    bytes: int
    tiles: int
    alike: int = 0
    state_bytes: int = 0
    weight_bytes: int = 0
    latency: Curve = Curve()
    slowest: Curve = Curve()
    copy: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """A value that item ``source`` makes and the items ``targets`` read (indices), in bytes per token.

    ``link_fs`` is how long it holds an ordinary link between two wafers.
    """

    source: int
    targets: tuple[int, ...]
    bytes_per_token: int
    link_fs: int = 0


@dataclass(frozen=True, slots=True)
class Wafer:
    """Where items lie. All times are ``slowness_permille`` thousandths of the ordinary ones."""

    tiles: int
    bytes: int = 1 << 60
    slowness_permille: int = 1000


@dataclass(frozen=True, slots=True)
class Restriction:
    """A user's rule on items: ``groups`` has the items (indices) of each of the rule's patterns; see ``RuleKind``.

    ``text`` is the rule as the user wrote it. Copies and rules of order are items and flows of their own, but are
    listed too, so that a rule that stands in the way can be named.
    """

    kind: RuleKind
    groups: tuple[tuple[int, ...], ...]
    wafers: tuple[int, ...] = ()
    count: int = 0
    text: str = ""

    @property
    def items(self) -> tuple[int, ...]:
        """The items of all groups, each once."""
        return tuple(sorted({item for group in self.groups for item in group}))


@dataclass(frozen=True)
class Problem:
    """Items in topological order, for ``wafers``.

    Along the pipeline values only go on: wafers in use have an order in which no value flows back, unless to or from
    an item that a rule sets free. That order need not be that of their numbers.

    Attributes:
        misfits: combinations that are known not to fit on one wafer together, though their bytes would: each the sorted
            ``alike`` numbers of its items, so that what is learnt of some layers holds for all like them.
        take_turns: blocks of a wafer work one after the other on all its tiles, rather than each on its own.
        hand_over_fs: from one wafer to the next over an ordinary link, for each token, beside ``Flow.link_fs``.
        link_costs: (one wafer, another, how many times an ordinary link it costs), for those that are not ordinary.
        users: for whom the items' bytes are counted.
        previous: the wafer where each item lay before, ``None`` for a new one; empty if there was no plan.
        thresholds: values of objectives that a placement must reach: at most so much, or at least where more is better.
    """

    items: tuple[Item, ...]
    flows: tuple[Flow, ...]
    wafers: tuple[Wafer, ...]
    misfits: tuple[tuple[int, ...], ...] = ()
    restrictions: tuple[Restriction, ...] = ()
    take_turns: bool = False
    hand_over_fs: int = 0
    link_costs: tuple[tuple[int, int, int], ...] = ()
    users: int = 1
    previous: tuple[int | None, ...] = ()
    thresholds: tuple[tuple[Objective, int], ...] = ()

    def holds_misfit(self, items: Iterable[int]) -> bool:
        """Whether ``items`` on one wafer contain a combination that is known not to fit."""
        present = Counter(self.items[index].alike for index in items) if self.misfits else Counter()
        return any(not Counter(misfit) - present for misfit in self.misfits)

    @cached_property
    def link_cost(self) -> dict[tuple[int, int], int]:
        """Cost of the links that are not ordinary, in both directions."""
        return {pair: cost for one, other, cost in self.link_costs for pair in ((one, other), (other, one))}

    @cached_property
    def free(self) -> frozenset[int]:
        """Items that need not follow the pipeline."""
        return frozenset(i for rule in self.restrictions if rule.kind is RuleKind.FREE for i in rule.items)

    @cached_property
    def precedences(self) -> tuple[tuple[int, int], ...]:
        """Pairs of items of which the first lies on the same wafer as the second, or on one before it: the flows
        between items that follow the pipeline, and rules of order.
        """
        flows = {(flow.source, target) for flow in self.flows for target in flow.targets}
        pairs = {pair for pair in flows if not self.free.intersection(pair)}
        for rule in self.restrictions:
            if rule.kind is RuleKind.ORDER:
                for before, after in zip(rule.groups, rule.groups[1:], strict=False):
                    pairs |= {(a, b) for a in before for b in after if a != b}
        return tuple(sorted(pairs))

    @cached_property
    def is_chain(self) -> bool:
        """Whether each item feeds the next, so that only one order of the items exists."""
        fed = set(self.precedences)
        return all((index, index + 1) in fed for index in range(len(self.items) - 1))

    @property
    def is_plain(self) -> bool:
        """Whether wafers are told apart by nothing but their size and speed, and no rule of a user binds."""
        return not (self.restrictions or self.link_costs or self.previous or self.thresholds)


def equal_wafers(count: int, tiles: int, bytes_each: int = 1 << 60) -> tuple[Wafer, ...]:
    """``count`` wafers of ``tiles`` tiles."""
    return (Wafer(tiles, bytes_each),) * count
