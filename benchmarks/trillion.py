"""A model of any size on its plan's tiles: one step, every layer held against the library's own modules.

    python -m benchmarks.trillion PLAN [--ids 1] [--precision native] [--host-memory 4] [--json]
    python -m benchmarks.trillion PLAN --layer 1 --host-memory 12

Weights are made from a seed when they are needed. The first form runs a step through all layers; the second runs the
mixture of experts of one layer alone, on tokens that meet most of its experts, all of which lie in the host's memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ir.diagnostics import CheckError, Diagnostic, WafercError
from partitioner.frontends.streamed import streamed_model
from partitioner.running.compare import text_inputs
from partitioner.running.layers import BOUNDS, LayerCheck, LayerError, compare_layers, compare_mixture, faults_of
from partitioner.running.mixture import mixture_of
from partitioner.running.predicted import predicted_for
from partitioner.running.setup import How, Opened, Runnable, open_plan
from targets.counters import Counters
from targets.emulator import Emulator, Precision
from targets.emulator.seeded import Seeded
from targets.emulator.watch import Steps, Watcher
from targets.host import peak_rss_bytes
from targets.program.instructions import Instruction

Found = tuple[dict[str, Any], list[Diagnostic]]
"""The record of a run, and its faults."""

_GIGABYTE = 10**9
_TOKENS_OF_A_MIXTURE = 64


@dataclass(slots=True)
class Clock:
    """Seconds of each part of the work, by its name; progress is shown on a terminal."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done inside as ``name``."""
        begin = time.perf_counter()
        self.show(name)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def show(self, text: str) -> None:
        """Write over the last line of a terminal."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Progress(Watcher):
    """Shows each block that runs, and adds up the seconds of each kind of operator."""

    clock: Clock
    by_kind: dict[str, int] = field(default_factory=dict)

    def ran(self, user: int, scope: Any, instruction: Instruction, begin_ns: int, end_ns: int) -> None:  # noqa: ARG002
        """See :class:`Watcher`."""
        kind = str(instruction.kind)
        self.by_kind[kind] = self.by_kind.get(kind, 0) + end_ns - begin_ns
        self.clock.show(f"emulator: {scope.program.where}")


def main() -> None:
    """Run, print what was found, and exit with 6 if the run is not the original's."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    clock = Clock()
    try:
        with clock.part("reading the plan"):
            runnable = open_plan(arguments.plan)
        run = run_mixture if arguments.layer is not None else run_step
        record, faults = run(runnable, arguments, clock)
    except WafercError as error:
        for fault in error.diagnostics:
            print(fault, file=sys.stderr)
        sys.exit(error.exit_code)
    record["seconds"] = {name: round(seconds, 1) for name, seconds in clock.seconds.items()}
    record["peak_rss_bytes"] = peak_rss_bytes()
    clock.show("")
    if arguments.json:
        print(json.dumps(record))
    else:
        for name, value in record.items():
            print(f"{name.replace('_', ' '):24} {_shown(value)}")
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        sys.exit(CheckError.exit_code)


def run_step(runnable: Runnable, arguments: argparse.Namespace, clock: Clock) -> Found:
    """One step of all layers."""
    model = runnable.model
    source = Seeded(model.graph.parameter, arguments.seed, held=False)
    book, progress = Steps(), Progress(clock)
    with clock.part("laying out"):
        emulator = _emulator(runnable, source, arguments)
        emulator.watchers = (book, progress)
        library = streamed_model(runnable.origin.config, source)
    ids = [int(token) for token in arguments.ids.split(",")]
    if not arguments.json:
        print(f"{'layer':12} {'error':>9} {'drift':>9}  experts  other choices")

    def tell(layer: LayerError) -> None:
        clock.show("")
        if not arguments.json:
            print(_row(layer), flush=True)

    with clock.part("running and comparing"):
        check = compare_layers(emulator, library, text_inputs(ids), tell)
    with clock.part("predicting"):
        predicted, fault = predicted_for(Opened(runnable, How()), book)
    faults = [*faults_of(check, model.graph.name), *([fault] if fault else [])]
    clock.seconds |= {f"emulator, {kind}": ns / 1e9 for kind, ns in progress.by_kind.items()}
    record = {
        "parameters": model.parameters,
        **_of_check(check),
        "counters": _totals(book.counted),
        "predicted_counters": _totals(predicted),
    }
    return record | {"ok": not faults}, faults


