"""How fast models run on emulated tiles, as ratios to transformers' own eager forward on the same processor.

    python -m benchmarks.emulator [--json] [--rounds 5] [--device cpu|cuda] [--quick]

Two siblings of published models with about 100 million parameters, one dense and one a mixture of experts, in float32
with the same random weights on both sides. *Prefill* is a prompt of 256 tokens in one step, *decode* one token after
the other behind it, with caches on both sides. Turns alternate, and each ratio (the peer's time by ours: above 1 we
are faster) is of the medians. Then the dense one on growing meshes and numbers of wafers, relative to the smallest, and
with counting switched off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import waferc
from targets.emulator import Arithmetic, Emulator
from targets.emulator.meter import Meter

PROMPT, NEW, CONTEXT = 256, 24, 512
DENSE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 16000,
}  # fmt: skip
MIXTURE = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 512,
    "num_hidden_layers": 6, "first_k_dense_replace": 1, "num_attention_heads": 8, "num_key_value_heads": 8,
    "q_lora_rank": 192, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "intermediate_size": 1536, "moe_intermediate_size": 256, "n_routed_experts": 32, "num_experts_per_tok": 4,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "vocab_size": 16000, "rope_scaling": None,
}  # fmt: skip
MESHES = ((40, 40), (100, 100), (250, 250), (750, 1160))
WAFERS = (1, 2, 4, 7)


@dataclass(frozen=True, slots=True)
class Times:
    """Medians of one side, in seconds."""

    prefill_s: float
    decode_s: float


class SilentMeter(Meter):
    """Counts nothing."""

    def multiply_adds(self, count: int) -> None:
        """Nothing."""

    def record(self, collective: str, hops: int, link_bytes: int) -> None:
        """Nothing."""


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="the two siblings alone")
    options = parser.parse_args()
    found: dict[str, Any] = {"device": options.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), options.rounds, options.device)
        found["dense"] = bench.beside_the_original(DENSE, PROMPT)
        found["mixture"] = bench.beside_the_original(MIXTURE, PROMPT)
        if not options.quick:
            found["meshes"] = bench.over([(rows, columns, 1) for columns, rows in MESHES])
            found["wafers"] = bench.over([(250, 250, wafers) for wafers in WAFERS])
            found["counting"] = bench.counting()
    print(json.dumps(found, indent=1) if options.json else _table(found))


class _Bench:
    def __init__(self, folder: Path, rounds: int, device: str) -> None:
        self.folder, self.rounds, self.device = folder, rounds, device

    def beside_the_original(self, config: dict[str, Any], prompt: int) -> dict[str, Any]:
        """Ratios of prefill and decode."""
        original = self._original(config)
        emulator = self._emulator(config, original, 250, 250, 1)
        ours, theirs = self._turns([lambda: self._run(emulator, prompt), lambda: self._reference(original, prompt)])
        return {
            "parameters": sum(p.numel() for p in original.parameters()),
            "prefill_ratio": theirs.prefill_s / ours.prefill_s,
            "decode_ratio": theirs.decode_s / ours.decode_s,
            "prefill_ms": 1000 * ours.prefill_s,
            "decode_ms": 1000 * ours.decode_s,
        }

    def over(self, places: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
        """The dense sibling on machines of (rows, columns, wafers), relative to the first."""
        original = self._original(DENSE)
        emulators = [self._emulator(DENSE, original, *place) for place in places]
        times = self._turns([lambda e=emulator: self._run(e, PROMPT) for emulator in emulators])
        return [
            {
                "rows": rows, "columns": columns, "wafers": len(emulator.plan.wafers_used),
                "tiles_used": sum(block.region.tiles for block in emulator.plan.blocks),
                "prefill_relative": own.prefill_s / times[0].prefill_s,
                "decode_relative": own.decode_s / times[0].decode_s,
            }
            for (rows, columns, _), emulator, own in zip(places, emulators, times, strict=True)
        ]  # fmt: skip

    def counting(self) -> dict[str, float]:
        """What counting adds, as a share of the time without."""
        emulator = self._emulator(DENSE, self._original(DENSE), 250, 250, 1)
        with_, without = self._turns(
            [lambda: self._run(emulator, PROMPT), lambda: self._run(emulator, PROMPT, SilentMeter)]
        )
        return {
            "prefill_overhead": with_.prefill_s / without.prefill_s - 1,
            "decode_overhead": with_.decode_s / without.decode_s - 1,
        }

    def _turns(self, sides: list[Callable[[], Times]]) -> list[Times]:
        """Medians over rounds in which each side has its turn, after one round to warm up."""
        rounds = [[side() for side in sides] for _ in range(self.rounds + 1)][1:]
        return [
            Times(statistics.median(t.prefill_s for t in own), statistics.median(t.decode_s for t in own))
            for own in zip(*rounds, strict=True)
        ]

    def _original(self, config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        known = dict(config)
        made = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
        model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager", dtype=torch.float32)
        return model.eval().to(self.device)

    def _emulator(self, config: dict[str, Any], original: Any, rows: int, columns: int, wafers: int) -> Emulator:
        model_file, machine = self.folder / "config.json", self.folder / f"{rows}x{columns}.toml"
        model_file.write_text(json.dumps(config))
        # So much memory that the whole model fits on one wafer of any mesh.
        sram_bytes = 4_000_000_000 // (rows * columns) + 48128
        machine.write_text(
            f'extends = "cs3"\nname = "bench"\ndescription = "bench"\n[mesh]\nrows = {rows}\ncolumns = {columns}\n'
            f"[tile]\nsram_bytes = {sram_bytes}\n"
        )
        placed = waferc.compile(
            str(model_file), target=str(machine), systems=wafers, context=CONTEXT, prefill_chunk=PROMPT
        )
        weights = dict(original.named_parameters(remove_duplicate=False)) | dict(original.named_buffers())
        return Emulator(placed.model, placed.plan, weights, Arithmetic.of(placed.model.graph, device=self.device))

    def _run(self, emulator: Emulator, prompt: int, meter: type[Meter] = Meter) -> Times:
        def step(ids: list[int]) -> None:
            start = emulator.tokens()
            given = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(start, start + len(ids))[None]}
            flight = emulator.begin({value.name: given[value.name] for value in emulator.model.graph.inputs})
            flight.meter = meter()
            while not emulator.is_done(flight):
                emulator.advance(flight)
            emulator.finish(flight)

        emulator.reset()
        return self._timed(step, prompt)

    @torch.no_grad()
    def _reference(self, original: Any, prompt: int) -> Times:
        cache = transformers.DynamicCache()

        def step(ids: list[int]) -> None:
            original(torch.tensor([ids], device=self.device), past_key_values=cache, use_cache=True)

        return self._timed(step, prompt)

    def _timed(self, step: Callable[[list[int]], None], prompt: int) -> Times:
        begin = self._now()
        step([17 * i % 1000 for i in range(prompt)])
        middle = self._now()
        for token in range(NEW):
            step([token])
        return Times(middle - begin, (self._now() - middle) / NEW)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()


def _table(found: dict[str, Any]) -> str:
    lines = [f"torch {found['torch']} on {found['device']}, {found['threads']} threads"]
    for name in ("dense", "mixture"):
        own = found[name]
        lines.append(
            f"{name}, {own['parameters'] / 1e6:.0f} M parameters: prefill {own['prefill_ratio']:.2f} of the original's "
            f"speed ({own['prefill_ms']:.0f} ms), decode {own['decode_ratio']:.2f} ({own['decode_ms']:.1f} ms a token)"
        )
    lines += [
        f"{own['columns']} x {own['rows']} tiles, {own['wafers']} wafers ({own['tiles_used']:,} tiles in use): "
        f"time of prefill {own['prefill_relative']:.2f}, of decode {own['decode_relative']:.2f}"
        for own in (*found.get("meshes", ()), *found.get("wafers", ()))
    ]
    if "counting" in found:
        own = found["counting"]
        lines.append(f"counting: {own['prefill_overhead']:+.1%} of prefill, {own['decode_overhead']:+.1%} of decode")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
