"""What a run is given: prompts of token ids, or arrays; all of it is examined before anything runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ir.diagnostics import Diagnostic, Fact, UsageError
from ir.graph import Graph, Value
from ir.model import Model
from ir.ops import torch_dtype
from ir.plan import Plan
from ir.types import DType, evaluate, symbols_of
from partitioner.passes.step import TEXT_INPUTS, continues_text
from targets.emulator.generate import faults_of_prompt
from targets.emulator.inputs import bind
from targets.emulator.pipeline import vocabulary_of

Tensor = torch.Tensor
Prompts = tuple[tuple[int, ...], ...]
_MOST_ARRAY_BYTES = 4 << 30
_FEWER = ("compile with more --users", "give fewer prompts at once")


def require_prompts(graph: Graph, plan: Plan, prompts: Prompts, tokens: int) -> None:
    """Refuse prompts that the plan cannot continue by ``tokens`` tokens.

    Raises:
        UsageError: W0613, the model takes more than token ids; W0604, a prompt is empty or holds an id outside of the
            vocabulary; W0605, a prompt and its new tokens exceed the plan's context; W0660, there are more prompts
            than users in the plan.
    """
    if not continues_text(graph):
        further = sorted({value.name for value in graph.inputs} - TEXT_INPUTS)
        needs = f": it takes {', '.join(further)}" if further else ""
        help_ = ("give the model's inputs with --inputs FILE.npz",)
        raise UsageError(Diagnostic("W0613", f"the plan is of no model of token ids alone{needs}", help=help_))
    faults = [
        fault
        for number, ids in enumerate(prompts)
        for fault in faults_of_prompt(graph, plan, ids, tokens, f"prompt {number}")
    ]
    faults += _too_many(plan, len(prompts))
    if faults:
        raise UsageError(*faults)


def for_users(plan: Plan, prompts: Prompts, users: int | None) -> Prompts:
    """A prompt for each user: those given, in turn.

    Raises:
        UsageError: W0104, there are more prompts than users; W0660, more users than in the plan.
    """
    count = len(prompts) if users is None else users
    if count < len(prompts):
        raise UsageError(Diagnostic("W0104", f"{len(prompts)} prompts are more than --users {count}", "--users"))
    if users is not None and (faults := _too_many(plan, users)):
        raise UsageError(*faults)
    return tuple(prompts[user % len(prompts)] for user in range(count))


def _too_many(plan: Plan, prompts: int) -> list[Diagnostic]:
    planned = plan.workload.users
    if prompts <= planned:
        return []
    message = f"{prompts} prompts at once, and the plan has caches for {planned} users"
    return [Diagnostic("W0660", message, "prompts", {"prompts": prompts, "users": planned}, _FEWER)]


def require_inputs(model: Model, plan: Plan, inputs: Mapping[str, Tensor]) -> None:
    """Refuse arrays that are no step of the plan's model.

    Raises:
        UsageError: W0609, they are not the model's inputs; W0604, a number is outside of the table that it chooses
            from; W0605 or W0660, the plan has no caches for so many tokens or users.
    """
    graph, faults = model.graph, []
    sizes = bind(graph, inputs)
    if any(block.caches for block in model.blocks):
        tokens, context = sizes.get("tokens", 0), plan.workload.context
        if tokens > context:
            message = f"{tokens} tokens exceed the plan's context of {context}"
            faults.append(Diagnostic("W0605", message, graph.name, help=("plan for more context",)))
        faults += _too_many(plan, sizes.get("users", 0))
    for name, rows in ((name, _table_rows(graph, name)) for name in inputs):
        given = inputs[name]
        if rows is not None and bool(((given < 0) | (given >= rows)).any()):
            message = f"a number is outside of the {rows} rows of its table"
            faults.append(Diagnostic("W0604", message, name))
    if faults:
        raise UsageError(*faults)


def random_prompt(graph: Graph, plan: Plan, tokens: int, seed: int) -> tuple[int, ...]:
    """A prompt a little longer than the plan's prefill chunk, as far as there is room for it and ``tokens`` more."""
    length = min(plan.workload.chunk + 3, plan.workload.context - tokens)
    return tuple(np.random.default_rng(seed).integers(0, vocabulary_of(graph), max(1, length)).tolist())


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an ``.npz`` file. Its headers are looked at before any of it is unpacked; pickles are refused.

    Raises:
        UsageError: W0614, it cannot be read, or its arrays would take too much memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MOST_ARRAY_BYTES:
            facts: dict[str, Fact] = {"bytes_unpacked": unpacked, "bytes_allowed": _MOST_ARRAY_BYTES}
            raise UsageError(Diagnostic("W0614", "the inputs take too much memory", str(path), facts))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except UsageError:
        raise
    except Exception as error:  # of zipfile, the compressions and numpy's headers, which are parsed as Python's
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(Diagnostic("W0614", f"the inputs cannot be read: {reason}", str(path))) from None


def random_inputs(graph: Graph, plan: Plan, seed: int) -> dict[str, Tensor]:
    """Inputs of a step for one user: token ids within their table, positions in order, ones for masks, and numbers."""
    sizes = {"users": 1, "tokens": min(plan.workload.chunk, plan.workload.context, 16)}
    generator = torch.Generator().manual_seed(seed)
    return {value.name: _random_input(graph, value, sizes, generator) for value in graph.inputs}


def _random_input(graph: Graph, value: Value, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    known = {name: sizes.get(name, 4) for size in value.type.shape for name in symbols_of(size)}
    shape = [evaluate(size, known) for size in value.type.shape]
    dtype = torch_dtype(torch, value.type.dtype)
    if value.type.dtype is DType.BOOL:
        return torch.ones(shape, dtype=dtype)
    if value.type.dtype.is_float:
        return torch.randn(shape, generator=generator).to(dtype)
    if value.name == "position_ids":
        return torch.arange(shape[-1], dtype=dtype).expand(shape).contiguous()
    return torch.randint(0, _rows(graph, value.name), shape, generator=generator).to(dtype)


def _rows(graph: Graph, name: str) -> int:
    """Rows of the tables that an input of whole numbers chooses from; 2 where it chooses none."""
    return _table_rows(graph, name) or 2


def _table_rows(graph: Graph, name: str) -> int | None:
    """Rows of the smallest table that an input chooses from, if there is one."""
    nodes = (graph.nodes[index] for index in graph.consumers.get(name, ()))
    tables = [graph.types[node.inputs[0]] for node in nodes if node.op == "embedding" and node.inputs[1] == name]
    return min((int(table.shape[0]) for table in tables), default=None)  # type: ignore[arg-type]
