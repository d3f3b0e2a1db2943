"""The placement as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ir.plan import Plan, Score
from partitioner.cli.output import amount

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def print_plan(plan: Plan) -> None:
    """Print a row for each wafer in use, in the order of the pipeline, and the totals."""
    unit, scale = next((u for u in _UNITS if plan.largest_wafer_bytes >= u[1]), _UNITS[-1])
    table = Table(title=_title(plan), title_justify="left", caption=_caption(plan), caption_justify="left")
    table.add_column("wafer", justify="right")
    table.add_column("layers")
    for name in (f"weights {unit}", f"KV {unit}", f"other {unit}", f"free {unit}", "tiles", "used", "sent B/token"):
        table.add_column(name, justify="right")
    for wafer in plan.wafers_used:
        table.add_row(*_row(plan, wafer, scale))
    console = Console()
    Console(width=None if console.is_terminal else 110, markup=False, emoji=False).print(table)


def _row(plan: Plan, wafer: int, scale: float) -> list[str]:
    blocks = plan.on_wafer(wafer)
    kept = (
        sum(block.weight_bytes for block in blocks),
        sum(block.cache_bytes for block in blocks),
        sum(block.activation_bytes for block in blocks),
        plan.machine.bytes_of(wafer) - plan.wafer_bytes(wafer),
    )
    tiles = sum(block.region.tiles for block in blocks)
    sent = sum(transfer.bytes_per_token for transfer in plan.transfers if transfer.source_wafer == wafer)
    figures = [f"{size / scale:,.3f}" for size in kept]
    used = tiles / max(1, plan.machine.wafer(wafer).tiles)
    return [str(wafer), _layers(plan, wafer), *figures, f"{tiles:,}", f"{used:.1%}", f"{sent:,}"]


def _layers(plan: Plan, wafer: int) -> str:
    """What lies on a wafer in pipeline order, with runs of layers folded: ``embedding, 0-3``."""
    runs: list[list[int]] = []
    shown: list[str] = []
    for block in plan.on_wafer(wafer):
        if block.layer is None:
            shown.append(block.title)
        elif runs and block.layer - runs[-1][-1] <= 1:
            runs[-1].append(block.layer)
        else:
            runs.append([block.layer])
            shown.append("")
    folded = iter(f"{run[0]}-{run[-1]}" if run[0] != run[-1] else str(run[0]) for run in runs)
    return ", ".join(name or next(folded) for name in shown)


def _title(plan: Plan) -> str:
    machine, workload = plan.machine, plan.workload
    users = "1 user" if workload.users == 1 else f"{workload.users:,} users"
    title = f"{plan.model_name} on {machine.systems} x {machine.description}"
    remembers = any(block.cache_bytes for block in plan.blocks)
    return f"{title}, {users} x {workload.context:,} tokens of context" if remembers else title


def _caption(plan: Plan) -> str:
    solver = plan.solver
    systems, in_service = plan.machine.systems, len(plan.machine.in_service)
    spare = in_service - len(plan.wafers_used)
    unused = f"; {spare} of {systems} systems unused" if spare else ""
    unused += f"; {systems - in_service} of {systems} out of service" if in_service < systems else ""
    interrupted = ", the search being interrupted" if solver.interrupted else ""
    return "\n".join([f"{solver.status}{interrupted}{unused}", *map(_score, solver.scores)])


def _score(score: Score) -> str:
    proof = f", proven by {score.proof}" if score.proof else ""
    unit = score.objective.unit
    if unit == "fs":  # nobody reads as many digits
        value, bound = amount(score.value, unit), amount(score.bound, unit)
    else:
        value, bound = f"{score.value:,} {unit}", f"{score.bound:,}"
    return f"{score.objective} {value}, bound {bound}, gap {score.gap:.2%}{proof}"
