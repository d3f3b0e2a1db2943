"""The IR keeps its promises: sizes are polynomials, text round-trips, types are what the reference computes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ir.diagnostics import Diagnostic, UnsupportedModelError, UsageError
from ir.encoding import ENCODINGS, Encoding, plain
from ir.graph import Attribute, Graph, Node, Parameter, Value
from ir.interpret import bind_symbols, interpret
from ir.layout import MatrixLayout, Split, fullest_tile_bytes, matrix_layouts
from ir.ops import OPS, Kind, OpTypeError
from ir.ops import evaluate as evaluate_op
from ir.ops.definition import torch_dtype
from ir.text import parse_graph, print_graph
from ir.types import (
    Dim,
    DType,
    Size,
    TensorType,
    broadcast_shapes,
    evaluate,
    exact_quotient,
    for_one_token,
    parse_size,
    product,
    promote,
    symbols_of,
)
from ir.verify import verify

USERS, TOKENS = Dim.symbol("users"), Dim.symbol("tokens")
F32, BF16, I64, BOOL = DType.F32, DType.BF16, DType.I64, DType.BOOL

# Sizes.

symbols = st.sampled_from(["users", "tokens", "context", "d0"])
coefficients = st.integers(-50, 50)
monomials: st.SearchStrategy[Size] = st.builds(
    lambda names, factor: product([factor, *map(Dim.symbol, names)]), st.lists(symbols, max_size=3), coefficients
)
sizes: st.SearchStrategy[Size] = st.lists(monomials, max_size=4).map(lambda terms: sum(terms, start=0))
bindings = st.fixed_dictionaries({name: st.integers(-9, 9) for name in ("users", "tokens", "context", "d0")})


@given(sizes, sizes, sizes)
def test_sizes_are_a_commutative_ring(a: Size, b: Size, c: Size) -> None:
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) + c == a + (b + c)
    assert (a * b) * c == a * (b * c)
    assert a * (b + c) == a * b + a * c
    assert a + 0 == 0 + a == a * 1 == 1 * a == a
    assert a * 0 == a - a == 0
    assert (a - b) + b == a
    assert a - b == -1 * (b - a)


@given(sizes, sizes, bindings)
def test_sizes_compute_what_their_values_do(a: Size, b: Size, values: dict[str, int]) -> None:
    assert evaluate(a + b, values) == evaluate(a, values) + evaluate(b, values)
    assert evaluate(a - b, values) == evaluate(a, values) - evaluate(b, values)
    assert evaluate(a * b, values) == evaluate(a, values) * evaluate(b, values)


@given(sizes)
def test_sizes_round_trip_through_text(size: Size) -> None:
    assert parse_size(str(size)) == size


@given(sizes, sizes)
def test_equal_sizes_are_equal_in_form(a: Size, b: Size) -> None:
    left, right = (a + b) * (a - b), a * a - b * b
    assert (left, hash(left), str(left)) == (right, hash(right), str(right))


@given(sizes, monomials)
def test_quotient_by_a_monomial_undoes_the_product(a: Size, b: Size) -> None:
    assert exact_quotient(a * b, b) == (a if b != 0 else None)


@given(sizes, sizes)
def test_a_quotient_times_the_divisor_is_the_size(a: Size, b: Size) -> None:
    quotient = exact_quotient(a, b)
    assert quotient is None or quotient * b == a


def test_quotients_that_do_not_exist() -> None:
    assert exact_quotient(7, 2) is None
    assert exact_quotient(USERS, TOKENS) is None
    assert exact_quotient(2 * USERS * TOKENS, 4 * USERS) is None
    assert exact_quotient(USERS, 0) is None
    assert exact_quotient(0, 0) is None
    assert exact_quotient(USERS + 1, USERS + 1) == 1


def test_figures_of_sizes() -> None:
    size = 3 * USERS * TOKENS + 2 * TOKENS * Dim.symbol("context") + 5
    assert isinstance(size, Dim)
    assert str(size) == "2*context*tokens + 3*tokens*users + 5"
    assert size.coefficient("users", "tokens") == 3
    assert size.coefficient("users") == 0
    assert symbols_of(size) == {"users", "tokens", "context"}
    assert for_one_token(size, context=10) == 3 + 20 + 5
    with pytest.raises(KeyError):
        evaluate(size, {"users": 1})
    for text in ("", "2*", "a-b", "1.5", "a b"):
        with pytest.raises(ValueError, match=r"not a size|invalid literal"):
            parse_size(text)


shapes = st.lists(st.integers(1, 3), max_size=4).map(tuple)


@given(st.lists(shapes, min_size=1, max_size=3))
def test_broadcasting_is_numpys(given_shapes: list[tuple[int, ...]]) -> None:
    try:
        expected: tuple[int, ...] | None = np.broadcast_shapes(*given_shapes)
    except ValueError:
        expected = None
    assert broadcast_shapes(given_shapes) == expected


# Types against torch.


def typed(tensor: torch.Tensor) -> TensorType:
    return TensorType(next(d for d in DType if torch_dtype(torch, d) is tensor.dtype), tuple(tensor.shape))


def tensor(dtype: DType, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(shape, generator=generator) + 0.25
    if not dtype.is_float:
        values = torch.randint(0 if dtype is BOOL else 1, 2 if dtype is BOOL else 4, shape, generator=generator)
    return values.to(torch_dtype(torch, dtype))


@pytest.mark.parametrize(("first_rank", "second_rank"), itertools.product((0, 1), repeat=2))
def test_promotion_is_torchs(first_rank: int, second_rank: int) -> None:
    for a, b in itertools.product(COMMON, repeat=2):
        operands = tensor(a, *[2] * first_rank), tensor(b, *[2] * second_rank)
        expected = torch.result_type(*operands)
        assert torch_dtype(torch, promote(map(typed, operands))) is expected, (a, b)


def run(op: str, operands: tuple[torch.Tensor, ...], attributes: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    results = OPS[op].reference(torch, operands, attributes)
    return results if isinstance(results, tuple) else (results,)


def assert_inferred(op: str, operands: tuple[torch.Tensor, ...], attributes: dict[str, Any]) -> None:
    inferred = OPS[op].infer([typed(operand) for operand in operands], attributes)
    results = run(op, operands, attributes)
    assert [typed(result) for result in results] == list(inferred), (op, [typed(o) for o in operands], attributes)


@dataclass
class Sample:
    operands: tuple[torch.Tensor, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)


def sample(*operands: torch.Tensor, **attributes: Attribute) -> Sample:
    return Sample(operands, attributes)


X = tensor(F32, 2, 3, 4)
UNARY = (
    *("neg", "abs", "floor", "ceil", "round", "sign", "relu", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sin"),
    *("tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("cos", "tanh", "sigmoid", "erf", "silu", "softplus", "mish", "hardsigmoid", "hardswish", "elu", "leaky_relu"),
)
ARITHMETIC = ("add", "sub", "mul", "pow", "remainder", "fmod", "floor_divide", "maximum", "minimum", "div")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")
BITS = ("bitwise_and", "bitwise_or", "bitwise_xor")
SHIFTS = ("bitwise_left_shift", "bitwise_right_shift")
REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")
COMMON = (*(DType.F64, DType.F32, DType.F16, DType.BF16), *(DType.I64, DType.I32, DType.I16, DType.I8, DType.U8, BOOL))
X3, X4 = tensor(F32, 2, 3, 9), tensor(F32, 2, 3, 9, 7)


def window(axes: int, *, groups: int = 1, transposed: bool = False, **numbers: int) -> dict[str, Attribute]:
    """Attributes of a convolution, the same number along each axis."""
    given = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0} | numbers
    return {**{name: (number,) * axes for name, number in given.items()}, "groups": groups, "transposed": transposed}


ATTENTION: dict[str, Attribute] = {"scale": 0.5, "causal": True, "window": 0, "softcap": 0.0}

SAMPLES: dict[str, list[Sample]] = {
    **{op: [sample(X), sample(tensor(BF16, 3)), sample(tensor(F32))] for op in UNARY},
    **{
        op: [
            sample(X, tensor(F32, 3, 1)),
            sample(tensor(BF16, 2, 3), tensor(F32, 3)),
            sample(tensor(BF16, 2, 3), tensor(F32)),
            sample(tensor(F32), tensor(BF16, 2)),
            sample(X, scalar=2),
            sample(tensor(BF16, 2), scalar=0.5),
            sample(tensor(BF16), scalar=0.5),
            sample(tensor(I64, 3), tensor(BF16, 1)),
            sample(tensor(I64, 3), scalar=3),
            sample(tensor(DType.I32, 3), scalar=3),
            sample(tensor(DType.I32), scalar=3),
            sample(tensor(DType.I32, 3), scalar=2.5),
        ]
        for op in (*ARITHMETIC, *COMPARISONS)
    },
    **{op: [sample(tensor(BOOL, 2, 3), tensor(BOOL, 3)), sample(tensor(I64, 3), scalar=1)] for op in BITS},
    **{op: [sample(tensor(I64, 2, 3), tensor(I64, 3)), sample(tensor(DType.I32, 3), scalar=1)] for op in SHIFTS},
    **{op: [sample(X), sample(tensor(BF16, 3)), sample(tensor(I64))] for op in ("isnan", "isinf")},
    "bitcast": [sample(X, dtype=DType.I32), sample(tensor(BF16, 3), dtype=DType.I16)],
    "bitwise_not": [sample(tensor(BOOL, 3)), sample(tensor(I64, 3))],
    "logical_not": [sample(X), sample(tensor(BOOL, 3))],
    "gelu": [sample(X, approximate="none"), sample(X, approximate="tanh")],
    "clamp": [
        sample(X, min=0.5),
        sample(X, max=0.5, min=-1.0),
        sample(tensor(I64, 3), min=1),
        sample(tensor(I64, 3), min=1.5),
        sample(tensor(BF16), max=1.0),
    ],
    "cast": [sample(X, dtype=dtype) for dtype in DType if dtype.bits >= 8],
    "where": [
        sample(tensor(BOOL, 2, 1), tensor(F32, 3), tensor(BF16)),
        sample(tensor(BOOL, 3), tensor(I64), tensor(BF16, 2, 3)),
    ],
    "masked_fill": [
        sample(X, tensor(BOOL, 4), value=-1e9),
        sample(tensor(BF16, 4), tensor(BOOL, 2, 4), value=-math.inf),
    ],
    "constant": [
        sample(dtype=F32, shape=(2, 2), values=(1.0, -2.5, 1e-05, 4.0)),
        sample(dtype=I64, shape=(), values=(-3,)),
        sample(dtype=BOOL, shape=(2,), values=(0, 1)),
        sample(dtype=F32, shape=(0,), values=()),
    ],
    "full": [sample(dtype=BF16, shape=(2, 3), value=-math.inf), sample(dtype=BOOL, shape=(), value=True)],
    "arange": [sample(dtype=I64, shape=(5,), start=2, step=3), sample(dtype=F32, shape=(5,), start=0.0, step=-0.5)],
    "reshape": [sample(X, shape=(4, 6)), sample(tensor(F32), shape=(1, 1)), sample(tensor(F32, 1), shape=())],
    "transpose": [sample(X, permutation=(2, 0, 1)), sample(tensor(F32), permutation=())],
    "expand": [sample(tensor(F32, 3, 1), shape=(2, 3, 4)), sample(tensor(F32), shape=(2,))],
    "slice": [sample(X, dim=1, start=1, end=3, step=1), sample(X, dim=2, start=0, end=4, step=3)],
    "flip": [sample(X, dim=1)],
    "concat": [sample(X, X[:, :1], dim=1), sample(X, dim=0)],
    **{
        op: [
            sample(X, dims=(1,), keepdim=True),
            sample(X, dims=(0, 2), keepdim=False),
            sample(tensor(F32), dims=(), keepdim=False),
        ]
        for op in REDUCTIONS
    },
    **{op: [sample(X, dims=(1,), keepdim=True), sample(X, dims=(2,), keepdim=False)] for op in ("argmax", "argmin")},
    **{
        op: [sample(X, dim=1), sample(tensor(DType.I32, 3), dim=0), sample(tensor(BOOL, 3), dim=0)]
        for op in ("cumsum", "cumprod")
    },
    "softmax": [sample(X, dim=2), sample(tensor(BF16, 3, 2), dim=0)],
    "log_softmax": [sample(X, dim=2)],
    "layer_norm": [
        sample(X, epsilon=1e-5),
        sample(X, tensor(F32, 4), epsilon=1e-5),
        sample(X, tensor(F32, 4), tensor(F32, 4), epsilon=1e-5),
    ],
    "rms_norm": [sample(X, epsilon=1e-6), sample(X, tensor(F32, 4), epsilon=1e-6)],
    "topk": [sample(X, dim=2, k=3), sample(tensor(BF16, 5), dim=0, k=1, largest=False)],
    "gather": [sample(X, tensor(I64, 2, 2, 4) - 1, dim=1)],
    "scatter": [
        sample(X, tensor(I64, 2, 2, 4) - 1, tensor(F32, 2, 2, 4), dim=1),
        sample(X, tensor(I64, 2, 2, 4) - 1, dim=1, value=1.0),
        sample(X, tensor(I64, 2, 2, 4) - 1, tensor(F32, 2, 2, 4), dim=1, reduce="sum"),
    ],
    "embedding": [sample(tensor(BF16, 5, 3), tensor(I64, 2, 2)), sample(tensor(F32, 5, 3), tensor(DType.I32))],
    "linear": [
        sample(X, tensor(F32, 5, 4), transposed=False),
        sample(X, tensor(F32, 4, 5), tensor(F32, 5), transposed=True),
        sample(tensor(F32, 4), tensor(F32, 5, 4), transposed=False),
    ],
    "matmul": [sample(X, tensor(F32, 4, 5)), sample(tensor(F32, 3, 1, 2, 4), tensor(F32, 2, 4, 5))],
    "determinant": [sample(tensor(F32, 2, 3, 3))],
    "grouped_linear": [
        sample(tensor(F32, 2, 1, 4), tensor(F32, 6, 5, 4), tensor(I64, 2, 3), transposed=False),
        sample(tensor(F32, 2, 3, 4), tensor(F32, 6, 4, 5), tensor(I64, 2, 3), tensor(F32, 6, 5), transposed=True),
    ],
    "attention": [
        sample(tensor(F32, 2, 4, 3, 8), tensor(F32, 2, 2, 3, 8), tensor(F32, 2, 2, 3, 6), **ATTENTION),
        sample(
            *(tensor(BF16, 1, 4, 3, 8), tensor(BF16, 1, 1, 5, 8), tensor(BF16, 1, 1, 5, 8), tensor(BF16, 4)),
            **{**ATTENTION, "window": 2, "softcap": 30.0},
        ),
    ],
    "convolution": [
        sample(tensor(F32, 2, 4, 9), tensor(F32, 6, 2, 3), tensor(F32, 6), **window(1, stride=2, padding=1, groups=2)),
        sample(tensor(F32, 2, 4, 9, 8), tensor(F32, 6, 4, 3, 2), **window(2, padding=2, dilation=3)),
        sample(tensor(F32, 1, 2, 5, 4, 6), tensor(F32, 3, 2, 3, 2, 2), **window(3, stride=2)),
        sample(
            tensor(F32, 2, 4, 5, 6),
            tensor(F32, 4, 3, 3, 2),
            tensor(F32, 6),
            **window(2, stride=2, padding=1, groups=2, output_padding=1, transposed=True),
        ),
    ],
    "avg_pool": [
        sample(X3, kernel=(3,), stride=(2,), padding=(1,), ceil=True, count_padding=True),
        sample(X4, kernel=(2, 3), stride=(3, 1), padding=(0, 1), ceil=False, count_padding=False),
        sample(
            tensor(F32, 1, 2, 4, 5, 6),
            kernel=(2,) * 3,
            stride=(2,) * 3,
            padding=(1,) * 3,
            ceil=True,
            count_padding=True,
        ),
    ],
    "max_pool": [sample(X3, kernel=(3,), stride=(2,), padding=(1,), dilation=(2,), ceil=ceil) for ceil in (False, True)]
    + [sample(X4, kernel=(2, 3), stride=(3, 1), padding=(1, 0), dilation=(1, 1), ceil=True)],
    **{op: [sample(X3, size=(4,)), sample(X4, size=(3, 2))] for op in ("adaptive_avg_pool", "adaptive_max_pool")},
    "batch_norm": [
        sample(X4, tensor(F32, 3), tensor(F32, 3), epsilon=1e-5),
        sample(X3, *(tensor(F32, 3),) * 4, epsilon=1e-3),
        sample(tensor(F32, 2, 3), *(tensor(F32, 3),) * 4, epsilon=1e-3),
    ],
    "group_norm": [
        sample(tensor(F32, 2, 6, 5), groups=3, epsilon=1e-5),
        sample(tensor(F32, 2, 6, 5, 4), tensor(F32, 6), tensor(F32, 6), groups=6, epsilon=1e-5),
    ],
    "grid_sample": [
        sample(X4, tensor(F32, 2, 5, 4, 2), mode="bilinear", padding="zeros", align_corners=False),
        sample(X4, tensor(F32, 2, 5, 4, 2), mode="bicubic", padding="reflection", align_corners=True),
        sample(
            tensor(F32, 1, 2, 3, 4, 5),
            tensor(F32, 1, 2, 2, 2, 3),
            mode="nearest",
            padding="border",
            align_corners=False,
        ),
    ],
    "pad": [
        sample(X4, before=(0, 0, 2, -1), after=(1, 0, 0, -2), mode="constant", value=-math.inf),
        *(
            sample(X4, before=(0, 0, 2, 1), after=(0, 0, 3, 4), mode=mode, value=0.0)
            for mode in ("reflect", "replicate", "circular")
        ),
    ],
    "resize": [
        *(
            sample(X4, size=(12, 5), scales=scales, mode=mode, align_corners=False)
            for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
            for scales in ((), (12 / 9, 5 / 7))
            if not scales or mode != "area"
        ),
        sample(X3, size=(12,), scales=(), mode="linear", align_corners=True),
        sample(tensor(F32, 1, 2, 3, 3, 4), size=(5, 6, 7), scales=(), mode="trilinear", align_corners=True),
    ],
}


def test_every_operator_has_a_sample() -> None:
    assert set(SAMPLES) == set(OPS)


@pytest.mark.parametrize("op", SAMPLES)
def test_types_are_what_the_reference_yields(op: str) -> None:
    for case in SAMPLES[op]:
        assert_inferred(op, case.operands, case.attributes)
        least, most = OPS[op].operands
        assert least <= len(case.operands) <= (most if most is not None else math.inf)


@pytest.mark.parametrize("op", [*UNARY, *ARITHMETIC, *COMPARISONS, *BITS, "bitwise_not", "logical_not"])
def test_types_agree_for_every_element_type(op: str) -> None:
    """Wherever torch computes at all, the result has the inferred type."""
    pairs: list[tuple[tuple[torch.Tensor, ...], dict[str, Any]]] = [((tensor(a, 3),), {}) for a in COMMON]
    if OPS[op].operands[1] == 2:
        dtypes = list(itertools.product(COMMON, repeat=2))
        pairs = [((tensor(a, 3), tensor(b, 3)), {}) for a, b in dtypes]
        pairs += [((tensor(a, 3), tensor(b)), {}) for a, b in dtypes]
        pairs += [((tensor(a, *s),), {"scalar": v}) for a in COMMON for s in ((), (3,)) for v in (2, 0.5, True)]
    for operands, attributes in pairs:
        try:
            run(op, operands, attributes)
        except (RuntimeError, TypeError):
            continue
        assert_inferred(op, operands, attributes)


NARROW = {
    DType.F8E4M3: ml_dtypes.float8_e4m3fn,
    DType.F8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    DType.F8E5M2: ml_dtypes.float8_e5m2,
    DType.F8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    DType.F4E2M1: ml_dtypes.float4_e2m1fn,
    DType.I4: ml_dtypes.int4,
    DType.U4: ml_dtypes.uint4,
    DType.I2: ml_dtypes.int2,
    DType.U2: ml_dtypes.uint2,
}


@pytest.mark.parametrize("dtype", NARROW)
def test_casts_to_narrow_types_round_as_an_independent_implementation(dtype: DType) -> None:
    """Every float16, which holds all halves between narrow numbers and values far out of range."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).to(torch.float32)
    values = every[every.isfinite()]
    if not dtype.is_float:
        values = values[values.abs() < 100]
    (result,) = run("cast", (values,), {"dtype": dtype, "saturate": False})
    expected = values.numpy().astype(NARROW[dtype]).astype(np.float32)
    np.testing.assert_array_equal(result.to(torch.float32).numpy(), expected)
    if dtype in (DType.F8E4M3, DType.F8E5M2FNUZ):
        (saturated,) = run("cast", (values,), {"dtype": dtype})
        greatest = float(ml_dtypes.finfo(NARROW[dtype]).max)
        clipped = np.clip(values.numpy(), -greatest, greatest).astype(NARROW[dtype]).astype(np.float32)
        np.testing.assert_array_equal(saturated.to(torch.float32).numpy(), clipped)


