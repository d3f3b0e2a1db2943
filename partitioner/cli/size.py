"""``waferc size``."""

from __future__ import annotations

import time
from dataclasses import asdict

from partitioner.cli.estimate import DEFAULT_TARGET, Asked, forecast_record
from partitioner.cli.output import Output
from partitioner.forecast import estimate
from partitioner.options import LoadOptions
from partitioner.profiles import load_profile
from partitioner.questions import ask, machine
from partitioner.sizing import Option, Sizing, size


def run_size(model: str, options: LoadOptions, asked: Asked, tokens_per_s: float, out: Output) -> None:
    """Find the fewest systems, and report them with what more or fewer would do."""
    begin = time.perf_counter()
    target = machine(asked.target or DEFAULT_TARGET, asked.mesh, asked.changes)
    drafting = asked.drafting.read()
    ask(None, **asked.question)
    with out.progress() as progress:
        progress(f"reading {model}")
        profile = load_profile(model, options)
        question = ask(profile.max_context, **asked.question, speculation=drafting)
        progress("looking for the fewest systems")
        found = size(profile, target, question, tokens_per_s)
        forecast = estimate(profile, target, found.copy)
    wall_s = time.perf_counter() - begin
    speed = forecast.tokens_per_s_per_user
    if out.json:
        out.result(
            {
                "model": forecast.model,
                "target": forecast.target,
                "users": question.users,
                "context": question.tokens,
                "input_tokens": question.input_tokens,
                "output_tokens": question.output_tokens,
                "min_tokens_per_s": tokens_per_s,
                **asdict(found.option),
                "low": speed.low,
                "high": speed.high,
                "systems_of_a_copy": found.copy.systems,
                "users_of_a_copy": found.copy.users,
                "curve": [asdict(option) for option in found.curve],
                "copy": forecast_record(forecast),
                "wall_s": round(wall_s, 3),
            }
        )
        return
    from partitioner.cli.forecast_report import figure, plural, report_console

    console = report_console()
    option = found.option
    copies = "" if option.copies == 1 else f" ({option.copies:,} copies of the model on {found.copy.systems:,} each)"
    console.print(
        f"{forecast.model} for {plural(question.users, 'user')} at {tokens_per_s:,g} tokens/s each: "
        f"{plural(option.systems, 'system')} of {target.description}{copies}, modelled"
    )
    console.print(
        f"each user gets {figure(speed.value)} tokens/s ({figure(speed.low)} to {figure(speed.high)}), requests of "
        f"{question.input_tokens:,} tokens in and {question.output_tokens:,} out"
    )
    if speed.low < tokens_per_s:
        console.print(f"at the unfavourable end of its range it would be {figure(speed.low)}, less than asked for")
    console.print()
    _print_curve(found, tokens_per_s)
    for note in forecast.notes:
        console.print(f"note: {note}")


def _print_curve(found: Sizing, tokens_per_s: float) -> None:
    from partitioner.cli.forecast_report import duration, figure, report_console, table

    priced = found.option.usd_per_million_tokens is not None
    names = ("systems", "copies", "tokens/s per user", "in all", "request", "most users", "kW", "J/token")
    made = table(*names, *(("USD/M tokens",) if priced else ()), "", left=(len(names) + priced,))
    for option in found.curve:
        most = "any" if option.max_users >= 1 << 40 else f"{option.max_users:,}"
        cells = (
            f"{option.systems:,}",
            f"{option.copies:,}",
            figure(option.tokens_per_s_per_user),
            figure(option.total_tokens_per_s),
            duration(option.request_s),
            most,
            figure(option.power_w / 1e3),
            figure(option.power_w / option.total_tokens_per_s),
        )
        cost = (figure(option.usd_per_million_tokens or 0.0),) if priced else ()
        made.add_row(*cells, *cost, _remark(option, found.option, tokens_per_s))
    report_console().print(made)


def _remark(option: Option, chosen: Option, tokens_per_s: float) -> str:
    if option.systems == chosen.systems:
        return "<- the fewest"
    return "too slow" if option.tokens_per_s_per_user < tokens_per_s else ""
