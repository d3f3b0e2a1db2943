"""Plans for devices as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ir.device_plan import DevicePlan, Holding, Rank

if TYPE_CHECKING:
    from targets.parallel import Candidate

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_MOST_ROWS = 40


def print_layouts(candidates: Sequence[Candidate]) -> None:
    """Print a row for each layout, the chosen one first."""
    table = Table(title="layouts, the chosen one first", title_justify="left")
    names = ("TP", "EP", "PP", "copies", "nodes", "tok/s user", "tok/s all", "max users")
    causes = ("compute", "memory", "messages", "launch")
    for name in (*names, *(f"{cause} us" for cause in causes)):
        table.add_column(name, justify="right")
    for candidate in candidates:
        degrees, seconds = candidate.placement.degrees, candidate.step.cost.seconds
        counts = (degrees.tensor, degrees.expert, degrees.pipeline, degrees.replicas, candidate.placement.nodes)
        speeds = (candidate.tokens_per_s_per_user, candidate.total_tokens_per_s)
        most = candidate.placement.most_users
        times = (seconds.compute, seconds.memory, seconds.communication, seconds.launch)
        table.add_row(
            *(str(count) for count in counts),
            *(f"{speed:,.1f}" for speed in speeds),
            "any" if most is None else f"{most:,}",
            *(f"{time * 1e6:,.0f}" for time in times),
        )
    _print(table)


def print_device_plan(plan: DevicePlan) -> None:
    """Print what every rank of a replica holds; ranks of a stage that hold as much of the same are one row."""
    largest = max(rank.bytes for rank in plan.ranks)
    unit, scale = next((u for u in _UNITS if largest >= u[1]), _UNITS[-1])
    table = Table(title=_title(plan), title_justify="left", caption=_caption(plan), caption_justify="left")
    for name in ("ranks", "node", "stage"):
        table.add_column(name, justify="right")
    table.add_column("holds")
    for name in ("weights", "KV", "other", "free"):
        table.add_column(f"{name} {unit}", justify="right")
    runs = _runs(plan.ranks)
    for run in runs[:_MOST_ROWS]:
        table.add_row(*_row(run, plan, scale))
    if len(runs) > _MOST_ROWS:
        table.add_row("...", "", "", f"{len(runs) - _MOST_ROWS} rows more", "", "", "", "")
    _print(table)


def _runs(ranks: Sequence[Rank]) -> list[list[Rank]]:
    """Ranks that follow each other on one stage, group and node; their shards differ by a few bytes."""
    runs: list[list[Rank]] = []
    for rank in ranks:
        last = runs[-1][-1] if runs else None
        if last and (last.stage, last.expert_group, last.node) == (rank.stage, rank.expert_group, rank.node):
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return runs


def _row(run: Sequence[Rank], plan: DevicePlan, scale: float) -> list[str]:
    first, last = run[0], run[-1]
    fullest = max(run, key=lambda rank: rank.bytes)
    kept = (fullest.weight_bytes, fullest.cache_bytes, fullest.activation_bytes, plan.device_bytes - fullest.bytes)
    holds = "; ".join(_folded(first.holdings))
    shards = f" / {plan.degrees.tensor}" if plan.degrees.tensor > 1 else ""
    ranks = str(first.rank) if len(run) == 1 else f"{first.rank}-{last.rank}"
    return [ranks, str(first.node), str(first.stage), holds + shards, *(f"{size / scale:,.3f}" for size in kept)]


def _folded(holdings: Sequence[Holding]) -> Iterator[str]:
    """What a rank holds, whatever the bytes of each layer: ``attention of layers 0-3, 5``."""
    layers: dict[str, list[int]] = {}
    for holding in holdings:
        what = str(holding.kind).replace("_", " ")
        if holding.experts:
            what = f"experts {holding.first_expert}-{holding.first_expert + holding.experts - 1}"
        own = layers.setdefault(what, [])
        if holding.first is not None and holding.last is not None:
            own += range(holding.first, holding.last + 1)
    for what, found in layers.items():
        runs = _layer_runs(sorted(set(found)))
        yield f"{what} of layer{'s' if len(set(found)) > 1 else ''} {', '.join(runs)}" if runs else what


def _layer_runs(layers: Sequence[int]) -> list[str]:
    """``0-3`` for layers that follow each other."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _title(plan: DevicePlan) -> str:
    users = "1 user" if plan.workload.users == 1 else f"{plan.workload.users:,} users"
    replicas = f", {plan.degrees.replicas} replicas" if plan.degrees.replicas > 1 else ""
    return (
        f"{plan.model_name} on {plan.nodes} x {plan.devices_in_node} devices of {plan.target}{replicas}, "
        f"{users} x {plan.workload.context:,} tokens of context"
    )


def _caption(plan: DevicePlan) -> str:
    degrees = plan.degrees
    return (
        f"tensor {degrees.tensor} x expert {degrees.expert} x pipeline {degrees.pipeline}; one step of all users in "
        f"{plan.step_s * 1e3:,.3f} ms (forecast)"
    )


def _print(table: Table) -> None:
    console = Console()
    Console(width=None if console.is_terminal else 120, markup=False, emoji=False).print(table)