def run_mixture(runnable: Runnable, arguments: argparse.Namespace, clock: Clock) -> Found:
    """One layer's mixture of experts, whole in the host's memory."""
    mixture = mixture_of(runnable.model, runnable.plan, arguments.layer)
    source = Seeded(runnable.model.graph.parameter, arguments.seed, arguments.threads)
    progress = Progress(clock)
    with clock.part("laying out"):
        emulator = _emulator(Runnable(mixture.model, mixture.plan, runnable.origin), source, arguments)
        emulator.watchers = (progress,)
        library = streamed_model(runnable.origin.config, source)
    generator = torch.Generator().manual_seed(arguments.seed)
    width = mixture.hidden.type.shape[-1]
    assert isinstance(width, int)
    hidden = torch.randn(1, _TOKENS_OF_A_MIXTURE, width, generator=generator).to(torch.bfloat16)
    pieces = torch.split(hidden, runnable.plan.workload.chunk, dim=1)
    with clock.part("running and comparing"):
        errors = [compare_mixture(emulator, library, mixture, piece) for piece in pieces]
    clock.seconds |= {f"emulator, {kind}": ns / 1e9 for kind, ns in progress.by_kind.items()}
    bound = BOUNDS[Precision(arguments.precision)]
    check = LayerCheck(bound, tuple(errors))
    faults = list(faults_of(check, mixture.module))
    return {
        "layer": mixture.module,
        "parameters": mixture.model.parameters,
        "weight_bytes": mixture.model.weight_bytes,
        "tokens": _TOKENS_OF_A_MIXTURE,
        "held_bytes": emulator.held_bytes,
        "worst_error": check.worst.error,
        "bound": bound,
        "other_choices": len(check.ties),
        "ok": not faults,
    }, faults


def _emulator(runnable: Runnable, source: Seeded, arguments: argparse.Namespace) -> Emulator:
    how = How(precision=arguments.precision)
    host_bytes = int(arguments.host_memory * _GIGABYTE)
    return Emulator(runnable.model, runnable.plan, source, how.arithmetic(runnable.model), host_bytes)


def _of_check(check: LayerCheck) -> dict[str, Any]:
    return {
        "layers": len(check.layers),
        "worst_layer": check.worst.layer,
        "worst_error": check.worst.error,
        "bound": check.bound,
        "worst_drift": max(layer.drift for layer in check.layers),
        "experts_chosen": sum(layer.experts for layer in check.layers),
        "other_choices": len(check.ties),
        "widest_tie": max((tie.gap for tie in check.ties), default=0.0),
        "tokens": list(check.tokens),
        "fed_tokens": list(check.fed),
        "reference_tokens": list(check.reference),
    }


def _totals(counted: Counters) -> dict[str, int]:
    names = ("multiply_adds", "mesh_bytes", "mesh_hops", "transfer_bytes")
    return {name: getattr(counted, name) for name in names}


def _row(layer: LayerError) -> str:
    ties = ", ".join(f"{tie.ours} for {tie.theirs} (gap {tie.gap:.1e})" for tie in layer.ties)
    return f"{layer.layer:12} {layer.error:9.2e} {layer.drift:9.2e} {layer.experts or '':>8}  {ties}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_shown(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trillion", description="A model layer by layer.")
    parser.add_argument("plan", type=Path, help="a plan's folder")
    parser.add_argument("--ids", default="1", help="the tokens of the step, as 1,5,9 (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument("--precision", default="native", choices=[*Precision], help="what the emulator computes with")
    parser.add_argument("--host-memory", type=float, default=4.0, help="GB of weights that are held (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="of the host (default 2)")
    parser.add_argument("--layer", type=int, help="run the mixture of experts of this layer alone")
    parser.add_argument("--json", action="store_true", help="print one JSON record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
