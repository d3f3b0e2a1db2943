"""The forecast beside published speeds: ``python -m benchmarks.validate`` prints the table, ``--fit`` fits first.

``--docs`` writes docs/validation.md and docs/validation.svg. The constants that are fitted (:data:`FITTED`) are found
by least squares over relative errors of the rows marked ``fit`` in published.toml, and of no others.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ir.diagnostics import InfeasibleError
from ir.profile import Product, Profile
from ir.target import Target, Wafers
from partitioner.api import LoadOptions
from partitioner.estimate import Question
from partitioner.forecast import answer, estimate
from partitioner.profiles import load_profile
from targets.cost.cycles import Region, stationary_cycles
from targets.machines import load_target
from targets.speculation import Speculation

PUBLISHED = Path(__file__).with_name("published.toml")
DOCS = Path(__file__).parent.parent / "docs"
FITTED = ("tile.launch_cycles", "tile.issue_cycles", "fabric.shift_cycles")
"""The free constants, the same for every wafer."""
DRAFT_TOKENS = 4
"""Drafted for each step in all speculative rows alike, by an EAGLE-3 head."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published speed, in tokens a second of one user; 0 where it varies. ``mesh`` is a side in tiles, 0 for the
    whole machine.
    """

    name: str
    use: str
    phase: str
    target: str
    model: str
    systems: int | None
    devices: int | None
    mesh: int
    input_tokens: int
    output_tokens: int
    tokens_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A row beside its forecast. For speculative rows, ``steps`` says on how many systems how many tokens each step
    must yield for the published speed.
    """

    row: Row
    forecast: float
    low: float
    high: float
    systems: int
    steps: tuple[tuple[int, float], ...] = ()

    @property
    def error(self) -> float:
        """Relative error of the forecast."""
        return self.forecast / self.row.tokens_per_s - 1


def published() -> Iterator[Row]:
    """Every row, meshes and speeds one by one."""
    for entry in tomllib.loads(PUBLISHED.read_text("utf-8"))["rows"]:
        speeds = entry["tokens_per_s"] or [0.0]
        for mesh, speed in zip(entry.get("mesh", [0] * len(speeds)), speeds, strict=True):
            yield Row(
                name=entry["name"] + (f", {mesh} x {mesh} tiles" if mesh else ""),
                use=entry["use"],
                phase=entry.get("phase", "decode"),
                target=entry.get("target", ""),
                model=entry.get("model", ""),
                systems=entry.get("systems"),
                devices=entry.get("devices"),
                mesh=mesh,
                input_tokens=entry.get("input_tokens", 1000),
                output_tokens=entry.get("output_tokens", 500),
                tokens_per_s=speed,
                source=entry["source"],
            )


def kernels() -> list[dict[str, Any]]:
    """Every kernel that was measured alone."""
    return list(tomllib.loads(PUBLISHED.read_text("utf-8"))["kernels"])


def kernel_us(kernel: Mapping[str, Any], constants: Mapping[str, float] | None = None) -> float:
    """The forecast of a product alone: repeated without end, so that nothing is launched anew."""
    target = load_target("cs2", constants)
    assert isinstance(target.cluster, Wafers) and target.cluster.speed is not None
    speed = replace(target.cluster.speed, launch_cycles=0)
    product = Product(kernel["size"], kernel["size"], 16)
    cycles = stationary_cycles(product, Region(kernel["mesh"], kernel["mesh"]), 1, 0, speed)
    return cycles.total / speed.clock_hz * 1e6


def compare(row: Row, profiles: Mapping[str, Profile]) -> Compared:
    """The forecast of a row."""
    question, target = _question(row), _target(row, {})
    found = estimate(profiles[row.model], target, question)
    speed = found.prefill_tokens_per_s if row.phase == "prefill" else found.tokens_per_s_per_user
    plain = Compared(row, speed.value, speed.low, speed.high, found.systems)
    if row.use != "speculative":
        return plain
    drafted = replace(question, speculation=Speculation(DRAFT_TOKENS, 0.0))
    return replace(plain, steps=tuple(_steps(row, profiles[row.model], target, drafted)))


def _steps(row: Row, profile: Profile, target: Target, drafted: Question) -> Iterator[tuple[int, float]]:
    """Systems, and the tokens that a step must yield there for the published speed."""
    try:
        fewest = estimate(profile, target, drafted)
    except InfeasibleError:  # no stage has room for the draft
        return
    yield fewest.systems, row.tokens_per_s / fewest.tokens_per_s_per_user.value
    if row.systems is None and isinstance(target.cluster, Wafers):
        # Nobody says on how many systems: on the fewest at least, and hardly on more than twice as many.
        more = estimate(profile, target, replace(drafted, systems=2 * fewest.systems))
        yield more.systems, row.tokens_per_s / more.tokens_per_s_per_user.value


