"""What attention remembers of one user: the cached values of the tokens so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.model import Cache
from ir.types import TensorType, symbols_of

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class History:
    """One cache: ``values`` by name, as if all remembered tokens had been one step's; they are the last ones of
    ``seen`` tokens.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    seen: int = 0

    def append(self, new: Mapping[str, Tensor], types: Mapping[str, TensorType], tokens: int) -> History:
        """The history with a step's ``tokens`` new tokens at its end."""
        joined = {
            name: torch.cat((self.values[name], value), dim=token_axis(name, types[name])) if self.values else value
            for name, value in new.items()
        }
        return History(joined, self.tokens + tokens, self.seen + tokens)

    def visible(self, cache: Cache, types: Mapping[str, TensorType]) -> History:
        """What the next token can still see of it: the last ones of a window, or those of its own chunk."""
        if not cache.window:
            return self
        kept = self.seen % cache.window if cache.chunked else min(self.tokens, cache.window - 1)
        return self._part(self.tokens - kept, kept, types)

    def without(self, tokens: int, types: Mapping[str, TensorType]) -> History:
        """The history before its last ``tokens`` tokens, as far as it still remembers."""
        shorter = self._part(0, self.tokens - tokens, types)
        return History(shorter.values, shorter.tokens, self.seen - tokens)

    def _part(self, start: int, tokens: int, types: Mapping[str, TensorType]) -> History:
        values = {name: v.narrow(token_axis(name, types[name]), start, tokens) for name, v in self.values.items()}
        return History(values, tokens, self.seen)


def token_axis(name: str, type_: TensorType) -> int:
    """The axis of a value that grows with the tokens; with one user alone, they follow each other there.

    Raises:
        CheckError: W0608, there is not exactly one.
    """
    axes = [axis for axis, size in enumerate(type_.shape) if "tokens" in symbols_of(size)]
    if len(axes) != 1:
        raise CheckError(Diagnostic("W0608", f"{name}: {type_} cannot be cached, it has {len(axes)} axes of tokens"))
    return axes[0]
