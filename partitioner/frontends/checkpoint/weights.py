"""A checkpoint's weights by the model's names, each read when it is asked for, and held as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from partitioner.frontends.checkpoint.match import Match
from partitioner.frontends.checkpoint.reading import read_weight, require_stated_shapes, untied
from partitioner.frontends.checkpoint.recorded import Leaf, Recorded, Value, read
from targets.emulator.weights import Plain, Stored


@dataclass(frozen=True, slots=True)
class CheckpointWeights:
    """The weights that ``match`` names. Only what is asked for is read: of a stack one expert, of a table some rows.

    What the library's operations do to stored weights is recorded on the meta ``model``, and done to the packed ones.
    """

    model: Any
    match: Match
    shapes: Mapping[str, tuple[int, ...]]
    _values: dict[str, Value | None] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See :class:`targets.emulator.weights.WeightSource`."""
        return self.shapes[name] if name in self.match.stored_as else None

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """See :class:`targets.emulator.weights.WeightSource`."""
        return self._read(self.match.stored_as[name], expert, rows)

    def is_tied(self, name: str) -> bool:
        """Whether ``name``, which is stored although another name of the same tensor is, has that one's values."""
        own, other = (self._read(it, None, None) for it in (name, self.match.stored_as[name]))
        return torch.equal(own.unpack(torch.float32, "cpu"), other.unpack(torch.float32, "cpu"))

    def _read(self, name: str, expert: int | None, rows: range | None) -> Stored:
        """What is stored under ``name`` itself."""
        value = self._value(name)
        if value is not None:
            return read(value, expert, rows)
        source = self.match.made[name]
        dense = source.values(self.model, lambda weight: read_weight(weight).unpack(torch.float32, "cpu"))[name]
        dense = dense if expert is None else dense[expert]
        return Plain(dense if rows is None else dense[rows.start : rows.stop])

    def _value(self, name: str) -> Value | None:
        """How ``name`` comes from stored weights; ``None`` where the library's operations cannot be recorded."""
        if name not in self._values:
            source = self.match.made[name]
            try:
                made = source.values(self.model, lambda weight: Recorded(Leaf(weight), torch.float32))
                self._values.update((other, tensor.value) for other, tensor in made.items())  # type: ignore[attr-defined]
            except Exception:  # whatever the library's own operations ask of values that are not there
                self._values.update((other, None) for other, its in self.match.made.items() if its is source)
        return self._values[name]


def open_checkpoint_weights(model: Any, match: Match) -> CheckpointWeights:
    """The weights of a checkpoint that was matched to ``model``, which is on the ``meta`` device.

    Raises:
        UsageError: W0221, a file cannot be read, or states another shape than its header; W0230, tensors that the
            configuration ties to each other are stored with different values.
    """
    require_stated_shapes(weight for source in match.sources for weight in source.every_weight())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    weights = CheckpointWeights(model, match, shapes)
    for name in match.twice:
        if not weights.is_tied(name):
            raise untied(name)
    return weights