@pytest.mark.parametrize("dtype", [DType.U16, DType.U32, DType.U64])
def test_wide_unsigned_integers_wrap(dtype: DType) -> None:
    least, greatest = dtype.integer_range
    values = np.array([least, 1, 7, greatest - 1, greatest], dtype=f"uint{dtype.bits}")
    x = torch.from_numpy(values)
    type_ = [TensorType(dtype, (5,))]
    for op, function in (("add", np.add), ("mul", np.multiply), ("sub", np.subtract), ("bitwise_xor", np.bitwise_xor)):
        (result,) = evaluate_op(OPS[op], torch, [x, x], {}, type_)
        np.testing.assert_array_equal(result.numpy(), function(values, values))
    (halves,) = evaluate_op(OPS["bitwise_right_shift"], torch, [x[:3]], {"scalar": 1}, type_)
    np.testing.assert_array_equal(halves.numpy(), values[:3] >> 1)


WRONG: list[tuple[str, list[TensorType], dict[str, Any]]] = [
    ("add", [TensorType(F32, (2, 3)), TensorType(F32, (2,))], {}),
    ("add", [TensorType(F32, (2,))], {}),
    ("add", [TensorType(F32, (2,)), TensorType(F32, (2,))], {"scalar": 1}),
    ("add", [TensorType(F32, (USERS,)), TensorType(F32, (TOKENS,))], {}),
    ("where", [TensorType(F32, (2,))] * 3, {}),
    ("masked_fill", [TensorType(F32, (2,))] * 2, {"value": 0.0}),
    ("constant", [], {"dtype": F32, "shape": (2,), "values": (1.0,)}),
    ("reshape", [TensorType(F32, (USERS, 4))], {"shape": (USERS, 5)}),
    ("transpose", [TensorType(F32, (2, 3))], {"permutation": (0, 0)}),
    ("transpose", [TensorType(F32, (2, 3))], {"permutation": (0,)}),
    ("expand", [TensorType(F32, (2, 3))], {"shape": (3,)}),
    ("expand", [TensorType(F32, (2,))], {"shape": (3,)}),
    ("slice", [TensorType(F32, (4,))], {"dim": 0, "start": 2, "end": 5, "step": 1}),
    ("slice", [TensorType(F32, (4,))], {"dim": 0, "start": 3, "end": 2, "step": 1}),
    ("slice", [TensorType(F32, (4,))], {"dim": 0, "start": 0, "end": 2, "step": 0}),
    ("slice", [TensorType(F32, (4,))], {"dim": 1, "start": 0, "end": 2, "step": 1}),
    ("slice", [TensorType(F32, (TOKENS,))], {"dim": 0, "start": 0, "end": 2, "step": 1}),
    ("concat", [TensorType(F32, (2, 3)), TensorType(F32, (3, 3))], {"dim": 1}),
    ("concat", [TensorType(F32, (2,)), TensorType(BF16, (2,))], {"dim": 0}),
    ("concat", [TensorType(F32, (2,)), TensorType(F32, (2, 2))], {"dim": 0}),
    ("sum", [TensorType(F32, (2,))], {"dims": (1,), "keepdim": True}),
    ("sum", [TensorType(F32, (2,))], {"dims": (), "keepdim": True}),
    ("mean", [TensorType(I64, (2,))], {"dims": (0,), "keepdim": True}),
    ("argmax", [TensorType(F32, (2, 3))], {"dims": (0, 1), "keepdim": True}),
    ("softmax", [TensorType(F32, (2,))], {"dim": -1}),
    ("layer_norm", [TensorType(F32, (2, 3)), TensorType(F32, (2,))], {"epsilon": 0.0}),
    ("topk", [TensorType(F32, (4,))], {"dim": 0, "k": 5}),
    ("topk", [TensorType(F32, (TOKENS,))], {"dim": 0, "k": 1}),
    ("gather", [TensorType(F32, (4,)), TensorType(F32, (4,))], {"dim": 0}),
    ("scatter", [TensorType(F32, (4,)), TensorType(I64, (4, 4))], {"dim": 0, "value": 0.0}),
    ("embedding", [TensorType(F32, (4, 4, 4)), TensorType(I64, (2,))], {}),
    ("embedding", [TensorType(F32, (4, 4)), TensorType(F32, (2,))], {}),
    ("linear", [TensorType(F32, (2, 3)), TensorType(F32, (3, 2))], {"transposed": False}),
    ("linear", [TensorType(F32, (2, 3)), TensorType(F32, (4, 3)), TensorType(F32, (3,))], {"transposed": False}),
    ("matmul", [TensorType(F32, (2, 3)), TensorType(F32, (2, 3))], {}),
    ("matmul", [TensorType(F32, (3,)), TensorType(F32, (3, 2))], {}),
    ("matmul", [TensorType(F32, (2, 2, 3)), TensorType(F32, (4, 3, 2))], {}),
    (
        "grouped_linear",
        [TensorType(F32, (TOKENS, 1, 4)), TensorType(F32, (6, 5, 4)), TensorType(I64, (USERS, 2))],
        {"transposed": False},
    ),
    ("convolution", [TensorType(F32, (2, 3, 9)), TensorType(F32, (4, 2, 3))], window(1)),
    ("convolution", [TensorType(F32, (2, 3, 2)), TensorType(F32, (4, 3, 3))], window(1)),
    ("convolution", [TensorType(F32, (2, 4, 9)), TensorType(F32, (3, 2, 3))], window(1, groups=2)),
    ("convolution", [TensorType(F32, (2, 3, 9)), TensorType(F32, (4, 3, 3))], window(1, output_padding=1)),
    ("convolution", [TensorType(F32, (2, 3, 9)), TensorType(F32, (4, 3, 3))], window(1, stride=0)),
    ("convolution", [TensorType(F32, (2, 3, 9)), TensorType(F32, (4, 3, 3))], window(2)),
    ("convolution", [TensorType(F32, (2, 3, TOKENS)), TensorType(F32, (4, 3, 3))], window(1, stride=2)),
    (
        "max_pool",
        [TensorType(F32, (2, 3, 9))],
        {"kernel": (2,), "stride": (1,), "padding": (2,), "dilation": (1,), "ceil": False},
    ),
    ("batch_norm", [TensorType(F32, (2, 3, 9)), *[TensorType(F32, (2,))] * 2], {"epsilon": 1e-5}),
    ("group_norm", [TensorType(F32, (2, 4, 9))], {"epsilon": 1e-5, "groups": 3}),
    ("pad", [TensorType(F32, (3,))], {"before": (-2,), "after": (-2,), "mode": "constant", "value": 0}),
    ("pad", [TensorType(F32, (3,))], {"before": (3,), "after": (0,), "mode": "reflect", "value": 0}),
    ("resize", [TensorType(F32, (1, 1, 3))], {"size": (4,), "scales": (), "mode": "bilinear", "align_corners": False}),
    ("resize", [TensorType(F32, (1, 1, 3))], {"size": (4,), "scales": (), "mode": "nearest", "align_corners": True}),
    ("attention", [TensorType(F32, (1, 3, TOKENS, 8)), *[TensorType(F32, (1, 2, TOKENS, 8))] * 2], ATTENTION),
]


