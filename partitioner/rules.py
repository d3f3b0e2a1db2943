"""Rules of the user: read from options, files and programs, and resolved to restrictions on items.

A rule reads as on the command line without its dashes: a kind, patterns of block names, and, after ``=``, wafers or a
count (docs/rules.md).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from ir.machine import Machine
from ir.model import Model
from ir.rules import Rule, RuleKind, names
from partitioner.solver.problem import Restriction

Groups = Sequence[tuple[int, ...]]
"""The blocks (indices) of each item before copies are made."""

ON_WAFERS = (RuleKind.PIN, RuleKind.FORBID)
COUNTED = (RuleKind.AT_MOST, RuleKind.REPLICATE)
EXAMPLES = {
    RuleKind.PIN: "embedding=0",
    RuleKind.FORBID: "layers.*.experts=4",
    RuleKind.APART: "embedding,head",
    RuleKind.TOGETHER: "embedding,head",
    RuleKind.ORDER: "layers.7.*,layers.3.*",
    RuleKind.AT_MOST: "layers.*.experts=3",
    RuleKind.REPLICATE: "embedding=2",
    RuleKind.FREE: "head",
}
_MOST_FILE_BYTES = 1 << 20
_MOST_RULES = 1000
_MOST_NUMBER = 10_000
"""Of wafers, and so of copies."""


# --- reading ----------------------------------------------------------------------------------------------------------


def parse_rule(text: str, source: str = "") -> Rule:
    """The rule that ``text`` tells, as ``pin layers.3.*=1,2``.

    Raises:
        UsageError: W0114, it makes no sense.
    """
    word, _, rest = text.strip().partition(" ")
    kind = _kind(word, text, source)
    patterns, numbers = rest.strip(), ""
    if kind in (*ON_WAFERS, *COUNTED):
        patterns, equals, numbers = rest.rpartition("=")
        if not equals:
            raise _nonsense("it needs `=` and a number", text, kind, source)
    blocks = tuple(part.strip() for part in patterns.split(","))
    try:
        figures = tuple(int(part) for part in numbers.split(",")) if numbers.strip() else ()
    except ValueError:
        raise _nonsense(f"{numbers!r} are no whole numbers", text, kind, source) from None
    wafers = figures if kind in ON_WAFERS else ()
    if kind in COUNTED and len(figures) != 1:
        raise _nonsense("it needs one number after `=`", text, kind, source)
    return _sound(Rule(kind, blocks, wafers, figures[0] if kind in COUNTED else 0, text.strip(), source))


def as_rules(given: Iterable[Rule | str]) -> tuple[Rule, ...]:
    """Rules as a program gives them, none of them twice.

    Raises:
        UsageError: W0114, one makes no sense; W0118, one is given twice.
    """
    if isinstance(given, str):
        raise UsageError(Diagnostic("W0114", "rules are a list of texts or of Rule, not one text", given))
    rules = [rule if isinstance(rule, Rule) else parse_rule(str(rule)) for rule in given]
    if len(rules) > _MOST_RULES:
        raise UsageError(Diagnostic("W0114", f"there are more than {_MOST_RULES:,} rules", facts={"rules": len(rules)}))
    rules = [_sound(rule if rule.text else replace(rule, text=_written(rule))) for rule in rules]
    seen: dict[object, Rule] = {}
    for rule in rules:
        meaning = (rule.kind, rule.blocks, rule.wafers, rule.count)
        if meaning in seen:
            facts = {"first": str(seen[meaning])}
            raise UsageError(Diagnostic("W0118", "a rule is given twice", str(rule), facts))
        seen[meaning] = rule
    return tuple(rules)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a TOML file: for each kind a list of texts, as ``pin = ["embedding=0"]``. It is read, never run.

    Raises:
        UsageError: W0116, it cannot be read, or has an entry that is not such a list; W0114, a rule makes no sense.
    """
    text = _text_of(path)
    try:
        entries = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(Diagnostic("W0116", f"a file of rules is no TOML: {error}", str(path))) from None
    faults = [_not_rules(key, value, path) for key, value in entries.items() if not _is_list_of_texts(key, value)]
    if faults:
        raise UsageError(*faults)
    lines = text.splitlines()
    return tuple(
        parse_rule(f"{key} {rule}", f"{path.name}:{_line(lines, key, rule)}")
        for key, rules in entries.items()
        for rule in rules
    )


