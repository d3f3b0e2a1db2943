"""What attention remembers of one user: the cached values of the tokens so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from weakref import WeakSet

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.model import Cache
from ir.types import TensorType, for_one_token, symbols_of

Tensor = torch.Tensor
_LEAST_ROOM = 64


@dataclass(eq=False)
class _Claim:
    """One history's rows of a store: those before ``end``."""

    end: int


@dataclass(slots=True)
class _Store:
    """Rows of cached values [room, elements] by name, and the claims of the histories that are still held."""

    arrays: dict[str, Tensor]
    claims: WeakSet[_Claim] = field(default_factory=WeakSet)

    def has_room(self, end: int, rows: int) -> bool:
        """Whether ``rows`` can be written behind ``end``, and no history that is held has its own there."""
        room = min((len(array) for array in self.arrays.values()), default=0)
        return end + rows <= room and all(claim.end <= end for claim in self.claims)


@dataclass(frozen=True, slots=True)
class History:
    """One cache: the last ``tokens`` of ``seen`` tokens.

    A history never changes. One that goes on from another shares its memory, into which it writes behind the other's
    end; where a third one has done so before and is still held, or memory ends, what is remembered is copied. So steps
    one after the other copy each token a few times in all, however long they go on.
    """

    tokens: int = 0
    seen: int = 0
    _start: int = 0
    _store: _Store = field(default_factory=lambda: _Store({}))
    _claim: _Claim = field(default_factory=lambda: _Claim(0))

    @property
    def values(self) -> dict[str, Tensor]:
        """Each cached value [tokens, elements for one token], by name."""
        return {name: array[self._start : self._end] for name, array in self._store.arrays.items()}

    @property
    def _end(self) -> int:
        return self._start + self.tokens

    def append(self, new: Mapping[str, Tensor], tokens: int) -> History:
        """The history with a step's ``tokens`` new tokens at its end: ``new`` by name [tokens, elements]."""
        store, start = self._store, self._start
        if not store.has_room(self._end, tokens):
            room = max(_LEAST_ROOM, 2 * (self.tokens + tokens))
            store, start = _Store({name: value.new_empty(room, value.shape[1]) for name, value in new.items()}), 0
            for name, value in self.values.items():
                store.arrays[name][: self.tokens] = value
        end = start + self.tokens + tokens
        for name, value in new.items():
            store.arrays[name][end - tokens : end] = value
        return _claimed(store, start, self.tokens + tokens, self.seen + tokens)

    def visible(self, cache: Cache) -> History:
        """What the next token can still see of it: the last ones of a window, or those of its own chunk."""
        if not cache.window:
            return self
        kept = self.seen % cache.window if cache.chunked else min(self.tokens, cache.window - 1)
        return _claimed(self._store, self._end - kept, kept, self.seen)

    def without(self, tokens: int) -> History:
        """The history before its last ``tokens`` tokens, as far as it still remembers."""
        return _claimed(self._store, self._start, self.tokens - tokens, self.seen - tokens)


def _claimed(store: _Store, start: int, tokens: int, seen: int) -> History:
    claim = _Claim(start + tokens)
    store.claims.add(claim)
    return History(tokens, seen, start, store, claim)


def by_token(name: str, value: Tensor, type_: TensorType) -> Tensor:
    """A value of one user as [tokens, elements for one token]."""
    axis = token_axis(name, type_)
    return value.movedim(axis, 0).reshape(value.shape[axis], -1)


def as_step(name: str, rows: Tensor, type_: TensorType) -> Tensor:
    """The inverse of :func:`by_token`: as if all tokens had been one step's."""
    axis = token_axis(name, type_)
    others = [for_one_token(size) for place, size in enumerate(type_.shape) if place != axis]
    return rows.reshape(len(rows), *others).movedim(0, axis)


def token_axis(name: str, type_: TensorType) -> int:
    """The axis of a value that grows with the tokens; with one user alone, they follow each other there.

    Raises:
        CheckError: W0608, there is not exactly one.
    """
    axes = [axis for axis, size in enumerate(type_.shape) if "tokens" in symbols_of(size)]
    if len(axes) != 1:
        raise CheckError(Diagnostic("W0608", f"{name}: {type_} cannot be cached, it has {len(axes)} axes of tokens"))
    return axes[0]
