"""Ctrl-C while placing keeps the best placement so far; and a terminal is told how the search goes."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import partitioner.solver.place as placing
from partitioner.solver.chain import best_runs

ROOT = Path(__file__).parent.parent

SEARCH = """
import json, sys
from ir.objective import Objective
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import place
from partitioner.solver.problem import Flow, Item, Problem, equal_wafers
from partitioner.solver.score import faults

items = tuple(Item((n,), 1000 + n * n % 701, 1) for n in range(60))
flows = tuple(Flow(n, (n + 3,), 1 + n * 7 % 13) for n in range(57))
problem = Problem(items, flows, equal_wafers(7, 100))
begun = lambda found: print("searching", flush=True)
try:
    found = place(problem, (Objective.TRAFFIC, Objective.BALANCE)[::ORDER], Limits(1e6), begun)
except KeyboardInterrupt:
    sys.exit(130)
scores = [[score.objective, score.value, score.bound, score.proof] for score in found.scores]
print(json.dumps({"interrupted": found.interrupted, "faults": faults(problem, found.assignment), "scores": scores}))
"""


def test_an_interrupted_search_keeps_its_best_placement():
    """A search that would take days ends at once, with a placement and bounds that hold."""
    program = SEARCH.replace("ORDER", "-1")
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "searching\n"
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        sent = time.perf_counter()
        *_, last = process.stdout.read().splitlines()
        assert process.wait() == 0
    assert time.perf_counter() - sent < 20
    found = json.loads(last)
    assert found["interrupted"]
    assert found["faults"] == []
    assert [score[0] for score in found["scores"]] == ["balance", "traffic"]
    for _, value, bound, proof in found["scores"]:
        assert bound <= value
        assert bool(proof) == (bound == value)
    assert not all(score[3] for score in found["scores"])


def interrupt(monkeypatch, **stand_ins) -> None:
    """The user ends the search as soon as CP-SAT begins."""

    def solve(*_, **__):
        raise KeyboardInterrupt

    for name, stand_in in {"solve": solve, "least_load": lambda *_: None, **stand_ins}.items():
        monkeypatch.setattr(placing, name, stand_in)


def test_an_interrupted_compile_writes_the_best_plan(waferc, quick_load, monkeypatch, tmp_path):
    unproven = lambda problem, goals: replace(best_runs(problem, goals), proofs=("",) * len(goals))  # noqa: E731
    interrupt(monkeypatch, best_runs=unproven)
    done = waferc("compile", "small-kimi", "--target", "mini", "--context", 256, "-o", tmp_path / "plan", "--json")
    assert done.code == 0
    assert "note: interrupted" in done.err
    assert (done.record["status"], done.record["interrupted"]) == ("feasible", True)
    manifest = json.loads((tmp_path / "plan" / "manifest.json").read_text())
    assert manifest["solver"]["interrupted"]
    assert any(score["gap"] > 0 for score in manifest["solver"]["scores"])
    assert waferc("check", tmp_path / "plan").code == 0


def test_an_interrupt_before_any_placement_writes_nothing(waferc, quick_load, monkeypatch, tmp_path):
    interrupt(monkeypatch, best_runs=lambda _problem, _goals: None, first_fit=lambda _problem, _seed: None)
    done = waferc("compile", "small-kimi", "--target", "mini", "--context", 256, "-o", tmp_path / "plan", "--json")
    assert done.code == 130
    assert list(tmp_path.iterdir()) == []


SHOWN = """
import time
from ir.objective import Objective
from partitioner.cli.output import Output
from partitioner.solver.place import Incumbent

with Output(json=True).progress() as progress:
    progress(Incumbent(Objective.BALANCE, 30_100_000_000, 30_070_000_000, 1.25))
    time.sleep(0.5)
"""


def test_a_terminal_is_told_how_the_search_goes():
    shown = on_a_terminal(SHOWN)
    assert "placing: balance 30.1 GB, bound 30.1 GB, gap 0.1 %, 1.2 s" in shown


def test_a_pipe_is_told_nothing():
    done = subprocess.run([sys.executable, "-c", SHOWN], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def on_a_terminal(program: str) -> str:
    """What ``program`` writes to stderr if that is a terminal."""
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stderr=its, stdout=subprocess.PIPE, env=environment) as process:
        os.close(its)
        parts = []
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                parts.append(part)
        assert process.wait() == 0
    os.close(ours)
    return b"".join(parts).decode()
