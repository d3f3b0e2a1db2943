"""From publishers' names to those of transformers' classes, by the library's own tables.

The library renames one name after the other. Here names that differ only in numbers which no table mentions are
renamed once, with stand-ins for the numbers, which takes the minute that 200,000 names need to a second.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    GroupWeightRename,
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from partitioner.frontends.checkpoint.names import split

_STAND_IN = 987_650_000
_STAND_INS = tuple(str(_STAND_IN + place) for place in range(8))
_A_STAND_IN = re.compile(r"98765(\d{4})")
_COUNTS_DIGITS = re.compile(r"\\d(?!\+)|\[[^\]]*\d-\d|\{")
"""Parts of an expression that tell numbers apart by more than the digits which stand in it."""


class Renamed(NamedTuple):
    """A stored name, the model's name for it, the pattern of the converter through which the tensor goes (``None``: it
    is just renamed), and the numbers in the stored name.
    """

    stored: str
    name: str
    pattern: str | None
    numbers: list[str]


class Renaming:
    """The tables of one model of transformers, on any device."""

    def __init__(self, model: Any) -> None:
        table = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in table if isinstance(entry, WeightConverter)]
        self.converter: Mapping[str, Any] = {
            pattern: converter for converter in self._converters for pattern in converter.source_patterns
        }
        self._expected = dict.fromkeys(model.state_dict(), True)
        patterns = [pattern for entry in table for pattern in entry.source_patterns]
        self._mentioned = _numbers_mentioned(patterns) if all(map(_replaces_text, table)) else None

    def rename_all(self, names: Iterable[str]) -> Iterator[Renamed]:
        """The model's name for each of ``names``, in no particular order."""
        by_template: defaultdict[str, list[list[str]]] = defaultdict(list)
        for name in names:
            pieces = split(name)
            by_template[self._template(pieces)].append(pieces)
        final: dict[str, str] = {}
        # In the library's own order: some of its rules wait for a name that tells the form of the checkpoint.
        for template in sorted(by_template, key=dot_natural_key):
            members = by_template[template]
            rename, pattern = self._rule(template)
            for pieces in members:
                name = "".join(pieces)
                renamed = rename(pieces[1::2])
                target = final.get(renamed) or final.setdefault(renamed, self._with_prefix(renamed))
                if target not in self._expected and name in self._expected:
                    yield Renamed(name, name, None, pieces[1::2])  # the table is for another form of the checkpoint
                else:
                    yield Renamed(name, target, pattern, pieces[1::2])

    def _template(self, pieces: list[str]) -> str:
        """A name with stand-ins, each of its own, for numbers that no table mentions; else the name."""
        numbers = pieces[1::2]
        if self._mentioned is None:
            return "".join(pieces)
        stand_ins = _STAND_INS
        if len(numbers) > len(stand_ins) or not self._mentioned.isdisjoint(numbers):
            stand_ins = tuple(
                number if number in self._mentioned else str(_STAND_IN + place) for place, number in enumerate(numbers)
            )
        pieces = [*pieces]
        pieces[1::2] = stand_ins[: len(numbers)]
        return "".join(pieces)

    def _rule(self, template: str) -> tuple[Callable[[list[str]], str], str | None]:
        """How names of ``template`` are renamed: from their numbers to the new name."""
        renamed, pattern = rename_source_key(template, self._renamings, self._converters)
        pieces = _A_STAND_IN.split(renamed)
        head, places, texts = pieces[0], [int(place) for place in pieces[1::2]], pieces[2::2]

        def rename(numbers: list[str]) -> str:
            return head + "".join([numbers[place] + text for place, text in zip(places, texts, strict=True)])

        return rename, pattern

    def _with_prefix(self, name: str) -> str:
        """With the base model's prefix added or taken away where that makes it a name of the model."""
        prefix = self._model.base_model_prefix
        return str(rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=self._expected)[0])


def _numbers_mentioned(patterns: Iterable[str]) -> frozenset[str] | None:
    """Numbers, and their digits, that stand in ``patterns``; ``None`` if one tells numbers apart by other means."""
    found: set[str] = set()
    for pattern in patterns:
        if _COUNTS_DIGITS.search(pattern):
            return None
        for run in re.findall(r"\d+", pattern):
            found |= {run, *run}
    return frozenset(found)


def _replaces_text(entry: Any) -> bool:
    """Whether an entry renames by replacing text alone; others count with the numbers that they find."""
    return type(entry) in (GroupWeightRename, PrefixChange, WeightConverter, WeightRenaming)
