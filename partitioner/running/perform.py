"""Running prompts and steps: in this process, over several, or from where an earlier run was ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ir.diagnostics import Diagnostic, UsageError
from partitioner.running.inputs import Prompts
from partitioner.running.setup import Opened
from partitioner.running.spread import Spread, Task, do, manifest_of, run_on_this_computer, take_part
from targets.counters import Counters
from targets.emulator import Generated
from targets.emulator.distributed import Run, under_torchrun
from targets.emulator.generate import OnToken, Prompt, generate_together
from targets.emulator.inputs import joined
from targets.emulator.speculate import PromptLookup
from targets.emulator.watch import CountedStep, Steps, Watcher
from targets.host import peak_rss_bytes


@dataclass(frozen=True, slots=True)
class Made:
    """What was generated for each prompt, or a step's outputs; a book of all steps; what memory each process took at
    most, and where the weights are from.
    """

    generated: tuple[Generated, ...]
    outputs: Mapping[str, torch.Tensor]
    book: Steps
    rss_bytes: tuple[int, ...]
    weights: str


def continue_prompts(
    opened: Opened,
    prompts: Prompts,
    tokens: int,
    spread: Spread,
    watchers: Sequence[Watcher],
    *,
    keep_logits: bool,
    draft_tokens: int = 0,
) -> Made:
    """Continue prompts as ``spread`` says; of the processes that torchrun has started, all but the first end here.

    Where tokens were finished before, counters and logits are of the others alone.

    Raises:
        UsageError: W0652 to W0654, the state of the run cannot be read, is another run's or cannot be written; W0656,
            ``watchers`` are to see what other processes do; W0104, these are to draft tokens.
        CheckError: W0650, a process was lost.
    """
    folder, output = opened.runnable.folder, opened.runnable.model.graph.outputs[0]
    if folder is None:
        return _together(opened, prompts, tokens, watchers, lambda _user, _place, _token: None, draft_tokens)
    if draft_tokens and (_is_over_processes(opened, spread) or spread.resume):
        message = "--draft is for runs of one process, from their beginning"
        raise UsageError(Diagnostic("W0104", message, "--draft"))
    task = _task(opened, folder, spread, prompts=prompts, tokens=tokens, keep_logits=keep_logits)
    if _is_over_processes(opened, spread):
        return _texts(_run_over_processes(task, opened, spread, watchers), len(prompts), output)
    if spread.resume:
        opened.emulator.watchers = tuple(watchers)
        run = do(task, opened)
        assert run  # as this is the first process
        return _texts(run, len(prompts), output)
    keeper = task.keeper()
    keeper.begin()
    made = _together(opened, prompts, tokens, watchers, keeper.add, draft_tokens)
    keeper.end()
    return made


def take_step(
    opened: Opened, inputs: Mapping[str, torch.Tensor], file: Path | None, spread: Spread, watchers: Sequence[Watcher]
) -> Made:
    """Run the model once on ``inputs``, which ``file`` holds too; the rest is as of :func:`continue_prompts`."""
    if opened.runnable.folder is None or file is None or not _is_over_processes(opened, spread):
        book = Steps()
        opened.emulator.watchers = (book, *watchers)
        outputs: Mapping[str, torch.Tensor] = opened.emulator.step(inputs)
        return Made((), outputs, book, (peak_rss_bytes(),), opened.weights.note)
    task = _task(opened, opened.runnable.folder, spread, inputs=str(file.absolute()))
    run = _run_over_processes(task, opened, spread, watchers)
    graph, users = opened.runnable.model.graph, len(run.steps)
    parts = {name: [run.made.results[user, name] for user in range(users)] for name in graph.outputs}
    outputs = {name: joined(own, graph.types[name]) for name, own in parts.items()}
    return Made((), outputs, _book(run), run.rss_bytes, run.note)


def _task(opened: Opened, folder: Path, spread: Spread, **others: Any) -> Task:
    return Task(
        folder=str(folder.absolute()),
        how=opened.how,
        timeout_s=spread.timeout_s,
        trust_code=opened.runnable.trust_code,
        resume=spread.resume,
        state=str(spread.state.absolute()) if spread.state else "",
        manifest=manifest_of(folder),
        **others,
    )


def _is_over_processes(opened: Opened, spread: Spread) -> bool:
    return under_torchrun() or min(spread.processes, len(opened.runnable.plan.wafers_used)) > 1


def _run_over_processes(task: Task, opened: Opened, spread: Spread, watchers: Sequence[Watcher]) -> Run:
    """What all processes have made; those of torchrun's that are not the first end here."""
    if watchers:
        message = "a trace is of what one process runs"
        raise UsageError(Diagnostic("W0656", message, "--trace", help=("run it without --processes",)))
    if not under_torchrun():
        plan = opened.runnable.plan
        return run_on_this_computer(task, opened.runnable, min(spread.processes, len(plan.wafers_used)))
    run = take_part(task, spread.failed)
    if run is None:
        raise SystemExit(0)
    return run


def _together(
    opened: Opened, prompts: Prompts, tokens: int, watchers: Sequence[Watcher], on_token: OnToken, draft_tokens: int
) -> Made:
    book = Steps()
    opened.emulator.watchers = (book, *watchers)
    wanted = [Prompt(ids, tokens) for ids in prompts]
    draft = PromptLookup() if draft_tokens else None
    made, _ = generate_together(opened.emulator, wanted, draft, draft_tokens, on_token)
    return Made(made, {}, book, (peak_rss_bytes(),), opened.weights.note)


def _book(run: Run) -> Steps:
    return Steps([CountedStep(step.user, step.remembered, step.bindings, step.counted) for step in run.steps])


def _texts(run: Run, users: int, output: str) -> Made:
    """A run of prompts as one process would tell it; ``output`` is the graph's, from which tokens are chosen."""
    generated = []
    for user in range(users):
        mine = [(index, step) for index, step in enumerate(run.steps) if step.user == user]
        counted: dict[int, Counters] = {}
        for _, step in mine:
            counted[step.place] = counted.get(step.place, Counters()) + step.counted
        logits = [run.made.results[index, output] for index, _ in mine if (index, output) in run.made.results]
        tokens = [token for (owner, _), token in sorted(run.made.tokens.items()) if owner == user]
        generated.append(Generated(tuple(tokens), tuple(logits), tuple(counted.values())))
    return Made(tuple(generated), {}, _book(run), run.rss_bytes, run.note)
