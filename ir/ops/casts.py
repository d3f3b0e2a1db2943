"""Operators that change the element type: by value, or by giving the same bits another meaning."""

from __future__ import annotations

from typing import Any

from ir.graph import Attributes
from ir.ops.definition import Kind, OpDef, Tensors, Types, follow_broadcast, require, torch_dtype
from ir.types import DType, TensorType

_LARGEST = {DType.F8E4M3: 448.0, DType.F8E4M3FNUZ: 240.0, DType.F8E5M2: 57344.0, DType.F8E5M2FNUZ: 57344.0}
"""The largest finite value of each type. Half a unit above it is where rounding to nearest would leave the type."""

_ROUND_TO_LARGEST = {DType.F8E4M3: 464.0, DType.F8E4M3FNUZ: 248.0, DType.F8E5M2: 61440.0, DType.F8E5M2FNUZ: 61440.0}


def _cast(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    require(isinstance(attributes.get("saturate", True), bool), "saturate must be a boolean")
    rounding = attributes.get("rounding", "nearest")
    require(rounding in ("nearest", "up", "down"), f"there is no rounding {rounding}")
    return (operands[0].with_dtype(DType(attributes["dtype"])),)


def _reference_cast(torch: Any, tensors: Tensors, attributes: Attributes) -> Any:
    """By torch's rules; in types that torch lacks, narrow integers wrap, and E2M1 saturates as it has no infinity.

    ``saturate`` (default true) makes the largest finite number of what an 8-bit float cannot hold, else infinity, or
    NaN where there is none. ``rounding`` is that of E8M0: to the nearest, the next or the last power of two.
    """
    (x,), dtype = tensors, DType(attributes["dtype"])
    if dtype in _LARGEST:
        return _to_float8(torch, x, dtype, attributes.get("saturate", True))
    if dtype is DType.F8E8M0:
        return _to_power_of_two(torch, x, attributes.get("rounding", "nearest"))
    held = torch_dtype(torch, dtype)
    if dtype is DType.F4E2M1:
        return _to_e2m1(torch, x.to(torch.float32)).to(held)
    if dtype.bits < 8:
        least, greatest = dtype.integer_range
        return ((x.to(torch.int64) - least) % (greatest - least + 1) + least).to(held)
    if x.is_floating_point() and not dtype.is_float and dtype is not DType.BOOL and dtype.bits < 64:
        x = x.to(torch.int64)
    return x.to(held)


def _to_float8(torch: Any, x: Any, dtype: DType, saturate: Any) -> Any:
    x, held = x.to(torch.float32), torch_dtype(torch, dtype)
    largest = _LARGEST[dtype]
    if saturate:
        return x.clamp(-largest, largest).to(held)
    overflow = torch.inf * x.sign() if dtype is DType.F8E5M2 else torch.full_like(x, torch.nan)
    too_large = x.abs() > _ROUND_TO_LARGEST[dtype] if dtype is DType.F8E4M3 else x.abs() >= _ROUND_TO_LARGEST[dtype]
    return torch.where(too_large, overflow, x).to(held)


def _to_power_of_two(torch: Any, x: Any, rounding: str) -> Any:
    fraction, exponent = torch.frexp(x.to(torch.float32))
    least = {"nearest": 0.75, "up": torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)), "down": 1.0}[rounding]
    power = torch.where(fraction.abs() >= least, exponent, exponent - 1).clamp(-127, 127)
    power = torch.where(x == 0, -127, power)
    return torch.where(x.isnan(), torch.nan, torch.ldexp(torch.ones_like(fraction), power)).to(torch.float8_e8m0fnu)


def _to_e2m1(torch: Any, x: Any) -> Any:
    """Rounded to 0, 0.5, 1, 1.5, 2, 3, 4 and 6, halves to the even code."""
    size = x.abs().clamp(max=6)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign(torch.round(size / step) * step, x)


def _bitcast(operands: Types, attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = DType(attributes["dtype"])
    require(dtype.bits == operands[0].dtype.bits, f"{operands[0].dtype} and {dtype} differ in width")
    require(dtype.bits >= 8, "elements narrower than a byte have no bits of their own")
    return (operands[0].with_dtype(dtype),)


CASTS = (
    OpDef("cast", _cast, _reference_cast, (1, 1), follow=follow_broadcast),
    OpDef(
        "bitcast",
        _bitcast,
        lambda torch, ts, a: ts[0].contiguous().view(torch_dtype(torch, a["dtype"])),
        (1, 1),
        kind=Kind.VIEW,
        follow=follow_broadcast,
    ),
)
