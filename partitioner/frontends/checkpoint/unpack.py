"""Exact values of quantized weights.

Each function takes the stored tensors of one weight and the wanted element type. The arithmetic, roundings included,
is that of the publishers' own libraries, which the tests compare with bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of the four-bit floats of the OCP Microscaling specification 1.0; the highest bit is the sign."""
_E8M0_BIAS = 127
_E8M0_NAN = 255


def int4(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """compressed-tensors ``pack-quantized``, symmetric, 4 bits, groups of 32 along the inputs.

    Args:
        parts: words i32 [out, in / 8], each of eight values of which the first is in the lowest bits and stored as
            q + 8; scales [out, in / 32]; the shape [out, in] as a tensor.
        dtype: the wanted element type; the product is rounded to the scales' own type first, as the library does.

    Raises:
        ValueError: the stated shape is another one.
    """
    words, scales, stated = parts
    outputs, inputs = words.shape[0], words.shape[1] * 8
    if stated.tolist() != [outputs, inputs]:
        raise ValueError(f"the stated shape {stated.tolist()} is not {[outputs, inputs]}")
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    values = ((words.unsqueeze(-1) >> shifts) & 15) - 8
    grouped = values.view(outputs, inputs // 32, 32).to(scales.dtype) * scales.unsqueeze(-1)
    return grouped.view(outputs, inputs).to(dtype)


def fp8(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """DeepSeek-V3: values e4m3 [.., out, in] times scales [.., ceil(out / 128), ceil(in / 128)], a block each."""
    values, scales = parts
    outputs, inputs = values.shape[-2:]
    each = (
        scales.to(torch.float32).repeat_interleave(128, -2)[..., :outputs, :].repeat_interleave(128, -1)[..., :inputs]
    )
    return (values.to(torch.float32) * each).to(dtype)


def mxfp4(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """MXFP4 as gpt-oss stores it: blocks u8 [E, out, in / 32, 16] of two values a byte, the first in the lower half;
    scales u8 [E, out, in / 32], powers of two with a bias of 127.

    Returns:
        [E, in, out], as transformers holds these experts; rows of gate and up stay interleaved.
    """
    blocks, scales = parts
    table = torch.tensor([*_E2M1, *(-magnitude for magnitude in _E2M1)], dtype=torch.float64)
    values = torch.empty((*scales.shape, 32), dtype=dtype)
    for expert, (block, scale) in enumerate(zip(blocks, scales, strict=True)):  # one at a time, to save memory
        nibbles = torch.stack((block & 15, block >> 4), dim=-1).flatten(-2)
        factors = torch.ldexp(torch.ones(scale.shape, dtype=torch.float64), scale.to(torch.int32) - _E8M0_BIAS)
        factors = factors.masked_fill(scale == _E8M0_NAN, torch.nan)
        values[expert] = (table[nibbles.int()] * factors.unsqueeze(-1)).to(dtype)
    return values.flatten(-2).transpose(1, 2).contiguous()