@pytest.mark.parametrize("index", range(len(WRONG)))
def test_operands_that_do_not_fit_are_refused(index: int) -> None:
    op, operands, attributes = WRONG[index]
    with pytest.raises(OpTypeError):
        OPS[op].infer(operands, attributes)


# Meaning and work.


def test_topk_breaks_ties_by_the_lowest_index() -> None:
    values, indices = run("topk", (torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]),), {"dim": 0, "k": 4})
    assert values.tolist() == [3, 3, 3, 2]
    assert indices.tolist() == [1, 2, 4, 3]


def test_grouped_linear_is_each_tokens_own_products() -> None:
    x, weight, bias = tensor(F32, 3, 1, 4), torch.randn(5, 2, 4), torch.randn(5, 2)
    indices = torch.tensor([[0, 4], [4, 1], [2, 2]])
    (result,) = run("grouped_linear", (x, weight, indices, bias), {"transposed": False})
    for token, slot in itertools.product(range(3), range(2)):
        expert = int(indices[token, slot])
        torch.testing.assert_close(result[token, slot], weight[expert] @ x[token, 0] + bias[expert])


def test_attention_is_torchs_own() -> None:
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    (result,) = run("attention", (query, key, value), ATTENTION)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.5, enable_gqa=True
    )
    torch.testing.assert_close(result, expected.transpose(1, 2))


