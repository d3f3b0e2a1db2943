"""Where weights come from, and how they are held: as they are stored, unpacked where they are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ir.graph import Parameter
from ir.ops import torch_dtype

Tensor = torch.Tensor


class Stored(Protocol):
    """A weight as the machine stores it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, unpacked."""

    @property
    def nbytes(self) -> int:
        """Bytes that the host holds for it."""

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The weight [..., out, in] in ``dtype``: exactly where ``dtype`` can hold what is stored."""


class WeightSource(Protocol):
    """Weights by parameter name. A weight may be read more than once, and need not be kept in between."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a parameter; ``None`` if there is no such weight. Reads no values."""

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """A whole parameter, or of a stacked one [experts, ...] that of one expert; of it these ``rows`` alone.

        Raises:
            UsageError: what is stored cannot be read, or is damaged.
        """


@dataclass(frozen=True, slots=True)
class Plain:
    """A weight that is stored as it is."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return tuple(self.tensor.shape)

    @property
    def nbytes(self) -> int:
        """The tensor's."""
        return self.tensor.numel() * self.tensor.element_size()

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The tensor in ``dtype``; itself where it is that already."""
        if self.tensor.dtype is dtype and device == self.tensor.device.type:
            return self.tensor
        return self.tensor.to(device=device, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Tensors:
    """Weights that are in memory."""

    tensors: Mapping[str, Tensor]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See :class:`WeightSource`."""
        return tuple(self.tensors[name].shape) if name in self.tensors else None

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """See :class:`WeightSource`."""
        tensor = self.tensors[name].detach()
        tensor = tensor if expert is None else tensor[expert]
        return Plain(tensor if rows is None else tensor[rows.start : rows.stop])


def unpacked(source: WeightSource, parameters: Iterable[Parameter]) -> dict[str, Tensor]:
    """All of ``parameters`` by name, each whole in its own type."""
    return {p.name: source.read(p.name).unpack(torch_dtype(torch, p.type.dtype), "cpu") for p in parameters}
