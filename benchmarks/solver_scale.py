"""How placing grows with the model and the cluster: seconds, memory and the proven gap.

    python -m benchmarks.solver_scale [--sizes 1000x50,10000x200] [--graph chain|branches] [--objective balance,traffic]

Blocks have sizes drawn from a fixed seed, between a tenth of the mean and five times it, so that no two runs are alike;
``branches`` lets two of every eight blocks work side by side. Wafers have half as much room again as the blocks
need. Each size runs in a process of its own: seconds of placing alone, and the most memory held.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time

from ir.objective import Objective
from partitioner.solver.problem import Curve, Flow, Item, Problem, equal_wafers

SIZES = "125x20,250x20,1000x50,2500x100,5000x100,10000x200"


def problem(items: int, wafers: int, graph: str, seed: int = 0) -> Problem:
    """``items`` blocks for ``wafers`` wafers."""
    draw = random.Random(seed)  # noqa: S311 - a test problem, no secret
    sizes = [draw.randint(10, 100) if draw.random() < 0.9 else draw.randint(100, 500) for _ in range(items)]
    tiles = [size * 1000 // 48 + 1 for size in sizes]
    blocks = tuple(
        Item((n,), size * 1_000_000, need, n, weight_bytes=size * 1_000_000, latency=_curve(size), slowest=_curve(size))
        for n, (size, need) in enumerate(zip(sizes, tiles, strict=True))
    )
    flows = [Flow(n, (n + 1,), draw.choice((4096, 8192, 14336)), 1000) for n in range(items - 1)]
    if graph == "branches":  # of every eight blocks the second and third work side by side, between first and fourth
        flows = [flow for flow in flows if flow.source % 8 != 1]
        flows += [Flow(n, (n + 2,), 4096, 1000) for n in range(items - 2) if n % 8 in (0, 1)]
    room = max(sum(tiles) * 150 // 100 // wafers, max(tiles))
    return Problem(blocks, tuple(flows), equal_wafers(wafers, room), hand_over_fs=10**9)


def _curve(size: int) -> Curve:
    """Work that grows with the size, and falls with tiles by steps that halve."""
    drops = tuple((size * 10 << step, 40_000_000 >> (2 * step)) for step in range(4))
    return Curve(size * 1_000_000 + sum(tiles * saved for tiles, saved in drops), drops)


def _one(items: int, wafers: int, graph: str, objectives: tuple[Objective, ...]) -> None:
    from partitioner.solver.cpsat import Limits
    from partitioner.solver.place import place
    from partitioner.solver.score import faults

    asked = problem(items, wafers, graph)
    begin = time.perf_counter()
    solution = place(asked, objectives, Limits())
    seconds = time.perf_counter() - begin
    broken = faults(asked, solution.assignment)
    scores = [[score.objective, score.value, score.bound, score.gap, score.proof] for score in solution.scores]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mb": peak // 1024, "scores": scores, "faults": broken}))


def main() -> None:
    """Place problems of growing size and print a table."""
    parser = argparse.ArgumentParser(description="time of placing against size")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--graph", choices=("chain", "branches"), default="chain")
    parser.add_argument("--objective", default="balance,traffic")
    parser.add_argument("--one", nargs=2, type=int, metavar=("BLOCKS", "WAFERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    objectives = tuple(Objective(name) for name in options.objective.split(","))
    if options.one:
        _one(*options.one, options.graph, objectives)
        return
    print("| blocks | wafers | graph | seconds | MB | objective | value | gap | proof |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes.split(","):
        items, wafers = map(int, size.split("x"))
        command = [sys.executable, "-m", "benchmarks.solver_scale", "--graph", options.graph]
        command += ["--objective", options.objective, "--one", str(items), str(wafers)]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our own command
        if done.returncode:
            print(f"| {items:,} | {wafers} | {options.graph} | {done.stderr.strip().splitlines()[-1]} |")
            continue
        found = json.loads(done.stdout)
        assert not found["faults"], found["faults"]
        for objective, value, _, gap, proof in found["scores"]:
            cells = [f"{items:,}", wafers, options.graph, f"{found['seconds']:.2f}", found["peak_mb"], objective]
            cells += [f"{value:,}", f"{gap:.2%}", proof or "-"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