def test_attention_of_the_last_token_needs_only_its_history() -> None:
    query, key, value = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    for window in (0, 3):
        attributes = {**ATTENTION, "window": window}
        (whole,) = run("attention", (query, key, value), attributes)
        seen = slice(-window or None, None)
        (last,) = run("attention", (query[:, :, -1:], key[:, :, seen], value[:, :, seen]), attributes)
        torch.testing.assert_close(last, whole[:, -1:])


def test_attention_in_chunks_sees_the_chunk_of_the_token_alone() -> None:
    query, key, value = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    (result,) = run("attention", (query, key, value), {**ATTENTION, "chunk": 3})
    place = torch.arange(7)
    seen = (place[:, None] >= place) & (place[:, None] // 3 == place // 3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.5)
    torch.testing.assert_close(result, expected.transpose(1, 2))
    (last,) = run("attention", (query[:, :, -2:], key[:, :, 3:], value[:, :, 3:]), {**ATTENTION, "chunk": 3})
    torch.testing.assert_close(last, result[:, -2:])


@pytest.mark.parametrize(
    "options", [{"chunk": -1}, {"chunk": True}, {"chunk": 4, "window": 2}, {"chunk": 4, "causal": False}]
)
def test_chunks_that_mean_nothing_are_refused(options: dict[str, Attribute]) -> None:
    query = TensorType(F32, (1, 2, TOKENS, 8))
    with pytest.raises(OpTypeError, match="chunk"):
        OPS["attention"].infer([query, query, query], {**ATTENTION, **options})


def test_sinks_take_their_share() -> None:
    query, key, value = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)
    (result,) = run("attention", (query, key, value, torch.zeros(1)), ATTENTION)
    torch.testing.assert_close(result, torch.full((1, 1, 1, 4), 0.5))


