"""Speculative decoding: drafts that guess what a model will say, for the model to examine many tokens in one step.

A draft changes how many steps a text takes, never the text: the model examines every guess (``generate``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from targets.emulator.executor import Emulator
from targets.emulator.pipeline import run_step, vocabulary_of


class Draft(Protocol):
    """Guesses how texts go on.

    ``vocabulary``: how many tokens it knows; ``None`` if it guesses none but those that texts hold already.
    """

    @property
    def vocabulary(self) -> int | None:
        """See above."""

    def propose(self, number: int, text: Sequence[int], count: int) -> Sequence[int]:
        """Up to ``count`` tokens that may follow ``text``, all of the tokens so far of text ``number``."""


class PromptLookup:
    """Guesses that what followed the last tokens where they stood before follows them again."""

    vocabulary = None

    def __init__(self, longest: int = 3) -> None:
        """Look for the last ``longest`` tokens, then for fewer."""
        self.longest = longest

    def propose(self, number: int, text: Sequence[int], count: int) -> Sequence[int]:  # noqa: ARG002
        """See :class:`Draft`; of several places the latest."""
        text = list(text)
        for length in range(min(self.longest, len(text) - 1), 0, -1):
            ending = text[-length:]
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == ending:
                    return text[start + length : start + length + count]
        return []


class DraftModel:
    """Guesses by a smaller model of the same vocabulary, greedily, on an emulator of its own.

    Texts share the places that its plan has for users; a text whose place another one had is read anew.
    """

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.vocabulary = vocabulary_of(emulator.model.graph)
        self._read: defaultdict[int, list[int]] = defaultdict(list)
        caches = [cache for block in emulator.model.blocks for cache in block.caches]
        self._windowed = any(cache.window for cache in caches)
        emulator.reset()

    def propose(self, number: int, text: Sequence[int], count: int) -> Sequence[int]:
        """See :class:`Draft`; as many as its plan's context has room for.

        A cache with a window remembers what its last step needs and no more, so such a draft reads all its guesses
        again in each step, to forget them after it.
        """
        workload = self.emulator.plan.workload
        user, guesses = number % workload.users, list[int]()
        count = min(count, workload.context - len(text) + 1, workload.chunk if self._windowed else count)
        if count > 0:
            self._read_up_to(user, text[:-1])
        while len(guesses) < count:
            new = [*text, *guesses][len(self._read[user]) :]
            guesses.append(int(run_step(self.emulator, new, user)[-1].argmax()))
            if self._windowed:
                self.emulator.forget(user, len(new))
            else:
                self._read[user] += new
        return guesses

    def _read_up_to(self, user: int, text: Sequence[int]) -> None:
        """Let what is remembered of ``user`` be ``text``."""
        read = self._read[user]
        same = next((i for i, pair in enumerate(zip(read, text, strict=False)) if pair[0] != pair[1]), None)
        kept = min(len(read), len(text)) if same is None else same
        if self._windowed and kept < len(read):
            self.emulator.reset(user)
            kept = 0
        elif kept < len(read):
            self.emulator.forget(user, len(read) - kept)
        chunk = self.emulator.plan.workload.chunk
        for start in range(kept, len(text), chunk):
            run_step(self.emulator, text[start : start + chunk], user)
        self._read[user] = list(text)