def _text_of(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > _MOST_FILE_BYTES:
            reason = "it is no file, or larger than a megabyte" if path.exists() else "there is no such file"
            raise UsageError(Diagnostic("W0116", f"a file of rules cannot be read: {reason}", str(path)))
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(Diagnostic("W0116", f"a file of rules cannot be read: {error.strerror}", str(path))) from None
    except ValueError:
        raise UsageError(Diagnostic("W0116", "a file of rules is no text in UTF-8", repr(str(path)))) from None


def _is_list_of_texts(key: str, value: Any) -> bool:
    return key.replace("-", "_") in [*RuleKind] and isinstance(value, list) and all(isinstance(v, str) for v in value)


def _not_rules(key: str, value: Any, path: Path) -> Diagnostic:
    kind = key.replace("-", "_")
    if kind in [*RuleKind]:
        help_ = (f'for example {key} = ["{EXAMPLES[RuleKind(kind)]}"]',)
        return Diagnostic("W0116", f"{key} must be a list of texts, not {type(value).__name__}", str(path), help=help_)
    return Diagnostic("W0116", f"there is no rule {key!r}", str(path), help=(_kinds_like(kind),))


def _line(lines: Sequence[str], key: str, rule: str) -> int:
    """The line of a file where a rule stands; where its kind does if it is written with escapes."""
    start = next((n for n, line in enumerate(lines) if re.match(rf"""\s*["']?{re.escape(key)}["']?\s*=""", line)), 0)
    return 1 + next((n for n in range(start, len(lines)) if rule in lines[n]), start)


def _kind(word: str, text: str, source: str) -> RuleKind:
    kind = word.replace("-", "_")
    if kind not in [*RuleKind]:
        raise UsageError(
            Diagnostic("W0114", f"there is no rule {word!r}", _where(text, source), help=(_kinds_like(kind),))
        )
    return RuleKind(kind)


def _kinds_like(word: str) -> str:
    close = difflib.get_close_matches(word, [*RuleKind], n=1)
    return f"did you mean {close[0].replace('_', '-')}?" if close else f"rules are {', '.join(map(_spoken, RuleKind))}"


def _spoken(kind: RuleKind) -> str:
    return kind.value.replace("_", "-")


def _sound(rule: Rule) -> Rule:
    """The rule itself, if it makes sense without a model."""
    absent = () if rule.kind in ON_WAFERS else rule.wafers
    wrong = {
        "it names no block": not rule.blocks or not all(rule.blocks),
        "it needs a wafer after `=`": rule.kind in ON_WAFERS and not rule.wafers,
        "it takes no wafers": bool(absent),
        f"wafers are numbers from 0 to {_MOST_NUMBER:,}": not all(0 <= wafer <= _MOST_NUMBER for wafer in rule.wafers),
        f"its count must be from 1 to {_MOST_NUMBER:,}": rule.kind in COUNTED and not 1 <= rule.count <= _MOST_NUMBER,
        "it takes no count": rule.kind not in COUNTED and rule.count != 0,
        "it needs two patterns or more": rule.kind is RuleKind.ORDER and len(rule.blocks) < 2,
    }
    for reason, holds in wrong.items():
        if holds:
            raise _nonsense(reason, rule.text or _written(rule), rule.kind, rule.source)
    return rule


def _written(rule: Rule) -> str:
    figures = ",".join(map(str, rule.wafers)) if rule.kind in ON_WAFERS else str(rule.count)
    end = f"={figures}" if rule.kind in (*ON_WAFERS, *COUNTED) else ""
    return f"{_spoken(rule.kind)} {','.join(rule.blocks)}{end}"


def _nonsense(reason: str, text: str, kind: RuleKind, source: str) -> UsageError:
    help_ = (f"for example `{_spoken(kind)} {EXAMPLES[kind]}`",)
    return UsageError(Diagnostic("W0114", f"a rule makes no sense: {reason}", _where(text, source), help=help_))


def _where(text: str, source: str) -> str:
    return f"{text} ({source})" if source else text


# --- resolving --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resolved:
    """``copies`` of each group of blocks that stay together, and what the rules ask of them; the groups of these
    restrictions are numbers of such groups, not yet of copies.
    """

    copies: tuple[int, ...]
    restrictions: tuple[Restriction, ...]

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The items that are copies of each group."""
        ends = accumulate(self.copies)
        return tuple(tuple(range(end - own, end)) for end, own in zip(ends, self.copies, strict=True))

    def on_items(self) -> tuple[Restriction, ...]:
        """The restrictions, on items: each on all copies; copies themselves as a group for each that is copied.

        What is kept apart by patterns is kept apart two by two.
        """
        return tuple(replace(rule, groups=groups) for rule in self.restrictions for groups in self._groups(rule))

    def _groups(self, rule: Restriction) -> Iterator[tuple[tuple[int, ...], ...]]:
        places = self.places
        if rule.kind is RuleKind.REPLICATE:
            yield tuple(places[group] for group in rule.items)
            return
        groups = tuple(tuple(item for group in own for item in places[group]) for own in rule.groups)
        if rule.kind is RuleKind.APART and len(groups) > 1 and any(len(own) > 1 for own in groups):
            for one, other in combinations(groups, 2):
                yield from (((item,), (another,)) for item in one for another in other)
            return
        yield groups


def resolve(rules: Sequence[Rule], model: Model, groups: Groups, machine: Machine) -> Resolved:
    """What ``rules`` mean for ``groups`` of blocks on ``machine``. A rule on a block is one on all of its group.

    Raises:
        UsageError: W0117, a rule names blocks or wafers that do not exist; W0118, it asks what no placement can change.
    """
    faults = [fault for rule in rules for fault in _unknown(rule, model, machine)]
    if faults:
        raise UsageError(*faults)
    group_of = {model.blocks[block].name: number for number, group in enumerate(groups) for block in group}
    restrictions = tuple(_restriction(rule, group_of) for rule in rules)
    faults = [fault for rule, found in zip(rules, restrictions, strict=True) for fault in _idle(rule, found)]
    if faults:
        raise UsageError(*faults)
    copies = dict.fromkeys(range(len(groups)), 1)
    for rule in restrictions:
        if rule.kind is RuleKind.REPLICATE:
            twice = [group for group in rule.items if copies[group] > 1]
            if twice:
                where = model.blocks[groups[twice[0]][0]].name
                raise UsageError(Diagnostic("W0118", "two rules replicate the same block", where, {"rule": rule.text}))
            copies |= dict.fromkeys(rule.items, rule.count)
    return Resolved(tuple(copies.values()), restrictions)


def _unknown(rule: Rule, model: Model, machine: Machine) -> Iterator[Diagnostic]:
    """Blocks and wafers of a rule that do not exist."""
    known = [block.name for block in model.blocks]
    for pattern in rule.blocks:
        if not any(names(pattern, name) for name in known):
            close = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
            shown = ", ".join(close or [known[0], "...", known[-1]][: len(known)])
            help_ = (f"nearest are {shown}" if close else f"blocks are {shown}",)
            yield Diagnostic("W0117", f"no block is named {pattern!r}", str(rule), help=help_)
    last = machine.systems - 1
    for wafer in rule.wafers:
        if wafer > last:
            help_ = (f"wafers are 0 to {last}",)
            yield Diagnostic("W0117", f"there is no wafer {wafer}", str(rule), {"systems": last + 1}, help_)
    if rule.kind is RuleKind.REPLICATE and rule.count > machine.systems:
        facts = {"copies": rule.count, "systems": machine.systems}
        yield Diagnostic("W0117", "there are fewer wafers than copies, which lie on as many", str(rule), facts)


def _restriction(rule: Rule, group_of: Mapping[str, int]) -> Restriction:
    found = (sorted({group for name, group in group_of.items() if names(pattern, name)}) for pattern in rule.blocks)
    return Restriction(rule.kind, tuple(map(tuple, found)), rule.wafers, rule.count, str(rule))


def _idle(rule: Rule, found: Restriction) -> Iterator[Diagnostic]:
    """Rules on blocks that always share a wafer, such as the router and the experts of a layer."""
    if rule.kind in (RuleKind.APART, RuleKind.TOGETHER) and len(found.items) < 2:
        yield Diagnostic("W0118", "the blocks of a rule always share a wafer, or are one", str(rule))
    elif rule.kind in (RuleKind.APART, RuleKind.ORDER) and any(
        set(one) & set(other) for one, other in combinations(found.groups, 2)
    ):
        message = f"a block, or one that always shares its wafer, stands twice in a rule of {_spoken(rule.kind)}"
        yield Diagnostic("W0118", message, str(rule))