def work(op: str, *operands: TensorType, **attributes: Attribute) -> Size:
    results = OPS[op].infer(operands, attributes)
    return OPS[op].work(operands, results, attributes)


def test_work_of_products() -> None:
    x = TensorType(BF16, (USERS, TOKENS, 7168))
    assert work("linear", x, TensorType(BF16, (2048, 7168)), transposed=False) == USERS * TOKENS * 2048 * 7168
    assert work("linear", x, TensorType(BF16, (7168, 2048)), transposed=True) == USERS * TOKENS * 2048 * 7168
    scores = work("matmul", TensorType(F32, (USERS, 8, TOKENS, 64)), TensorType(F32, (USERS, 8, 64, TOKENS)))
    assert scores == USERS * TOKENS * TOKENS * (8 * 64)
    chosen = TensorType(I64, (TOKENS, 8))
    experts = TensorType(BF16, (384, 2048, 7168))
    one_each = work("grouped_linear", TensorType(BF16, (TOKENS, 1, 7168)), experts, chosen, transposed=False)
    assert one_each == TOKENS * (8 * 2048 * 7168)
    assert for_one_token(one_each) == 117_440_512
    down = TensorType(BF16, (384, 2048, 7168))
    hidden = TensorType(BF16, (TOKENS, 8, 2048))
    assert work("grouped_linear", hidden, down, chosen, transposed=True) == one_each


