"""Fourier transforms as products with matrices of cosines and sines; complex numbers are pairs on the last axis."""

from __future__ import annotations

import math

from ir.types import DType
from partitioner.frontends.onnx_file.constants import UnfoldableError, check_size, normal_axis
from partitioner.frontends.onnx_file.indexing import take
from partitioner.frontends.onnx_file.lowering import Site
from partitioner.frontends.onnx_file.nodes import Operand
from partitioner.frontends.onnx_file.table import operator
from partitioner.frontends.onnx_file.terms import Term, counting, fixed, join, optional, term


@operator("DFT")
def _transform(site: Site) -> Operand:
    x = term(site, 0)
    if site.opset >= 20:
        axis = int(site.demanded(2).list()[0]) if site.has(2) else -2
    else:
        axis = int(site.attribute("axis", 1))
    axis = normal_axis(axis, len(x.shape))
    length = int(site.demanded(1).list()[0]) if site.has(1) else None
    inverse, one_sided = bool(site.attribute("inverse", 0)), bool(site.attribute("onesided", 0))
    last = len(x.shape) - 1
    real = x.cut(last, 0, 1).reshape(*x.shape[:-1]).axis_last(axis)
    imaginary = x.cut(last, 1, 2).reshape(*x.shape[:-1]).axis_last(axis) if x.shape[-1] == 2 else None
    if inverse and one_sided:
        length = length if length is not None else 2 * (fixed(x.shape[axis]) - 1)
        parts = [_real_from_half(real, imaginary, length)]
    else:
        length = length if length is not None else fixed(x.shape[axis])
        count = length // 2 + 1 if one_sided else length
        parts = list(
            _transformed(_fitted(real, length), imaginary and _fitted(imaginary, length), count, inverse=inverse)
        )
    back = [part.axis_last(len(part.shape) - 1, axis) for part in parts]
    return join([part.reshape(*part.shape, 1) for part in back], len(x.shape) - 1).name


def _fitted(x: Term, length: int) -> Term:
    """The last axis cut off or filled up with zeros."""
    size = fixed(x.shape[-1])
    if size >= length:
        return x.cut(len(x.shape) - 1, 0, length)
    none = (0,) * (len(x.shape) - 1)
    return x.apply("pad", before=(*none, 0), after=(*none, length - size), mode="constant", value=0.0)


def _angles(x: Term, length: int, count: int) -> Term:
    """The angle of each element [length] at each frequency [count], in 64 bits."""
    turns = counting(x.site, length).reshape(length, 1) * counting(x.site, count).reshape(1, count)
    return turns.with_("remainder", length).cast(DType.F64) * (2 * math.pi / length)


def _transformed(real: Term, imaginary: Term | None, count: int, *, inverse: bool) -> tuple[Term, Term]:
    length = fixed(real.shape[-1])
    angles = _angles(real, length, count)
    cosine, sine = (angles.apply(op).cast(real.dtype) for op in ("cos", "sin"))
    sine = -sine if inverse else sine
    first, second = real @ cosine, -(real @ sine)
    if imaginary is not None:
        first, second = first + imaginary @ sine, second + imaginary @ cosine
    return (first / length, second / length) if inverse else (first, second)


def _real_from_half(real: Term, imaginary: Term | None, length: int) -> Term:
    """Real numbers from the first half of their spectrum; every frequency but the outer ones stands for two."""
    if imaginary is None:
        raise UnfoldableError("the inverse of a real half spectrum is not supported")
    count = length // 2 + 1
    real, imaginary = _fitted(real, count), _fitted(imaginary, count)
    angles = _angles(real, length, count).transpose(1, 0)
    places = counting(real.site, count)
    outer = places.with_("eq", 0) if length % 2 else places.with_("remainder", length // 2).with_("eq", 0)
    weights = (-outer.cast(real.dtype) + 2).reshape(count)
    cosine, sine = (angles.apply(op).cast(real.dtype) for op in ("cos", "sin"))
    return ((real * weights) @ cosine - (imaginary * weights) @ sine) / length


@operator("STFT")
def _short_time(site: Site) -> Operand:
    """The transforms of windows that follow each other, [batch, windows, frequencies, 2]."""
    x, step, window = term(site, 0), int(site.demanded(1).list()[0]), optional(site, 2)
    given = int(site.demanded(3).list()[0]) if site.has(3) else None
    length = given if given is not None else fixed(window.shape[0]) if window is not None else fixed(x.shape[1])
    batch, samples = x.shape[:2]
    if step < 1 or length > fixed(samples):
        raise UnfoldableError(f"windows of {length} samples every {step} do not fit {samples} samples")
    windows = (fixed(samples) - length) // step + 1
    check_size((windows, length))
    places = [index * step + offset for index in range(windows) for offset in range(length)]
    parts = []
    for part in range(fixed(x.shape[2]) if len(x.shape) == 3 else 1):
        signal = x.cut(2, part, part + 1).reshape(batch, samples) if len(x.shape) == 3 else x
        frames = take(signal, 1, places).reshape(batch, windows, length)
        parts.append(frames * window if window is not None else frames)
    count = length // 2 + 1 if site.attribute("onesided", 1) else length
    pair = _transformed(parts[0], parts[1] if len(parts) > 1 else None, count, inverse=False)
    return join([part.reshape(*part.shape, 1) for part in pair], 3).name


@operator("Det")
def _determinant(site: Site) -> Operand:
    return site.emit("determinant", [site.tensor(0)])
