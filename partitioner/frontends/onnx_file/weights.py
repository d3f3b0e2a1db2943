"""An ONNX file's weights by the graph's names, each read when it is asked for, and held as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from partitioner.frontends.onnx_file import reading, stored_weights
from partitioner.frontends.onnx_file.arrays import to_torch
from partitioner.frontends.onnx_file.contributed_products import Unpacked
from targets.emulator.encodings import one_of
from targets.emulator.parts import rows_of
from targets.emulator.weights import Plain, Stored


@dataclass(frozen=True, slots=True)
class OnnxWeights:
    """The weights of a file; the last one that was read stays at hand, as its experts are read one by one."""

    weights: Mapping[str, reading.Weight | reading.Stored]
    _last: dict[str, Stored] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See :class:`targets.emulator.weights.WeightSource`."""
        return tuple(self.weights[name].shape) if name in self.weights else None

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """See :class:`targets.emulator.weights.WeightSource`."""
        if name not in self._last:
            weight = self.weights[name]
            stored = weight.stored() if isinstance(weight, Unpacked) else Plain(to_torch(torch, weight.array()))
            self._last.clear()
            self._last[name] = stored
        part = self._last[name] if expert is None else one_of(self._last[name], expert)
        return part if rows is None else rows_of(part, rows)


def open_onnx_weights(path: Path) -> OnnxWeights:
    """The weights of the file at ``path``.

    Raises:
        UsageError, UnsupportedModelError: as for :func:`partitioner.frontends.onnx_file.load_onnx`.
    """
    return OnnxWeights(stored_weights(path))
