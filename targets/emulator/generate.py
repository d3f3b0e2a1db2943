"""Greedy generation with a language model on the emulator, of one text or of several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph
from ir.plan import Plan
from targets.counters import Counters
from targets.emulator.executor import Emulator
from targets.emulator.pipeline import Tick, vocabulary_of, write_together
from targets.emulator.speculate import Draft

OnToken: TypeAlias = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to be continued by ``tokens`` tokens."""

    ids: Sequence[int]
    tokens: int


@dataclass(frozen=True, slots=True)
class Generated:
    """What was generated.

    Attributes:
        tokens: the new tokens' ids.
        logits: what each was chosen from [vocabulary].
        counters: what each step took; the first is the prompt's. Without a draft, a step for every token.
        proposed: tokens that a draft proposed and the model examined.
        accepted: how many of these are the model's own choice.
    """

    tokens: tuple[int, ...]
    logits: tuple[torch.Tensor, ...]
    counters: tuple[Counters, ...]
    proposed: int = 0
    accepted: int = 0


def generate(
    emulator: Emulator, prompt_ids: Sequence[int], tokens: int, draft: Draft | None = None, draft_tokens: int = 4
) -> Generated:
    """Continue a prompt by ``tokens`` tokens, each the likeliest (the lowest id of equals).

    The prompt passes in pieces as long as the plan's prefill chunk, and counts as one step; every other is one token,
    and up to ``draft_tokens`` more that ``draft`` proposes. What the emulator remembered before is forgotten.

    Raises:
        UsageError: W0604, the prompt is empty or holds an id outside the vocabulary; W0605, prompt and new tokens
            exceed the plan's context; W0670, the draft has another vocabulary.
    """
    return generate_together(emulator, [Prompt(prompt_ids, tokens)], draft, draft_tokens)[0][0]


def generate_together(
    emulator: Emulator,
    prompts: Sequence[Prompt],
    draft: Draft | None = None,
    draft_tokens: int = 4,
    on_token: OnToken = lambda _prompt, _place, _token: None,
) -> tuple[tuple[Generated, ...], tuple[Tick, ...]]:
    """Continue several prompts at once, each as :func:`generate` does, as users of one pipeline.

    ``on_token`` is called for every token that is chosen: the prompt's number, the token's place after it, and its id.

    Returns:
        What was generated for each prompt, and which prompt's step each wafer worked on in each tick.

    Raises:
        UsageError: as for :func:`generate`.
    """
    for prompt in prompts:
        require_prompt(emulator, prompt.ids, prompt.tokens)
    if draft:
        _require_same_vocabulary(vocabulary_of(emulator.model.graph), draft)
    chunk = emulator.plan.workload.chunk
    writers = [_Writer(number, prompt, chunk, draft, draft_tokens, on_token) for number, prompt in enumerate(prompts)]
    ticks = write_together(emulator, writers)
    return tuple(writer.generated() for writer in writers), ticks


@dataclass(slots=True)
class _Writer:
    """One text as it grows (see :class:`targets.emulator.pipeline.Author`).

    ``certain`` are tokens of the text that the model has not read yet; ``guesses`` those that may follow them.
    """

    number: int
    prompt: Prompt
    chunk: int
    draft: Draft | None
    draft_tokens: int
    on_token: OnToken
    certain: list[int] = field(init=False)
    guesses: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    counters: list[Counters] = field(default_factory=list)
    counted: Counters = field(default_factory=Counters)
    proposed: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.certain = list(self.prompt.ids)

    def next_ids(self) -> Sequence[int]:
        """The next tokens that are certain, and guesses after the last of them."""
        left = self.prompt.tokens - len(self.chosen)
        if not left:
            return []
        if self.draft and not self.guesses and len(self.certain) <= self.chunk:
            text = [*self.prompt.ids, *self.chosen]
            self.guesses = [*self.draft.propose(self.number, text, min(self.draft_tokens, left - 1))]
        return [*self.certain, *self.guesses][: self.chunk]

    def take(self, logits: torch.Tensor, counted: Counters) -> int:
        """Choose what follows each token that turns out to be right; how many guesses of the step were wrong."""
        self.counted += counted
        tokens = len(logits)
        if tokens < len(self.certain):
            self.certain = self.certain[tokens:]
            return 0
        examined = tokens - len(self.certain)
        right = 0
        for row in logits[len(self.certain) - 1 :]:
            self.logits.append(row)
            self.chosen.append(int(row.argmax()))
            self.on_token(self.number, len(self.chosen) - 1, self.chosen[-1])
            if self.guesses[right : right + 1] != self.chosen[-1:]:
                self.guesses = []
                break
            right += 1
        self.proposed += examined
        self.accepted += min(right, examined)
        self.guesses = self.guesses[right:]
        self.certain = self.chosen[-1:]
        self.counters.append(self.counted)
        self.counted = Counters()
        return examined - min(right, examined)

    def generated(self) -> Generated:
        """What was written."""
        return Generated(tuple(self.chosen), tuple(self.logits), tuple(self.counters), self.proposed, self.accepted)


def require_prompt(emulator: Emulator, ids: Sequence[int], tokens: int) -> None:
    """Refuse what :func:`generate` does not continue: raises W0604 and W0605 as it does."""
    if faults := [*faults_of_prompt(emulator.model.graph, emulator.plan, ids, tokens)]:
        raise UsageError(*faults)


def faults_of_prompt(
    graph: Graph, plan: Plan, ids: Sequence[int], tokens: int, where: str = "prompt"
) -> Iterator[Diagnostic]:
    """Why a prompt cannot be continued by ``tokens`` tokens: W0604 and W0605."""
    vocabulary, context = vocabulary_of(graph), plan.workload.context
    outside = [token for token in ids if not 0 <= token < vocabulary]
    if outside:
        message = f"the token {outside[0]} is outside the vocabulary of {vocabulary}"
        yield Diagnostic("W0604", message, where, {"outside": len(outside)})
    if not ids:
        yield Diagnostic("W0604", "the prompt is empty", where)
    if len(ids) + tokens > context:
        message = f"{len(ids)} + {tokens} tokens exceed the plan's context of {context}"
        yield Diagnostic("W0605", message, where, help=("ask for fewer tokens", "plan for more context"))


def _require_same_vocabulary(vocabulary: int, draft: Draft) -> None:
    if draft.vocabulary not in (None, vocabulary):
        message = f"the draft has a vocabulary of {draft.vocabulary:,} tokens, the model one of {vocabulary:,}"
        raise UsageError(Diagnostic("W0670", message, "draft", help=("take a draft of the same family",)))
