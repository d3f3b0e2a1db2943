"""A forecast for people: what users get, where the time goes, what limits, and how far to trust it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ir.forecast import Forecast, Limit, Range, Sensitivity
from ir.target import DeviceCluster, Target
from targets.queue import Simulated

WIDTH = 110
_BAR = 30
_MOST_STAGES = 14
_MOST_FIGURES = 8


def print_forecast(forecast: Forecast, target: Target, events: Simulated | None = None) -> None:
    """Print the whole report."""
    console = report_console()
    parts = [
        _title(forecast, target),
        _answers(forecast, events),
        _room(forecast),
        _by_users(forecast),
        _step(forecast),
        _stages(forecast.limits, isinstance(target.cluster, DeviceCluster)),
    ]
    if forecast.sensitivities:
        parts.append(_figures(forecast.sensitivities))
    for part in parts:
        console.print(part)
        console.print()
    if not forecast.sensitivities:
        console.print("note: the machine file gives no figure a range, so the forecast has none")
    for note in forecast.notes:
        console.print(f"note: {note}")


def report_console() -> Console:
    """As wide as the terminal, and of a fixed width elsewhere."""
    console = Console()
    return Console(width=None if console.is_terminal else WIDTH, markup=False, emoji=False, highlight=False)


def table(*columns: str, title: str = "", left: Sequence[int] = (0,)) -> Table:
    """A plain table: ``left`` columns (numbers) are of text, the others of figures."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number in left else "right", header_style="dim")
    return made


def figure(value: float) -> str:
    """Three digits that count, thousands parted."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns" if seconds else "0"


def plural(number: int, noun: str) -> str:
    """``1 user``, ``2 users``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _title(forecast: Forecast, target: Target) -> str:
    tokens = f"{forecast.input_tokens:,} tokens in and {forecast.output_tokens:,} out"
    context = f"{forecast.context:,} tokens of context"
    chunks = f"prompts in chunks of {forecast.prefill_chunk:,}"
    return (
        f"{forecast.model} on {target.description}: modelled, not measured\n"
        f"{forecast.layout}\n"
        f"{plural(forecast.users, 'user')}, requests of {tokens}, {context}; {chunks}"
    )


def _answers(forecast: Forecast, events: Simulated | None) -> Table:
    made = table("", "forecast", "from", "to", *(("simulated", "95 of 100 below") if events else ()))
    rows: dict[str, tuple[Range, Callable[[float], str]]] = {
        "tokens/s for each user": (forecast.tokens_per_s_per_user, figure),
        "tokens/s for all users": (forecast.total_tokens_per_s, figure),
        "first token": (forecast.time_to_first_token_s, duration),
        "whole request": (forecast.request_s, duration),
        "prompt tokens/s, alone": (forecast.prefill_tokens_per_s, figure),
    }
    seen = _simulated(events) if events else {}
    for name, (value, shown) in rows.items():
        made.add_row(name, shown(value.value), shown(value.low), shown(value.high), *seen.get(name, ()))
    return made


def _simulated(events: Simulated) -> dict[str, tuple[str, str]]:
    first, request = events.time_to_first_token_s, events.request_s
    return {
        "tokens/s for each user": (figure(events.service.tokens_per_s_per_user), ""),
        "tokens/s for all users": (figure(events.service.total_tokens_per_s), ""),
        "first token": (duration(first.mean), duration(first.p95)),
        "whole request": (duration(request.mean), duration(request.p95)),
    }


def _room(forecast: Forecast) -> str:
    most = "any number of users" if forecast.max_users >= 1 << 40 else plural(forecast.max_users, "user")
    energy = forecast.joules_per_token
    price = forecast.usd_per_million_tokens
    cost = "" if price is None else f"; {figure(price)} USD for a million"
    return (
        f"room for the caches of {most}; {forecast.users_at_full_speed:,} can decode without waiting for each other\n"
        f"{figure(forecast.power_w / 1e3)} kW, {figure(energy)} J for an output token, "
        f"{figure(energy / 3.6)} kWh for a million{cost}"
    )


def _by_users(forecast: Forecast) -> Table:
    made = table("users", "tokens/s each", "tokens/s in all", "request", title="on the same systems")
    for each in forecast.by_users:
        speeds = figure(each.tokens_per_s_per_user), figure(each.total_tokens_per_s)
        made.add_row(f"{each.users:,}", *speeds, duration(each.request_s))
    return made


