"""The placement as a table on the terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table

from ir.plan import Plan

_GB = 1e9


def print_plan(plan: Plan) -> None:
    """Print a row for each wafer, and the totals."""
    table = Table(title=_title(plan), title_justify="left", caption=_caption(plan), caption_justify="left")
    for name in ("wafer", "layers"):
        table.add_column(name, justify="right" if name == "wafer" else "left")
    unit = "GB" if plan.machine.wafer_bytes >= _GB else "kB"
    scale = _GB if unit == "GB" else 1e3
    for name in (f"weights {unit}", f"KV {unit}", f"other {unit}", f"free {unit}", "tiles", "used", "sent B/token"):
        table.add_column(name, justify="right")
    for wafer in range(plan.machine.systems):
        table.add_row(*_row(plan, wafer, scale))
    Console(width=None if Console().is_terminal else 110).print(table)


def _row(plan: Plan, wafer: int, scale: float) -> list[str]:
    blocks = plan.on_wafer(wafer)
    kept = (
        sum(block.weight_bytes for block in blocks),
        sum(block.cache_bytes for block in blocks),
        sum(block.activation_bytes for block in blocks),
        plan.machine.wafer_bytes - plan.wafer_bytes(wafer),
    )
    tiles = sum(block.region.tiles for block in blocks)
    sent = sum(transfer.bytes_per_token for transfer in plan.transfers if transfer.source_wafer == wafer)
    figures = [f"{size / scale:,.3f}" for size in kept]
    return [str(wafer), _layers(plan, wafer), *figures, f"{tiles:,}", f"{tiles / plan.machine.tiles:.1%}", f"{sent:,}"]


def _layers(plan: Plan, wafer: int) -> str:
    """What lies on a wafer, with runs of layers folded: ``embedding, 0-3``."""
    blocks = plan.on_wafer(wafer)
    layers = sorted({block.layer for block in blocks if block.layer is not None})
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), key=lambda item: item[1] - item[0])]
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    others = [block.name for block in blocks if block.layer is None]
    first, last = others[: len(others) if not layers else 1], others[1:] if layers else []
    if layers and others and blocks[0].layer is not None:
        first, last = [], others
    return ", ".join([*first, *shown, *last]) or "-"


def _title(plan: Plan) -> str:
    machine, workload = plan.machine, plan.workload
    return (
        f"{plan.model_name} on {machine.systems} x {machine.description}, "
        f"{workload.users:,} users x {workload.context:,} tokens of context"
    )


def _caption(plan: Plan) -> str:
    solver = plan.solver
    proof = f", proven by {solver.proof}" if solver.proof else ""
    return (
        f"{solver.status}: fullest wafer {solver.objective_value:,} B, bound {solver.best_bound:,} B, "
        f"gap {solver.gap:.2%}{proof}; {solver.traffic_bytes_per_token:,} B between wafers for each token"
    )
