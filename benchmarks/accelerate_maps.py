"""Weights on 20 machines of 44 GB, beside ``infer_auto_device_map`` of Hugging Face accelerate, in one run.

    python -m benchmarks.accelerate_maps [MODEL ...] [--systems N] [--gb G] [--json]

Theirs places the modules of the transformers model on the meta device, as users call it (``no_split_module_classes``
is the model's own), without and with ``get_balanced_memory``; ours places the same weights as ``waferc compile`` does,
caches and activations left out, blocks whole. For each: bytes on the fullest machine, machines used, bytes that found
no machine and were spilled to the CPU or to disk, layers whose parts ended on several machines, and seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

MODELS = ("llama-3.3-70b", "llama-3.1-405b", "mixtral-8x22b", "qwen3-235b-a22b", "deepseek-v3")


@dataclass(frozen=True, slots=True)
class Row:
    """One placement. ``bound_gb`` is what the fullest machine holds at least, where that is known."""

    model: str
    by: str
    weights_gb: float
    fullest_gb: float
    machines: int
    spilled_gb: float
    split_layers: int
    seconds: float
    bound_gb: float | None = None


def theirs(name: str, systems: int, machine_bytes: int) -> list[Row]:
    """What accelerate does with the model ``name`` of the catalogue."""
    import torch
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import compute_module_sizes, get_balanced_memory
    from transformers import AutoConfig, AutoModelForCausalLM

    from partitioner.frontends.catalog import configuration

    found = configuration(name)
    assert found is not None, name
    # A quantiser would want a GPU; the element type alone decides the bytes.
    fp8 = found.pop("quantization_config", None) is not None
    config = AutoConfig.for_model(**found)
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    memory: dict[Any, int] = {**dict.fromkeys(range(systems), machine_bytes), "cpu": 1 << 50}
    whole: Any = model._no_split_modules
    rows = []
    for by in ("accelerate", "accelerate, balanced"):
        begin = time.perf_counter()
        given = memory
        if by.endswith("balanced"):
            given = get_balanced_memory(model, max_memory=dict(memory), no_split_module_classes=whole, dtype=dtype)
        device_map = infer_auto_device_map(model, max_memory=dict(given), no_split_module_classes=whole, dtype=dtype)
        seconds = time.perf_counter() - begin
        rows.append(_row(name, by, device_map, compute_module_sizes(model, dtype=dtype), seconds))
    return rows


def _row(name: str, by: str, device_map: Mapping[str, Any], sizes: Mapping[str, int], seconds: float) -> Row:
    """What a map of modules to devices comes to; machines are numbers, all else is spilled to."""
    held: Counter[Any] = Counter()
    for module, device in device_map.items():
        held[device] += sizes[module]
    spilled = sum(size for device, size in held.items() if not isinstance(device, int))
    machines = {device: size for device, size in held.items() if isinstance(device, int) and size}
    weights, fullest = sizes[""] / 1e9, max(machines.values()) / 1e9
    return Row(name, by, weights, fullest, len(machines), spilled / 1e9, _split_layers(device_map), seconds)


def _split_layers(device_map: Mapping[str, Any]) -> int:
    """Layers of which parts lie on several devices."""
    devices = defaultdict(set)
    for module, device in device_map.items():
        parts = module.split(".")
        if "layers" in parts and parts.index("layers") + 1 < len(parts):
            devices[parts[parts.index("layers") + 1]].add(device)
    return sum(len(own) > 1 for own in devices.values())


def ours(name: str, systems: int, machine_bytes: int) -> Row:
    """The same weights, placed by waferc."""
    from ir.machine import Machine
    from ir.objective import Objective
    from ir.workload import Workload
    from partitioner.api import LoadOptions, lower
    from partitioner.compile import build_model
    from partitioner.problem import measure
    from partitioner.solver.cpsat import Limits
    from partitioner.solver.place import place
    from partitioner.solver.problem import equal_wafers
    from partitioner.solver.score import by_wafer

    model = build_model(lower(name, LoadOptions()).graph)
    begin = time.perf_counter()
    problem = measure(model, Machine("bytes", "", 1, 1, machine_bytes, 0, systems), Workload(1, 1, 1))
    items = tuple(replace(item, bytes=item.weight_bytes, tiles=0, state_bytes=0) for item in problem.items)
    problem = replace(problem, items=items, wafers=equal_wafers(systems, 1, machine_bytes))
    solution = place(problem, (Objective.BALANCE, Objective.TRAFFIC), Limits())
    seconds = time.perf_counter() - begin
    held = by_wafer(solution.assignment)
    fullest = max(sum(items[item].bytes for item in own) for own in held.values())
    wafer_of = {block: wafer for wafer, own in held.items() for item in own for block in items[item].blocks}
    layers = defaultdict(set)
    for number, block in enumerate(model.blocks):
        if block.layer is not None:
            layers[block.layer].add(wafer_of[number])
    weights = sum(item.bytes for item in items)
    split = sum(len(own) > 1 for own in layers.values())
    bound = solution.scores[0].bound / 1e9
    return Row(name, "waferc", weights / 1e9, fullest / 1e9, len(held), 0.0, split, seconds, bound)


def main() -> None:
    """Place each model both ways and print a table."""
    parser = argparse.ArgumentParser(description="placements of waferc beside those of accelerate")
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--systems", type=int, default=20)
    parser.add_argument("--gb", type=float, default=44.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    if not options.json:
        print("| model | by | weights GB | fullest GB | bound GB | machines | spilled GB | split layers | s |")
        print("|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        size = round(options.gb * 1e9)
        for row in (*theirs(name, options.systems, size), ours(name, options.systems, size)):
            rows.append(row)
            if not options.json:
                print(_line(row), flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))


def _line(row: Row) -> str:
    bound = "-" if row.bound_gb is None else f"{row.bound_gb:.2f}"
    cells = (
        row.model, row.by, f"{row.weights_gb:.1f}", f"{row.fullest_gb:.2f}", bound, row.machines,
        f"{row.spilled_gb:.1f}", row.split_layers, f"{row.seconds:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
