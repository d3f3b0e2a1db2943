"""How long models take from configuration to blocks, each in a process of its own.

    python benchmarks/lowering.py [FOLDER ...]

Each FOLDER holds configurations (``*.json``); without one, all bundled models are lowered. For each model a line with
its parameters and bytes as stored, the bytes that a layer remembers of each token (and of how many tokens, where those
are bounded), the number of blocks, of parameters that are in none, seconds of wall time and of the processor from the
start of the process, and the most memory held. What is not supported gets the first diagnostic in place of figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HEADER = "| model | parameters B | GB | layers x KV bytes (window) | blocks | unplaced | wall s | cpu s | peak MB |"


def main(folders: list[str]) -> None:
    """Lower every model and print a table."""
    print(HEADER, "|---|---|---|---|---|---|---|---|---|", sep="\n", flush=True)
    for model in _models(folders):
        begin = time.perf_counter()
        command = [sys.executable, __file__, "--one", model]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603 - our own command
        wall_s = time.perf_counter() - begin
        name = Path(model).stem if model.endswith(".json") else model
        print(_line(name, done, wall_s), flush=True)
    print(f"\nload average at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _models(folders: list[str]) -> list[str]:
    from partitioner.frontends.catalog import catalog

    return [str(path) for folder in folders for path in sorted(Path(folder).glob("*.json"))] or sorted(catalog())


def _line(name: str, done: subprocess.CompletedProcess[str], wall_s: float) -> str:
    if done.returncode:
        return f"| {name} | {' '.join((done.stdout or done.stderr).split())[-200:]} |"
    found: dict[str, Any] = json.loads(done.stdout)
    return f"| {name} | {found.pop('cells')} | {wall_s:.1f} | {found['cpu_s']:.1f} | {found['peak_mb']} |"


def _one(model: str) -> None:
    """Lower one model and print its figures as JSON."""
    import resource

    from ir.diagnostics import WafercError
    from partitioner.compile import build_model
    from partitioner.frontends.load import load

    try:
        placed = build_model(load(model).graph)
    except WafercError as error:
        sys.exit(print(error.diagnostics[0]) or 3)
    caches = Counter((c.bytes_per_token, c.window) for block in placed.blocks for c in block.caches)
    kv = ", ".join(f"{n} x {size:,}" + (f" ({window:,})" if window else "") for (size, window), n in caches.items())
    figures = (f"{placed.parameters / 1e9:,.2f}", f"{placed.weight_bytes / 1e9:,.2f}", kv or "-")
    cells = (*figures, str(len(placed.blocks)), str(len(placed.unplaced)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    record = {"cells": " | ".join(cells), "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss // 1024}
    print(json.dumps(record))


if __name__ == "__main__":
    _one(sys.argv[2]) if sys.argv[1:2] == ["--one"] else main(sys.argv[1:])
