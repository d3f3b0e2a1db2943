"""Greedy generation with a language model on the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ir.diagnostics import Diagnostic, UsageError
from ir.graph import Graph
from targets.counters import Counters
from targets.emulator.executor import Emulator


@dataclass(frozen=True, slots=True)
class Generated:
    """What was generated: one entry of each for every new token.

    Attributes:
        tokens: the new tokens' ids.
        logits: what each was chosen from [vocabulary].
        counters: what each step took; the first is the prompt's.
    """

    tokens: tuple[int, ...]
    logits: tuple[torch.Tensor, ...]
    counters: tuple[Counters, ...]


def generate(emulator: Emulator, prompt_ids: Sequence[int], tokens: int) -> Generated:
    """Continue a prompt by ``tokens`` tokens, each the likeliest (the lowest id of equals).

    The prompt passes in pieces as long as the plan's prefill chunk, and counts as one step; every other is one token.
    What the emulator remembered before is forgotten.

    Raises:
        UsageError: W0604, the prompt is empty or holds an id outside the vocabulary; W0605, prompt and new tokens
            exceed the plan's context.
    """
    require_prompt(emulator, prompt_ids, tokens)
    emulator.reset()
    chosen: list[int] = []
    logits: list[torch.Tensor] = []
    counters: list[Counters] = []
    new = list(prompt_ids)
    for _ in range(tokens):
        counted = Counters()
        chunk = emulator.plan.workload.chunk
        for start in range(0, len(new), chunk):
            last = _last_logits(emulator, new[start : start + chunk])
            counted += emulator.counters
        new = [int(last.argmax())]
        chosen += new
        logits.append(last)
        counters.append(counted)
    return Generated(tuple(chosen), tuple(logits), tuple(counters))


def _last_logits(emulator: Emulator, new: Sequence[int]) -> torch.Tensor:
    """The logits [vocabulary] of the last of ``new`` tokens."""
    seen = emulator.tokens()
    tensors = {
        "input_ids": torch.tensor([new]),
        "position_ids": torch.arange(seen, seen + len(new))[None],
    }
    graph = emulator.model.graph
    outputs = emulator.step({value.name: tensors[value.name] for value in graph.inputs})
    return outputs[graph.outputs[0]][0, -1]


def require_prompt(emulator: Emulator, prompt_ids: Sequence[int], tokens: int) -> None:
    vocabulary = _vocabulary(emulator.model.graph)
    outside = [token for token in prompt_ids if not 0 <= token < vocabulary]
    if outside:
        message = f"the prompt's token {outside[0]} is outside the vocabulary of {vocabulary}"
        raise UsageError(Diagnostic("W0604", message, "prompt", {"outside": len(outside)}))
    if not prompt_ids:
        raise UsageError(Diagnostic("W0604", "the prompt is empty", "prompt"))
    context = emulator.plan.workload.context
    if len(prompt_ids) + tokens > context:
        message = f"{len(prompt_ids)} + {tokens} tokens exceed the plan's context of {context}"
        raise UsageError(Diagnostic("W0605", message, "prompt", {}, ("ask for fewer tokens", "plan for more context")))


def _vocabulary(graph: Graph) -> int:
    """Tokens that the model can yield, and so can read."""
    return int(graph.types[graph.outputs[0]].shape[-1])  # type: ignore[arg-type]
