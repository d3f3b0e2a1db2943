"""Weights as they are stored: their exact values, where they come from, and what a run with them yields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from checkpoints import values, write
from publishers import PUBLISHERS, codes
from safetensors.torch import load_file

from ir.diagnostics import UnsupportedModelError, UsageError
from ir.encoding import ENCODINGS
from partitioner import api
from partitioner.frontends.original import Original, open_original
from partitioner.frontends.weights import open_weights
from targets.emulator import Arithmetic, Emulator, Order, Precision
from targets.emulator.arithmetic import native_tolerance, roundings
from targets.emulator.encodings import Blockwise, Fp8, Int4, Mxfp4, Transposed, joined, stacked
from targets.emulator.weights import Plain, Stored, WeightSource

SIZES = [(4, 64), (3, 200, 96)]


def integers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


def int4(shape, generator) -> Int4:
    *stack, outputs, inputs = shape
    words = integers(generator, *stack, outputs, inputs // 2).view(torch.int32)
    return Int4(words, torch.randn(*stack, outputs, inputs // 32, generator=generator).to(torch.bfloat16))


def mxfp4(shape, generator) -> Mxfp4:
    *stack, outputs, inputs = shape
    scales = torch.randint(100, 150, (*stack, outputs, inputs // 32), generator=generator).to(torch.uint8)
    return Mxfp4(integers(generator, *stack, outputs, inputs // 32, 16), scales)


def fp8(shape, generator) -> Fp8:
    *stack, outputs, inputs = shape
    values = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    return Fp8(values, torch.rand(*stack, -(-outputs // 128), -(-inputs // 128), generator=generator))


def blockwise(shape, generator, bits=4, zeros=True) -> Blockwise:
    *stack, outputs, inputs = shape
    groups = (*stack, outputs, inputs // 32)
    scales = torch.rand(groups, generator=generator).to(torch.float16)
    zero = torch.randint(0, 1 << bits, groups, generator=generator).to(torch.uint8) if zeros else None
    return Blockwise(integers(generator, *stack, outputs, inputs * bits // 8), scales, zero, bits, 32, inputs)


def plain_8_bit(shape, generator) -> Blockwise:
    return blockwise(shape, generator, bits=8, zeros=False)


def plain(shape, generator) -> Plain:
    return Plain(torch.randn(shape, generator=generator).to(torch.bfloat16))


MAKERS = {
    "int4_g32": int4,
    "mxfp4": mxfp4,
    "fp8_b128": fp8,
    "uint4_g32_f16_zeros": blockwise,
    "uint8_g32_f16": plain_8_bit,
    "bf16": plain,
}


def value(stored, *index: int) -> float:
    """One element, worked out alone in Python's floats; not rounded to the type of scales."""
    *stack, row, column = index
    if isinstance(stored, Plain):
        return float(stored.tensor[index])
    if isinstance(stored, Fp8):
        return float(stored.values[index]) * float(stored.scales[(*stack, row // 128, column // 128)])
    group, place = divmod(column, 32)
    if isinstance(stored, Int4):
        word = int(stored.words[(*stack, row, column // 8)]) & 0xFFFFFFFF
        return float((word >> 4 * (column % 8) & 15) - 8) * float(stored.scales[(*stack, row, group)])
    if isinstance(stored, Mxfp4):
        nibble = int(stored.blocks[(*stack, row, group, place // 2)]) >> 4 * (column % 2) & 15
        exponent, mantissa = nibble >> 1 & 3, nibble & 1
        magnitude = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
        return (-1) ** (nibble >> 3) * magnitude * 2.0 ** (int(stored.scales[(*stack, row, group)]) - 127)
    whole = int(stored.integers[(*stack, row, column * stored.bits // 8)])
    whole = whole >> 4 * (column % 2) & 15 if stored.bits == 4 else whole
    zero = 1 << (stored.bits - 1) if stored.zeros is None else int(stored.zeros[(*stack, row, group)])
    return (whole - zero) * float(stored.scales[(*stack, row, group)])


def rounded(stored, number: float, dtype: torch.dtype) -> float:
    """To the type that the publisher's arithmetic goes through, then to ``dtype``."""
    through = stored.scales.dtype if isinstance(stored, (Int4, Blockwise)) else torch.float32
    return float(torch.tensor(number, dtype=torch.float64).to(through).to(dtype))


@pytest.mark.parametrize("encoding", MAKERS)
@pytest.mark.parametrize("shape", SIZES)
def test_values_are_exact_and_bytes_those_of_the_encoding(encoding: str, shape) -> None:
    generator = torch.Generator().manual_seed(1)
    stored = MAKERS[encoding](shape, generator)
    assert stored.shape == shape
    if encoding != "uint4_g32_f16_zeros":  # zero points are held one a byte here
        assert stored.nbytes == ENCODINGS[encoding].bytes(shape)
    for dtype in (torch.float32, torch.bfloat16):
        found = stored.unpack(dtype, "cpu")
        assert found.dtype == dtype and tuple(found.shape) == shape
        places = [tuple(int(torch.randint(0, size, (), generator=generator)) for size in shape) for _ in range(60)]
        for place in [*places, (0,) * len(shape), tuple(size - 1 for size in shape)]:
            assert float(found[place]) == rounded(stored, value(stored, *place), dtype), place


@pytest.mark.parametrize("encoding", MAKERS)
def test_joined_and_stacked_weights_stay_packed(encoding: str) -> None:
    generator = torch.Generator().manual_seed(2)
    one, other = (MAKERS[encoding]((128, 128), generator) for _ in range(2))
    both = joined([one, other], 0)
    pile = stacked([Transposed(one), Transposed(other)])
    assert both is not None and pile is not None
    assert both.nbytes == pile.nbytes == one.nbytes + other.nbytes
    dense = [part.unpack(torch.float32, "cpu") for part in (one, other)]
    assert torch.equal(both.unpack(torch.float32, "cpu"), torch.cat(dense))
    assert torch.equal(pile.unpack(torch.float32, "cpu"), torch.stack([part.T for part in dense]))
    assert joined([one, Transposed(other)], 0) is None


def test_blocks_that_would_share_a_scale_are_not_joined() -> None:
    generator = torch.Generator().manual_seed(3)
    assert joined([fp8((100, 128), generator), fp8((128, 128), generator)], 0) is None
    assert joined([int4((4, 64), generator), fp8((4, 64), generator)], 0) is None


# --- runs -----------------------------------------------------------------------------------------------------------

PROMPT = torch.tensor([[5, 17, 33, 8, 61, 2, 90, 44]])
RUN = {"input_ids": PROMPT, "position_ids": torch.arange(PROMPT.shape[1])[None]}


@dataclass
class Seen:
    """A source that keeps what was read of it: a name, and the expert or ``None``."""

    source: WeightSource
    reads: list[tuple[str, int | None]] = field(default_factory=list)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.source.shape(name)

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        self.reads.append((name, expert))
        return self.source.read(name, expert, rows)


@dataclass
class Placed:
    """A small checkpoint, placed, and its original in 32 bit."""

    compiled: api.CompiledModel
    original: Original
    wanted: torch.Tensor

    def step(self, arithmetic: Arithmetic, host_bytes: int | None = None) -> tuple[torch.Tensor, Emulator, Seen]:
        """The logits of the whole prompt in one step."""
        model, seen = self.compiled.model, Seen(self.original.weights)
        emulator = Emulator(model, self.compiled.plan, seen, arithmetic, host_bytes)
        (logits,) = emulator.step({value.name: RUN[value.name] for value in model.graph.inputs}).values()
        return logits.float(), emulator, seen


@pytest.fixture(scope="module")
def placed_of(tmp_path_factory) -> Callable[[str], Placed]:
    """Checkpoints as publishers write them, in bf16 but for what is quantized."""
    made: dict[str, Placed] = {}

    def of(name: str) -> Placed:
        if name not in made:
            publisher = PUBLISHERS[name]
            folder = write(tmp_path_factory.mktemp("placed") / name, publisher.config, values(publisher.tensors), 2)
            compiled = api.compile(folder, target="mini", systems=4, context=64)
            original = open_original(compiled.lowered.origin, compiled.model.placed)
            made[name] = Placed(compiled, original, original.forward(RUN)[0])
        return made[name]

    return of


@pytest.mark.parametrize("name", ["kimi_k26", "gpt_oss", "llama"])
def test_runs_are_as_near_to_the_original_in_32_bit_as_is_said(name: str, placed_of) -> None:
    """Weights in INT4, FP8, MXFP4 and bf16."""
    it = placed_of(name)
    graph = it.compiled.model.graph
    assert it.wanted.dtype == torch.float32
    wide, _, _ = it.step(Arithmetic.of(graph))
    assert float((wide - it.wanted).abs().max()) < 1e-4
    assert torch.equal(wide.argmax(-1), it.wanted.argmax(-1))
    spread, steps = float(it.wanted.std()), roundings(graph)[graph.outputs[0]]
    for order in Order:
        native, emulator, _ = it.step(Arithmetic.of(graph, Precision.NATIVE, order))
        error = (native - it.wanted) / spread
        assert 2**-9 < float(error.abs().max()) < native_tolerance(graph, graph.outputs[0])
        assert float(error.square().mean().sqrt()) < 2**-8 * steps**0.5
    host = next(iter(emulator.memories.values())).own.host
    held = {name: stored for (name, expert), stored in host._held.items() if expert is None}
    assert held
    for parameter in it.compiled.model.placed:
        if parameter.name in held:
            assert held[parameter.name].nbytes == parameter.stored_bytes, "as it is stored"


def test_a_small_host_computes_the_same_and_reads_the_chosen_experts_alone(placed_of) -> None:
    it = placed_of("kimi_k26")
    arithmetic = Arithmetic.of(it.compiled.model.graph, Precision.NATIVE, Order.HOST)
    ample, emulator, all_at_once = it.step(arithmetic)
    little, _, again = it.step(arithmetic, host_bytes=1)
    assert torch.equal(ample, little)
    assert len(set(all_at_once.reads)) == len(all_at_once.reads) < len(again.reads)
    chosen = {expert for counts in emulator.counters.routing.values() for expert in counts.sum(axis=1).nonzero()[0]}
    assert 0 < len(chosen) < 12
    assert {expert for _, expert in again.reads if expert is not None} == chosen
    assert all(expert is not None for name, expert in again.reads if ".experts." in name)


def test_of_a_checkpoint_only_what_is_asked_for_is_read(placed_of, monkeypatch) -> None:
    from partitioner.frontends.checkpoint import recorded

    source, taken = placed_of("kimi_k26").original.weights, list[str]()
    read = recorded.read_weight
    monkeypatch.setattr(recorded, "read_weight", lambda weight, *rows: taken.append(weight.name) or read(weight, *rows))
    name = next(p.name for p in placed_of("kimi_k26").compiled.model.placed if p.name.endswith("gate_up_proj"))
    one = source.read(name, 7)
    assert isinstance(one, Int4)
    assert sorted(part.split(".experts.")[1] for part in taken) == ["7.gate_proj.weight", "7.up_proj.weight"]
    table = next(p for p in placed_of("kimi_k26").compiled.model.placed if p.name.endswith("embed_tokens.weight"))
    whole, rows = source.read(table.name), source.read(table.name, None, range(3, 5))
    assert rows.nbytes == 2 * table.shape[1] * 2
    assert torch.equal(rows.unpack(torch.float32, "cpu"), whole.unpack(torch.float32, "cpu")[3:5])


# --- what is not what was planned -----------------------------------------------------------------------------------


def shortened(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    write(folder, PUBLISHERS["llama"].config, tensors)


def of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    write(folder, PUBLISHERS["llama"].config, tensors)


def gone(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("harm", "code"),
    [(shortened, "W0222"), (without_a_tensor, "W0225"), (of_another_shape, "W0226"), (gone, "W0611")],
)
def test_a_checkpoint_that_was_harmed_is_refused_before_anything_runs(harm, code: str, placed_of, tmp_path) -> None:
    it = placed_of("llama").compiled
    folder = write(tmp_path / "llama", PUBLISHERS["llama"].config, values(PUBLISHERS["llama"].tensors))
    origin = type(it.lowered.origin)("config", it.lowered.origin.config, str(folder))
    assert open_weights(origin, it.model.placed).note == f"weights from {folder}"
    harm(folder)
    with pytest.raises((UsageError, UnsupportedModelError)) as caught:
        open_weights(origin, it.model.placed)
    assert codes(caught.value) == [code]


def test_a_file_that_becomes_shorter_while_it_is_in_use_is_told(placed_of, tmp_path) -> None:
    it = placed_of("llama").compiled
    folder = write(tmp_path / "llama", PUBLISHERS["llama"].config, values(PUBLISHERS["llama"].tensors))
    source = open_weights(type(it.lowered.origin)("config", it.lowered.origin.config, str(folder)), it.model.placed)
    shortened(folder)
    with pytest.raises(UsageError) as caught:
        for parameter in it.model.placed:
            source.source.read(parameter.name)
    assert codes(caught.value) == ["W0221"]
