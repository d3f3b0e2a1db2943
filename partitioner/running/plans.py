"""Open plans for programs: what ``waferc.open_plan`` and ``CompiledModel.runs`` give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ir.diagnostics import Diagnostic, UsageError
from partitioner.running.inputs import random_inputs, random_prompt
from partitioner.running.runs import StepRun, TextRun, run_prompts, run_step
from partitioner.running.setup import How, Opened, Runnable
from partitioner.running.setup import open_plan as open_runnable
from partitioner.running.verify import Verification, verify_plan
from targets.emulator import Emulator


@dataclass(frozen=True)
class OpenPlan:
    """A plan that passed every check, ready to run on emulated tiles.

    Options are those of :class:`partitioner.running.setup.How`, such as ``precision="native"`` or ``seed=1``.
    """

    runnable: Runnable

    def emulator(self, **options: Any) -> Emulator:
        """The plan's tiles with the weights on them.

        Raises:
            UsageError: W0610 to W0612, the weights cannot be had; W0103 or W0104, the options.
        """
        return self._opened(options).emulator

    def generate(
        self, prompts: Sequence[Sequence[int]] = (), tokens: int = 16, *, compare: str = "", **options: Any
    ) -> TextRun:
        """Continue prompts of token ids, all at once, by ``tokens`` tokens each.

        Args:
            prompts: a few tokens from the seed if none are given.
            tokens: how many to generate for each.
            compare: ``auto``, ``torch``, ``onnxruntime`` or ``onnx`` to run the original beside; nothing if empty.
            options: see the class.

        Raises:
            WafercError: as :func:`partitioner.running.runs.run_prompts`.
        """
        opened, it = self._opened(options), self.runnable
        given = tuple(tuple(ids) for ids in prompts)
        given = given or (random_prompt(it.model.graph, it.plan, tokens, opened.how.seed),)
        return run_prompts(opened, given, tokens, compare)

    def run(self, inputs: Mapping[str, torch.Tensor] | None = None, *, compare: str = "", **options: Any) -> StepRun:
        """Take one step on ``inputs`` (by name; some from the seed if not given); ``compare`` as in :meth:`generate`.

        Raises:
            WafercError: as :func:`partitioner.running.runs.run_step`.
        """
        opened, it = self._opened(options), self.runnable
        given = random_inputs(it.model.graph, it.plan, opened.how.seed) if inputs is None else inputs
        return run_step(opened, given, compare)

    def verify(
        self,
        prompts: Sequence[Sequence[int]] = (),
        *,
        inputs: Mapping[str, torch.Tensor] | None = None,
        tokens: int = 8,
        reference: str = "auto",
        **options: Any,
    ) -> Verification:
        """Run plan and original side by side, on prompts or inputs from the seed if none are given.

        Raises:
            WafercError: as :func:`partitioner.running.verify.verify_plan`.
        """
        given = tuple(tuple(ids) for ids in prompts)
        return verify_plan(self._opened(options), reference, prompts=given, inputs=inputs, tokens=tokens)

    def _opened(self, options: Mapping[str, Any]) -> Opened:
        try:
            return self.runnable.opened(How(**options))
        except TypeError as error:
            raise UsageError(Diagnostic("W0103", f"an option is unknown or of the wrong type: {error}")) from None


def open_plan(folder: str | Path, *, trust_code: bool = False) -> OpenPlan:
    """The plan in ``folder``, if it passes every check.

    Raises:
        UsageError: W0106, there is no plan in ``folder``; W0616, it is one for GPUs or LPUs.
        CheckError: with every fault of the plan.
    """
    return OpenPlan(open_runnable(Path(folder), trust_code=trust_code))
