"""Writes the report page: a plan as one self-contained HTML file.

The page is the committed template ``page.html``, built from the TypeScript in ``page/``. The plan goes into it as one
JSON text that no browser executes; the page reads it and sets names only as text, never as markup. The template's
Content-Security-Policy allows nothing but its own script and style, each by its hash.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import groupby
from typing import Any

from ir.model import BlockKind
from ir.plan import PlacedBlock, PlacedExpert, Plan, Rectangle, Transfer

SCHEMA_VERSION = 2
_SLOT = '<script type="application/json" id="payload">'
_LAST_NUMBER = re.compile(r"^(?P<before>.*\.)?(?P<number>0|[1-9][0-9]*)(?P<after>\..*)?$", re.DOTALL)


def render_report(
    plan: Plan,
    *,
    model_weight_bytes: int | None = None,
    model_parameters: int | None = None,
    unplaced_parameters: Sequence[str] = (),
    producer: str = "waferc",
) -> str:
    """Shows a plan as one HTML page that needs no network; the same plan gives the same text.

    Args:
        plan: what to show.
        model_weight_bytes: bytes of the weights, each counted once; by default those of all blocks together, in which
            a weight that several blocks read counts for each of them.
        model_parameters: number of weights (elements), if known.
        unplaced_parameters: names of the weights that the plan leaves out, such as a vision tower.
        producer: what wrote the plan, with its version, for the foot of the page.

    Returns:
        The text of the file, all of it ASCII but for the template's own words.
    """
    totals = {
        "weight_bytes": _block_weight_bytes(plan) if model_weight_bytes is None else model_weight_bytes,
        "parameters": model_parameters,
        "unplaced": fold_names(unplaced_parameters),
        "unplaced_count": len(unplaced_parameters),
    }
    payload = {"schema_version": SCHEMA_VERSION, "producer": producer, **_columns(plan), "totals": totals}
    before, slot, after = _template().partition(_SLOT)
    if not slot:
        raise ValueError("page.html has no place for the plan: build it again, see page/README.md")
    return before + slot + _script_safe_json(payload) + after


def fold_names(names: Iterable[str]) -> list[str]:
    """Names that differ only in their last number as one, for example ``experts.{0..383}.up_proj.weight``.

    Every name stays accounted for: numbers that do not follow each other are listed, ``{0..5,7}``.
    """
    numbers: dict[tuple[str, str | None], list[int]] = {}
    for name in names:
        found = _LAST_NUMBER.match(name)
        if found:
            numbers.setdefault((found["before"] or "", found["after"] or ""), []).append(int(found["number"]))
        else:
            numbers.setdefault((name, None), [])
    return [before if after is None else before + _ranges(seen) + after for (before, after), seen in numbers.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """``17`` for one number, ``{0..5,7}`` for several."""
    distinct = sorted(set(numbers))
    if len(distinct) == 1:
        return str(distinct[0])
    parts = []
    for _, run in groupby(enumerate(distinct), key=lambda pair: pair[1] - pair[0]):
        values = [value for _, value in run]
        parts.append(str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}")
    return "{" + ",".join(parts) + "}"


def _template() -> str:
    """The page without a plan."""
    return resources.files("partitioner.viewer").joinpath("page.html").read_text(encoding="utf-8")


def _script_safe_json(payload: dict[str, Any]) -> str:
    """JSON that cannot end the script element around it: no ``<``, ``>`` or ``&``, and nothing but ASCII."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _block_weight_bytes(plan: Plan) -> int:
    return sum(block.weight_bytes for block in plan.blocks)


def _columns(plan: Plan) -> dict[str, Any]:
    """The plan as columns: one list for each field rather than one object for each rectangle."""
    kinds = list(BlockKind)
    experts = [expert for block in plan.blocks for expert in block.experts]
    return {
        "model": plan.model_name,
        "machine": _machine(plan),
        "workload": {
            "users": plan.workload.users,
            "context": plan.workload.context,
            "chunk": plan.workload.chunk,
        },
        "solver": _solver(plan),
        "kinds": [str(kind) for kind in kinds],
        "pipeline": plan.wafers_used,
        "blocks": _block_columns(plan.blocks, kinds),
        "experts": _expert_columns(experts),
        "transfers": _transfer_columns(plan.transfers),
    }


