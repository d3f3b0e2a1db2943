"""Weights made on demand from a seed: those of a model too large to build, or of one without a checkpoint.

The bytes of a weight are those of one stream of random numbers, whose key is the seed, the parameter's name, the
expert's number and the part of the encoding (elements or scales). Element i lies at byte i of it, so bytes depend
neither on what is read before, nor in which pieces, nor on the platform. Some bits of each element are then set, which
gives the values a spread that keeps activations near one through any number of layers:

- elements of matrices: a random sign, a magnitude spread over four octaves (of integers: evenly from 0 to 7), and a
  root mean square of 1 / sqrt(inputs), to within a factor of sqrt(2). Their mean is zero: else a mean of the inputs
  would grow from layer to layer until nothing else was left;
- biases: the same spread about zero, with a root mean square of about 1/64;
- other vectors, such as the scales of norms: between 1 and 1.25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.graph import Parameter
from ir.layout import matrix_shape
from ir.types import DType
from targets.emulator.encodings import Fp8, Int4, Mxfp4, stacked
from targets.emulator.weights import Plain, Stored

Words = npt.NDArray[np.uint64]
_PIECE_WORDS = 1 << 17
"""Made at once by one thread: a megabyte, which stays in a processor's cache."""
_BIAS_SPREAD = 1 / 64
_INT4_SPREAD = math.sqrt(sum(q * q for q in range(8)) / 8)
_E2M1_SPREAD = math.sqrt(2 * sum(m * m for m in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)) / 16)
_OCTAVE = math.sqrt(7 / 3)
"""Root mean square of numbers spread evenly between 1 and 2."""
_FOUR_OCTAVES = _OCTAVE * math.sqrt((1 + 4 + 16 + 64) / 4)


@dataclass(frozen=True, slots=True)
class _Float:
    """A binary floating-point type: ``bits`` of it are of the fraction, and ``bias`` is that of its exponent."""

    dtype: torch.dtype
    bytes: int
    bits: int
    bias: int


_FLOATS = {
    DType.F64: _Float(torch.float64, 8, 52, 1023),
    DType.F32: _Float(torch.float32, 4, 23, 127),
    DType.F16: _Float(torch.float16, 2, 10, 15),
    DType.BF16: _Float(torch.bfloat16, 2, 7, 127),
    DType.F8E4M3: _Float(torch.float8_e4m3fn, 1, 3, 7),
}


