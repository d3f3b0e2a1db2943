"""``waferc run``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ir.diagnostics import CheckError, Diagnostic, Fact, UsageError
from ir.model import Model
from ir.types import DType
from partitioner.cli.check import require_sound
from partitioner.cli.output import Output
from partitioner.device_folder import is_device_plan
from partitioner.folder import read_plan
from partitioner.frontends.original import Original, open_original
from partitioner.frontends.weights import Weights, open_weights
from targets.emulator import Counters, Emulator, Generated, generate

_TOLERANCE = {DType.F64: 1e-4, DType.F32: 1e-4}
"""Greatest error of a logit; for 16-bit models the order of sums alone changes logits by more than this."""
_TOLERANCE_16_BIT = 0.25
_SMALL_MODEL_BYTES = 64 << 20
"""Below this, waking a second thread for each product costs more than it gains."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A plan's weights, and how to make the original with them."""

    weights: Weights
    original: Callable[[], Original]


def run_plan(
    folder: Path,
    prompt_ids: Sequence[int],
    tokens: int,
    seed: int,
    out: Output,
    *,
    compare: bool,
    trust_code: bool = False,
) -> None:
    """Generate tokens on emulated tiles.

    Raises:
        UsageError: W0604 to W0612, the prompt or the weights do not fit the plan.
        CheckError: the plan is unsound; W0620, the run differs from the original.
    """
    begin = time.perf_counter()
    emulator, loaded = _load(folder, seed, out, trust_code=trust_code)
    graph = emulator.model.graph
    further = {value.name for value in graph.inputs} - {"input_ids", "position_ids"}
    if further or not graph.inputs:
        help_ = ("give the model's inputs with --inputs FILE.npz",)
        needs = f": it takes {', '.join(sorted(further))}" if further else ""
        raise UsageError(
            Diagnostic("W0613", f"the plan is of no model of token ids alone{needs}", str(folder), help=help_)
        )
    made = generate(emulator, prompt_ids, tokens)
    record: dict[str, Any] = {"tokens": list(made.tokens), "steps": len(made.tokens), **_totals(made.counters)}
    if compare:
        record |= _compare_tokens(made, loaded.original(), prompt_ids, emulator.model)
    _finish(record, emulator, loaded.weights.note, begin, out)


def run_inputs(folder: Path, inputs: Path, seed: int, out: Output, *, compare: bool, trust_code: bool = False) -> None:
    """Run a model once, on the arrays of an ``.npz`` file.

    Raises:
        UsageError: W0609 to W0614, the inputs or the weights do not fit the plan.
        CheckError: the plan is unsound; W0620, the run differs from the original.
    """
    begin = time.perf_counter()
    emulator, loaded = _load(folder, seed, out, trust_code=trust_code)
    given = _read_arrays(inputs)
    outputs = emulator.step(given)
    shown = {name: {"shape": list(t.shape), "values": t.flatten()[:8].tolist()} for name, t in outputs.items()}
    record: dict[str, Any] = {"outputs": shown, **_totals([emulator.counters])}
    if compare:
        reference = loaded.original().forward(given)
        errors = [_error(ours, theirs) for ours, theirs in zip(outputs.values(), reference, strict=True)]
        record |= _verdict(max(errors), emulator.model, same=True) | {"max_abs_error": max(errors)}
    _finish(record, emulator, loaded.weights.note, begin, out)


def _load(folder: Path, seed: int, out: Output, *, trust_code: bool) -> tuple[Emulator, _Loaded]:
    with out.progress() as progress:
        progress("checking the plan")
        if is_device_plan(folder):
            help_ = ("compile for a cluster of wafers; the plan's own folder says which flags serving engines take",)
            message = "a plan for devices is no program for emulated tiles"
            raise UsageError(Diagnostic("W0616", message, str(folder), help=help_))
        stored = read_plan(folder)
        model = require_sound(stored)
        progress("loading weights onto tiles")
        if model.weight_bytes < _SMALL_MODEL_BYTES:
            torch.set_num_threads(1)
        weights = open_weights(stored.origin, model.placed, seed, trust_code=trust_code)

        def original() -> Original:
            return open_original(stored.origin, model.placed, seed, weights=weights, trust_code=trust_code)

        return Emulator(model, stored.plan, weights.source), _Loaded(weights, original)


def _read_arrays(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(Diagnostic("W0614", f"the inputs cannot be read: {error}", str(path))) from None


def _compare_tokens(made: Generated, original: Original, prompt_ids: Sequence[int], model: Model) -> dict[str, Any]:
    """The same generation by the original's own forward over the whole sequence, without a cache."""
    ids = list(prompt_ids)
    reference: list[int] = []
    error = 0.0
    for ours in made.logits:
        sequence = torch.tensor([ids])
        inputs = {"input_ids": sequence, "position_ids": torch.arange(len(ids))[None]}
        logits = original.forward(inputs)[0][0, -1]
        error = max(error, _error(ours, logits))
        reference.append(int(logits.argmax()))
        ids.append(reference[-1])
    verdict = _verdict(error, model, same=list(made.tokens) == reference)
    return {"reference_tokens": reference, "max_abs_logit_error": error, **verdict}


def _error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max())


def _verdict(error: float, model: Model, *, same: bool) -> dict[str, Any]:
    dtype = model.graph.types[model.graph.outputs[0]].dtype
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_16_BIT)
    return {"tolerance": tolerance, "ok": same and error <= tolerance}


def _totals(counters: Sequence[Counters]) -> dict[str, Any]:
    return {
        "multiply_adds": sum(step.multiply_adds for step in counters),
        "transfer_bytes": sum(step.transfer_bytes for step in counters),
        "mesh_bytes": sum(step.mesh_bytes for step in counters),
        "mesh_hops": sum(step.mesh_hops for step in counters),
    }


def _finish(record: dict[str, Any], emulator: Emulator, note: str, begin: float, out: Output) -> None:
    record |= {
        "wafers": len(emulator.plan.wafers_used),
        "weights": note,
        "wall_s": round(time.perf_counter() - begin, 3),
    }
    if not record.get("ok", True):
        facts: dict[str, Fact] = {
            name: record[name] for name in ("max_abs_logit_error", "max_abs_error", "tolerance") if name in record
        }
        raise CheckError(Diagnostic("W0620", "the run differs from the original", emulator.model.graph.name, facts))
    if out.json:
        out.result(record)
        return
    for name, value in record.items():
        print(f"{name.replace('_', ' '):22} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
