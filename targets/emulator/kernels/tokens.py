"""Values taken apart into tokens and the elements of each, as homes count them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ir.types import Dim, Size, TensorType, for_one_token
from targets.emulator.scope import Tensor


def token_shape(type_: TensorType) -> tuple[int, ...]:
    """The shape for one token; an axis that has more than a whole number for each token is all tokens."""
    return tuple(_for_one_token(size) for size in type_.shape)


def _for_one_token(size: Size) -> int:
    return for_one_token(size) if not isinstance(size, Dim) or len(size.terms) == 1 else 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """A value's axes: how many tokens lie along each, and how many elements of one token."""

    counts: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def of(value: Tensor, shape: tuple[int, ...]) -> Tokens:
        """Those of ``value``, whose tokens have ``shape``."""
        counts = (size // max(1, one) for size, one in zip(value.shape, shape, strict=True))
        return Tokens(tuple(counts), shape)

    def split(self, value: Tensor) -> Tensor:
        """The value as [tokens, elements]."""
        rank = len(self.shape)
        pairs = [size for pair in zip(self.counts, self.shape, strict=True) for size in pair]
        order = (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2))
        return value.reshape(pairs).permute(order).reshape(prod(self.counts), prod(self.shape))

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        rank = len(self.shape)
        order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
        sizes = [count * one for count, one in zip(self.counts, self.shape, strict=True)]
        return parts.reshape(*self.counts, *self.shape).permute(order).reshape(sizes)

    def without(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """How many tokens lie along the axes other than ``axes``."""
        return tuple(count for axis, count in enumerate(self.counts) if axis not in axes)
