"""Weights as they are stored: their exact values, where they come from, and what a run with them yields."""

from __future__ import annotations

import pytest
import torch

from ir.encoding import ENCODINGS
from targets.emulator.encodings import Blockwise, Fp8, Int4, Mxfp4, Transposed, joined, stacked
from targets.emulator.weights import Plain

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
