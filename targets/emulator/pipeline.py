"""Several users at once: each wafer works on another user's step.

Steps pass the stages in ticks. In a tick a wafer runs the next stage of one flight; flights nearest to their end go
first, and among equals the one that has waited longest. A user's next step begins when the one before it has passed
the last stage, so pieces of prompts and single tokens of different users follow each other from wafer to wafer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import torch

from ir.graph import Graph
from targets.counters import Counters
from targets.emulator.executor import Emulator, Flight

Tick: TypeAlias = Mapping[int, int]
"""Whose step each busy wafer worked on: numbers of authors by those of wafers."""


class Author(Protocol):
    """Writes one text: decides what each of its steps holds."""

    def next_ids(self) -> Sequence[int]:
        """The tokens of its next step; none once the text is done."""

    def take(self, logits: torch.Tensor, counted: Counters) -> int:
        """Take what its step yielded: logits [tokens, vocabulary]. How many of the step's last tokens to forget."""


def write_together(emulator: Emulator, authors: Sequence[Author]) -> tuple[Tick, ...]:
    """Let ``authors`` write, each as one user of the plan; who finds no place waits until another text is done.

    What the emulator remembered before is forgotten.

    Raises:
        CheckError: as :meth:`Emulator.step`.
    """
    emulator.reset()
    waiting = deque(range(len(authors)))
    free = deque(range(emulator.plan.workload.users))
    flights: dict[int, Flight] = {}
    ticks: list[Tick] = []
    ready: deque[tuple[int, int]] = deque()
    while True:
        while ready or (waiting and free):
            number, user = ready.popleft() if ready else (waiting.popleft(), free.popleft())
            if ids := authors[number].next_ids():
                flights[number] = emulator.begin(step_inputs(emulator, ids, user), user)
            else:
                emulator.reset(user)
                free.append(user)
        if not flights:
            return tuple(ticks)
        moving = _next_to_move(emulator, flights)
        ticks.append(moving)
        for number in moving.values():
            emulator.advance(flights[number])
        for number in [number for number, flight in flights.items() if emulator.is_done(flight)]:
            ready.append((number, _land(emulator, flights.pop(number), authors[number])))


def run_step(emulator: Emulator, ids: Sequence[int], user: int = 0) -> torch.Tensor:
    """One user's step alone: logits [tokens, vocabulary] for new tokens; raises as :meth:`Emulator.step`."""
    flight = emulator.begin(step_inputs(emulator, ids, user), user)
    while not emulator.is_done(flight):
        emulator.advance(flight)
    emulator.finish(flight)
    return _logits(emulator, flight)


def step_inputs(emulator: Emulator, ids: Sequence[int], user: int) -> dict[str, torch.Tensor]:
    """The graph's inputs for a user's new tokens, which follow those that the emulator remembers."""
    seen = emulator.tokens(user)
    tensors = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(seen, seen + len(ids))[None]}
    return {value.name: tensors[value.name] for value in emulator.model.graph.inputs}


def _next_to_move(emulator: Emulator, flights: Mapping[int, Flight]) -> dict[int, int]:
    """Which flight each wafer works on next."""
    moving: dict[int, int] = {}
    for number, flight in sorted(flights.items(), key=lambda item: _stages_left(emulator, item[1])):
        moving.setdefault(emulator.stages(flight.user)[flight.stage].wafer, number)
    return moving


def _stages_left(emulator: Emulator, flight: Flight) -> int:
    return len(emulator.stages(flight.user)) - flight.stage


def _land(emulator: Emulator, flight: Flight, author: Author) -> int:
    """Hand a step that is done to its author; the user's number."""
    emulator.finish(flight)
    if rejected := author.take(_logits(emulator, flight), flight.meter.counters()):
        emulator.forget(flight.user, rejected)
    return flight.user


def _logits(emulator: Emulator, flight: Flight) -> torch.Tensor:
    return flight.outputs[emulator.model.graph.outputs[0]][0]


def vocabulary_of(graph: Graph) -> int:
    """Tokens that a language model can yield, and so can read."""
    return int(graph.types[graph.outputs[0]].shape[-1])  # type: ignore[arg-type]
