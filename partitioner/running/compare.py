"""How far a run is from the original, and how far it may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ir.types import DType
from partitioner.frontends.reference import Reference
from partitioner.running.setup import Opened
from targets.emulator import Generated, Precision
from targets.emulator.arithmetic import native_tolerance

Tensor = torch.Tensor
_FLOAT32_ERROR = 1e-4
"""Both in 32 bit: what another order of sums changes."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How far values may be from the original's.

    Attributes:
        exact: both compute in 32 bit, so that tokens must be the same.
        share: the greatest error in 16 bit, of the root mean square that the original has there.
    """

    exact: bool
    share: float

    @staticmethod
    def of(opened: Opened) -> Bound:
        """For a run of ``opened``; the library's own models compute in 32 bit, whatever the graph states."""
        graph = opened.runnable.model.graph
        narrow = any(graph.types[name].dtype in (DType.BF16, DType.F16) for name in graph.outputs)
        share = max(native_tolerance(graph, name) for name in graph.outputs)
        wide = opened.original.module is not None
        return Bound(opened.how.precision == Precision.FLOAT32 and (wide or not narrow), share)

    def of_outputs(self, theirs: Tensor) -> float:
        """The greatest error of an output beside ``theirs``."""
        return _FLOAT32_ERROR if self.exact else self.share * _root_mean_square(theirs)

    def of_values(self, theirs: Tensor) -> float:
        """The same of a value inside, which may be larger than outputs are."""
        return self.of_outputs(theirs) * (max(1.0, greatest(theirs)) if self.exact else 1.0)


def greatest(value: Tensor) -> float:
    """The greatest magnitude of finite elements; 0 where there is none."""
    finite = value.double()[torch.isfinite(value)] if value.is_floating_point() else value.double()
    return float(finite.abs().max()) if finite.numel() else 0.0


def _root_mean_square(value: Tensor) -> float:
    """Of finite elements; 0 where there is none."""
    finite = value.double()[torch.isfinite(value)]
    return float(finite.square().mean().sqrt()) if finite.numel() else 0.0


def error_of(ours: Tensor, theirs: Tensor) -> float:
    """The greatest difference of two elements; infinite where one is no number or infinite and the other is not."""
    if ours.numel() == 0:
        return 0.0
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    off = (ours - theirs).abs()
    alike = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return float(torch.where(alike, 0.0, off.nan_to_num(nan=torch.inf)).max())


@dataclass(frozen=True, slots=True)
class TextComparison:
    """One text beside the original's own continuation of the same prompt; ``greatest``: of the original's logits."""

    tokens: tuple[int, ...]
    max_abs_logit_error: float
    tolerance: float
    greatest: float
    ok: bool


def compare_text(prompt: Sequence[int], made: Generated, reference: Reference, bound: Bound) -> TextComparison:
    """Hold a generated text against the original, which reads prompt and text at once, without a cache.

    In 32 bit the tokens must be the same. In 16 bit a token may differ where its logit in the original is no further
    from the greatest one than both errors allow. Tokens that were finished before the run have no logits.
    """
    theirs = text_logits(prompt, made.tokens, reference)[-len(made.tokens) :]
    beside = theirs[len(made.tokens) - len(made.logits) :]
    error = max((error_of(ours, row) for ours, row in zip(made.logits, beside, strict=True)), default=0.0)
    allowed = bound.of_outputs(theirs)
    chosen = theirs.argmax(-1).tolist()
    behind = theirs.max(-1).values - theirs.gather(-1, torch.tensor(made.tokens)[:, None])[:, 0]
    agree = chosen == list(made.tokens) or (not bound.exact and float(behind.max()) <= 2 * allowed)
    own = _own_text(prompt, made.tokens, chosen, reference)
    return TextComparison(own, error, allowed, greatest(theirs), agree and error <= allowed)


def text_logits(prompt: Sequence[int], tokens: Sequence[int], reference: Reference) -> Tensor:
    """The original's logits [positions, vocabulary] for a prompt and all of ``tokens`` but the last."""
    return reference.run(text_inputs([*prompt, *tokens][:-1]), frozenset())[0][0][0]


def text_inputs(ids: Sequence[int]) -> dict[str, Tensor]:
    """What a language model reads of a text from its beginning."""
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids))[None]}


def _own_text(
    prompt: Sequence[int], ours: Sequence[int], chosen: Sequence[int], reference: Reference
) -> tuple[int, ...]:
    """The original's own continuation: ``chosen`` is what it says after each of our tokens, its own up to where they
    part.
    """
    same = next((i for i, (a, b) in enumerate(zip(ours, chosen, strict=True)) if a != b), len(ours))
    text = list(chosen[: same + 1])
    while len(text) < len(ours):
        text.append(int(text_logits(prompt, [*text, 0], reference)[-1].argmax()))
    return tuple(text)
