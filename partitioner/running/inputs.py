"""What a run is given: prompts of token ids, or arrays; all of it is examined before anything runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ir.diagnostics import Diagnostic, Fact, UsageError
from ir.graph import Graph, Value
from ir.ops import torch_dtype
from ir.plan import Plan
from ir.types import DType, evaluate, symbols_of
from partitioner.passes.step import TEXT_INPUTS, continues_text
from targets.emulator.generate import faults_of_prompt
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
    planned = plan.workload.users
    faults = [
        fault
        for number, ids in enumerate(prompts)
        for fault in faults_of_prompt(graph, plan, ids, tokens, f"prompt {number}")
    ]
    if len(prompts) > planned:
        message = f"{len(prompts)} prompts at once, and the plan has caches for {planned} users"
        faults.append(Diagnostic("W0660", message, "prompts", {"prompts": len(prompts), "users": planned}, _FEWER))
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
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, MemoryError) as error:
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
    nodes = (graph.nodes[index] for index in graph.consumers.get(name, ()))
    tables = [graph.types[node.inputs[0]] for node in nodes if node.op == "embedding" and node.inputs[1] == name]
    return min((int(table.shape[0]) for table in tables), default=2)  # type: ignore[arg-type]
