"""Quantized weights as they are stored, and their exact values.

The arithmetic, roundings included, is that of the publishers' own libraries, which the tests compare with bit for bit.
Every class holds weights [..., out, in]: of one matrix, or of a stack of them. A byte is looked up in a table of what
its two values are, which is faster than shifts and masks, and in parts of rows that stay in a processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

from targets.emulator.weights import Plain, Stored

Tensor = torch.Tensor

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of the four-bit floats of the OCP Microscaling specification 1.0; the highest bit is the sign."""
_E8M0_BIAS = 127
_E8M0_NAN = 255
_FP8_BLOCK = 128
_PART_BYTES = 1 << 18
"""Bytes that are unpacked at once."""


@dataclass(frozen=True, slots=True)
class Int4:
    """compressed-tensors ``pack-quantized``, symmetric, 4 bits, groups of 32 along the inputs.

    ``words`` i32 [..., out, in / 8], each of eight values of which the first is in the lowest bits and stored as
    q + 8; ``scales`` [..., out, in / 32], to whose own type the product is rounded, as the library does.
    """

    words: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, unpacked."""
        return (*self.words.shape[:-1], self.words.shape[-1] * 8)

    @property
    def nbytes(self) -> int:
        """Bytes of words and scales."""
        return self.words.nbytes + self.scales.nbytes

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The weight in ``dtype``."""
        table = _pairs(tuple(float(q - 8) for q in range(16)), self.scales.dtype, device)
        return _scaled_groups(self.words.to(device), self.scales.to(device), table, 32, self.shape, dtype)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """MXFP4: ``blocks`` u8 [..., out, in / 32, 16] of two values a byte, the first in the lower half; ``scales`` u8
    [..., out, in / 32], powers of two with a bias of 127.
    """

    blocks: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, unpacked."""
        return (*self.scales.shape[:-1], self.scales.shape[-1] * 32)

    @property
    def nbytes(self) -> int:
        """Bytes of blocks and scales."""
        return self.blocks.nbytes + self.scales.nbytes

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The weight in ``dtype``; every product but those out of range is exact even in bf16."""
        held = dtype if dtype in (torch.bfloat16, torch.float64) else torch.float32
        table = _pairs((*_E2M1, *(-magnitude for magnitude in _E2M1)), held, device)
        factors = _powers_of_two(held, device)[self.scales.to(device).int()]
        return _scaled_groups(self.blocks.to(device), factors, table, 32, self.shape, dtype)


