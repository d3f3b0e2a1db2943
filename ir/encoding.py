"""How weights are stored: bits per element and the scales that groups of elements share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ir.types import DType


@dataclass(frozen=True, slots=True)
class Encoding:
    """Storage of a weight whose last two axes are (out, in).

    ``group_out`` x ``group_in`` elements share one scale of ``scale_bytes`` bytes. ``align_in`` is the number of
    consecutive input elements that cannot be parted (a packed group lies on one tile).
    """

    name: str
    bits: int
    group_out: int = 1
    group_in: int = 1
    scale_bytes: int = 0
    align_in: int = 1

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a stored tensor of ``shape``, its scales included."""
        elements = math.prod(shape)
        total = -(-elements * self.bits // 8)
        if not self.scale_bytes:
            return total
        *stack, outputs, inputs = (1, 1, *shape)[-max(2, len(shape)) :]
        groups = math.prod(stack) * -(-outputs // self.group_out) * -(-inputs // self.group_in)
        return total + groups * self.scale_bytes


_PLAIN = {dtype.value: Encoding(dtype.value, dtype.bits) for dtype in DType}
_QUANTIZED = {
    encoding.name: encoding
    for encoding in (
        # compressed-tensors "pack-quantized": eight 4-bit values per 32-bit word, one bf16 scale per 32 inputs.
        Encoding("int4_g32", 4, group_in=32, scale_bytes=2, align_in=32),
        # OCP Microscaling MXFP4: 32 values of E2M1 share one E8M0 scale byte.
        Encoding("mxfp4", 4, group_in=32, scale_bytes=1, align_in=32),
        # DeepSeek-V3: e4m3 with one f32 scale per 128 x 128 block.
        Encoding("fp8_b128", 8, group_out=128, group_in=128, scale_bytes=4),
        # The same with bf16 scales, as Qwen3's are published.
        Encoding("fp8_b128_bf16", 8, group_out=128, group_in=128, scale_bytes=2),
    )
}
_SCALE_BYTES = {DType.F32.value: 4, DType.F16.value: 2, DType.BF16.value: 2}
_WHOLE_ROW = 1 << 30


def _blockwise() -> dict[str, Encoding]:
    """Onnxruntime's MatMulNBits and QMoE: unsigned integers, and a scale for each block of a row, or for each row.

    A zero point takes the bits of a weight (two of 4 bits share a byte, so does a pair of blocks) or those of a scale.
    """
    found = []
    for bits in (4, 8):
        for block in (16, 32, 64, 128, 256, _WHOLE_ROW):
            for scale, size in _SCALE_BYTES.items():
                name = f"uint{bits}_{'row' if block == _WHOLE_ROW else f'g{block}'}_{scale}"
                align = 8 // bits if block == _WHOLE_ROW else block
                found.append(Encoding(name, bits, 1, block, size, align))
                found.append(Encoding(f"{name}_zero", bits, 1, block, size + 1, align))
                found.append(Encoding(f"{name}_zero_{scale}", bits, 1, block, 2 * size, align))
                if bits == 4 and block != _WHOLE_ROW:
                    found.append(Encoding(f"{name}_zeros", bits, 1, 2 * block, 2 * size + 1, 2 * block))
    return {encoding.name: encoding for encoding in found}


ENCODINGS = _PLAIN | _QUANTIZED | _blockwise()


def plain(dtype: DType) -> Encoding:
    """The encoding that stores ``dtype`` as it is."""
    return _PLAIN[dtype.value]
