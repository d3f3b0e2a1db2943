"""Runs on emulated tiles: what they yield, what they take, and how that compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ir.diagnostics import Diagnostic
from partitioner.running.compare import Bound, TextComparison, compare_text, error_of
from partitioner.running.inputs import Prompts, require_inputs, require_prompts
from partitioner.running.perform import Made, continue_prompts, take_step
from partitioner.running.predicted import predicted_for
from partitioner.running.setup import Opened
from partitioner.running.spread import ONE_PROCESS, Spread
from targets.counters import Counters
from targets.emulator import Generated
from targets.emulator.watch import Watcher


@dataclass(frozen=True, slots=True)
class Taken:
    """What a run has taken as counted and as predicted; ``miscounted``: the first difference of the two, if any.

    ``rss_bytes`` is the most memory that each process has held, ``weights`` says where the weights are from.
    """

    counters: Counters
    predicted: Counters
    miscounted: Diagnostic | None
    rss_bytes: tuple[int, ...]
    weights: str


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
    spread: Spread = ONE_PROCESS,
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
    made = continue_prompts(
        opened, prompts, tokens, spread, watchers, keep_logits=bool(compare), draft_tokens=draft_tokens
    )
    taken = _taken(opened, made)
    if reference is None:
        return TextRun(prompts, made.generated, taken)
    bound = Bound.of(opened)
    found = tuple(compare_text(ids, text, reference, bound) for ids, text in zip(prompts, made.generated, strict=True))
    return TextRun(prompts, made.generated, taken, reference.name, found)


def run_step(
    opened: Opened,
    inputs: Mapping[str, torch.Tensor],
    compare: str = "",
    watchers: Sequence[Watcher] = (),
    spread: Spread = ONE_PROCESS,
    file: Path | None = None,
) -> StepRun:
    """Run a model once; ``compare`` names the reference, if any. Other processes read the inputs from ``file``.

    Raises:
        UsageError: W0604, W0605, W0609 or W0660, they do not fit the model or plan; W0661, there is no such reference.
        CheckError: W0601 to W0603, the plan does not suffice for the run.
    """
    it = opened.runnable
    require_inputs(it.model, it.plan, inputs)
    reference = opened.reference(compare) if compare else None
    made = take_step(opened, inputs, file, spread, watchers)
    outputs, taken = made.outputs, _taken(opened, made)
    if reference is None:
        return StepRun(outputs, taken)
    theirs = dict(zip(outputs, reference.run(inputs, frozenset())[0], strict=True))
    bound = Bound.of(opened)
    errors = {name: error_of(ours, theirs[name]) for name, ours in outputs.items()}
    allowed = {name: bound.of_outputs(value) for name, value in theirs.items()}
    return StepRun(outputs, taken, reference.name, errors, allowed)


def _taken(opened: Opened, made: Made) -> Taken:
    return Taken(made.book.counted, *predicted_for(opened, made.book), made.rss_bytes, made.weights)