def test_windows_on_a_symbolic_axis() -> None:
    x, kernel = TensorType(F32, (USERS, 4, 2 * TOKENS + 3)), TensorType(F32, (6, 4, 3))
    (same,) = OPS["convolution"].infer((x, kernel), window(1, padding=1))
    (half,) = OPS["convolution"].infer((x, kernel), window(1, padding=1, stride=2))
    assert same.shape == (USERS, 6, 2 * TOKENS + 3)
    assert half.shape == (USERS, 6, TOKENS + 2)
    assert work("convolution", x, kernel, **window(1, padding=1, stride=2)) == USERS * (TOKENS + 2) * (6 * 4 * 3)
    for tokens in (1, 5):
        (got,) = run(
            "convolution", (tensor(F32, 1, 4, 2 * tokens + 3), tensor(F32, 6, 4, 3)), window(1, padding=1, stride=2)
        )
        assert got.shape[-1] == tokens + 2


def test_work_of_convolutions_is_torchs_own_count() -> None:
    for case in SAMPLES["convolution"]:
        with FlopCounterMode(display=False) as counter:
            run("convolution", case.operands, case.attributes)
        assert 2 * work("convolution", *map(typed, case.operands), **case.attributes) == counter.get_total_flops()


def test_borders_are_torchs_own() -> None:
    for case in SAMPLES["pad"][1:]:
        sides = zip(reversed(case.attributes["before"][2:]), reversed(case.attributes["after"][2:]), strict=True)
        wanted = torch.nn.functional.pad(case.operands[0], [n for side in sides for n in side], case.attributes["mode"])
        torch.testing.assert_close(run("pad", case.operands, case.attributes)[0], wanted)


def test_work_of_attention() -> None:
    query, key = TensorType(BF16, (USERS, 64, TOKENS, 128)), TensorType(BF16, (USERS, 8, TOKENS, 128))
    context = Dim.symbol("context")
    assert work("attention", query, key, key, **ATTENTION) == USERS * TOKENS * context * (64 * 256)
    windowed = work("attention", query, key, key, **{**ATTENTION, "window": 128})
    assert windowed == USERS * TOKENS * (128 * 64 * 256)


def test_only_products_cost_multiply_adds() -> None:
    with_work = {"linear", "matmul", "grouped_linear", "attention", "convolution"}
    for op, cases in SAMPLES.items():
        operands = [typed(operand) for operand in cases[0].operands]
        results = OPS[op].infer(operands, cases[0].attributes)
        assert bool(OPS[op].work(operands, results, cases[0].attributes)) is (op in with_work), op
    assert {op.name for op in OPS.values() if op.kind is Kind.STATE} == {"attention"}
    assert {op.name for op in OPS.values() if op.kind is Kind.MATRIX} == {"linear", "grouped_linear", "convolution"}


# Text.


def graph_of(op: str, case: Sample, origin: str = "here") -> Graph:
    inputs = tuple(Value(f"x{i}", typed(operand)) for i, operand in enumerate(case.operands))
    results = OPS[op].infer([value.type for value in inputs], case.attributes)
    values = tuple(Value(f"y.{i}", type_) for i, type_ in enumerate(results))
    node = Node(op, tuple(value.name for value in inputs), values, case.attributes, origin)
    return Graph(op, inputs, (), (node,), tuple(value.name for value in values))


def assert_round_trip(graph: Graph) -> None:
    text = print_graph(graph)
    parsed = parse_graph(text)
    assert parsed == graph
    assert print_graph(parsed) == text
    for node, again in zip(graph.nodes, parsed.nodes, strict=True):
        kinds = {name: type(value) for name, value in node.attributes.items()}
        assert {name: type(value) for name, value in again.attributes.items()} == kinds


@pytest.mark.parametrize("op", SAMPLES)
def test_every_operator_round_trips(op: str) -> None:
    for case in SAMPLES[op]:
        assert_round_trip(verify(graph_of(op, case)))


ATTRIBUTES: list[Attribute] = [
    *(True, False, 0, -1, 2**62, -(2**63), 0.0, -0.5, 1e-05, 1e300, 3.0, math.inf, -math.inf),
    *("", "none", "true", "1", "f32", 'a "quoted" one', "back\\slash", "comma, dim = 3", "[1]", '} @ "x"', "new\nline"),
    *(DType.F32, DType.BOOL, (), (1,), (-1, 2), (1.0,), (1e-05, -2.5), (math.inf, -math.inf), (1, -(2**63))),
    *((USERS,), (USERS, TOKENS, 64), (2 * USERS * TOKENS + 3, 0), (-1 * TOKENS,)),
]


@pytest.mark.parametrize("value", ATTRIBUTES, ids=repr)
def test_every_attribute_round_trips(value: Attribute) -> None:
    attributes: dict[str, Attribute] = {"a": 1, "value": value, "z": "last"}
    node = Node("full", (), (Value("y", TensorType(F32, ())),), attributes, "here")
    assert_round_trip(Graph("g", (), (), (node,), ("y",)))


texts = st.text(st.characters(codec="utf-8"), max_size=30)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)
names = st.text("abcXYZ019_.-/:", min_size=1, max_size=12)
attribute_values = (
    st.booleans() | numbers | texts | st.sampled_from(DType) | st.lists(sizes, max_size=4).map(tuple)
    | st.lists(st.floats(allow_nan=False), min_size=1, max_size=4).map(tuple)
)  # fmt: skip
types = st.builds(TensorType, st.sampled_from(DType), st.lists(sizes, max_size=4).map(tuple))
values = st.builds(Value, names, types)
nodes = st.builds(
    Node,
    st.sampled_from(sorted(OPS)),
    st.lists(names, max_size=3).map(tuple),
    st.lists(values, min_size=1, max_size=3).map(tuple),
    st.dictionaries(st.text("abc_", min_size=1, max_size=5), attribute_values, max_size=4),
    texts,
)
parameters = st.builds(Parameter, names, types, st.sampled_from(sorted(ENCODINGS.values(), key=lambda e: e.name)))
graphs = st.builds(
    Graph, texts, *(st.lists(part, max_size=3).map(tuple) for part in (values, parameters, nodes, names))
)


@settings(max_examples=300, deadline=None)
@given(graphs)
def test_any_graph_round_trips(graph: Graph) -> None:
    assert_round_trip(graph)


