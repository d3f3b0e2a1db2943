"""The emulator: runs a partitioned model step by step, each block on the tiles that its plan names.

A step of one user is a flight through the stages of the pipeline: a stage is a run of blocks on one wafer. Each wafer
knows only the step's inputs, what its own blocks computed, and what the plan's transfers brought. Whoever drives the
emulator decides which flight advances next, so several users can be under way, each at another stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from time import perf_counter_ns

import torch

from ir.diagnostics import CheckError, Diagnostic, UsageError
from ir.graph import Parameter
from ir.liveness import token_dependent
from ir.model import Model
from ir.plan import Plan
from targets.counters import Counters, added_up
from targets.emulator.arithmetic import Arithmetic
from targets.emulator.attention import attend, attend_in_step
from targets.emulator.history import History
from targets.emulator.inputs import bind, joined, part_of
from targets.emulator.kernels import arrive, run
from targets.emulator.lay_out import lay_out
from targets.emulator.ledger import WaferLedger
from targets.emulator.memory import HostMemory
from targets.emulator.meter import Meter
from targets.emulator.room import Room
from targets.emulator.scope import BlockMemory, Scope
from targets.emulator.watch import Watcher
from targets.emulator.weights import Tensors, WeightSource
from targets.program.instructions import Instruction, Program, write_programs
from targets.program.kinds import KernelKind
from targets.program.turns import plans_of_turns

Tensor = torch.Tensor
Histories = Mapping[int, History]
"""What a user's attentions remember, by node."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that follow each other on one wafer; ``copy`` tells apart the stages of users who meet other copies."""

    wafer: int
    programs: tuple[Program, ...]


@dataclass(slots=True)
class Flight:
    """One user's step under way.

    Attributes:
        bindings: what the graph's symbols stand for.
        values: what each wafer knows, by its number.
        stage: the next one to run, an index into the user's stages.
        outputs: of the graph, as far as they are computed.
        histories: what the user's attentions will remember once the step is done.
    """

    user: int
    inputs: Mapping[str, Tensor]
    bindings: Mapping[str, int]
    values: dict[int, dict[str, Tensor]]
    outputs: dict[str, Tensor]
    histories: dict[int, History]
    meter: Meter = field(default_factory=Meter)
    stage: int = 0


