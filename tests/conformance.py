"""Families x wafers x meshes x prompts x seeds on the emulator, each held against the original: make conformance."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from families import CONTEXT, TOLERANCE, Mesh, original_of, plan_over, prompts_of, write
from test_huggingface import ENCODERS, FAMILIES, configuration_of

from ir.model import Model
from ir.workload import Workload
from partitioner.compile import build_model
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.lowered import Lowered
from partitioner.problem import shared_groups
from targets.emulator import Emulator
from targets.emulator.pipeline import run_step

WAFERS = (1, 3, 7)
MESHES = ((48, 32), (3, 17), (5, 2), (1, 40), (19, 23))
LENGTHS = ((1,), (64,), (1, 64, 7), (5, 1, 1, 33), (2, 3, 4, 5, 6, 7, 8, 9))
"""Prompts' lengths, those of one case at once."""
CHUNKS = (1, 8, 5, 64)
ONE_TILE = Mesh(0, 1, 1)
"""As many wafers of a single tile as there are blocks."""


@dataclass(frozen=True)
class Case:
    """What one run is made of; encoders have neither chunks nor prompts of several lengths."""

    name: str
    mesh: Mesh
    lengths: tuple[int, ...]
    chunk: int
    seed: int


def cases(seed: int) -> Iterator[Case]:
    """Every family on every number of wafers; the rest drawn from ``seed``, each value once before any comes again."""
    draw = random.Random(seed)
    meshes, lengths, chunks = (itertools.cycle(draw.sample(of, len(of))) for of in (MESHES, LENGTHS, CHUNKS))
    for name, wafers in itertools.product([*FAMILIES, *ENCODERS], WAFERS):
        yield Case(name, Mesh(wafers, *next(meshes)), next(lengths), next(chunks), draw.randrange(1 << 31))
    for name in ("llama", "gpt2", "gemma2", "phi3"):
        yield Case(name, ONE_TILE, next(lengths), next(chunks), draw.randrange(1 << 31))


def fitting(mesh: Mesh, model: Model) -> Mesh:
    """``mesh`` with more rows if it has fewer tiles than one wafer may have to hold blocks."""
    blocks = len(model.blocks)
    if mesh == ONE_TILE:
        return replace(mesh, wafers=blocks)
    most = -(-len(shared_groups(model)) // mesh.wafers) * max(map(len, shared_groups(model)))
    needed = min(blocks, most)
    return mesh if mesh.columns * mesh.rows >= needed else replace(mesh, rows=-(-2 * needed // mesh.columns))


def run(given: Lowered, case: Case) -> None:
    """Fail unless the emulator does what the original does."""
    case = replace(case, mesh=fitting(case.mesh, build_model(given.graph)))
    if case.name in ENCODERS:
        _encode(given, case)
        return
    write(given, case.mesh, prompts_of(case.lengths, 64, case.seed), case.chunk, case.seed)
    _read_to_the_end(given, case)


def _encode(given: Lowered, case: Case) -> None:
    model, original = build_model(given.graph), original_of(given, case.seed)
    emulator = Emulator(model, plan_over(model, case.mesh, Workload(2, CONTEXT, CONTEXT)), original.weights)
    for tokens in case.lengths:
        ids = torch.randint(3, 97, (2, tokens), generator=torch.Generator().manual_seed(case.seed))
        whole = {"input_ids": ids, "position_ids": torch.arange(tokens).expand(2, tokens)}
        inputs = {value.name: whole[value.name] for value in model.graph.inputs}
        for ours, theirs in zip(emulator.step(inputs).values(), original.forward(inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def _read_to_the_end(given: Lowered, case: Case) -> None:
    """A prompt as long as the context."""
    model, original = build_model(given.graph), original_of(given, case.seed)
    emulator = Emulator(model, plan_over(model, case.mesh, Workload(1, CONTEXT, case.chunk)), original.weights)
    ids = prompts_of((CONTEXT,), 0, case.seed)[0].ids
    pieces = [run_step(emulator, ids[start : start + case.chunk]) for start in range(0, CONTEXT, case.chunk)]
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(CONTEXT)[None]}
    torch.testing.assert_close(torch.cat(pieces), original.forward(inputs)[0][0], atol=TOLERANCE, rtol=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[*FAMILIES, *ENCODERS], help="names of families and encoders")
    options = parser.parse_args()
    failures = 0
    lowered: dict[str, Lowered] = {}
    chosen = [case for case in cases(options.seed) if case.name in options.only]
    for case in chosen:
        begin = time.perf_counter()
        try:
            if case.name not in lowered:
                lowered = {case.name: lower_config(configuration_of(case.name), case.name)}
            run(lowered[case.name], case)
            verdict = "ok"
        except Exception:
            failures += 1
            verdict = "FAILS\n" + traceback.format_exc(limit=-6)
        print(f"{case}: {verdict} ({time.perf_counter() - begin:.1f} s)", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} cases do what the original does")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