def test_text_that_is_no_graph_names_its_line() -> None:
    good = print_graph(graph_of("relu", SAMPLES["relu"][0]))
    for line, bad in (
        (2, "  input %x : f99[2]"),
        (3, "  %y : f32[2] = relu(%x)"),
        (4, "  nonsense"),
        (2, "  param %w : f32[2] as odd"),
    ):
        lines = good.splitlines()
        lines[line - 1] = bad
        with pytest.raises(UsageError, match="W0302") as caught:
            parse_graph("\n".join(lines))
        assert caught.value.diagnostics[0].where.startswith(f"line {line}:")


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(list('%[](){}=@",: \nfgixparamreturn012.-')), max_size=60).map("".join)
)
def test_any_text_ends_in_a_graph_or_a_diagnostic(text: str) -> None:
    try:
        parse_graph(text)
    except UsageError as error:
        assert error.diagnostics[0].code == "W0302"


# Verification and interpretation.


def small(**changes: Any) -> Graph:
    """relu(x @ w.T), with parts replaced."""
    x = TensorType(F32, (TOKENS, 4))
    y = TensorType(F32, (TOKENS, 2))
    parts: dict[str, Any] = {
        "name": "small",
        "inputs": (Value("x", x),),
        "parameters": (Parameter("w", TensorType(F32, (2, 4)), plain(F32)),),
        "nodes": (
            Node("linear", ("x", "w"), (Value("h", y),), {"transposed": False}, "model.up"),
            Node("relu", ("h",), (Value("y", y),), {}, "model.act"),
        ),
        "outputs": ("y",),
    }
    return Graph(**(parts | changes))


def relu(
    *inputs: str,
    result: str = "y",
    shape: tuple[Size, ...] = (TOKENS, 2),
    dtype: DType = F32,
    op: str = "relu",
    **attributes: Any,
) -> Node:
    return Node(op, inputs, (Value(result, TensorType(dtype, shape)),), attributes, "model.act")


