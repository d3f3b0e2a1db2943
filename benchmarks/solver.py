"""Everything that `make bench-solver` measures, as tables with ratios to others.

    python -m benchmarks.solver [FOLDER] [--time-limit S] [--skip NAME,...]

FOLDER holds instances of github.com/msr-fiddle/dnn-partitioning, as published. For each: the contiguous optimum beside
the authors' dynamic programme, the best placement of any kind beside the best of four heuristics, then both with 20
accelerators and with accelerators of 1.2 times the mean memory. Every command runs in a process of its own, and its
seconds are those of the whole command. Without FOLDER, only the comparisons that need no instances:
:mod:`benchmarks.accelerate_maps` and :mod:`benchmarks.solver_scale`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.instances import read_instance


@dataclass(frozen=True, slots=True)
class Published:
    """What others reach: the authors' exact contiguous programme, with its seconds on two cores, and the best of
    experts, PipeDream, local search and METIS (Tarnawski et al., 2020).
    """

    contiguous: float
    seconds: float
    heuristic: float


PUBLISHED = {
    "LayerGraphs-bert24_inference": Published(17.7899, 0.01, 17.7776),
    "LayerGraphs-bert24_training": Published(41.7458, 0.01, 39.9432),
    "LayerGraphs-gnmt_inference": Published(32.9107, 9.9, 31.7827),
    "LayerGraphs-inceptionv3_inference": Published(51.5519, 1453, 54.0398),
    "LayerGraphs-resnet50_inference": Published(33.7747, 0.1, 34.558),
    "LayerGraphs-resnet50_training": Published(78.6318, 0.1, 81.6046),
    "OperatorGraphs-bert_l-3_inference": Published(27.9186, 0.5, 27.5741),
    "OperatorGraphs-bert_l-3_training": Published(65.3031, 3.2, 65.303),
    "OperatorGraphs-bert_l-6_inference": Published(29.5795, 1.9, 31.690),
    "OperatorGraphs-bert_l-6_training": Published(72.865, 11.3, 75.225),
    "OperatorGraphs-bert_l-12_inference": Published(147.478, 8.3, 152.390),
    "OperatorGraphs-resnet50_inference": Published(124.349, 0.1, 129.155),
}


def solve(path: Path, *options: str) -> tuple[dict[str, Any], float]:
    """One run of ``benchmarks.device_placement``: what it printed, and the seconds of the whole command."""
    command = [sys.executable, "-m", "benchmarks.device_placement", str(path), "--json", *options]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own command
    seconds = time.perf_counter() - begin
    if not done.stdout.strip():
        return {"status": f"failed ({done.returncode}): {done.stderr.strip()[-200:]}"}, seconds
    found: dict[str, Any] = json.loads(done.stdout)
    return found, seconds


def _row(name: str, mode: str, found: dict[str, Any], seconds: float, others: list[str]) -> None:
    if found.get("objective") is None:
        print(f"| {name} | {mode} | - | - | - | {found['status']} | {seconds:.1f} | - | - |", flush=True)
        return
    value, bound = found["objective"], found["bound"]
    gap = f"{(value - bound) / value:.2%}" if value else "0"
    cells = [name, mode, f"{value:.4f}", f"{bound:.4f}", gap, found["status"], f"{seconds:.1f}", *others]
    print(f"| {' | '.join(cells)} |", flush=True)


def instances(folder: Path, time_limit: str) -> None:
    """A table of all instances in ``folder``."""
    print(
        "| instance | placement | objective | bound | gap | status | s | to the authors' optimum, and their s / ours ",
        end="",
    )
    print("| to the best heuristic |\n|---|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        known = PUBLISHED.get(path.stem)
        for mode, name in (("--contiguous", "contiguous"), ("--free", "any")):
            found, seconds = solve(path, mode, "--time-limit", time_limit)
            others = ["-", "-"]
            if known and found.get("objective"):
                sooner = f"{known.seconds / seconds:.2f}" if name == "contiguous" else "-"
                others = [f"{found['objective'] / known.contiguous:.5f}, {sooner}"]
                others.append(f"{found['objective'] / known.heuristic:.4f}")
            _row(path.stem, name, found, seconds, others)


def variants(folder: Path, time_limit: str) -> None:
    """The same graphs on 20 accelerators, and on accelerators that all but the best placements overfill."""
    print("| instance | placement | objective | bound | gap | status | s | | |\n|---|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        instance = read_instance(path)
        total = sum(operator.size_bytes for operator in instance.operators)
        tight = str(math.ceil(1.2 * total / instance.accelerators))
        for mode in ("--contiguous", "--free"):
            for label, options in (("k = 20", ("--k", "20")), ("tight memory", ("--memory", tight))):
                found, seconds = solve(path, mode, *options, "--time-limit", time_limit)
                _row(path.stem, f"{mode[2:]}, {label}", found, seconds, ["", ""])


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description="the solver beside others")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--time-limit", default="60")
    parser.add_argument("--skip", default="", help="parts to leave out: instances, variants, accelerate, scale")
    options = parser.parse_args()
    skipped = options.skip.split(",")
    if options.folder and "instances" not in skipped:
        instances(options.folder, options.time_limit)
    if options.folder and "variants" not in skipped:
        variants(options.folder, options.time_limit)
    for part, arguments in (
        ("accelerate", ["benchmarks.accelerate_maps"]),
        ("scale", ["benchmarks.solver_scale"]),
        ("scale", ["benchmarks.solver_scale", "--graph", "branches", "--sizes", "125x20,1000x50"]),
        ("scale", ["benchmarks.solver_scale", "--objective", "latency", "--sizes", "125x20,1000x50"]),
        ("scale", ["benchmarks.solver_scale", "--objective", "bottleneck", "--sizes", "125x20,1000x50"]),
    ):
        if part not in skipped:
            print(flush=True)
            subprocess.run([sys.executable, "-m", *arguments], check=True)  # noqa: S603 - our own commands


if __name__ == "__main__":
    main()
