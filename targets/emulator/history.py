"""What attention remembers: the cached values of all tokens so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.types import TensorType, symbols_of


@dataclass(frozen=True, slots=True)
class History:
    """One cache: each value's remembered tokens, with the token axis parted as in :func:`_part`."""

    parted: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tokens: int = 0

    def append(
        self, values: Mapping[str, torch.Tensor], types: Mapping[str, TensorType], users: int, tokens: int
    ) -> History:
        """The history with the step's ``tokens`` new tokens of each of ``users`` users at its end."""
        parted = {}
        for name, value in values.items():
            new = _part(value, token_axis(name, types[name]), types[name], users, tokens)
            old = self.parted.get(name)
            parted[name] = new if old is None else torch.cat((old, new), dim=token_axis(name, types[name]) + 1)
        return History(parted, self.tokens + tokens)

    def values(self, types: Mapping[str, TensorType]) -> dict[str, torch.Tensor]:
        """Each value as if all remembered tokens had been one step's."""
        axes = {name: token_axis(name, types[name]) for name in self.parted}
        return {name: value.flatten(axes[name], axes[name] + 2) for name, value in self.parted.items()}

    def last(self, window: int, types: Mapping[str, TensorType]) -> History:
        """Only the last ``window`` tokens; all of them for 0."""
        return self._without(self.tokens - window if window else 0, types)

    def in_chunk(self, chunk: int, types: Mapping[str, TensorType]) -> History:
        """Only the tokens that share a chunk of ``chunk`` with the next one; remembered tokens begin with a chunk."""
        return self._without(self.tokens // chunk * chunk, types)

    def _without(self, forgotten: int, types: Mapping[str, TensorType]) -> History:
        if forgotten <= 0:
            return self
        kept = self.tokens - forgotten
        parted = {
            name: value.narrow(token_axis(name, types[name]) + 1, forgotten, kept)
            for name, value in self.parted.items()
        }
        return History(parted, kept)


def token_axis(name: str, type_: TensorType) -> int:
    """The axis of a value that grows with the tokens.

    Raises:
        CheckError: W0608, there is not exactly one.
    """
    axes = [axis for axis, size in enumerate(type_.shape) if "tokens" in symbols_of(size)]
    if len(axes) != 1:
        raise CheckError(Diagnostic("W0608", f"{name}: {type_} cannot be cached, it has {len(axes)} axes of tokens"))
    return axes[0]


def _part(value: torch.Tensor, axis: int, type_: TensorType, users: int, tokens: int) -> torch.Tensor:
    """``value`` with its token axis parted into (users, tokens, rest): it may be flattened with the users'."""
    leading = users if "users" in symbols_of(type_.shape[axis]) else 1
    return torch.unflatten(value, axis, (leading, tokens, -1))
