"""The emulator: runs a partitioned model step by step, each block on the tiles that its plan names.

A step visits the blocks in the model's order, once for each turn of users who meet the same copies of blocks. Each
wafer knows only the graph's inputs, what its own blocks computed, and what the plan's transfers brought. Weights are
read from tile memories alone. Products and look-ups run on tiles
(:mod:`targets.emulator.kernels`); every other operator runs by its reference meaning on values of the block's region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ir.diagnostics import CheckError, Diagnostic, UsageError
from ir.graph import Graph, Parameter
from ir.interpret import bind_symbols
from ir.layout import MatrixLayout, sliced_layouts
from ir.model import Model
from ir.ops import torch_dtype
from ir.plan import Plan
from ir.types import evaluate
from targets.emulator.history import History
from targets.emulator.ledger import WaferLedger, claim
from targets.emulator.memory import expert_slice, load_region
from targets.emulator.mesh import Meter, Traffic
from targets.emulator.program import Program, flipped_weights, write_programs
from targets.emulator.run import BlockMemory, Scope, attend
from targets.emulator.turns import joined, part_of, plans_of_turns

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Counters:
    """What one step took. All figures are counted while it ran.

    Attributes:
        multiply_adds: in products and attention.
        transfer_bytes: sent from wafer to wafer.
        mesh: traffic of each collective inside wafers, by name.
    """

    multiply_adds: int = 0
    transfer_bytes: int = 0
    mesh: Mapping[str, Traffic] = field(default_factory=dict)

    @property
    def mesh_hops(self) -> int:
        """Hops of all collectives, one after another."""
        return sum(traffic.hops for traffic in self.mesh.values())

    @property
    def mesh_bytes(self) -> int:
        """Bytes over all links of all meshes."""
        return sum(traffic.bytes for traffic in self.mesh.values())


class Emulator:
    """A model loaded onto the emulated tiles that its plan names.

    Attributes:
        memories: the tile memories of each block, by its name; of further copies by ``PlacedBlock.title``.
        ledgers: what each tile of each wafer in use holds, in bytes.
        counters: what the last step took.
        tokens: tokens of each user that the caches have seen.
    """

    def __init__(self, model: Model, plan: Plan, weights: Mapping[str, Tensor]) -> None:
        """Load ``weights``, by parameter name; they are held in the element types that the graph states.

        Raises:
            UsageError: W0606, a weight is missing or has another shape.
            CheckError: W0601, a tile would hold more than it can; W0607, the plan does not fit model or machine;
                W0608, a cache does not suffice to compute keys and values again.
        """
        self.model = model
        self.plan = plan
        self._turns = tuple(write_programs(model, turn) for turn in plans_of_turns(model, plan))
        _require_weights(model.placed, weights)
        self.ledgers = {wafer: WaferLedger(wafer, plan.machine) for wafer in plan.wafers_used}
        programs = {program.placed.title: program for turn in self._turns for program in turn}
        flipped = flipped_weights(tuple(programs.values()))
        self.memories = {title: self._load(program, weights, flipped) for title, program in programs.items()}
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.tokens = 0
        self.counters = Counters()
        self._histories: tuple[dict[int, History], ...] = tuple({} for _ in self._turns)

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the model for the new tokens in ``inputs`` (graph input -> tensor), after those that it remembers.

        Returns:
            The graph's outputs by name.

        Raises:
            UsageError: W0609, the inputs are not the graph's.
            CheckError: W0602, more users or tokens than the plan has memory for; W0603, a value is not on the wafer
                where it is read; W0604, a token outside the embedding. What the caches remember is then unchanged.
        """
        graph = self.model.graph
        bindings = _bind(graph, inputs)
        self._require_room(bindings)
        meter, histories = Meter(), tuple(dict(own) for own in self._histories)
        users = bindings.get("users", 1)
        parts: dict[str, list[tuple[range, Tensor]]] = {name: [] for name in graph.outputs}
        for turn in range(min(users, len(self._turns))):
            own = range(turn, users, len(self._turns))
            mine = {name: part_of(value, graph.types[name], own) for name, value in inputs.items()}
            bound = {**bindings, "users": len(own)} if "users" in bindings else bindings
            found = self._run(self._turns[turn], mine, bound, meter, histories[turn])
            for name, own_parts in parts.items():
                own_parts.append((own, found[name]))
        self._histories = histories
        self.tokens += bindings.get("tokens", 0)
        self.counters = Counters(meter.multiply_adds, meter.transfer_bytes, meter.moved)
        return {name: joined(own_parts, graph.types[name]) for name, own_parts in parts.items()}

    def _run(
        self,
        programs: Sequence[Program],
        inputs: Mapping[str, Tensor],
        bindings: Mapping[str, int],
        meter: Meter,
        histories: dict[int, History],
    ) -> dict[str, Tensor]:
        """The graph's outputs for the users of one turn; their ``histories`` (by attention node) are extended."""
        graph = self.model.graph
        wafers: dict[int, dict[str, Tensor]] = {wafer: dict(inputs) for wafer in self.plan.wafers_used}
        outputs = {name: inputs[name] for name in graph.outputs if name in inputs}
        for program in programs:
            scope = Scope(program, self.memories[program.placed.title], meter, bindings, wafers[program.placed.wafer])
            self._run_block(scope, histories)
            _send(scope, wafers)
            computed = {value.name for instruction in program.instructions for value in instruction.node.results}
            outputs |= {name: scope.read(name) for name in graph.outputs if name in computed}
        return outputs

    def _run_block(self, scope: Scope, histories: dict[int, History]) -> None:
        """Run a block's nodes on its wafer's values, and extend its ``histories`` (by attention node)."""
        types = self.model.graph.types
        for name, links in scope.program.routes:
            value = scope.read(name)
            scope.mesh().shift(value.numel() * value.element_size(), links)
        for instruction in scope.program.instructions:
            cached = instruction.cache
            if cached is None:
                scope.run(instruction)
                continue
            node, new = cached.cache.node, {name: scope.read(name) for name in cached.cache.values}
            users, tokens = scope.bindings.get("users", 1), scope.bindings["tokens"]
            history = histories.get(node, History()).append(new, types, users, tokens)
            attend(instruction, cached, scope, history, types)
            cache = cached.cache
            histories[node] = (history.in_chunk if cache.chunked else history.last)(cache.window, types)

    def _load(self, program: Program, weights: Mapping[str, Tensor], flipped: frozenset[str]) -> BlockMemory:
        """Place a block's weights on its tiles and its experts', and enter them in the ledger of its wafer.

        Where experts have regions of their own, caches and activations are shared out among them.
        """
        block, placed = program.block, program.placed
        workload = self.plan.workload.share(placed.copy, len(self.plan.copies[block.name]))
        parameters = [self.model.graph.parameter[name] for name in block.parameters]
        own = [p for p in parameters if p.name not in program.stacked]
        slices = [expert_slice(p) for p in parameters if p.name in program.stacked]
        spread = (block.cache_bytes(workload.users, workload.context), placed.activation_bytes)
        shared = (0, 0) if placed.experts else spread
        ledger = self.ledgers[placed.wafer]
        ledger.add(placed.title, placed.region, claim(own, *shared, placed.region))
        layouts: dict[int, Sequence[MatrixLayout]] = {}
        if placed.sliced:
            region, count = placed.region, len(placed.experts)
            ledger.add(f"{placed.title}, experts", region, claim(slices, *spread, region, count))
            layouts = dict(enumerate(sliced_layouts(slices, count, region.rows, region.columns)))
        else:
            caches, activations = (-(-amount // max(1, len(placed.experts))) for amount in spread)
            for expert in placed.experts:
                amounts = claim(slices, caches, activations, expert.region)
                ledger.add(f"{placed.title}.{expert.index}", expert.region, amounts)
        experts = {}
        for expert in placed.experts:
            mine = {p.name: weights[p.name][expert.index] for p in slices}
            experts[expert.index] = load_region(slices, mine, expert.region, flipped, layouts.get(expert.index))
        return BlockMemory(load_region(own, weights, placed.region, flipped), experts)

    def _require_room(self, bindings: Mapping[str, int]) -> None:
        """Raise W0602 unless the step's users and tokens fit in the caches."""
        cached = next((program for program in self._turns[0] if program.block.caches), None)
        if cached is None:
            return
        planned = self.plan.workload
        users, tokens = bindings.get("users", 1), self.tokens + bindings.get("tokens", 0)
        if users > planned.users or tokens > planned.context:
            message = f"{users} users of {tokens} tokens do not fit in the caches"
            facts = {"planned_users": planned.users, "planned_context": planned.context}
            raise CheckError(Diagnostic("W0602", message, cached.where, {**facts}, ("plan for a longer context",)))


def _bind(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The symbols' values in this step; W0609 unless ``inputs`` are the graph's."""
    try:
        bindings = bind_symbols({value.name: value.type for value in graph.inputs}, inputs)
        unknown = inputs.keys() - {value.name for value in graph.inputs}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]} is no input")
        for value in graph.inputs:
            wanted = tuple(evaluate(size, bindings) for size in value.type.shape)
            if tuple(inputs[value.name].shape) != wanted:
                raise ValueError(f"{value.name} is {tuple(inputs[value.name].shape)}, not {wanted}")
            if inputs[value.name].dtype != torch_dtype(torch, value.type.dtype):
                raise ValueError(f"{value.name} is of {inputs[value.name].dtype}, not {value.type.dtype}")
    except (KeyError, ValueError) as error:
        names = ", ".join(f"{value.name}: {value.type}" for value in graph.inputs)
        raise UsageError(Diagnostic("W0609", f"the step takes {names}", graph.name, {"fault": str(error)})) from None
    return bindings


def _send(scope: Scope, wafers: dict[int, dict[str, Tensor]]) -> None:
    """Carry what other wafers read of a block to them."""
    for transfer in scope.program.sends:
        value = scope.read(transfer.value)
        scope.meter.transfer_bytes += value.numel() * value.element_size()
        wafers.setdefault(transfer.target_wafer, {})[transfer.value] = value


def _require_weights(parameters: Sequence[Parameter], weights: Mapping[str, Tensor]) -> None:
    """Raise W0606 for each parameter without a weight of its shape."""
    faults = []
    for parameter in parameters:
        given = weights.get(parameter.name)
        if given is None:
            faults.append(Diagnostic("W0606", "no weight is given", parameter.name))
        elif tuple(given.shape) != parameter.shape:
            faults.append(Diagnostic("W0606", f"{tuple(given.shape)} is not {parameter.shape}", parameter.name))
    if faults:
        raise UsageError(*faults)