@dataclass(frozen=True, slots=True)
class Fp8:
    """DeepSeek-V3: ``values`` e4m3 [..., out, in] times ``scales`` [..., ceil(out / 128), ceil(in / 128)] by block."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The values'."""
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The weight in ``dtype``: the product in f32, rounded once."""
        values, scales = self.values.to(device), self.scales.to(device=device, dtype=torch.float32)
        table = _bytes_as(values.dtype, device)
        each = scales.repeat_interleave(_FP8_BLOCK, -1)[..., : values.shape[-1]]
        result = torch.empty(self.shape, dtype=dtype, device=device)
        for row in range(each.shape[-2]):
            block = slice(row * _FP8_BLOCK, (row + 1) * _FP8_BLOCK)
            stored = values[..., block, :]
            wide = table.index_select(0, stored.reshape(-1).view(torch.uint8).int()).view(stored.shape)
            torch.mul(wide, each[..., row : row + 1, :], out=result[..., block, :])
        return result


@dataclass(frozen=True, slots=True)
class Blockwise:
    """Onnxruntime's MatMulNBits and QMoE: unsigned integers of 4 or 8 ``bits``, the first in the lowest bits of a byte.

    ``integers`` u8 [..., out, bytes of a row] hold ``inputs`` values a row; each ``block`` of them has one of
    ``scales`` [..., out, blocks] and of ``zeros`` (alike; without them half of the range): (integer - zero) * scale, in
    f32, rounded to the type of the scales.
    """

    integers: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    block: int
    inputs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, unpacked."""
        return (*self.integers.shape[:-1], self.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of integers, scales and zero points."""
        return self.integers.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The weight in ``dtype``."""
        rows = self.integers.to(device).flatten(0, -2)
        scales = self.scales.to(device=device, dtype=torch.float32).flatten(0, -2)
        zeros = None if self.zeros is None else self.zeros.to(device=device, dtype=torch.float32).flatten(0, -2)
        result = torch.empty((len(rows), self.inputs), dtype=dtype, device=device)
        for part in _row_parts(len(rows), rows.shape[-1]):
            wide = unsigned(rows[part], self.bits)[:, : self.inputs].to(torch.float32)
            wide -= 1 << (self.bits - 1) if zeros is None else self._spread(zeros[part])
            wide *= self._spread(scales[part])
            result[part] = wide.to(self.scales.dtype)
        return result.view(self.shape)

    def _spread(self, each: Tensor) -> Tensor:
        return each.repeat_interleave(self.block, -1)[:, : self.inputs]


@dataclass(frozen=True, slots=True)
class Transposed:
    """A weight whose last two axes are stored in the other order."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """With the last two axes swapped."""
        *stack, rows, columns = self.stored.shape
        return (*stack, columns, rows)

    @property
    def nbytes(self) -> int:
        """The stored weight's."""
        return self.stored.nbytes

    def unpack(self, dtype: torch.dtype, device: str) -> Tensor:
        """The weight in ``dtype``, a view of the stored order."""
        return self.stored.unpack(dtype, device).transpose(-1, -2)


def unsigned(packed: Tensor, bits: int) -> Tensor:
    """The integers of each byte u8 [..., n], the lowest bits first: [..., n * 8 / bits].

    Of 4 bits a byte's two, of 8 bits the byte itself.
    """
    return packed if bits == 8 else torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def joined(parts: Sequence[Stored], axis: int) -> Stored | None:
    """Weights of one encoding put together along ``axis``, still packed; ``None`` where their groups cannot be.

    Args:
        parts: of equal shapes but for ``axis``.
        axis: of the weights [..., out, in], from the front.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(type(part) is not type(first) for part in parts):
        return None
    rank = len(first.shape)
    if isinstance(first, Transposed):
        swapped = {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis)
        inner = joined([part.stored for part in parts], swapped)  # type: ignore[attr-defined]
        return None if inner is None else Transposed(inner)
    if isinstance(first, Plain):
        tensors = [part.tensor for part in parts]  # type: ignore[attr-defined]
        return Plain(torch.cat(tensors, axis)) if len({t.dtype for t in tensors}) == 1 else None
    if isinstance(first, Fp8) and axis == rank - 2 and any(part.shape[axis] % _FP8_BLOCK for part in parts[:-1]):
        return None
    return None if axis == rank - 1 else _joined_fields(parts, axis)


def stacked(parts: Sequence[Stored]) -> Stored | None:
    """Weights of one shape and encoding along a new first axis, still packed; ``None`` where they are not alike."""
    return joined([lifted(part) for part in parts], 0)


def lifted(stored: Stored) -> Stored:
    """A stack of one weight."""
    return _of_each(stored, lambda tensor: tensor[None])


def one_of(stack: Stored, place: int) -> Stored:
    """The weight at ``place`` of a stack."""
    return _of_each(stack, lambda tensor: tensor[place])


def _of_each(stored: Any, change: Callable[[Tensor], Tensor]) -> Stored:
    """The same class with each of its tensors changed."""
    if isinstance(stored, Transposed):
        return Transposed(_of_each(stored.stored, change))
    tensors = {name: change(value) for name, value in _fields(stored) if isinstance(value, Tensor)}
    return replace(stored, **tensors)  # type: ignore[no-any-return]


def _joined_fields(parts: Sequence[Any], axis: int) -> Stored | None:
    """The same class with each of its tensors put together; ``None`` where other fields, or types, differ."""
    made: dict[str, Tensor] = {}
    for name, value in _fields(parts[0]):
        values = [getattr(part, name) for part in parts]
        if not isinstance(value, Tensor):
            if any(other != value for other in values):
                return None
            continue
        if any(not isinstance(other, Tensor) or other.dtype != value.dtype for other in values):
            return None
        made[name] = torch.cat(values, axis)
    return replace(parts[0], **made)  # type: ignore[no-any-return]


def _fields(stored: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(stored, field.name)) for field in fields(stored))


@lru_cache(maxsize=32)
def _pairs(values: tuple[float, ...], dtype: torch.dtype, device: str) -> Tensor:
    """The two values [256, 2] of each byte, the one in the lower half first."""
    table, byte = torch.tensor(values, dtype=dtype, device=device), torch.arange(256, device=device)
    return torch.stack((table[byte & 15], table[byte >> 4]), dim=-1)


@lru_cache(maxsize=32)
def _bytes_as(dtype: torch.dtype, device: str) -> Tensor:
    """What each byte stands for as ``dtype`` [256], in f32."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).to(device)


@lru_cache(maxsize=32)
def _powers_of_two(dtype: torch.dtype, device: str) -> Tensor:
    """What each E8M0 byte stands for [256]."""
    exponent = torch.arange(256, dtype=torch.float64, device=device) - _E8M0_BIAS
    values = torch.exp2(exponent)
    values[_E8M0_NAN] = torch.nan
    return values.to(dtype)


def _scaled_groups(
    packed: Tensor, scales: Tensor, pairs: Tensor, group: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Values by ``pairs`` of each byte of ``packed`` times one of ``scales`` a ``group``, in the type of the scales."""
    stored, factors = packed.contiguous().view(torch.uint8).view(-1, group // 2), scales.reshape(-1, 1)
    result = torch.empty((len(stored), group), dtype=dtype, device=packed.device)
    as_one = {torch.float32: torch.int64}.get(pairs.dtype, torch.int32) if pairs.itemsize < 8 else torch.complex128
    table = pairs.view(as_one).view(-1)
    for part in _row_parts(len(stored), group // 2):
        values = table.index_select(0, stored[part].reshape(-1).int()).view(pairs.dtype).view(-1, group)
        torch.mul(values, factors[part], out=result[part])
    return result.view(shape)


def _row_parts(rows: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, _PART_BYTES // max(1, row_bytes))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))