def _target(row: Row, constants: Mapping[str, float]) -> Target:
    changes: dict[str, float | None] = {"mesh.columns": row.mesh, "mesh.rows": row.mesh} if row.mesh else {}
    if row.devices:
        changes["node.devices"] = row.devices
    return load_target(row.target, {**changes, **constants})


def _question(row: Row) -> Question:
    return Question(input_tokens=row.input_tokens, output_tokens=row.output_tokens, systems=row.systems)


def load_profiles(rows: list[Row]) -> dict[str, Profile]:
    """The profile of every model in ``rows``."""
    return {name: load_profile(name, LoadOptions()) for name in sorted({row.model for row in rows if row.model})}


def error(row: Row, profiles: Mapping[str, Profile], constants: Mapping[str, float]) -> float:
    """The relative error of a row's forecast with ``constants`` in the place of the machine file's."""
    question = _question(row)
    found = answer(profiles[row.model], _target(row, constants), question)
    prefill = question.input_tokens / found.time_to_first_token_s
    return (prefill if row.phase == "prefill" else found.tokens_per_s_per_user) / row.tokens_per_s - 1


def fit(rows: list[Row], profiles: Mapping[str, Profile]) -> dict[str, float]:
    """The free constants, by least squares over the relative errors of the rows set aside for it."""
    import numpy as np
    from scipy.optimize import least_squares

    chosen = [row for row in rows if row.use == "fit"]
    single = [kernel for kernel in kernels() if kernel["use"] == "fit"]
    start = [load_target("cs2").figures[name].value for name in FITTED]

    def errors(values: Any) -> Any:
        constants = dict(zip(FITTED, map(float, values), strict=True))
        speeds = [error(row, profiles, constants) for row in chosen]
        return np.array(speeds + [kernel_us(kernel, constants) / kernel["us"] - 1 for kernel in single])

    found = least_squares(errors, start, diff_step=0.02, x_scale=start, xtol=1e-4)
    return dict(zip(FITTED, map(float, found.x), strict=True))


# --- telling ----------------------------------------------------------------------------------------------------------

_SIGNS = {"fit": "C", "compare": "", "speculative": "S", "told": "-"}


@dataclass(frozen=True, slots=True)
class Validation:
    """Every published row: compared, or with the reason why not; and the kernels by themselves, in microseconds."""

    compared: tuple[Compared, ...]
    told: tuple[Row, ...]
    kernels: tuple[tuple[str, str, float, float], ...]

    @property
    def fit_error(self) -> float:
        """Mean relative error of what the constants were fitted to."""
        errors = [abs(each.error) for each in self.compared if each.row.use == "fit"]
        errors += [abs(us / measured - 1) for _, use, measured, us in self.kernels if use == "fit"]
        return sum(errors) / len(errors)

    @property
    def worst_error(self) -> float:
        """The largest relative error of rows that are neither speculative nor fitted."""
        errors = [abs(each.error) for each in self.compared if each.row.use == "compare"]
        errors += [abs(us / measured - 1) for _, use, measured, us in self.kernels if use == "compare"]
        return max(errors)


def validate() -> Validation:
    """All rows, none left out."""
    rows = list(published())
    profiles = load_profiles(rows)
    return Validation(
        compared=tuple(compare(row, profiles) for row in rows if row.use != "told"),
        told=tuple(row for row in rows if row.use == "told"),
        kernels=tuple((k["name"], k["use"], k["us"], kernel_us(k)) for k in kernels()),
    )


