"""``waferc run``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.diagnostics import CheckError, Diagnostic, Fact, UsageError
from partitioner.cli.output import Output
from partitioner.replaced import fault_of, replace_file
from partitioner.running.inputs import Prompts, for_users, read_arrays
from partitioner.running.record import COUNTER_DETAILS, counters_record, step_record, text_record
from partitioner.running.runs import StepRun, TextRun, run_prompts, run_step
from partitioner.running.setup import How, Opened, Runnable, open_plan
from partitioner.running.spread import ONE_PROCESS, Spread
from targets.emulator.trace import Trace

_TRACE_START = b'{"traceEvents":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run is to yield.

    Attributes:
        prompts: token ids of each user's prompt; else ``text``, a prompt in words, or ``inputs``, an ``.npz`` file.
        tokens: how many to generate for each prompt.
        compare: the reference to compare with; empty: none.
        counters: how finely counters are told.
        trace: file to write a trace to.
        draft: tokens to guess before each step, at most.
        spread: over how many processes, and what is kept of the run.
    """

    prompts: Prompts = ()
    text: str | None = None
    inputs: Path | None = None
    users: int | None = None
    tokens: int = 16
    compare: str = ""
    counters: str = "totals"
    trace: Path | None = None
    draft: int = 0
    spread: Spread = ONE_PROCESS

    def __post_init__(self) -> None:
        given = [bool(self.prompts), self.text is not None, self.inputs is not None]
        if sum(given) != 1:
            raise UsageError(Diagnostic("W0104", "give one of --prompt-ids, --prompt and --inputs", "run"))
        if self.inputs is not None and (self.draft or self.users is not None or self.spread.keeps):
            message = "--users, --draft, --resume and --state are for prompts, not for --inputs"
            raise UsageError(Diagnostic("W0104", message, "run"))
        if self.tokens < 1:
            raise UsageError(Diagnostic("W0103", f"--tokens must be at least 1, not {self.tokens}", "--tokens"))
        if self.draft < 0:
            raise UsageError(Diagnostic("W0103", f"--draft must not be negative, but is {self.draft}", "--draft"))
        if self.counters not in COUNTER_DETAILS:
            known = ", ".join(COUNTER_DETAILS)
            raise UsageError(Diagnostic("W0104", f"--counters is {known}, not {self.counters!r}", "--counters"))


def run(folder: Path, asked: Asked, how: How, out: Output, *, trust_code: bool = False) -> None:
    """Run a plan on emulated tiles: continue prompts, or take one step on given inputs.

    Raises:
        UsageError: W0604 to W0616, W0660 or W0661, prompts, inputs or weights do not fit the plan; W0105, the trace
            cannot be written.
        CheckError: the plan is unsound.
        SystemExit: 6 after W0620, the run differs from the original; W0662, it was not counted as predicted.
    """
    begin = time.perf_counter()
    if asked.trace:
        _require_place(asked.trace)
    with out.progress() as progress:
        progress("checking the plan")
        runnable = open_plan(folder, trust_code=trust_code)
        opened = Opened(runnable, how)
        trace = Trace(runnable.plan) if asked.trace else None
        progress("running")
        done, record = _run(opened, asked, [trace] if trace else [])
    if asked.trace and trace:
        _write(asked.trace, trace)
        record["trace"] = str(asked.trace)
    record |= _about(runnable, opened, done, asked.counters)
    record["ok"] = done.ok and done.taken.miscounted is None
    rss_bytes = done.taken.rss_bytes
    record |= {"processes": len(rss_bytes), "peak_rss_bytes": max(rss_bytes), "processes_rss_bytes": list(rss_bytes)}
    record |= {"wall_s": round(time.perf_counter() - begin, 3)}
    if not out.json:
        _print(record)
    if faults := _faults(done, record, runnable):
        out.failed(record, CheckError(*faults))
    if out.json:
        out.result(record)


def _run(opened: Opened, asked: Asked, watchers: list[Trace]) -> tuple[TextRun | StepRun, dict[str, Any]]:
    if asked.inputs is not None:
        step = run_step(opened, read_arrays(asked.inputs), asked.compare, watchers, asked.spread, asked.inputs)
        return step, step_record(step)
    words = None if asked.text is None else opened.words
    prompts = asked.prompts if words is None else (words.encode(asked.text or ""),)
    given = for_users(opened.runnable.plan, prompts, asked.users)
    text = run_prompts(opened, given, asked.tokens, asked.compare, watchers, asked.spread, asked.draft)
    record = text_record(text)
    return text, record if words is None else {"text": words.decode(text.made[0].tokens), **record}


def _require_place(path: Path) -> None:
    """Raise W0105 unless a trace can stand there."""
    if reason := fault_of(path, _TRACE_START, "a trace"):
        raise _unwritable(path, reason)


def _write(path: Path, trace: Trace) -> None:
    try:
        replace_file(path, json.dumps(trace.record()).encode())
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from None


def _unwritable(path: Path, reason: str) -> UsageError:
    return UsageError(Diagnostic("W0105", f"the trace cannot be written: {reason}", str(path)))


def _about(runnable: Runnable, opened: Opened, done: TextRun | StepRun, details: str) -> dict[str, Any]:
    plan, graph = runnable.plan, runnable.model.graph
    return {
        "counters": counters_record(done.taken.counters, plan, graph, details),
        "predicted_counters": counters_record(done.taken.predicted, plan, graph, details),
        "by_reference": dict(sorted(done.taken.counters.by_reference.items())),
        "wafers": len(plan.wafers_used),
        "precision": opened.how.precision,
        "order": str(opened.how.arithmetic(runnable.model).order),
        "weights": done.taken.weights,
    }


def _faults(done: TextRun | StepRun, record: dict[str, Any], runnable: Runnable) -> list[Diagnostic]:
    """Why a run has failed: W0620, and W0662."""
    different = [] if done.ok else [_different(record, runnable)]
    return different if done.taken.miscounted is None else [*different, done.taken.miscounted]


def _different(record: dict[str, Any], runnable: Runnable) -> Diagnostic:
    names = ("max_abs_logit_error", "max_abs_error", "tolerance")
    facts: dict[str, Fact] = {name: record[name] for name in names if name in record}
    help_ = ("waferc verify says in which layer they part",)
    return Diagnostic("W0620", "the run differs from the original", runnable.model.graph.name, facts, help_)


def _print(record: dict[str, Any]) -> None:
    for name, value in record.items():
        if name == "counters":
            for figure in ("multiply_adds", "transfer_bytes", "mesh_bytes", "mesh_hops"):
                print(f"{figure.replace('_', ' '):22} {value[figure]:,}")
        elif name not in ("predicted_counters", "outputs", "errors") and value != {}:
            print(f"{name.replace('_', ' '):22} {_shown(value)}")
    for name, value in record.get("outputs", {}).items():
        print(f"{name:22} {value['shape']} {_shown(value['values'])}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value)) if value and isinstance(value[0], list) else ",".join(map(_item, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return _item(value)


def _item(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
