"""Published device-placement instances: ``python -m benchmarks.device_placement FILE... [--contiguous | --free]``.

For each file the best placement found and a bound, recomputed from the assignment by :mod:`benchmarks.instances`,
which shares nothing with the solver. Exits with 2 for a file that is no instance, with 1 for an assignment that breaks
a rule, and with 3 where there is no placement or none was found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.instances import Instance, InstanceError, Score, read_instance, score, to_problem
from partitioner.solver.dag.problem import DagProblem, Placement


@dataclass(frozen=True, slots=True)
class Result:
    """One file's answer; times in the file's unit, ``None`` where there is no placement."""

    file: str
    k: int
    mode: str
    placement: Placement
    bound: float
    score: Score | None
    seconds: float
    assignment: dict[int, str]

    @property
    def objective(self) -> float | None:
        """The largest load of the assignment, from the file's figures."""
        return self.score.objective if self.score else None

    @property
    def gap(self) -> float | None:
        """How far the objective may be from the optimum, as a share of the objective."""
        if self.objective is None:
            return None
        return (self.objective - self.bound) / self.objective if self.objective else 0.0

    def as_json(self) -> dict[str, Any]:
        """The answer as it is printed with ``--json``."""
        return {
            "file": self.file,
            "k": self.k,
            "mode": self.mode,
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "status": self.placement.status,
            "proof": self.placement.proof,
            "seconds": round(self.seconds, 3),
            "loads": self.score.loads if self.score else {},
            "broken": list(self.score.broken) if self.score else [],
            "assignment": {str(node): device for node, device in self.assignment.items()},
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Solve the files and print; returns the exit status."""
    options = _options(arguments)
    results = []
    for path in options.files:
        try:
            instance = read_instance(path).with_devices(options.k, options.memory)
        except InstanceError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
        results.append(solve(str(path), instance, free=options.free, time_limit_s=options.time_limit))
        if not options.json:
            print(_text(results[-1]), flush=True)
    if options.json:
        found = [result.as_json() for result in results]
        print(json.dumps(found[0] if len(found) == 1 else {"instances": found}, indent=1))
    for result in results:
        for sentence in result.score.broken if result.score else ():
            print(f"{result.file}: BROKEN: {sentence}", file=sys.stderr)
    if any(result.score and result.score.broken for result in results):
        return 1
    return 3 if any(result.score is None for result in results) else 0


def solve(name: str, instance: Instance, *, free: bool, time_limit_s: float) -> Result:
    """Solve one instance and score what comes back from the file's figures."""
    begin = time.perf_counter()
    problem = to_problem(instance, contiguous=not free)
    placement = _place(problem, time_limit_s)
    seconds = time.perf_counter() - begin
    names = instance.devices
    assignment = {o.id: names[m] for o, m in zip(instance.operators, placement.machines, strict=False)}
    placed = placement.status in ("optimal", "feasible")
    found = score(instance, assignment, contiguous=not free) if placed else None
    # A bound in whole units is as good as the rounding of the sums behind it.
    bound = max(0.0, (placement.bound - len(problem.nodes)) / instance.units)
    if found:
        bound = found.objective if placement.status == "optimal" else min(bound, found.objective)
    mode = "free" if free else "contiguous"
    return Result(name, instance.accelerators, mode, placement, bound, found, seconds, assignment)


def _place(problem: DagProblem, time_limit_s: float) -> Placement:
    """Ask the solver, which is loaded only now."""
    if problem.contiguous:
        from partitioner.solver.dag.contiguous import place_contiguous

        return place_contiguous(problem, time_limit_s, _progress)
    from partitioner.solver.dag.free import place_free

    return place_free(problem, time_limit_s, _progress)


def _progress(incumbent: int, bound: int) -> None:
    """A line for a person who waits."""
    if sys.stderr.isatty():
        gap = "" if not incumbent else f", at most {1 - bound / incumbent:.2%} from the best"
        print(f"found {incumbent} units{gap}", file=sys.stderr)


def _text(result: Result) -> str:
    objective = "-" if result.objective is None else f"{result.objective:.6g}"
    lines = [
        f"file {result.file}",
        f"k {result.k}  mode {result.mode}",
        f"objective {objective}",
        f"bound {result.bound:.6g}",
        f"status {result.placement.status}" + (f": {result.placement.proof}" if result.placement.proof else ""),
        f"seconds {result.seconds:.2f}",
        "assignment",
        *(f"  {node} -> {device}" for node, device in result.assignment.items()),
    ]
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_placement", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--k", type=_count, help="accelerators (default: maxFPGAs of the file)")
    parser.add_argument("--memory", type=_amount, metavar="BYTES", help="of each (default: maxSizePerFPGA of the file)")
    parser.add_argument("--time-limit", type=_amount, default=60.0, metavar="S", help="for each file (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--contiguous", action="store_true", help="machines in a row (default)")
    mode.add_argument("--free", action="store_true", help="any node on any machine")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number that is not negative: {text!r}")
    return int(text)


def _amount(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"a finite number that is not negative: {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
