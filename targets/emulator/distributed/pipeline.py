"""One process's part of the pipeline: the stages of its own wafers, for all users' steps in their common order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from ir.diagnostics import CheckError, Diagnostic
from ir.types import evaluate
from targets.counters import Counters
from targets.emulator.distributed.channel import Channel, Spec
from targets.emulator.distributed.route import Bundle, Route
from targets.emulator.distributed.schedule import Item, Round, in_order
from targets.emulator.executor import Emulator, Flight

Tensor = torch.Tensor
Mail: TypeAlias = tuple[str, int, int]
"""A message: ``values`` of a step by its number and the segment they come from, or a ``token`` by user and place."""
Letter: TypeAlias = tuple[Mail, list[Spec]]

FIRST = 0
"""The process that collects what all others have: that of the first wafers."""
_TOKEN: list[Spec] = [((1,), torch.int64)]


@dataclass(slots=True)
class Made:
    """What a process has made.

    Attributes:
        counters: what its part of each step took, by the step's number.
        results: outputs of the graph, by step and name; of steps that choose a token, the last logits [vocabulary].
        tokens: the tokens that were chosen, by user and place, as far as the process knows them.
    """

    counters: dict[int, Counters] = field(default_factory=dict)
    results: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    tokens: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class Pipeline:
    """An emulator of some wafers, its ``rank`` among the processes, and the routes of all turns of users.

    One process alone needs no ``channel``. ``keep`` says whether the logits are kept; ``on_token`` is called in the
    first process for every token, with user, place and id.
    """

    emulator: Emulator
    rank: int
    routes: tuple[Route, ...]
    channel: Channel | None = None
    keep: bool = True
    on_token: Callable[[int, int, int], None] = lambda _user, _place, _token: None
    made: Made = field(default_factory=Made)
    _flights: dict[int, Flight] = field(default_factory=dict)
    _expected: dict[int, Iterator[Letter]] = field(default_factory=dict)
    _arrived: dict[Mail, list[Tensor]] = field(default_factory=dict)

    def run(self, rounds: Sequence[Round]) -> Made:
        """Run this process's parts of all steps.

        Raises:
            PeerLostError: another process is not there any more.
            UsageError, CheckError: as :meth:`Emulator.step` does.
        """
        ranks = {segment.rank for route in self.routes for segment in route.segments}
        self._expected = {rank: self._mail_from(rank, rounds) for rank in ranks - {self.rank}}
        reached = 0
        for number, item, index in in_order(rounds, self.routes):
            if number > reached:
                reached = number
                self._settle(rounds[: number - 1][-1:], number - 1)
            if self._route(item).segments[index].rank == self.rank:
                self._run(item, index, number)
        self._settle(rounds[-2:], len(rounds))
        return self.made

    def _settle(self, past: Sequence[Round], before: int) -> None:
        """Wait for what was sent in rounds ``before`` that one; the first process hears of the tokens of the last two.

        All that was sent two rounds ago is read in the round after, so no process waits here in vain.
        """
        if self.rank == FIRST:
            for item in (item for items in past for item in items if item.chooses):
                self._token(item, item.place)
        if self.channel:
            self.channel.settle(before)

    def _route(self, item: Item) -> Route:
        return self.routes[item.user % len(self.routes)]

    def _run(self, item: Item, index: int, number: int) -> None:
        """Run one segment of a step: what it needs comes in, and what others need of it goes out."""
        route = self._route(item)
        segment, mine = route.segments[index], route.of(self.rank)
        if index == mine[0]:
            self._flights[item.index] = self._begin(item)
        flight = self._flights[item.index]
        for bundle in route.bundles:
            if bundle.target == index:
                self._take_in(item, flight, bundle)
        flight.stage = segment.stages.start
        for _ in segment.stages:
            self.emulator.advance(flight)
        for bundle in route.bundles:
            if bundle.source == index:
                self._give_on(item, flight, bundle, number)
        self._keep_results(item, flight, index, number)
        if index == mine[-1]:
            self.emulator.finish(flight)
            self.made.counters[item.index] = flight.meter.counters()
            del self._flights[item.index]

    def _begin(self, item: Item) -> Flight:
        """The step, with the token that it reads if that is read here."""
        inputs = dict(item.inputs)
        if item.awaits and self.rank in self._readers(item):
            inputs["input_ids"] = torch.tensor([[self._token(item, item.place - 1)]])
        return self.emulator.begin(inputs, item.user)

    def _take_in(self, item: Item, flight: Flight, bundle: Bundle) -> None:
        route = self._route(item)
        values = self._receive(route.segments[bundle.source].rank, ("values", item.index, bundle.source))
        for (name, wafers), value in zip(bundle.values, values, strict=True):
            for wafer in wafers:
                flight.values[wafer][name] = value

    def _give_on(self, item: Item, flight: Flight, bundle: Bundle, number: int) -> None:
        """Send what another process needs.

        Raises:
            CheckError: W0607, a value is not as the graph states it.
        """
        assert self.channel
        values = [flight.values[wafers[0]][name] for name, wafers in bundle.values]
        for value, (name, _), spec in zip(values, bundle.values, self._specs(item, bundle), strict=True):
            if (tuple(value.shape), value.dtype) != spec:
                message = f"{value.dtype} {tuple(value.shape)} is to be sent where {spec[1]} {spec[0]} is expected"
                raise CheckError(Diagnostic("W0607", message, name))
        self.channel.send(self._route(item).segments[bundle.target].rank, values, number)

    def _keep_results(self, item: Item, flight: Flight, index: int, number: int) -> None:
        """Choose the next token where the logits are, and tell it to those who wait for it; keep what is wanted."""
        route, output = self._route(item), self.emulator.model.graph.outputs[0]
        if item.gives:
            here = [name for name, segment in route.results.items() if segment == index]
            self.made.results |= {(item.index, name): flight.outputs[name].cpu() for name in here}
        if not item.chooses or route.results[output] != index:
            return
        last = flight.outputs[output][0, -1]
        token = int(last.argmax())
        if self.keep:
            self.made.results[item.index, output] = last.cpu()
        self._note(item.user, item.place, token)
        for rank in sorted(self._told(item) - {self.rank}):
            assert self.channel
            self.channel.send(rank, [torch.tensor([token])], number)

    def _readers(self, item: Item) -> set[int]:
        """The processes that know the token which a step reads: those that read it, and the first."""
        return {FIRST, *self._route(item).readers.get("input_ids", ())}

    def _told(self, item: Item) -> set[int]:
        """The processes that hear of the token that a step chooses."""
        return self._readers(item) if item.continues else {FIRST}

    def _token(self, item: Item, place: int) -> int:
        """The user's new token number ``place``; waits until it is known here."""
        if (item.user, place) not in self.made.tokens:
            (token,) = self._receive(self._chooser(item), ("token", item.user, place))
            self._note(item.user, place, int(token))
        return self.made.tokens[item.user, place]

    def _chooser(self, item: Item) -> int:
        route = self._route(item)
        return route.segments[route.results[self.emulator.model.graph.outputs[0]]].rank

    def _note(self, user: int, place: int, token: int) -> None:
        self.made.tokens[user, place] = token
        if self.rank == FIRST:
            self.on_token(user, place, token)

    def _receive(self, source: int, mail: Mail) -> list[Tensor]:
        """A message of ``source``; those before it are kept for later, as they come in the order of sending."""
        assert self.channel
        while mail not in self._arrived:
            arriving, specs = next(self._expected[source])
            device = self.emulator.arithmetic.device if arriving[0] == "values" else "cpu"
            self._arrived[arriving] = self.channel.receive(source, specs, device)
        return self._arrived.pop(mail)

    def _mail_from(self, source: int, rounds: Sequence[Round]) -> Iterator[Letter]:
        """What ``source`` sends to this process, in its order."""
        for _, item, index in in_order(rounds, self.routes):
            route = self._route(item)
            if route.segments[index].rank != source:
                continue
            for bundle in route.bundles:
                if bundle.source == index and route.segments[bundle.target].rank == self.rank:
                    yield ("values", item.index, index), self._specs(item, bundle)
            chosen_here = item.chooses and route.results[self.emulator.model.graph.outputs[0]] == index
            if chosen_here and self.rank in self._told(item):
                yield ("token", item.user, item.place), _TOKEN

    def _specs(self, item: Item, bundle: Bundle) -> list[Spec]:
        """Shapes and types of a message's values in a step."""
        types, arithmetic = self.emulator.model.graph.types, self.emulator.arithmetic
        return [
            (
                tuple(evaluate(size, item.bindings) for size in types[name].shape),
                arithmetic.dtype(types[name].dtype, name),
            )
            for name, _ in bundle.values
        ]


def directions_of(routes: Sequence[Route], processes: int, output: str) -> set[tuple[int, int]]:
    """Who sends to whom: values, tokens, and at the end what each has made."""
    found = {(rank, FIRST) for rank in range(1, processes)}
    for route in routes:
        ranks = [segment.rank for segment in route.segments]
        found |= {(ranks[bundle.source], ranks[bundle.target]) for bundle in route.bundles}
        if output in route.results:
            found |= {(ranks[route.results[output]], reader) for reader in route.readers.get("input_ids", ())}
    return {(source, target) for source, target in found if source != target}
