"""Generation, and single steps, by the processes of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from targets.emulator.arithmetic import Precision
from targets.emulator.distributed.channel import Channel
from targets.emulator.distributed.member import Member
from targets.emulator.distributed.pipeline import Pipeline, directions_of
from targets.emulator.distributed.report import Run, gather
from targets.emulator.distributed.route import Route, find_route
from targets.emulator.distributed.schedule import Asked, Item, Round, in_pieces, plan_rounds
from targets.emulator.executor import Emulator
from targets.emulator.generate import require_prompt
from targets.emulator.turns import part_of

Tensor = torch.Tensor
OnToken = Callable[[int, int, int], None]


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
        PeerLost: a process is not there any more.
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
    routes = _routes(emulator, me)
    names = [value.name for value in emulator.model.graph.inputs]
    return _run(emulator, me, routes, plan_rounds(asked, names, routes), keep_logits, on_token)


def step_over(emulator: Emulator, me: Member, inputs: Mapping[str, Tensor]) -> Run | None:
    """Run the model once; see :meth:`Emulator.step`. Results are by user and name of the output, each user's part.

    Raises:
        PeerLost: a process is not there any more.
        UsageError, CheckError: as :meth:`Emulator.step` does.
    """
    types = emulator.model.graph.types
    bindings = emulator.bind(inputs)
    users = bindings.get("users", 1)
    items = tuple(
        Item(
            user,
            user,
            0,
            {name: part_of(value, types[name], range(user, users, users)) for name, value in inputs.items()},
            {**bindings, "users": 1},
            gives=True,
        )
        for user in range(users)
    )
    return _run(emulator, me, _routes(emulator, me), (items,), False, lambda _user, _place, _token: None)


def _routes(emulator: Emulator, me: Member) -> tuple[Route, ...]:
    graph = emulator.model.graph
    names = [value.name for value in graph.inputs]
    return tuple(find_route(stages, me.groups, names, graph.outputs) for stages in emulator.turns)


def _run(
    emulator: Emulator, me: Member, routes: tuple[Route, ...], rounds: Sequence[Round], keep: bool, on_token: OnToken
) -> Run | None:
    directions = directions_of(routes, me.processes, emulator.model.graph.outputs[0])
    channel = Channel.open(me.rank, directions, me.wire)
    emulator.reset()
    made = Pipeline(emulator, me.rank, routes, channel, keep, on_token).run(rounds)
    return gather(made, me.rank, me.processes, channel)