def _machine(plan: Plan) -> dict[str, Any]:
    machine = plan.machine
    return {
        "name": machine.name,
        "description": machine.description,
        "columns": machine.columns,
        "rows": machine.rows,
        "tile_sram_bytes": machine.tile_sram_bytes,
        "reserve_bytes": machine.reserve_bytes,
        "systems": machine.systems,
        "odd_wafers": [
            {"wafer": odd.wafer, "columns": odd.columns, "rows": odd.rows, "slowness_permille": odd.slowness_permille}
            for odd in machine.odd_wafers
        ],
        "odd_links": [{"one": link.one, "other": link.other, "cost": link.cost} for link in machine.odd_links],
    }


def _solver(plan: Plan) -> dict[str, Any]:
    solver = plan.solver
    limit = solver.deterministic_time_limit
    return {
        "status": solver.status,
        "scores": [
            {
                "objective": str(score.objective),
                "unit": score.objective.unit,
                "value": score.value,
                "bound": score.bound,
                "gap": score.gap,
                "proof": score.proof,
            }
            for score in solver.scores
        ],
        "interrupted": solver.interrupted,
        "seed": solver.seed,
        # JSON has no infinity, which is how "no limit" may be written.
        "deterministic_time_limit": limit if math.isfinite(limit) else None,
    }


def _block_columns(blocks: Sequence[PlacedBlock], kinds: Sequence[BlockKind]) -> dict[str, list[Any]]:
    return {
        "name": [block.title for block in blocks],
        "kind": [kinds.index(block.kind) for block in blocks],
        "layer": [block.layer for block in blocks],
        "wafer": [block.wafer for block in blocks],
        **_rectangle_columns([block.region for block in blocks]),
        "parameters": [fold_names(block.parameters) for block in blocks],
        "parameter_count": [len(block.parameters) for block in blocks],
        "weight_bytes": [block.weight_bytes for block in blocks],
        "cache_bytes": [block.cache_bytes for block in blocks],
        "activation_bytes": [block.activation_bytes for block in blocks],
        "tile_bytes": [block.tile_bytes for block in blocks],
        "macs_per_token": [block.macs_per_token for block in blocks],
        "experts": [len(block.experts) for block in blocks],
        "active_experts": [block.active_experts for block in blocks],
    }


def _expert_columns(experts: Sequence[PlacedExpert]) -> dict[str, list[int]]:
    """The experts of all blocks, one block after another, packed."""
    columns = {
        "index": [expert.index for expert in experts],
        "wafer": [expert.wafer for expert in experts],
        **_rectangle_columns([expert.region for expert in experts]),
    }
    return {name: packed(values) for name, values in columns.items()}


def _rectangle_columns(rectangles: Sequence[Rectangle]) -> dict[str, list[int]]:
    return {
        "column": [rectangle.column for rectangle in rectangles],
        "row": [rectangle.row for rectangle in rectangles],
        "columns": [rectangle.columns for rectangle in rectangles],
        "rows": [rectangle.rows for rectangle in rectangles],
    }


def _transfer_columns(transfers: Sequence[Transfer]) -> dict[str, list[Any]]:
    return {
        "value": [transfer.value for transfer in transfers],
        "source": [transfer.source for transfer in transfers],
        "source_wafer": [transfer.source_wafer for transfer in transfers],
        "target_wafer": [transfer.target_wafer for transfer in transfers],
        "bytes_per_token": [transfer.bytes_per_token for transfer in transfers],
    }


def packed(values: Iterable[int]) -> list[int]:
    """Runs of equal steps, ``[step, length, step, length, ...]``, the first step from 0.

    Experts lie in rows, so that a column of 23,040 numbers becomes a few hundred.
    """
    runs: list[int] = []
    last = 0
    for value in values:
        step = value - last
        last = value
        if runs and runs[-2] == step:
            runs[-1] += 1
        else:
            runs += (step, 1)
    return runs


def unpacked(runs: Sequence[int]) -> list[int]:
    """The values that ``packed`` was given."""
    values: list[int] = []
    last = 0
    for step, length in zip(runs[::2], runs[1::2], strict=True):
        for _ in range(length):
            last += step
            values.append(last)
    return values
