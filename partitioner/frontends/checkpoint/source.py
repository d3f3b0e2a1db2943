"""Stored weights on their way to a parameter, through the library's own operations that join and part them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from partitioner.frontends.checkpoint.names import filled, templated
from partitioner.frontends.checkpoint.schemes import StoredWeight

Numbers = tuple[int, ...]
Numbered = tuple[Numbers, StoredWeight]
"""A weight behind the numbers in its name."""

_MOST_GAPS = 4
"""Missing numbers for each that is there, up to which they are named: a number in a file must not decide on time."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where parameters come from: stored weights by the pattern of the library's converter that joins or parts them.

    Attributes:
        target: the model's name under which the library does so.
        weights: by pattern, in the order of the patterns and of the numbers in names.
        converter: the library's operation; ``None`` where the one weight is the parameter.
        gaps: names that are missing in a row of numbered weights, such as experts.
    """

    target: str
    weights: Mapping[str, tuple[StoredWeight, ...]]
    converter: Any
    gaps: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of elements and scales."""
        return sum(weight.bytes for found in self.weights.values() for weight in found)

    def every_weight(self) -> Iterator[StoredWeight]:
        """The stored weights, in order."""
        for found in self.weights.values():
            yield from found

    def values(self, model: Any, read: Callable[[StoredWeight], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters by name, made of what ``read`` gives for each stored weight (on any device)."""
        if self.converter is None:
            return {self.target: read(next(self.every_weight()))}
        converter = copy.deepcopy(self.converter)
        for pattern, found in self.weights.items():
            for weight in found:
                converter.add_tensor(self.target, weight.name, pattern, _Lazily(read, weight))
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True, slots=True)
class _Lazily:
    """Reads a weight when the library asks for it."""

    read: Callable[[StoredWeight], torch.Tensor]
    weight: StoredWeight

    def __call__(self) -> torch.Tensor:
        return self.read(self.weight)


def source_of(target: str, by_pattern: Mapping[str, Sequence[Numbered]], converter: Any) -> Source:
    """The source of ``target``, its weights in the order in which the library joins them."""
    if converter is None:
        weights = {pattern: tuple(weight for _, weight in found) for pattern, found in by_pattern.items()}
        return Source(target, weights, None, ())
    rows = {
        pattern: dict(sorted(by_pattern[pattern], key=itemgetter(0)))
        for pattern in converter.source_patterns
        if pattern in by_pattern
    }
    weights = {pattern: tuple(row.values()) for pattern, row in rows.items()}
    return Source(target, weights, converter, tuple(_gaps(rows.values())))


def _gaps(rows: Collection[Mapping[Numbers, StoredWeight]]) -> Iterator[str]:
    have = {numbers for row in rows for numbers in row}
    wanted = have | _whole_row(have)
    for row in rows:
        if len(row) < len(wanted):
            template = templated(next(iter(row.values())).name)[0]
            yield from (filled(template, map(str, numbers)) for numbers in sorted(wanted - row.keys()))


def _whole_row(have: set[Numbers]) -> set[Numbers]:
    """All numbers up to the largest, in the one place where the members of ``have`` differ."""
    first = next(iter(have))
    if len(have) < 2 or any(len(numbers) != len(first) for numbers in have):
        return set()
    places = [place for place in range(len(first)) if len({numbers[place] for numbers in have}) > 1]
    place, largest = places[0], max(numbers[places[0]] for numbers in have)
    if len(places) > 1 or largest > _MOST_GAPS * len(have):
        return set()
    return {(*first[:place], number, *first[place + 1 :]) for number in range(largest + 1)}
