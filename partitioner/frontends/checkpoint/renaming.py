"""From publishers' names to those of transformers' classes, by the library's own tables.

The library renames one name after the other. Here names that differ only in numbers which no table mentions are
renamed once, with stand-ins for the numbers, which takes the minute that 200,000 names need to a second.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from partitioner.frontends.checkpoint.names import filled, templated

_STAND_IN = 987_650_000
_COUNTS_DIGITS = re.compile(r"\\d(?!\+)|\[[^\]]*\d-\d|\{")
"""Parts of an expression that tell numbers apart by more than the digits which stand in it."""


class Renamed(NamedTuple):
    """A name of the model, and the pattern of the converter through which the tensor goes (``None``: it is just
    renamed).
    """

    name: str
    pattern: str | None


class Renaming:
    """The tables of one model of transformers, on any device."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        table = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in table if isinstance(entry, WeightConverter)]
        self.converter: Mapping[str, Any] = {
            pattern: converter for converter in self._converters for pattern in converter.source_patterns
        }
        self._expected = dict.fromkeys(model.state_dict(), True)
        self._mentioned = _numbers_mentioned(pattern for entry in table for pattern in entry.source_patterns)
        self._by_template = self._mentioned is not None and all(_is_of_the_library(entry) for entry in table)

    def rename_all(self, names: Iterable[str]) -> dict[str, Renamed]:
        """The model's name for each of ``names``."""
        by_template: defaultdict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
        for name in names:
            template, numbers = templated(name, self._mentioned or frozenset())
            by_template[template].append((name, numbers))
        found: dict[str, Renamed] = {}
        for template, members in by_template.items():
            if len(members) == 1 or not self._by_template:
                found |= {name: self._table(name) for name, _ in members}
            else:
                found |= self._table_once(template, members)
        final: dict[str, str] = {}
        return {name: self._prefixed(name, renamed, final) for name, renamed in found.items()}

    def _table(self, name: str) -> Renamed:
        from transformers.core_model_loading import rename_source_key

        return Renamed(*rename_source_key(name, self._renamings, self._converters))

    def _table_once(self, template: str, members: list[tuple[str, tuple[str, ...]]]) -> dict[str, Renamed]:
        stand_ins = [str(_STAND_IN + place) for place in range(len(members[0][1]))]
        renamed = self._table(filled(template, stand_ins))
        pieces = re.split(f"({'|'.join(stand_ins)})", renamed.name)
        texts, places = pieces[::2], [stand_ins.index(piece) for piece in pieces[1::2]]
        if not places:
            return {name: renamed for name, _ in members}
        head, *rest = texts
        return {
            name: Renamed(
                head + "".join(numbers[place] + text for place, text in zip(places, rest, strict=True)), renamed.pattern
            )
            for name, numbers in members
        }

    def _prefixed(self, name: str, renamed: Renamed, final: dict[str, str]) -> Renamed:
        """With the base model's prefix added or taken away where that makes it a name of the model."""
        if renamed.name not in final:
            final[renamed.name] = self._with_prefix(renamed.name)
        target = final[renamed.name]
        if target not in self._expected and name in self._expected:  # the table is for another form of the checkpoint
            return Renamed(name, None)
        return Renamed(target, renamed.pattern)

    def _with_prefix(self, name: str) -> str:
        from transformers.core_model_loading import rename_source_key

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


def _is_of_the_library(entry: Any) -> bool:
    """Whether an entry renames by replacing text: others count with the numbers that they find."""
    from transformers.core_model_loading import GroupWeightRename, PrefixChange, WeightConverter, WeightRenaming

    return type(entry) in (GroupWeightRename, PrefixChange, WeightConverter, WeightRenaming)
