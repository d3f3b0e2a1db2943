"""How publishers store a quantized weight as several tensors, told from names, types and shapes alone.

Each :class:`Scheme` says which tensors make a weight, its shape, and how it is held as it is stored, to be unpacked
exactly (:mod:`targets.emulator.encodings`). What is not stored by a scheme is stored as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.encoding import ENCODINGS, Encoding, plain
from ir.types import DType
from partitioner.frontends.checkpoint.headers import StoredTensor
from targets.emulator.encodings import Fp8, Int4, Mxfp4, Transposed
from targets.emulator.weights import Stored

Shape = tuple[int, ...]


class StoredWeight(msgspec.Struct, frozen=True, gc=False):
    """A weight under the publisher's name, and the tensors that hold it.

    ``shape`` is that of the values; ``parts`` are in the order of its scheme's suffixes.
    """

    name: str
    shape: Shape
    encoding: Encoding
    parts: tuple[StoredTensor, ...]
    scheme: Scheme | None

    @property
    def held(self) -> tuple[StoredTensor, ...]:
        """The parts that are its bytes: elements and scales."""
        return self.parts if self.scheme is None else self.parts[: self.scheme.held]

    @property
    def stated(self) -> tuple[StoredTensor, ...]:
        """The parts that state its shape."""
        return () if self.scheme is None else self.parts[self.scheme.held :]

    @property
    def bytes(self) -> int:
        """Bytes of elements and scales."""
        return sum(part.end - part.begin for part in self.held)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to store a weight as the tensors ``name + suffix``, of these ``dtypes``.

    Attributes:
        suffixes: what follows the weight's name, in order: elements, scales, facts about them.
        dtypes: the format's name of the type of each.
        held: how many of them are bytes of the weight; one more states its shape.
        encoding: the IR's word for it.
        shape: from the shapes of the parts to that of the values; ``None`` where they do not fit together.
        hold: from the values of the parts that are its bytes to the weight.
    """

    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    held: int
    encoding: Encoding
    shape: Callable[[Sequence[Shape]], Shape | None]
    hold: Callable[[Sequence[torch.Tensor]], Stored]


def _int4_shape(shapes: Sequence[Shape]) -> Shape | None:
    words, scales, stated = shapes
    if len(words) != 2 or len(scales) != 2 or stated != (2,):
        return None
    fits = words[0] == scales[0] and words[1] * 8 == scales[1] * 32
    return (words[0], words[1] * 8) if fits else None


def _fp8_shape(shapes: Sequence[Shape]) -> Shape | None:
    values, scales = shapes
    if len(values) < 2:
        return None
    *stack, outputs, inputs = values
    return values if scales == (*stack, -(-outputs // 128), -(-inputs // 128)) else None


def _mxfp4_shape(shapes: Sequence[Shape]) -> Shape | None:
    blocks, scales = shapes
    if len(blocks) != 4 or blocks[-1] != 16 or blocks[:-1] != scales:
        return None
    experts, outputs, groups = scales
    return experts, groups * 32, outputs


def _int4(parts: Sequence[torch.Tensor]) -> Stored:
    return Int4(*parts)


def _fp8(parts: Sequence[torch.Tensor]) -> Stored:
    return Fp8(*parts)


def _mxfp4(parts: Sequence[torch.Tensor]) -> Stored:
    """As transformers holds these experts, [expert, in, out]; rows of gate and up stay interleaved."""
    return Transposed(Mxfp4(*parts))


SCHEMES = (
    # compressed-tensors "pack-quantized", as Kimi K2.5 and K2.6 store their routed experts.
    Scheme(("_packed", "_scale", "_shape"), ("I32", "BF16", "I32"), 2, ENCODINGS["int4_g32"], _int4_shape, _int4),
    # DeepSeek-V3 and Kimi K2; the scales of Qwen3's are of another type.
    Scheme(("", "_scale_inv"), ("F8_E4M3", "F32"), 2, ENCODINGS["fp8_b128"], _fp8_shape, _fp8),
    Scheme(("", "_scale_inv"), ("F8_E4M3", "BF16"), 2, ENCODINGS["fp8_b128_bf16"], _fp8_shape, _fp8),
    # gpt-oss; transformers holds these experts as [expert, in, out].
    Scheme(("_blocks", "_scales"), ("U8", "U8"), 2, ENCODINGS["mxfp4"], _mxfp4_shape, _mxfp4),
)

_PLAIN = {
    "F64": DType.F64,
    "F32": DType.F32,
    "F16": DType.F16,
    "BF16": DType.BF16,
    "I64": DType.I64,
    "I32": DType.I32,
    "I16": DType.I16,
    "I8": DType.I8,
    "U8": DType.U8,
    "BOOL": DType.BOOL,
}


def stored_weights(tensors: Iterable[StoredTensor]) -> tuple[StoredWeight, ...]:
    """The weights that ``tensors`` hold; each tensor belongs to one.

    Raises:
        UnsupportedModelError: W0227, parts of a scheme do not fit together, or values of a type that means nothing
            without scales.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    found = list(_by_schemes(by_name))
    taken = {part.name for weight in found for part in weight.parts}
    found += [_as_it_is(tensor) for name, tensor in by_name.items() if name not in taken]
    return tuple(found)


def _by_schemes(by_name: Mapping[str, StoredTensor]) -> Iterator[StoredWeight]:
    """Weights of which all tensors of a scheme are there, of its types."""
    candidates = [
        (scheme, tensor)
        for scheme in SCHEMES
        for tensor in by_name.values()
        if tensor.dtype == scheme.dtypes[1] and tensor.name.endswith(scheme.suffixes[1])
    ]
    for scheme, tensor in candidates:
        name = tensor.name[: -len(scheme.suffixes[1])]
        parts = [part for suffix in scheme.suffixes if (part := by_name.get(name + suffix))]
        if tuple([part.dtype for part in parts]) != scheme.dtypes:
            continue
        shape = scheme.shape([part.shape for part in parts])
        if shape is None:
            raise _no_fit(name, parts)
        yield StoredWeight(name, shape, scheme.encoding, tuple(parts), scheme)


def _as_it_is(tensor: StoredTensor) -> StoredWeight:
    dtype = _PLAIN.get(tensor.dtype)
    if dtype is None:
        message = f"{tensor.name!r} is stored as {tensor.dtype} in a way that is not known"
        known = ", ".join(" + ".join(f"X{suffix}" for suffix in scheme.suffixes) for scheme in SCHEMES)
        help_ = (f"known are {known}, and plain floats and integers",)
        raise UnsupportedModelError(Diagnostic("W0227", message, str(tensor.file), help=help_))
    return StoredWeight(tensor.name, tensor.shape, plain(dtype), (tensor,), None)


def _no_fit(name: str, parts: Sequence[StoredTensor]) -> UnsupportedModelError:
    facts = {part.name[len(name) :].strip("_") or "values": f"{part.dtype} {list(part.shape)}" for part in parts}
    message = f"the tensors that hold {name!r} do not fit together"
    return UnsupportedModelError(Diagnostic("W0227", message, str(parts[0].file), facts))