class Emulator:
    """A model on the emulated tiles that its plan names, or those wafers of it that are this process's own.

    Attributes:
        wafers: those that it runs.
        ledgers: what each tile of each of them holds, in bytes.
        counters: what the last step took.
        watchers: are told of all that runs.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        weights: WeightSource | Mapping[str, Tensor],
        arithmetic: Arithmetic | None = None,
        host_bytes: int | None = None,
        wafers: Collection[int] | None = None,
    ) -> None:
        """Lay ``weights`` out; each is read when it is first used, and the host keeps ``host_bytes`` of them at most.

        With ``wafers``, only their weights are asked for: other processes run the stages of the others.

        Raises:
            UsageError: W0606, a weight is missing or has another shape.
            CheckError: W0601, a tile would hold more than it can; W0607, the plan does not fit model or machine;
                W0608, a cache does not suffice to compute keys and values again.
        """
        self.model = model
        self.plan = plan
        self.watchers: tuple[Watcher, ...] = ()
        self.arithmetic = arithmetic or Arithmetic.of(model.graph)
        turns = [write_programs(model, turn) for turn in plans_of_turns(model, plan)]
        self._copies = {name: len(own) for name, own in plan.copies.items()}
        self._stages = tuple(_stages(programs) for programs in turns)
        self.wafers = tuple(wafer for wafer in plan.wafers_used if wafers is None or wafer in wafers)
        programs = {p.placed.title: p for turn in turns for p in turn if p.placed.wafer in self.wafers}
        source = Tensors(weights) if isinstance(weights, Mapping) else weights
        _require_weights(model.placed if wafers is None else _read_by(programs.values(), model), source)
        self._host = HostMemory(source, self.arithmetic, host_bytes)
        self.ledgers = {wafer: WaferLedger(wafer, plan.machine) for wafer in self.wafers}
        full = {title: self._cache_bytes(program) for title, program in programs.items()}
        self.memories, self._rooms = dict[str, BlockMemory](), dict[str, Room]()
        for title, program in programs.items():
            ledger = self.ledgers[program.placed.wafer]
            self.memories[title] = lay_out(program, model.graph, ledger, self._host, full[title])
        depends = token_dependent(model.graph)
        for title, program in programs.items():
            ledger = self.ledgers[program.placed.wafer]
            self._rooms[title] = Room.of(program, model.graph, depends, ledger, full[title])
        self.reset()

    def reset(self, user: int | None = None) -> None:
        """Forget all tokens of ``user``, or of all users."""
        if user is not None:
            self._histories.pop(user, None)
            self._tokens.pop(user, None)
            return
        self.counters = Counters()
        self._histories: dict[int, Histories] = {}
        self._tokens: dict[int, int] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of weights in the host's memory now."""
        return self._host.held_bytes

    def tokens(self, user: int = 0) -> int:
        """Tokens of ``user`` that the caches have seen."""
        return self._tokens.get(user, 0)

    def forget(self, user: int, tokens: int) -> None:
        """Forget the last ``tokens`` tokens of ``user``, which must be some of the last step's."""
        self._histories[user] = {n: h.without(tokens) for n, h in self._histories.get(user, {}).items()}
        self._tokens[user] = self.tokens(user) - tokens

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the model for the new tokens in ``inputs`` (graph input -> tensor), after those that it remembers.

        Of several users, numbers 0 and so on, one makes its step after the other.

        Returns:
            The graph's outputs by name.

        Raises:
            UsageError: W0609, the inputs are not the graph's.
            CheckError: W0601, a tile would hold more than it can; W0602, more users or tokens than the plan has memory
                for; W0603, a value is not on the wafer where it is read; W0604, a token outside the embedding. What the
                caches remember is then unchanged.
        """
        graph = self.model.graph
        bindings = bind(graph, inputs)
        users = bindings.get("users", 1)
        self._require_users(users)
        flights = []
        for user in range(users):
            mine = {name: part_of(value, graph.types[name], user, users) for name, value in inputs.items()}
            flights.append(self.begin(mine, user))
        for flight in flights:
            while not self.is_done(flight):
                self.advance(flight)
        for flight in flights:
            self.finish(flight)
        self.counters = added_up([flight.meter.counters() for flight in flights])
        return {name: joined([f.outputs[name] for f in flights], graph.types[name]) for name in graph.outputs}

    def begin(self, inputs: Mapping[str, Tensor], user: int = 0) -> Flight:
        """One user's step, about to enter the first stage; raises as :meth:`step` does."""
        graph, device = self.model.graph, self.arithmetic.device
        bindings = bind(graph, inputs)
        self._require_users(user + 1)
        self._require_room(self.tokens(user) + bindings.get("tokens", 0))
        held = {
            name: value.to(device=device, dtype=self.arithmetic.dtype(graph.types[name].dtype, name))
            for name, value in inputs.items()
        }
        values = {wafer: dict(held) for wafer in self.wafers}
        outputs = {name: held[name] for name in graph.outputs if name in held}
        return Flight(user, held, bindings, values, outputs, dict(self._histories.get(user, {})))

    @property
    def turns(self) -> tuple[tuple[Stage, ...], ...]:
        """The stages of user 0, of user 1 and so on, as far as they differ."""
        return self._stages

    def stages(self, user: int) -> tuple[Stage, ...]:
        """The stages that a user's step passes, in order."""
        return self._stages[user % len(self._stages)]

    def is_done(self, flight: Flight) -> bool:
        """Whether it has passed all stages."""
        return flight.stage == len(self.stages(flight.user))

    @torch.no_grad()
    def advance(self, flight: Flight) -> None:
        """Run the next stage of a step."""
        if self.arithmetic.device == "cpu":
            self._advance(flight)
        else:
            with torch.device(self.arithmetic.device):  # where operators make constants
                self._advance(flight)

    def _advance(self, flight: Flight) -> None:
        stage = self.stages(flight.user)[flight.stage]
        for program in stage.programs:
            self._require_memory(program, flight)
            known = flight.values[stage.wafer]
            memory = self.memories[program.placed.title]
            types = self.model.graph.types
            scope = Scope(program, memory, self.arithmetic, types, flight.meter, flight.bindings, known)
            self._run_block(scope, flight)
            self._send(scope, flight)
            flight.outputs |= {name: scope.read(name) for name in program.outputs}
        flight.stage += 1

    def finish(self, flight: Flight) -> None:
        """Remember what a step that is done has added."""
        for watcher in self.watchers:
            watcher.done(flight.user, self.tokens(flight.user), flight.bindings, flight.meter.counters())
        self._histories[flight.user] = flight.histories
        self._tokens[flight.user] = self.tokens(flight.user) + flight.bindings.get("tokens", 0)

    def _run_block(self, scope: Scope, flight: Flight) -> None:
        """Run a block's nodes on its wafer's values, and extend its histories."""
        arrive(scope)
        for instruction in scope.program.instructions:
            begin_ns = perf_counter_ns() if self.watchers else 0
            self._run_instruction(instruction, scope, flight.histories)
            for watcher in self.watchers:
                watcher.ran(flight.user, scope, instruction, begin_ns, perf_counter_ns())

    def _run_instruction(self, instruction: Instruction, scope: Scope, histories: dict[int, History]) -> None:
        if instruction.kind is not KernelKind.ATTENTION:
            run(instruction, scope)
        elif instruction.cache is None:
            attend_in_step(instruction, scope)
        else:
            node = instruction.cache.cache.node
            seen = histories.get(node, History())
            histories[node] = attend(instruction, instruction.cache, scope, seen, self.plan.workload.context)

    def _send(self, scope: Scope, flight: Flight) -> None:
        """Carry what other wafers read of a block to them."""
        for transfer in scope.program.sends:
            value = scope.read(transfer.value)
            sent = value.numel() * scope.element_bytes(transfer.value)
            scope.meter.links[transfer.source_wafer, transfer.target_wafer] += sent
            flight.values.setdefault(transfer.target_wafer, {})[transfer.value] = value
            for watcher in self.watchers:
                watcher.sent(flight.user, scope, transfer, sent, perf_counter_ns())

    def _cache_bytes(self, program: Program) -> int:
        """What the caches of a block take when they are full."""
        workload = self.plan.workload.share(program.placed.copy, self._copies[program.block.name])
        return program.block.cache_bytes(workload.users, workload.context)

    def _require_memory(self, program: Program, flight: Flight) -> None:
        """Raise W0601 unless a step's values fit on a block's tiles beside weights and caches as they are filled."""
        room, tokens = self._rooms[program.placed.title], prod(flight.bindings.values())
        if tokens <= room.tokens:
            return
        block, turn = program.block, self._copies[program.block.name]
        known = {**self._tokens, flight.user: self.tokens(flight.user) + flight.bindings.get("tokens", 0)}
        own = (count for user, count in known.items() if user % turn == program.placed.copy)
        room.require(tokens, sum(block.cache_bytes(1, count) for count in own))

    def _require_users(self, users: int) -> None:
        """Raise W0602 unless the caches have room for so many users."""
        if users > self.plan.workload.users and self._first_cached:
            self._refuse(f"{users} users do not fit in the caches")

    def _require_room(self, tokens: int) -> None:
        """Raise W0602 unless the caches have room for so many tokens of each user."""
        if tokens > self.plan.workload.context and self._first_cached:
            self._refuse(f"{tokens} tokens of a user do not fit in the caches")

    @property
    def _first_cached(self) -> Program | None:
        return next((p for stage in self._stages[0] for p in stage.programs if p.block.caches), None)

    def _refuse(self, message: str) -> None:
        planned, cached = self.plan.workload, self._first_cached
        facts = {"planned_users": planned.users, "planned_context": planned.context}
        where = cached.where if cached else ""
        raise CheckError(Diagnostic("W0602", message, where, {**facts}, ("plan for a longer context or more users",)))


def _stages(programs: Sequence[Program]) -> tuple[Stage, ...]:
    runs = groupby(programs, key=lambda program: program.placed.wafer)
    return tuple(Stage(wafer, tuple(run)) for wafer, run in runs)


def _read_by(programs: Iterable[Program], model: Model) -> list[Parameter]:
    """The parameters that lie with ``programs``, each once."""
    names = {name for program in programs for name in program.block.parameters}
    return [parameter for parameter in model.placed if parameter.name in names]


def _require_weights(parameters: Sequence[Parameter], weights: WeightSource) -> None:
    """Raise W0606 for each parameter without a weight of its shape."""
    faults = []
    for parameter in parameters:
        given = weights.shape(parameter.name)
        if given is None:
            faults.append(Diagnostic("W0606", "no weight is given", parameter.name))
        elif given != parameter.shape:
            faults.append(Diagnostic("W0606", f"{given} is not {parameter.shape}", parameter.name))
    if faults:
        raise UsageError(*faults)
