"""``waferc compare``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ir.diagnostics import Diagnostic, UsageError
from ir.target import Target
from partitioner.cli.estimate import Drafting, forecast_record
from partitioner.cli.output import Output
from partitioner.comparison import WORKLOADS, Row, compare
from partitioner.estimate import Question
from partitioner.options import LoadOptions
from partitioner.profiles import load_profile
from partitioner.questions import machine

PRICE = "cluster.usd_per_system_hour"


def run_compare(
    model: str,
    options: LoadOptions,
    names: Sequence[str],
    prices: dict[str, float],
    workload: str,
    users: int | None,
    drafting: Drafting,
    out: Output,
) -> None:
    """Compare, and report a table for each workload."""
    begin = time.perf_counter()
    workloads = _workloads(workload)
    machines = _machines(names, prices)
    Question(users=1 if users is None else users)
    speculation = drafting.read()
    with out.progress() as progress:
        progress(f"reading {model}")
        profile = load_profile(model, options)
        rows = []
        for row in compare(profile, machines, workloads, users, speculation):
            rows.append(row)
            progress(f"forecasting: {row.workload} on {row.target} is done")
    if out.json:
        out.result(
            {
                "model": profile.name,
                "rows": [_record(row) for row in rows],
                "wall_s": round(time.perf_counter() - begin, 3),
            }
        )
        return
    from partitioner.cli.forecast_report import report_console

    console = report_console()
    for name in workloads:
        _print_workload(console, profile.name, name, [row for row in rows if row.workload == name])
    console.print("modelled, not measured; alone: tokens/s of a single user")
    if users is None:
        console.print(
            "users: as many as get every request in time (one, if none does); in batch, the best of those tried"
        )
    console.print("systems: of the fewest that fit and up to twice as many, those that yield the most for each in time")


def _workloads(workload: str) -> tuple[str, ...]:
    if workload == "all":
        return tuple(WORKLOADS)
    if workload not in WORKLOADS:
        message = f"--workload is {', '.join(WORKLOADS)} or all, not {workload!r}"
        raise UsageError(Diagnostic("W0104", message, "--workload"))
    return (workload,)


def _machines(names: Sequence[str], prices: dict[str, float]) -> tuple[Target, ...]:
    unknown = sorted(prices.keys() - set(names))
    if unknown:
        message = f"there is a price for {', '.join(unknown)}, which is not compared"
        raise UsageError(Diagnostic("W0104", message, "--prices"))
    if not names:
        raise UsageError(Diagnostic("W0104", "--targets names no machine", "--targets"))
    return tuple(machine(name, None, {PRICE: prices[name]} if name in prices else None) for name in names)


def _record(row: Row) -> dict[str, Any]:
    kind = WORKLOADS[row.workload]
    record: dict[str, Any] = {
        "workload": row.workload,
        "target": row.target,
        "fits": row.forecast is not None,
        "reason": row.reason,
        "target_s": kind.target_s,
        "in_time": row.in_time,
        "devices": row.devices,
        "alone_tokens_per_s": row.alone_tokens_per_s,
    }
    return {**forecast_record(row.forecast), **record} if row.forecast else record


def _print_workload(console: Console, model: str, name: str, rows: Sequence[Row]) -> None:
    from partitioner.cli.forecast_report import duration, figure, table

    kind = WORKLOADS[name]
    wanted = "batch" if kind.target_s is None else f"in {kind.target_s:g} s"
    priced = any(row.forecast and row.forecast.usd_per_million_tokens is not None for row in rows)
    title = f"{model}: {kind.title}, {kind.input_tokens:,} in + {kind.output_tokens:,} out, {wanted}"
    made = table(
        *("target", "systems", "devices", "users", "alone", "tokens/s each", "request", "in time", "in all"),
        *("J/token", "kWh/M", *(("USD/M",) if priced else ())),
        title=title,
    )
    made.padding = (0, 1, 0, 0)
    for column in made.columns:
        column.no_wrap = True
    for row in rows:
        found = row.forecast
        if found is None:
            continue
        speed = found.tokens_per_s_per_user
        price = found.usd_per_million_tokens
        made.add_row(
            row.target,
            f"{found.systems:,}",
            f"{row.devices:,}",
            f"{found.users:,}",
            figure(row.alone_tokens_per_s),
            f"{figure(speed.value)} ({figure(speed.low)}-{figure(speed.high)})",
            duration(found.request_s.value),
            {None: "-", True: "yes", False: "no"}[row.in_time],
            figure(found.total_tokens_per_s.value),
            figure(found.joules_per_token),
            figure(found.joules_per_token / 3.6),
            *(("-" if price is None else figure(price),) if priced else ()),
        )
    console.print(made)
    for row in rows:
        if row.forecast is None:
            console.print(f"{row.target}: does not serve this, {row.reason}")
    console.print()
