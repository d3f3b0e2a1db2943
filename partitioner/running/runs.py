"""Runs on emulated tiles: what they yield, what they take, and how that compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ir.diagnostics import Diagnostic
from partitioner.running.compare import Bound, TextComparison, compare_text, error_of
from partitioner.running.inputs import Prompts, require_prompts
from partitioner.running.predicted import counted, predicted_for
from partitioner.running.setup import Opened
from targets.counters import Counters
from targets.emulator import Generated
from targets.emulator.generate import Prompt, generate_together
from targets.emulator.speculate import PromptLookup
from targets.emulator.watch import Steps, Watcher


@dataclass(frozen=True, slots=True)
class Taken:
    """What a run has taken as counted and as predicted; ``miscounted``: the first difference of the two, if any."""

    counters: Counters
    predicted: Counters
    miscounted: Diagnostic | None = None


@dataclass(frozen=True, slots=True)
class TextRun:
    """Prompts that were continued, one entry of each for every prompt; ``comparisons`` if the original ran beside."""

    prompts: Prompts
    made: tuple[Generated, ...]
    taken: Taken
    reference: str = ""
    comparisons: tuple[TextComparison, ...] = ()

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """The new tokens of each prompt."""
        return tuple(made.tokens for made in self.made)

    @property
    def reference_tokens(self) -> tuple[tuple[int, ...], ...]:
        """Those of the original, if it ran."""
        return tuple(found.tokens for found in self.comparisons)

    @property
    def max_abs_logit_error(self) -> float:
        """The greatest error of a logit of any prompt; 0 if the original did not run."""
        return max((found.max_abs_logit_error for found in self.comparisons), default=0.0)

    @property
    def tolerance(self) -> float:
        """The least of what is allowed for the prompts; 0 if the original did not run."""
        return min((found.tolerance for found in self.comparisons), default=0.0)

    @property
    def ok(self) -> bool:
        """Whether every text is the original's."""
        return all(comparison.ok for comparison in self.comparisons)


@dataclass(frozen=True, slots=True)
class StepRun:
    """One step on given inputs; ``errors`` by output if the original ran beside."""

    outputs: Mapping[str, torch.Tensor]
    taken: Taken
    reference: str = ""
    errors: Mapping[str, float] | None = None
    tolerances: Mapping[str, float] | None = None

    @property
    def ok(self) -> bool:
        """Whether every output is the original's."""
        allowed = self.tolerances or {}
        return all(error <= allowed[name] for name, error in (self.errors or {}).items())


def run_prompts(
    opened: Opened,
    prompts: Prompts,
    tokens: int,
    compare: str = "",
    watchers: Sequence[Watcher] = (),
    draft_tokens: int = 0,
) -> TextRun:
    """Continue ``prompts``, all at once, by ``tokens`` tokens each; ``compare`` names the reference, if any. With
    ``draft_tokens``, up to so many are guessed from the text before each step, which examines them.

    Raises:
        UsageError: W0604, W0605, W0613 or W0660, the prompts do not fit the plan; W0661, there is no such reference.
        CheckError: W0601 to W0603, the plan does not suffice for the run.
    """
    it = opened.runnable
    require_prompts(it.model.graph, it.plan, prompts, tokens)
    reference = opened.reference(compare) if compare else None
    book = Steps()
    opened.emulator.watchers = (book, *watchers)
    given = [Prompt(ids, tokens) for ids in prompts]
    made, _ = generate_together(opened.emulator, given, PromptLookup() if draft_tokens else None, draft_tokens)
    taken = Taken(counted(book), *predicted_for(opened, book))
    if reference is None:
        return TextRun(prompts, made, taken)
    bound = Bound.of(it.model.graph, opened.how.precision, wide=opened.original.module is not None)
    found = tuple(compare_text(ids, text, reference, bound) for ids, text in zip(prompts, made, strict=True))
    return TextRun(prompts, made, taken, reference.name, found)


def run_step(
    opened: Opened, inputs: Mapping[str, torch.Tensor], compare: str = "", watchers: Sequence[Watcher] = ()
) -> StepRun:
    """Run a model once; ``compare`` names the reference, if any.

    Raises:
        UsageError: W0609, they are not the model's inputs; W0661, there is no such reference.
        CheckError: W0601 to W0603, the plan does not suffice for the run.
    """
    it = opened.runnable
    reference = opened.reference(compare) if compare else None
    book = Steps()
    opened.emulator.watchers = (book, *watchers)
    outputs = opened.emulator.step(inputs)
    taken = Taken(counted(book), *predicted_for(opened, book))
    if reference is None:
        return StepRun(outputs, taken)
    theirs = dict(zip(outputs, reference.run(inputs, frozenset())[0], strict=True))
    bound = Bound.of(it.model.graph, opened.how.precision, wide=opened.original.module is not None)
    errors = {name: error_of(ours, theirs[name]) for name, ours in outputs.items()}
    allowed = {name: bound.of_outputs(value) for name, value in theirs.items()}
    return StepRun(outputs, taken, reference.name, errors, allowed)