def table(found: Validation) -> str:
    """A Markdown table of all rows."""
    lines = [
        "| | published speed | systems | tok/s | forecast | range | error | tokens per step for it |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for each in found.compared:
        speculative = each.row.use == "speculative"
        steps = ", ".join(f"{needed:.2f} on {systems}" for systems, needed in each.steps)
        error = "" if speculative else f"{each.error:+.1%}"
        lines.append(
            f"| {_SIGNS[each.row.use]} | {each.row.name} | {each.systems} | {each.row.tokens_per_s:,.1f} |"
            f" {each.forecast:,.1f} | {each.low:,.0f} to {each.high:,.0f} | {error} | {steps} |"
        )
    for name, use, measured, us in found.kernels:
        lines.append(f"| {_SIGNS[use]} | {name} | 1 | {measured} us | {us:.2f} us | | {us / measured - 1:+.1%} | |")
    for row in found.told:
        speed = f"{row.tokens_per_s:,.1f}" if row.tokens_per_s else "varies"
        lines.append(f"| - | {row.name} | | {speed} | none | | | |")
    return "\n".join(lines)


_SIDE_BY_SIDE = (
    "llama-3.1-8b",
    "qwen3-32b",
    "llama-3.3-70b",
    "llama-3.1-405b",
    "gpt-oss-120b",
    "qwen3-235b-a22b",
    "deepseek-v3",
    "kimi-k2.6",
)


def side_by_side() -> str:
    """A Markdown table of wafers and GPUs, from small models to large ones."""
    lines = [
        "| model | CS-3 (systems) | 8 GPUs of an NVL72 | all 72 | CS-3 over 8, over 72 |",
        "|---|---:|---:|---:|---:|",
    ]
    question = Question(input_tokens=2000, output_tokens=400)
    rack = load_target("gb200_nvl72")
    for name in _SIDE_BY_SIDE:
        profile = load_profile(name, LoadOptions())
        wafers, *gpus = (
            answer(profile, target, question)
            for target in (load_target("cs3"), load_target("gb200_nvl72", {"node.devices": 8}), rack)
        )
        speeds = [each.tokens_per_s_per_user for each in gpus]
        margins = ", ".join(f"{wafers.tokens_per_s_per_user / speed:.1f}" for speed in speeds)
        told = " | ".join(f"{speed:,.0f}" for speed in speeds)
        lines.append(f"| {name} | {wafers.tokens_per_s_per_user:,.0f} ({wafers.systems}) | {told} | {margins} |")
    return "\n".join(lines)


def sources(found: Validation) -> str:
    """Where each row comes from."""
    rows = [each.row for each in found.compared] + list(found.told)
    return "\n".join(dict.fromkeys(f"- {row.name.partition(', ' + str(row.mesh))[0]}: {row.source}" for row in rows))


def plot(found: Validation, path: Path) -> None:
    """Published speeds against forecasts, with the forecast's range, both on logarithmic scales."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "waferc"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 5.6), layout="constrained")
    ends = [200, 40_000]
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.fill_between(ends, [0.8 * end for end in ends], [1.2 * end for end in ends], color="0.92", label="20 %")
    looks = {
        "fit": ("o", "fitted to"),
        "compare": ("s", "not fitted to"),
        "speculative": ("^", "speculative: forecast without"),
    }
    for use, (marker, label) in looks.items():
        chosen = [each for each in found.compared if each.row.use == use]
        x, y = [each.row.tokens_per_s for each in chosen], [each.forecast for each in chosen]
        bars = [[each.forecast - each.low for each in chosen], [each.high - each.forecast for each in chosen]]
        axes.errorbar(x, y, yerr=bars, fmt=marker, markersize=5, linewidth=0.8, capsize=2, label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="published, tokens/s of one user", ylabel="forecast, tokens/s of one user"
    )
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def document(found: Validation) -> str:
    """docs/validation.md."""
    constants = {name: load_target("cs3").figures[name].value for name in FITTED}
    told = ", ".join(f"{name} {value:g}" for name, value in constants.items())
    return f"""# Forecasts beside published speeds

Made by `make validate`. Rows marked C are those that the constants were fitted to ({told}; mean error
{found.fit_error:.1%}); those without a mark were not used (largest error {found.worst_error:.1%}). Rows marked S are
speculative or may be: the forecast is without speculation, and the last column says how many tokens each step must
yield to reach the published speed, with {DRAFT_TOKENS} tokens drafted for each step by an EAGLE-3 head on the same
systems, the same for all rows. Where the number of systems was not published, it is told for the fewest that hold model
and draft, and for twice as many. Where several speeds were published for one service, the lower ones may be without
speculation: about one token a step, or less, says that the forecast without it is as fast. For rows marked - there is
nothing that a forecast from hardware could say.

{table(found)}

![Published speeds against forecasts](validation.svg)

## Wafers and GPUs side by side

Tokens a second of one user alone, 2,000 tokens in and 400 out, without speculation, on the fewest CS-3 that hold the
model. Forecasts, not measurements; [forecast.md](forecast.md) explains them.

{side_by_side()}

## Where the published speeds come from

{sources(found)}
"""


def main(arguments: list[str] | None = None) -> None:
    """Print the table; see the module's text for the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the constants first, and print them")
    parser.add_argument("--docs", action="store_true", help="write docs/validation.md and its plot")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.fit:
        rows = list(published())
        fitted = fit(rows, load_profiles(rows))
        print(json.dumps(fitted, indent=2))
    found = validate()
    if options.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print(table(found))
        print(f"mean error of C rows {found.fit_error:.1%}; largest of the others {found.worst_error:.1%}")
    if options.docs:
        (DOCS / "validation.md").write_text(document(found), "utf-8")
        plot(found, DOCS / "validation.svg")


if __name__ == "__main__":
    main()