LINEAR = small().nodes[0]
TWICE = (Value("y", TensorType(F32, (TOKENS, 1))), Value("y", TensorType(I64, (TOKENS, 1))))
LIKE_AN_INPUT = Parameter("x", TensorType(F32, (2, 4)), plain(F32))
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown operator": ({"nodes": (LINEAR, relu("h", op="nope"))}, "no operator nope"),
    "read before defined": ({"nodes": small().nodes[::-1]}, "reads h before"),
    "never defined": ({"nodes": (LINEAR, relu("nothing"))}, "reads nothing before"),
    "assigned twice": ({"nodes": (LINEAR, relu("h", result="h"))}, "h is defined twice"),
    "assigned to a parameter": ({"nodes": (LINEAR, relu("h", result="w"))}, "w is defined twice"),
    "assigned twice by one node": (
        {"nodes": (LINEAR, Node("topk", ("h",), TWICE, {"dim": 1, "k": 1}, "o"))},
        "y is defined twice",
    ),
    "input twice": ({"inputs": small().inputs * 2}, "x is defined twice"),
    "parameter like an input": ({"parameters": (LIKE_AN_INPUT, *small().parameters)}, "x is defined twice"),
    "too many operands": ({"nodes": (LINEAR, relu("h", "h"))}, "takes 1 to 1 operands, not 2"),
    "too few operands": ({"nodes": (relu("x", op="linear", transposed=False),)}, "takes 2 to 3 operands, not 1"),
    "wrong shape": ({"nodes": (LINEAR, relu("h", shape=(TOKENS, 3)))}, r"f32\[tokens, 2\], not f32\[tokens, 3\]"),
    "wrong type": ({"nodes": (LINEAR, relu("h", dtype=BF16))}, "not bf16"),
    "missing attribute": ({"nodes": (LINEAR, relu("h", op="softmax"))}, "softmax: 'dim'"),
    "attribute of the wrong kind": ({"nodes": (LINEAR, relu("h", op="softmax", dim="one"))}, "softmax: "),
    "operands that do not fit": ({"nodes": (LINEAR, relu("h", "x", op="add"))}, "do not broadcast"),
    "output that is not defined": ({"outputs": ("z",)}, "output z is not defined"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_found(name: str) -> None:
    changes, message = BROKEN[name]
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        verify(small(**changes))
    assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {"W0301"}


def test_all_broken_rules_are_told_at_once() -> None:
    graph = small(nodes=(LINEAR, relu("a"), relu("b", result="z")), outputs=("q",))
    with pytest.raises(UnsupportedModelError) as caught:
        verify(graph)
    assert len(caught.value.diagnostics) == 3
    assert caught.value.diagnostics[0].where == "model.act"


def test_a_sound_graph_passes_unchanged_and_runs() -> None:
    graph = small()
    assert verify(graph) is graph
    x, w = torch.randn(3, 4), torch.randn(2, 4)
    torch.testing.assert_close(interpret(graph, {"x": x, "w": w})["y"], torch.relu(x @ w.T))


def test_symbols_are_bound_by_shapes() -> None:
    given_types = {"x": TensorType(F32, (USERS, TOKENS)), "y": TensorType(F32, (TOKENS, 3))}
    tensors = {"x": torch.zeros(2, 5), "y": torch.zeros(5, 3)}
    assert bind_symbols(given_types, tensors) == {"users": 2, "tokens": 5}
    with pytest.raises(ValueError, match="tokens is 5 and 4"):
        bind_symbols(given_types, {**tensors, "y": torch.zeros(4, 3)})


def test_symbolic_shapes_are_bound_when_run() -> None:
    x = Value("x", TensorType(F32, (USERS, TOKENS, 4)))
    y = Value("y", TensorType(F32, (USERS * TOKENS, 4)))
    node = Node("reshape", ("x",), (y,), {"shape": (USERS * TOKENS, 4)}, "")
    result = interpret(verify(Graph("g", (x,), (), (node,), ("y",))), {"x": torch.zeros(2, 3, 4)})["y"]
    assert result.shape == (6, 4)


def test_lookups_of_a_graph() -> None:
    graph = small()
    assert list(graph.types) == ["x", "w", "h", "y"]
    assert graph.producer == {"h": 0, "y": 1}
    assert graph.consumers == {"x": (0,), "w": (0,), "h": (1,)}
    assert (graph.parameter["w"].elements, graph.parameter["w"].stored_bytes) == (8, 32)


def test_diagnostics_read_like_rustcs() -> None:
    diagnostic = Diagnostic("W0001", "too large", "layer 3", {"needed_bytes": 1234567, "fits": False}, ("do less",))
    assert str(diagnostic) == (
        "error[W0001]: too large\n  --> layer 3\n   = needed bytes: 1,234,567\n   = fits: False\nhelp: do less"
    )


# Encodings and layouts.


def test_encodings_by_hand() -> None:
    int4, mxfp4, fp8 = ENCODINGS["int4_g32"], ENCODINGS["mxfp4"], ENCODINGS["fp8_b128"]
    # [2048, 7168]: 7,340,032 bytes of values and 458,752 groups of 32 inputs.
    assert int4.bytes((2048, 7168)) == 7_340_032 + 458_752 * 2
    assert mxfp4.bytes((2048, 7168)) == 7_340_032 + 458_752
    # 16 x 56 blocks of 128 x 128.
    assert fp8.bytes((2048, 7168)) == 14_680_064 + 16 * 56 * 4
    assert fp8.bytes((130, 100)) == 13_000 + 2 * 4
    assert int4.bytes((3, 33)) == 50 + 3 * 2 * 2
    assert int4.bytes((4, 3, 33)) == 198 + 4 * 3 * 2 * 2
    assert int4.bytes((64,)) == 32 + 2 * 2
    assert plain(BF16).bytes((3, 5)) == 30
    assert plain(BOOL).bytes(()) == 1


def test_one_expert_of_kimi_k2() -> None:
    """Gate, up and down [2048, 7168] in INT4 with a bf16 scale for 32 inputs: 4.5 bits for each weight."""
    int4 = ENCODINGS["int4_g32"]
    assert int4.bytes((2048, 7168)) * 2 + int4.bytes((7168, 2048)) == 24_772_608
    assert 3 * 2048 * 7168 * 9 // 16 == 24_772_608


@settings(max_examples=300)
@given(st.integers(0, 2000), st.integers(1, 60), st.sampled_from([1, 2, 32]), st.integers(0, 100))
def test_splits_cover_the_length_evenly(length: int, parts: int, unit: int, first: int) -> None:
    split = Split(length, parts, unit, first % parts)
    bounds = split.bounds()
    shares = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, length, parts + 1)
    assert shares.min() >= 0
    whole = -(-length // unit)
    held = -(-shares // unit)
    # Only the piece that is no whole unit may make a share smaller.
    assert held.max() - held.min() <= 1
    assert held.sum() == whole
    assert (bounds[:-1] % unit == 0).all() or length % unit
    larger = [(split.first + i) % parts for i in range(split.extra)]
    assert all(held[i] == whole // parts + 1 for i in larger)


def brute_force_bits(layout: MatrixLayout) -> np.ndarray:
    """Bits on each tile, counted element by element and group by group."""
    encoding = layout.parameter.encoding
    outputs, inputs = layout.parameter.shape[-2:]
    row_of = np.searchsorted(layout.inputs.bounds()[1:], np.arange(inputs), side="right")
    column_of = np.searchsorted(layout.outputs.bounds()[1:], np.arange(outputs), side="right")
    bits = np.zeros((layout.inputs.parts, layout.outputs.parts), dtype=np.int64)
    groups: list[list[set[tuple[int, int]]]] = [[set() for _ in range(bits.shape[1])] for _ in range(bits.shape[0])]
    for i, o in itertools.product(range(inputs), range(outputs)):
        bits[row_of[i], column_of[o]] += encoding.bits
        groups[row_of[i]][column_of[o]].add((i // encoding.group_in, o // encoding.group_out))
    if encoding.scale_bytes:
        bits += np.array([[len(tile) for tile in row] for row in groups]) * encoding.scale_bytes * 8
    return bits


tiny_encodings = st.sampled_from(
    [plain(BF16), plain(F32), Encoding("q4", 4, group_in=4, scale_bytes=2, align_in=4), Encoding("b8", 8, 4, 4, 4)]
)
weights = st.builds(
    lambda shape, encoding: Parameter("w", TensorType(BF16, shape), encoding),
    st.tuples(st.integers(1, 14), st.integers(1, 14)) | st.tuples(st.integers(1, 20)),
    tiny_encodings,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(weights, max_size=4), st.integers(0, 300), st.integers(1, 5), st.integers(1, 5))
def test_the_fullest_tile_is_the_fullest_of_all_tiles(
    given_weights: list[Parameter], spread: int, rows: int, columns: int
) -> None:
    tiles = rows * columns
    bits = np.zeros((rows, columns), dtype=np.int64)
    for layout in matrix_layouts(given_weights, rows, columns):
        bits += brute_force_bits(layout)
        products = [np.outer(row, column) for row, column in layout.bit_factors()]
        assert np.array_equal(sum(products), brute_force_bits(layout))
    vectors = [p for p in given_weights if len(p.shape) < 2]
    even = -(-spread // tiles) + sum(-(-p.elements // tiles) * p.encoding.bits // 8 for p in vectors)
    fullest = fullest_tile_bytes(given_weights, spread, rows, columns)
    assert fullest == even + -(-int(bits.max()) // 8)
    total = spread + sum(p.elements * p.encoding.bits / 8 for p in given_weights)
    assert fullest >= total / tiles - len(vectors)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 7), st.integers(1, 7))
def test_remainders_spread_over_all_tiles(lengths: list[int], rows: int, columns: int) -> None:
    """However many weights there are, no row of tiles holds more than one unit more of them than another."""
    given_weights = [Parameter(f"w{i}", TensorType(BF16, (n, n)), plain(BF16)) for i, n in enumerate(lengths)]
    layouts = matrix_layouts(given_weights, rows, columns)
    for splits in ([layout.inputs for layout in layouts], [layout.outputs for layout in layouts]):
        held = sum(np.diff(split.bounds()) for split in splits)
        assert held.max() - held.min() <= 1


def test_a_kernel_lies_as_one_matrix_on_all_tiles() -> None:
    """As many bytes on the fullest tile as the matrix [out, in * kernel]."""
    for shape in ((64, 32, 3, 3), (64, 32, 5), (8, 4, 3, 3, 3)):
        kernel = Parameter("k", TensorType(BF16, shape), plain(BF16))
        matrix = Parameter("k", TensorType(BF16, (shape[0], math.prod(shape[1:]))), plain(BF16))
        assert fullest_tile_bytes([kernel], 0, 4, 8) == fullest_tile_bytes([matrix], 0, 4, 8)
    stack = Parameter("k", TensorType(BF16, (4, 8, 16)), plain(BF16))
    assert matrix_layouts([stack], 4, 8)[0].shape == (4, 8, 16)


def test_a_vector_is_spread_over_all_tiles() -> None:
    assert fullest_tile_bytes([Parameter("b", TensorType(BF16, (10,)), plain(BF16))], 0, 2, 2) == 6
    assert fullest_tile_bytes([], 9, 2, 2) == 3
