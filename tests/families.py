"""Small siblings of families on emulated wafers, held against the original's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from test_huggingface import own_tensors, shake

from ir.machine import Machine
from ir.model import Model
from ir.objective import Objective
from ir.plan import FEASIBLE, Plan, Score, SolverRecord
from ir.workload import Workload
from partitioner.check import check
from partitioner.compile import build_model, transfers
from partitioner.floorplan.wafers import FloorPlanner, TooTight
from partitioner.frontends.lowered import Lowered
from partitioner.frontends.original import Original, open_original
from partitioner.problem import Copy, shared_groups
from targets.emulator import Emulator, Generated, Prompt, generate_together
from targets.emulator.pipeline import Tick
from targets.emulator.weights import Tensors

CONTEXT = 128
TOLERANCE = 1e-4
"""Greatest error of a logit in float32."""


@dataclass(frozen=True)
class Mesh:
    """So many wafers of ``columns`` x ``rows`` tiles."""

    wafers: int
    columns: int = 48
    rows: int = 32


def original_of(given: Lowered, seed: int) -> Original:
    """With random weights from ``seed``, norms and biases not ones and zeros either."""
    found = open_original(given.origin, given.graph.parameters, seed)
    shake(found, given.graph.parameters)
    return replace(found, weights=Tensors(own_tensors(found)))


def plan_over(model: Model, mesh: Mesh, workload: Workload) -> Plan:
    """A sound plan on just so many wafers, as equal numbers of items on each as can be, in order."""
    groups = shared_groups(model)
    held: list[list[Copy]] = [[] for _ in range(mesh.wafers)]
    for index, group in enumerate(groups):
        held[index * mesh.wafers // len(groups)] += [Copy(block, 0, 1) for block in group]
    assert all(held), f"{len(groups)} items are too few for {mesh.wafers} wafers"
    machine = _machine(model, mesh, workload)
    blocks = FloorPlanner(model, machine, workload).lay_out(held)
    while isinstance(blocks, TooTight) and machine.tile_sram_bytes < 1 << 24:
        machine = replace(machine, tile_sram_bytes=2 * machine.tile_sram_bytes)
        blocks = FloorPlanner(model, machine, workload).lay_out(held)
    assert not isinstance(blocks, TooTight), f"{mesh} has too few tiles"
    plan = Plan(model.graph.name, machine, workload, tuple(blocks), transfers(model, blocks), None)
    sent = sum(transfer.bytes_per_token for transfer in plan.transfers)
    scores = (Score(Objective.BALANCE, plan.largest_wafer_bytes, 0, ""), Score(Objective.TRAFFIC, sent, 0, ""))
    plan = replace(plan, solver=SolverRecord(FEASIBLE, scores, 0, 60.0))
    assert check(plan, model) == ()
    return plan


def _machine(model: Model, mesh: Mesh, workload: Workload) -> Machine:
    """Tiles of 4 KB as the machine ``mini`` has, or as large as it takes where they are few."""
    held = sum(block.weight_bytes + block.cache_bytes(workload.users, workload.context) for block in model.blocks)
    sram = max(4096, 4 * held // (mesh.columns * mesh.rows))
    return Machine("mini", "small wafers", mesh.columns, mesh.rows, sram, 512, mesh.wafers)


def prompts_of(lengths: Sequence[int], tokens: int, seed: int, vocabulary: int = 97) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    return [Prompt(torch.randint(1, vocabulary, (n,), generator=generator).tolist(), tokens) for n in lengths]


def write(
    given: Lowered, mesh: Mesh, prompts: Sequence[Prompt], chunk: int, seed: int
) -> tuple[tuple[Generated, ...], tuple[Tick, ...]]:
    """Let all ``prompts`` be continued at once, and compare each with the original (see :func:`compare`)."""
    model, original = build_model(given.graph), original_of(given, seed)
    plan = plan_over(model, mesh, Workload(len(prompts), CONTEXT, chunk))
    texts, ticks = generate_together(Emulator(model, plan, original.weights), prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        compare(original, prompt, text)
    return texts, ticks


def compare(original: Original, prompt: Prompt, text: Generated) -> None:
    """Hold a text against the original's forward over all of it, without a cache.

    Each token follows from those before it, so if the original would choose each after ours, all are its own.
    """
    ids = torch.tensor([[*prompt.ids, *text.tokens]])
    inputs = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]}
    expected = original.forward(inputs)[0][0, len(prompt.ids) - 1 : -1]
    assert expected.std() > 0.01
    torch.testing.assert_close(torch.stack(text.logits), expected, atol=TOLERANCE, rtol=0)
    assert text.tokens == tuple(expected.argmax(dim=-1).tolist())
    assert len(text.tokens) == prompt.tokens
