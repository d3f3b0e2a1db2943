"""Generation, and single steps, by the processes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from targets.emulator.arithmetic import Precision
from targets.emulator.distributed.channel import Channel
from targets.emulator.distributed.member import Member
from targets.emulator.distributed.pipeline import Pipeline, directions_of
from targets.emulator.distributed.report import Run, Taken, gather
from targets.emulator.distributed.route import Route, find_route
from targets.emulator.distributed.schedule import Asked, Item, Round, in_pieces, plan_rounds
from targets.emulator.executor import Emulator
from targets.emulator.generate import OnToken, require_prompt
from targets.emulator.inputs import bind, part_of

Tensor = torch.Tensor


def generate_over(
    emulator: Emulator,
    me: Member,
    prompts: Sequence[Sequence[int]],
    finished: Sequence[Sequence[int]],
    tokens: int,
    *,
    keep_logits: bool,
    on_token: OnToken,
) -> Run | None:
    """Continue each user's prompt until it has ``tokens`` new ones, those ``finished`` among them.

    What is known passes in pieces as long as the plan's prefill chunk. In 16 bit, values that pass together are
    rounded otherwise than alone; there tokens that are finished pass one by one, as they did when they were chosen.

    Returns:
        What was made, in the first process: the tokens that were not finished, counters and logits by step.

    Raises:
        PeerLostError: a process is not there any more.
        UsageError: W0604, a prompt is empty or holds an id outside the vocabulary; W0605, it is too long.
    """
    for prompt in prompts:
        require_prompt(emulator, prompt, tokens)
    chunk = emulator.plan.workload.chunk
    alone = emulator.arithmetic.precision is Precision.NATIVE
    asked = [
        Asked(tuple(in_pieces(prompt, known, chunk, one_by_one=alone)), len(known), tokens)
        for prompt, known in zip(prompts, finished, strict=True)
    ]
    names = [value.name for value in emulator.model.graph.inputs]
    routes = _routes(emulator, me)
    pipeline = Pipeline(emulator, me.rank, routes, _channel(emulator, me, routes), keep_logits, on_token)
    return _run(pipeline, plan_rounds(asked, names, routes), me)


def step_over(emulator: Emulator, me: Member, inputs: Mapping[str, Tensor]) -> Run | None:
    """Run the model once; see :meth:`Emulator.step`. Results are by user and name of the output, each user's part.

    Raises:
        PeerLostError: a process is not there any more.
        UsageError, CheckError: as :meth:`Emulator.step` does.
    """
    types = emulator.model.graph.types
    bindings = bind(emulator.model.graph, inputs)
    users = bindings.get("users", 1)
    items = tuple(
        Item(
            user,
            user,
            0,
            0,
            {name: part_of(value, types[name], user, users) for name, value in inputs.items()},
            {**bindings, "users": 1},
            gives=True,
        )
        for user in range(users)
    )
    routes = _routes(emulator, me)
    return _run(Pipeline(emulator, me.rank, routes, _channel(emulator, me, routes)), (items,), me)


def _routes(emulator: Emulator, me: Member) -> tuple[Route, ...]:
    graph = emulator.model.graph
    names = [value.name for value in graph.inputs]
    return tuple(find_route(stages, me.groups, names, graph.outputs) for stages in emulator.turns)


def _channel(emulator: Emulator, me: Member, routes: tuple[Route, ...]) -> Channel | None:
    if me.processes == 1:
        return None
    return Channel.open(me.rank, directions_of(routes, me.processes, emulator.model.graph.outputs[0]), me.wire)


def _run(pipeline: Pipeline, rounds: Sequence[Round], me: Member) -> Run | None:
    pipeline.emulator.reset()
    run = gather(pipeline.run(rounds), me.rank, me.processes, pipeline.channel)
    if run is None:
        return None
    items = sorted((item for items in rounds for item in items), key=lambda item: item.index)
    counted = run.made.counters
    steps = (Taken(i.user, i.place, i.remembered, dict(i.bindings), counted[i.index]) for i in items)
    return replace(run, steps=tuple(steps))