def _step(forecast: Forecast) -> Table:
    total = sum(forecast.step_s.values())
    yielded = f"{forecast.tokens_per_step:.3g} tokens" if forecast.tokens_per_step > 1 else "a token"
    made = table(
        "cause", "time", "share", "", title=f"one pass of a user, {duration(total)} for {yielded}", left=(0, 3)
    )
    largest = max(forecast.step_s.values())
    for cause, seconds in sorted(forecast.step_s.items(), key=lambda each: -each[1]):
        if seconds:
            bar = "#" * max(1, round(seconds / largest * _BAR))
            made.add_row(cause.replace("_", "-"), duration(seconds), f"{seconds / total:.0%}", bar)
    return made


# --- stages ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fold:
    """Stages that are alike but for the number in their name."""

    name: str
    limits: tuple[Limit, ...]

    @property
    def seconds(self) -> float:
        """Of all of them."""
        return sum(limit.seconds for limit in self.limits)


def folded(limits: Sequence[Limit]) -> tuple[Fold, ...]:
    """Equal stages as one, in order of the first."""
    alike: defaultdict[tuple[object, ...], list[Limit]] = defaultdict(list)
    for limit in limits:
        key = re.sub(r"\d+", "*", limit.stage), limit.tiles, f"{limit.seconds:.3e}", limit.limited_by, limit.critical
        alike[key].append(limit)
    return tuple(Fold(_fold_name(own), tuple(own)) for own in alike.values())


def _fold_name(limits: Sequence[Limit]) -> str:
    """``layers.0.attention`` to ``layers.60.attention`` as ``layers.0-60.attention``, gaps left out."""
    first, last = limits[0].stage, limits[-1].stage
    if first == last or len(limits) == 1:
        return first
    last_numbers = iter(re.findall(r"\d+", last))

    def run(found: re.Match[str]) -> str:
        other = next(last_numbers)
        return found.group() if other == found.group() else f"{found.group()}-{other}"

    return re.sub(r"\d+", run, first)


def _stages(limits: Sequence[Limit], of_devices: bool) -> Table:
    units = ("devices", "node") if of_devices else ("tiles", "wafer")
    made = table(
        *("stage", "number", f"{units[0]} each", units[1], "time each", "time of all", "limited by"),
        title="stages, those that take longest first",
        left=(0, 6),
    )
    kept = sorted(folded(limits), key=lambda fold: -fold.seconds)
    for fold in kept[:_MOST_STAGES]:
        first, last = fold.limits[0], fold.limits[-1]
        on = str(first.system) if first.system == last.system else f"{first.system}-{last.system}"
        beside = "" if first.critical else " (beside the longest path)"
        made.add_row(
            _short(fold.name),
            f"{len(fold.limits):,}",
            f"{first.tiles:,}",
            on,
            duration(first.seconds),
            duration(fold.seconds),
            _limited_by(first) + beside,
        )
    if len(kept) > _MOST_STAGES:
        rest = kept[_MOST_STAGES:]
        number = sum(len(fold.limits) for fold in rest)
        made.add_row("others", f"{number:,}", "", "", "", duration(sum(fold.seconds for fold in rest)), "")
    return made


def _limited_by(limit: Limit) -> str:
    if not limit.seconds:
        return limit.limited_by
    return f"{limit.limited_by} {limit.causes_s[limit.limited_by] / limit.seconds:.0%}"


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:20]}...{name[-21:]}"


# --- figures of the machine -------------------------------------------------------------------------------------------


def _figures(sensitivities: Sequence[Sensitivity]) -> Table:
    made = table(
        *("figure", "from", "to", "tokens/s", "to", "trust", "source"),
        title="uncertain figures of the machine, and a user's tokens/s at their bounds",
        left=(0, 5, 6),
    )
    for column in made.columns[:-1]:
        column.no_wrap = True
    for each in _that_matter(sensitivities):
        at_bounds = _speed(each.tokens_per_s_at_low), _speed(each.tokens_per_s_at_high)
        made.add_row(each.figure, _plain(each.low), _plain(each.high), *at_bounds, each.trust, each.source)
    return made


def _that_matter(sensitivities: Sequence[Sensitivity]) -> Iterator[Sensitivity]:
    for each in sensitivities[:_MOST_FIGURES]:
        if _speed(each.tokens_per_s_at_low) != _speed(each.tokens_per_s_at_high):
            yield each


def _speed(tokens_per_s: float | None) -> str:
    return "does not fit" if tokens_per_s is None else figure(tokens_per_s)


def _plain(value: float) -> str:
    return f"{value:,.10g}" if 0.01 <= abs(value) < 1e6 or value == 0 else f"{value:.3g}"
