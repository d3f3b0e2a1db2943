"""Stored weights on their way to a parameter, through the library's own operations that join and part them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.frontends.checkpoint.names import filled, templated
from partitioner.frontends.checkpoint.schemes import StoredWeight

_MOST_GAPS = 4
"""Missing numbers for each that is there, up to which they are named: a number in a file must not decide on time."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where parameters come from: stored weights by the pattern of the library's converter that joins or parts them.

    ``target`` is the model's name under which the library does so, and ``converter`` the library's operation
    (``None``: the one weight is the parameter).
    """

    target: str
    weights: Mapping[str, tuple[StoredWeight, ...]]
    converter: Any

    @property
    def bytes(self) -> int:
        """Bytes of elements and scales."""
        return sum(weight.bytes for found in self.weights.values() for weight in found)

    def every_weight(self) -> Iterator[StoredWeight]:
        """The stored weights, in order."""
        for found in self.weights.values():
            yield from found

    def gaps(self) -> list[str]:
        """Names that are missing in a row of numbered weights, such as experts."""
        found = [[templated(weight.name) for weight in row] for row in self.weights.values()]
        have = {name.numbers for row in found for name in row}
        wanted = have | _whole_row(have)
        lacking = ((row[0].template, wanted - {name.numbers for name in row}) for row in found)
        return [filled(template, numbers) for template, missing in lacking for numbers in sorted(missing)]

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


def _whole_row(have: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """All numbers up to the largest, in the one place where the members of ``have`` differ."""
    first = next(iter(have))
    if len(have) < 2 or any(len(numbers) != len(first) for numbers in have):
        return set()
    places = [place for place in range(len(first)) if len({numbers[place] for numbers in have}) > 1]
    largest = max(int(numbers[places[0]]) for numbers in have)
    if len(places) > 1 or largest > _MOST_GAPS * len(have):
        return set()
    place = places[0]
    return {(*first[:place], str(number), *first[place + 1 :]) for number in range(largest + 1)}
