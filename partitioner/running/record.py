"""Runs as objects of JSON: docs/emulator.md says what each field means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from ir.graph import Graph
from ir.plan import Plan
from partitioner.running.runs import StepRun, TextRun
from targets.counters import Counters, OpCount

COUNTER_DETAILS = ("totals", "blocks", "ops")
"""How finely counters are told: all together, by block, or by operator of each block."""


def text_record(run: TextRun) -> dict[str, Any]:
    """What a run of prompts yielded. ``tokens`` is one list for one prompt, and a list of lists for several."""
    record: dict[str, Any] = {"tokens": _one_or_all(run.tokens)}
    if run.comparisons:
        record |= {
            "reference": run.reference,
            "reference_tokens": _one_or_all(run.reference_tokens),
            "max_abs_logit_error": run.max_abs_logit_error,
            "tolerance": run.tolerance,
        }
    proposed, accepted = (sum(getattr(made, name) for made in run.made) for name in ("proposed", "accepted"))
    drafts = {"proposed": proposed, "accepted": accepted} if proposed else {}
    return record | {"prompts": len(run.prompts), "steps": sum(len(made.counters) for made in run.made), **drafts}


def _one_or_all(texts: tuple[tuple[int, ...], ...]) -> list[Any]:
    lists = [list(ids) for ids in texts]
    return lists[0] if len(lists) == 1 else lists


def step_record(run: StepRun) -> dict[str, Any]:
    """What one step yielded: of each output its shape and first elements."""
    record: dict[str, Any] = {"outputs": {name: _shown(value) for name, value in run.outputs.items()}}
    if run.errors is not None and run.tolerances is not None:
        by_output = {name: {"error": e, "tolerance": run.tolerances[name]} for name, e in run.errors.items()}
        record |= {
            "reference": run.reference,
            "max_abs_error": max(run.errors.values()),
            "tolerance": min(run.tolerances.values()),
            "errors": by_output,
        }
    return record


def _shown(value: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "values": value.flatten()[:8].tolist()}


def counters_record(counters: Counters, plan: Plan, graph: Graph, details: str = "totals") -> dict[str, Any]:
    """Counters, told as finely as ``details`` says."""
    record: dict[str, Any] = {
        "multiply_adds": counters.multiply_adds,
        "transfer_bytes": counters.transfer_bytes,
        "mesh_bytes": counters.mesh_bytes,
        "mesh_hops": counters.mesh_hops,
        "mesh": _mesh(OpCount(0, counters.mesh)),
        "links": {f"{source}-{target}": sent for (source, target), sent in sorted(counters.links.items())},
        "by_reference": dict(sorted(counters.by_reference.items())),
    }
    wafers = {block.title: block.wafer for block in plan.blocks}
    if details == "blocks":
        blocks = {title: _of_block(counters, title) for title in wafers}
        record["blocks"] = [
            {"block": title, "wafer": wafers[title], **_counts(count)} for title, count in blocks.items()
        ]
    if details == "ops":
        record["ops"] = [
            {"block": title, "wafer": wafers[title], "value": value, **_named(graph, value), **_counts(count)}
            for (title, value), count in sorted(counters.ops.items(), key=lambda item: (item[0][0], item[0][1]))
            if count != OpCount()
        ]
    return record


def _of_block(counters: Counters, title: str) -> OpCount:
    return sum((count for (block, _), count in counters.ops.items() if block == title), OpCount())


def _named(graph: Graph, value: str) -> dict[str, str]:
    """The operator that computes ``value``, and the module that it stands for; nothing for inputs of the graph."""
    index = graph.producer.get(value)
    return {} if index is None else {"op": graph.nodes[index].op, "module": graph.nodes[index].origin}


def _counts(count: OpCount) -> dict[str, Any]:
    return {"multiply_adds": count.multiply_adds, "mesh": _mesh(count)}


def _mesh(count: OpCount) -> Mapping[str, dict[str, int]]:
    return {name: asdict(traffic) for name, traffic in sorted(count.mesh.items())}