@dataclass(frozen=True, slots=True)
class _Bits:
    """Which random bits of each element stay (``kept``), and what is added to them, in elements of ``bytes``."""

    bytes: int
    kept: int
    added: int

    def lane(self, value: int) -> np.uint64:
        """``value`` in each element of a word."""
        return np.uint64(sum(value << (8 * self.bytes * i) for i in range(8 // self.bytes)))


_ANY = _Bits(1, 0xFF, 0)


def _spread(kind: _Float, size: float) -> _Bits:
    """Signed values over four octaves whose root mean square is ``size`` to within a factor of sqrt(2)."""
    exponent = kind.bias + round(math.log2(size / _FOUR_OCTAVES))
    highest = (1 << (8 * kind.bytes - 1 - kind.bits)) - 2
    exponent = min(max(exponent, 1), highest - 3)
    sign = 1 << (8 * kind.bytes - 1)
    return _Bits(kind.bytes, sign | (4 << kind.bits) - 1, exponent << kind.bits)


def _octave(kind: _Float, size: float) -> _Bits:
    """Positive values of one octave, for scales: the root mean square is ``size`` to within a factor of sqrt(2)."""
    exponent = kind.bias + round(math.log2(size / _OCTAVE))
    return _Bits(kind.bytes, (1 << kind.bits) - 1, exponent << kind.bits)


def _about_one(kind: _Float) -> _Bits:
    """Values between 1 and 1.25."""
    return _Bits(kind.bytes, (1 << (kind.bits - 2)) - 1, kind.bias << kind.bits)


@dataclass(frozen=True, slots=True)
class Seeded:
    """The weights of ``parameters`` made from ``seed``; see :class:`WeightSource`.

    Where they are ``held``, a weight is made whole when it is read, by ``threads`` threads. Else it takes no memory:
    its rows are made each time that they are used.
    """

    parameters: Mapping[str, Parameter]
    seed: int = 0
    threads: int = 1
    held: bool = True

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See :class:`WeightSource`."""
        parameter = self.parameters.get(name)
        return parameter.shape if parameter else None

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """See :class:`WeightSource`.

        Raises:
            UnsupportedModelError: W0640, no value can be made up for the weight: integers, or an encoding that is not
                known here.
        """
        parameter = self.parameters[name]
        shape = parameter.shape if expert is None else parameter.shape[1:]
        if not self.held and rows is None:
            return Made(replace(self, held=True), name, expert, shape)
        if expert is None and rows is None and _is_stack(parameter):
            whole = stacked([self.read(name, index) for index in range(parameter.shape[0])])
            assert whole is not None, "experts are alike"
            return whole
        return self._matrices(parameter, expert, shape, rows or range(shape[0] if shape else 1))

    def _matrices(self, parameter: Parameter, expert: int | None, shape: tuple[int, ...], rows: range) -> Stored:
        """Rows of a parameter, or of one expert's part of it, whose ``shape`` this is."""
        encoding = parameter.encoding.name
        size = 1 / math.sqrt(matrix_shape(parameter)[-1]) if len(parameter.shape) >= 2 else _BIAS_SPREAD

        def part(name: str, how: _Bits, row: tuple[int, ...], taken: range = rows) -> torch.Tensor:
            """Rows of as many elements as ``row`` says, as bytes [rows, bytes]."""
            each = math.prod(row) * how.bytes
            key = f"{self.seed}/{parameter.name}/{expert}/{name}"
            made = _stream(key, how, taken.start * each, taken.stop * each, self.threads)
            return torch.from_numpy(made).view(len(taken), each)

        if encoding == "int4_g32":
            how = _octave(_FLOATS[DType.BF16], size / _INT4_SPREAD)
            scales = part("scales", how, (shape[-1] // 32,)).view(torch.bfloat16)
            return Int4(_signed_nibbles(part("elements", _ANY, (shape[-1] // 2,))), scales)
        if encoding == "mxfp4":
            power = 127 + round(math.log2(size / _E2M1_SPREAD / math.sqrt(5 / 2)))
            blocks = part("elements", _ANY, (shape[-1] // 2,)).view(len(rows), -1, 16)
            return Mxfp4(blocks, part("scales", _Bits(1, 1, power), (shape[-1] // 32,)))
        if encoding in ("fp8_b128", "fp8_b128_bf16"):
            kind = _FLOATS[DType.F32 if encoding == "fp8_b128" else DType.BF16]
            spread, whole = _FOUR_OCTAVES, range(shape[0])
            values = part("elements", _spread(_FLOATS[DType.F8E4M3], spread), shape[1:], whole)
            how = _octave(kind, size / spread)
            scales = part("scales", how, (-(-shape[-1] // 128),), range(-(-shape[0] // 128))).view(kind.dtype)
            weight = Fp8(values.view(torch.float8_e4m3fn), scales)
            return weight if rows == whole else Plain(weight.unpack(torch.float32, "cpu")[rows.start : rows.stop])
        dtype = next((dtype for dtype in _FLOATS if dtype.value == encoding), None)
        if dtype is None:
            raise _unknown(parameter)
        kind = _FLOATS[dtype]
        is_scale = len(parameter.shape) < 2 and not parameter.name.endswith("bias")
        how = _about_one(kind) if is_scale else _spread(kind, size)
        return Plain(part("elements", how, shape[1:]).view(kind.dtype).view(_taken(shape, rows)))


def _signed_nibbles(random: torch.Tensor) -> torch.Tensor:
    """Words i32 of four-bit values stored as q + 8, of random bytes: three bits of each are q's magnitude, from 0 to 7
    above -7 or above 0, and the fourth says which.
    """
    held = random.numpy()
    upper = (held >> 3) & 0x11
    upper *= 7
    held &= 0x77
    held += upper
    held += 0x11
    return random.view(torch.int32)


@dataclass(frozen=True, slots=True)
class Made:
    """A weight, or one expert's part of it, that is made each time that it is used."""

    source: Seeded
    name: str
    expert: int | None
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """None."""
        return 0

    def rows(self, rows: range | None = None) -> Stored:
        """The weight made, or these rows of it."""
        return self.source.read(self.name, self.expert, rows)

    def unpack(self, dtype: torch.dtype, device: str) -> torch.Tensor:
        """The weight in ``dtype``."""
        return self.rows().unpack(dtype, device)


def _taken(shape: tuple[int, ...], rows: range) -> tuple[int, ...]:
    return (len(rows), *shape[1:]) if shape else ()


def _stream(key: str, how: _Bits, start: int, stop: int, threads: int) -> npt.NDArray[np.uint8]:
    """Bytes ``start`` to ``stop`` of the stream that belongs to ``key``."""
    first, last = start // 8, -(-stop // 8)
    state = int.from_bytes(blake2b(key.encode(), digest_size=16).digest(), "little")
    words = np.empty(last - first, dtype="<u8")
    kept, added = how.lane(how.kept), how.lane(how.added)

    def fill(begin: int) -> None:
        piece = words[begin : begin + _PIECE_WORDS]
        raw = np.random.PCG64(state).advance(first + begin).random_raw(len(piece))
        np.bitwise_and(raw, kept, out=piece)
        np.add(piece, added, out=piece)

    begins = range(0, len(words), _PIECE_WORDS)
    if threads > 1 and len(begins) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, begins))
    else:
        for begin in begins:
            fill(begin)
    return words.view(np.uint8)[start - 8 * first : stop - 8 * first]


def _is_stack(parameter: Parameter) -> bool:
    """Whether the first axis is of experts, whose bytes are made one by one."""
    return len(parameter.shape) == 3 and len(matrix_shape(parameter)) == 3


def _unknown(parameter: Parameter) -> UnsupportedModelError:
    message = f"no values can be made up for {parameter.name}, which is stored as {parameter.encoding.name}"
    help_ = ("give a checkpoint folder",)
    return UnsupportedModelError(Diagnostic("W0640", message, parameter.name, help=help_))
