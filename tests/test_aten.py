"""Every rule for an ATen operator: graphs compute what exported modules do, and what no rule covers is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ir.diagnostics import UnsupportedModelError
from ir.graph import Graph
from ir.interpret import interpret
from ir.text import parse_graph, print_graph
from ir.types import Dim
from ir.verify import verify
from partitioner.frontends import (
    hooks,  # noqa: F401 - defines the operators of HOOKED
    known,
)
from partitioner.frontends.aten import RULES
from partitioner.frontends.exported import Names, lower_exported, tied_names
from partitioner.frontends.in_place import is_write

GENERATOR = torch.Generator().manual_seed(7)
USERS = 3
"""The first axis of every case's inputs; symbolic where a case says so."""


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def positive(*shape: int) -> Tensor:
    return floats(*shape).abs() + 0.1


def numbers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=GENERATOR)


def bits(*shape: int) -> Tensor:
    return numbers(2, *shape).bool()


class Applied(nn.Module):
    """A function as a module, with weights that it gets after its inputs."""

    def __init__(self, function: Callable[..., Any], weights: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.weights)


FUNCTIONAL: dict[str, Any] = {}
"""Decompositions that only make a program functional, as the frontends apply them."""


@dataclass
class Case:
    """A function of ``inputs`` and ``weights``; an input's first axis is symbolic where it is ``USERS`` long."""

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] = ()


def case(function: Callable[..., Any], *inputs: Tensor, weights: Sequence[Tensor] = ()) -> Case:
    return Case(function, inputs, tuple(weights))


class Cases(nn.Module):
    """Several cases as one module, to be exported at once: ``inputs`` are those of all of them."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(Applied(given.function, given.weights) for given in cases)
        self.inputs = tuple({id(x): x for given in cases for x in given.inputs}.values())
        number = {id(x): i for i, x in enumerate(self.inputs)}
        self.reads = [[number[id(x)] for x in given.inputs] for given in cases]

    def forward(self, *inputs: Tensor) -> list[Any]:
        return [case(*(inputs[i] for i in reads)) for case, reads in zip(self.cases, self.reads, strict=True)]

    def export(self, decompositions: dict[str, Any] | None = FUNCTIONAL) -> ExportedProgram:
        users = torch.export.Dim("users", min=USERS, max=9)
        shapes = tuple({0: users} if x.shape[:1] == (USERS,) else None for x in self.inputs)
        return export(self, self.inputs, (shapes,), decompositions)


def export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    dynamic_shapes: Any = None,
    decompositions: dict[str, Any] | None = FUNCTIONAL,
) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic_shapes, strict=False)
        return program if decompositions is None else program.run_decompositions(decompositions)


def lower(program: ExportedProgram, names: Names | None = None) -> Graph:
    """The verified graph; every first axis that is symbolic is called ``users``."""
    axes = {(node.name, 0): "users" for node in program.graph.nodes if node.op == "placeholder"}
    return verify(lower_exported(program, "case", names or Names(axes, {}, {})))


def outputs_of(graph: Graph, weights: dict[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    named = dict(zip((value.name for value in graph.inputs), inputs, strict=True))
    values = interpret(graph, {**weights, **named})
    return [values[name] for name in graph.outputs]


X, Y, Z = floats(USERS, 4), floats(USERS, 4), floats(USERS, 4)
ROUND, OTHER_ROUND = X.round(), Y.round()
INTS, MORE_INTS = numbers(9, USERS, 4) + 1, numbers(9, USERS, 4) + 1
MASK, OTHER_MASK = bits(USERS, 4), bits(USERS, 4)
CUBE = floats(USERS, 4, 6)
HEADS = floats(USERS, 2, 5, 8)
WEIGHT, BIAS, TABLE = floats(5, 4), floats(5), floats(9, 6)
EXPERTS, EXPERT_BIAS = floats(4, 6, 8), floats(4, 6)

UNARY: dict[str, Tensor] = {
    **dict.fromkeys(("neg", "abs", "floor", "ceil", "round", "sign", "relu", "exp", "reciprocal", "sin", "cos"), X),
    **dict.fromkeys(("tanh", "sigmoid", "erf", "square", "expm1"), X),
    **dict.fromkeys(("log", "sqrt", "rsqrt", "log1p"), positive(USERS, 4)),
    **dict.fromkeys(("bitwise_not", "logical_not"), MASK),
}
FUNCTIONS = ("silu", "mish", "hardswish", "hardsigmoid", "relu6")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


def of(name: str, *operands: Any) -> Callable[[Tensor], Any]:
    """A function of torch as one of its first operand."""
    return lambda x: getattr(torch, name)(x, *operands)


def binary(function: Callable[..., Any]) -> list[Case]:
    return [case(function, X, Y), case(function, X, floats(4)), case(lambda x: function(x, 2.5), X)]


def written(x: Tensor, source: Tensor, index: Any) -> Tensor:
    """A copy of ``x`` with ``source`` written at ``index``."""
    x = x.clone()
    x[(slice(None), index)] = source
    return x


ELEMENTWISE: dict[str, list[Case]] = {
    **{name: [case(getattr(torch, name), x)] for name, x in UNARY.items()},
    **{name: [case(getattr(F, name), 4 * X)] for name in FUNCTIONS},
    **{name: binary(getattr(torch, name)) for name in ("mul", "div", "add", "sub")},
    **{name: [case(getattr(torch, name), ROUND, OTHER_ROUND), case(of(name, 0), ROUND)] for name in COMPARISONS},
    **{name: [case(getattr(torch, name), X, Y)] for name in ("maximum", "minimum")},
    **{name: [case(getattr(torch, name), MASK, OTHER_MASK)] for name in ("logical_and", "logical_or")},
    **{
        name: [case(getattr(torch, name), MASK, OTHER_MASK), case(of(name, 6), INTS)]
        for name in ("bitwise_and", "bitwise_or")
    },
    "__and__": [case(lambda x, y: x & y, MASK, OTHER_MASK)],
    "__or__": [case(lambda x, y: x | y, INTS, MORE_INTS)],
    "max.other": [case(torch.max, X, Y)],
    "min.other": [case(torch.min, X, Y)],
    "remainder": [
        case(torch.remainder, INTS - 5, MORE_INTS),
        case(of("remainder", 3), INTS),
        case(of("remainder", 0.7), X),
    ],
    "floor_divide": [case(lambda x: x // 3, INTS - 5), case(torch.floor_divide, INTS, MORE_INTS)],
    "pow.Tensor_Scalar": [case(lambda x: x**2, X), case(lambda x: x**-0.5, positive(USERS, 4))],
    "pow.Tensor_Tensor": [case(torch.pow, positive(USERS, 4), Y)],
    "pow.Scalar": [case(lambda x: 2.5**x, X), case(lambda x: 2**x, INTS)],
    "rsub": [case(lambda x: 1 - x, X), case(lambda x, y: torch.rsub(x, y, alpha=2), X, Y)],
    "gelu": [case(F.gelu, X), case(lambda x: F.gelu(x, approximate="tanh"), X)],
    "softplus": [case(F.softplus, 20 * X), case(lambda x: F.softplus(x, beta=2), 20 * X)],
    "clamp": [
        case(of("clamp", -0.5, 0.5), X),
        case(lambda x: x.clamp(max=0.3), X),
        case(of("clamp", 2, 5), INTS),
        case(torch.clamp, X, Y),
    ],
    "clamp_min": [case(of("clamp_min", 0.1), X)],
    "clamp_max": [case(of("clamp_max", 0.1), X)],
    "where": [
        case(torch.where, MASK, X, Y),
        case(lambda m, x: torch.where(m, x, 0.5), MASK, X),
        case(lambda m, x: torch.where(m, -1, x), MASK, INTS),
    ],
    "masked_fill.Scalar": [case(lambda x, m: x.masked_fill(m, float("-inf")), X, MASK)],
    "masked_fill.Tensor": [case(lambda x, m: x.masked_fill(m, torch.tensor(2.0)), X, MASK)],
    "index_put": [
        case(lambda x, m: x.clone().index_put((m,), torch.tensor(1.0)), X, MASK),
        case(lambda x, m: x.clone().index_put((m,), torch.tensor(1.0)), CUBE, MASK),
    ],
}

LAYOUT: dict[str, list[Case]] = {
    **{name: [case(lambda x, n=name: getattr(torch, n)(5, 4)[:3] + x.sum(0), X)] for name in ("zeros", "ones")},
    **{
        name: [case(lambda x, n=name: getattr(x, n)(x.shape[0], 2, dtype=torch.int64), X)]
        for name in ("new_zeros", "new_ones")
    },
    **{name: [case(lambda x, n=name: getattr(torch, n)(x), X)] for name in ("zeros_like", "ones_like")},
    "empty": [case(lambda x: torch.empty(x.shape).copy_(x), X)],
    "new_empty": [case(lambda x: x.new_empty(x.shape[0], 4).copy_(x), X)],
    "empty_like": [case(lambda x: torch.empty_like(x).copy_(x), X)],
    "fill.Scalar": [case(lambda x: torch.empty_like(x).fill_(2.5), X)],
    "zero": [case(lambda x: torch.ops.aten.zero(x), X)],
    "full": [case(lambda x: torch.full((x.shape[0], 4), 2.5) * x, X)],
    "full_like": [case(lambda x: torch.full_like(x, 7, dtype=torch.int32), X)],
    "new_full": [case(lambda x: x.new_full((x.shape[0], 2), 2.5), X)],
    "scalar_tensor": [case(lambda x: torch.scalar_tensor(2.5) * x, X)],
    "arange": [
        case(lambda x: torch.arange(4) + x, X),
        case(lambda x: torch.arange(2, 6) * x, X),
        case(lambda x: torch.arange(1.0, 9.0, 2.0) * x, X),
        case(lambda x: torch.arange(x.shape[0])[:, None] * x, X),
    ],
    "_to_copy": [case(lambda x: x.to(torch.float64), X), case(lambda x: x.to(torch.int32), 5 * X)],
    "type_as": [case(lambda x, y: x.type_as(y), INTS, X)],
    "clone": [case(lambda x: x.clone() + 1, X)],
    "alias": [case(lambda x: torch.ops.aten.alias(x) + 1, X)],
    "detach": [case(lambda x: x.detach() + 1, X)],
    "copy": [case(lambda x, y: torch.zeros_like(x, dtype=torch.float64).copy_(y), X, floats(4))],
    "view": [case(lambda x: x.view(-1, 8, 3) + 1, CUBE), case(lambda x: x.view(x.shape[0] * 4, 6), CUBE)],
    "_unsafe_view": [case(lambda x: x.transpose(1, 2).reshape(-1, 24), CUBE)],
    "unsqueeze": [case(lambda x: x.unsqueeze(-2), X)],
    "squeeze": [case(lambda x: x[:, :1].squeeze(1), X), case(lambda x: x[:, :, None].squeeze(), X)],
    "expand": [case(lambda x: x[:, None].expand(-1, 5, -1), X), case(lambda x: x.expand(2, -1, -1), X)],
    "permute": [case(lambda x: x.permute(2, 0, -2), CUBE), case(lambda x: x.movedim(1, -1), CUBE)],
    "transpose": [case(lambda x: x.transpose(-1, 1), CUBE)],
    "t": [case(lambda x: x.t(), X), case(lambda x: x.t() + 1, floats(4))],
    "slice": [
        case(lambda x: x[:, 1:3], X),
        case(lambda x: x[:, -3::2], CUBE),
        case(lambda x: x[:, 3:1], X),
        case(lambda x: x[:, :3][0:9, :, :100], CUBE),
    ],
    "slice_scatter": [
        case(lambda x, y: written(x, y, slice(1, 3)), X, floats(USERS, 2)),
        case(lambda x, y: written(x, y, slice(None, 2)), CUBE, floats(USERS, 2, 6)),
        case(lambda x, y: written(x, y, slice(-1, None)), X, floats(1)),
    ],
    "select_scatter": [
        case(lambda x, y: written(x, y, 1), X, floats(USERS)),
        case(lambda x, y: written(x, y, -1), CUBE, floats(USERS, 6)),
    ],
    "select": [case(lambda x: x[:, 2], CUBE), case(lambda x: x[..., -1], CUBE)],
    "split": [case(lambda x: x.split(3, -1), X), case(lambda x: x.chunk(2, 1), X)],
    "split_with_sizes": [case(lambda x: x.split([1, 3], -1), X)],
    "unbind": [case(lambda x: x.unbind(1), CUBE), case(lambda x: x.unbind(-1), X)],
    **{name: [case(lambda x, y, n=name: getattr(torch, n)((x, y), 1), X, Y)] for name in ("concat", "concatenate")},
    "cat": [case(lambda x, y: torch.cat((x, y, y), -1), X, Y), case(lambda x, y: torch.cat((x, y), 1), X, INTS)],
    "stack": [case(lambda x, y: torch.stack((x, y), -1), X, Y), case(lambda x, y: torch.stack((x, y)), X, Y)],
    "repeat": [
        case(lambda x: x.repeat(1, 3), X),
        case(lambda x: x.repeat(2, 1, 2), X),
        case(lambda x: x.sum(0).repeat(x.shape[0], 1), X),
    ],
    "repeat_interleave.self_int": [
        case(lambda x: x.repeat_interleave(3, 1), CUBE),
        case(lambda x: x.repeat_interleave(2, dim=-1), X),
    ],
}

AXES: dict[str, list[Case]] = {
    "sum": [
        case(lambda x: x.sum(-1), CUBE),
        case(lambda x: x.sum((0, 2), keepdim=True), CUBE),
        case(lambda x: x.sum(), X),
        case(lambda x: x.sum(1), MASK),
        case(lambda x: x.sum(1, dtype=torch.float64), X),
    ],
    "mean": [
        case(lambda x: x.mean(-1, keepdim=True), X),
        case(lambda x: x.mean(), X),
        case(lambda x: x.mean(1, dtype=torch.float64), X),
    ],
    "amax": [case(lambda x: x.amax((1, 2)), CUBE)],
    "amin": [case(lambda x: x.amin(-1, keepdim=True), CUBE)],
    "argmax": [case(lambda x: x.argmax(-1), CUBE), case(lambda x: x.argmax(1, keepdim=True), CUBE)],
    "softmax": [case(lambda x: x.softmax(-1), X), case(lambda x: x.softmax(1, dtype=torch.float64), CUBE)],
    "log_softmax": [case(lambda x: x.log_softmax(-1), X)],
    "cumsum": [
        case(lambda x: x.cumsum(-1), X),
        case(lambda x: x.cumsum(1), MASK),
        case(lambda x: x.cumsum(1, dtype=torch.float32), INTS),
    ],
    "layer_norm": [
        case(lambda x: F.layer_norm(x, (4,)), X),
        case(lambda x, w, b: F.layer_norm(x, (4,), w, b, 1e-3), X, weights=(floats(4), floats(4))),
        case(lambda x, w: F.layer_norm(x, (4,), w), X, weights=(floats(4),)),
    ],
    "rms_norm": [
        case(lambda x, w: F.rms_norm(x, (4,), w, 1e-3), X, weights=(floats(4),)),
        *(case(lambda x: F.rms_norm(x, (4,)), (X * 1e-2).to(dtype)) for dtype in (torch.float32, torch.float64)),
    ],
    "topk": [
        case(lambda x: x.topk(2, largest=False), X),
        case(lambda x: x.topk(2), X),
        case(lambda x: x.topk(3, dim=1)[1], CUBE),
    ],
    "gather": [case(lambda x, i: x.gather(1, i), X, numbers(4, USERS, 2))],
    "scatter": [
        case(lambda x, i: torch.zeros_like(x).scatter(1, i, x), X, torch.argsort(Y)),
        case(lambda x, i: torch.zeros_like(x).scatter(-1, i, 1.0), X, numbers(4, USERS, 2)),
    ],
    "embedding": [case(F.embedding, numbers(9, USERS, 4), weights=(TABLE,))],
    "index": [
        case(lambda i, table: table[i], numbers(9, USERS, 4), weights=(TABLE,)),
        case(lambda i, table: table[i], numbers(5, USERS, 2), weights=(floats(5),)),
        case(lambda i, table: table[i], numbers(4, USERS), weights=(EXPERTS,)),
        case(lambda i, table: table[:, i], numbers(6, USERS, 2), weights=(EXPERTS,)),
        case(lambda i, j, table: table[i, j], numbers(4, USERS, 2), numbers(6, USERS, 2), weights=(EXPERTS,)),
        case(lambda i, j, table: table[:, i, j], numbers(6, USERS), numbers(8, USERS), weights=(EXPERTS,)),
    ],
}

PRODUCTS: dict[str, list[Case]] = {
    "linear": [case(F.linear, floats(USERS, 3, 4), weights=(WEIGHT, BIAS)), case(F.linear, X, weights=(WEIGHT,))],
    "addmm": [
        case(lambda x, w, b: torch.addmm(b, x, w), X, weights=(floats(4, 5), BIAS)),
        case(lambda x, y: torch.addmm(y, x, x.t() @ x), X, Y),
        case(lambda x, y: torch.addmm(y, x, x.t() @ x, beta=2, alpha=0.5), X, Y),
    ],
    "mm": [case(torch.mm, X, weights=(floats(4, 5),)), case(lambda x, y: torch.mm(x.t(), y), X, Y)],
    "bmm": [case(lambda x: torch.bmm(x, x.mT), CUBE)],
    "matmul": [
        case(torch.matmul, CUBE, weights=(floats(6, 5),)),
        case(lambda x, w: x @ w.T, CUBE, weights=(floats(5, 6),)),
        case(lambda x, y: x @ y[:, None].mT, HEADS, floats(USERS, 5, 8)),
        case(lambda x: x @ x.sum(0), X),
    ],
    "scaled_dot_product_attention": [
        case(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), HEADS),
        case(lambda x: F.scaled_dot_product_attention(x, x + 1, x[..., :3], scale=0.5), HEADS),
    ],
}

IMAGE, LINE, VOLUME = floats(USERS, 4, 9, 7), floats(USERS, 4, 9), floats(USERS, 4, 5, 4, 6)
CHANNELS = tuple(positive(4) for _ in range(4))


def convolved(axes: int, **options: Any) -> Case:
    x = (LINE, IMAGE, VOLUME)[axes - 1]
    kernel = floats(6, 4 // options.get("groups", 1), *(3, 2, 2)[:axes])
    function = getattr(F, f"conv{axes}d")
    return case(lambda x, w, b: function(x, w, b, **options), x, weights=(kernel, floats(6)))


def transposed(axes: int, **options: Any) -> Case:
    x = (LINE, IMAGE, VOLUME)[axes - 1]
    kernel = floats(4, 6 // options.get("groups", 1), *(3, 2, 2)[:axes])
    function = getattr(F, f"conv_transpose{axes}d")
    return case(lambda x, w: function(x, w, **options), x, weights=(kernel,))


def resized(x: Tensor, **options: Any) -> Case:
    return case(lambda x: F.interpolate(x, **options), x)


SPATIAL: dict[str, list[Case]] = {
    **{
        f"conv{axes}d": [
            convolved(axes),
            convolved(axes, stride=2, padding=1, groups=2),
            convolved(axes, dilation=2, padding=2),
        ]
        for axes in (1, 2, 3)
    },
    **{
        f"conv{axes}d.padding": [convolved(axes, padding="same", dilation=2), convolved(axes, padding="valid")]
        for axes in (1, 2, 3)
    },
    "conv_transpose1d": [transposed(1, stride=2, padding=1, output_padding=1, groups=2)],
    **{
        f"conv_transpose{axes}d.input": [transposed(axes), transposed(axes, stride=2, padding=1, groups=2)]
        for axes in (2, 3)
    },
    **{
        f"max_pool{axes}d": [
            case(lambda x, n=axes: getattr(F, f"max_pool{n}d")(x, 2, 2, 1, ceil_mode=True), x),
            case(lambda x, n=axes: getattr(F, f"max_pool{n}d")(x, 2, 1, dilation=2), x),
        ]
        for axes, x in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    **{
        f"avg_pool{axes}d": [
            case(lambda x, n=axes: getattr(F, f"avg_pool{n}d")(x, 2, 2, 1, ceil_mode=True), x),
            case(lambda x, n=axes: getattr(F, f"avg_pool{n}d")(x, 3, padding=1, count_include_pad=False), x),
        ]
        for axes, x in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    **{
        f"adaptive_avg_pool{axes}d": [case(lambda x, n=axes: getattr(F, f"adaptive_avg_pool{n}d")(x, 3), x)]
        for axes, x in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    **{
        f"adaptive_max_pool{axes}d": [case(lambda x, n=axes: getattr(F, f"adaptive_max_pool{n}d")(x, 3), x)]
        for axes, x in ((1, LINE), (2, IMAGE), (3, VOLUME))
    },
    "group_norm": [
        case(lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, weights=CHANNELS[:2]),
        case(lambda x: F.group_norm(x, 4, eps=1e-3), LINE),
    ],
    "instance_norm": [case(lambda x, w, b: F.instance_norm(x, None, None, w, b), IMAGE, weights=CHANNELS[:2])],
    "pad": [
        case(lambda x: F.pad(x, (1, 2, -1, 3), value=2.5), IMAGE),
        *(
            case(lambda x, m=mode: F.pad(x, (1, 2, 0, 3), mode=m), IMAGE)
            for mode in ("reflect", "replicate", "circular")
        ),
    ],
    "upsample_nearest1d.vec": [resized(LINE, size=13), resized(LINE, scale_factor=1.7)],
    "upsample_nearest2d.vec": [resized(IMAGE, size=(12, 20)), resized(IMAGE, scale_factor=2)],
    "upsample_nearest3d.vec": [resized(VOLUME, scale_factor=(2, 1.5, 1))],
    "_upsample_nearest_exact1d.vec": [resized(LINE, scale_factor=1.7, mode="nearest-exact")],
    "_upsample_nearest_exact2d.vec": [resized(IMAGE, size=(5, 20), mode="nearest-exact")],
    "_upsample_nearest_exact3d.vec": [resized(VOLUME, scale_factor=2, mode="nearest-exact")],
    "upsample_linear1d.vec": [resized(LINE, size=13, mode="linear"), resized(LINE, scale_factor=1.7, mode="linear")],
    "upsample_bilinear2d.vec": [
        resized(IMAGE, size=(12, 20), mode="bilinear", align_corners=True),
        resized(IMAGE, scale_factor=1.7, mode="bilinear"),
        resized(IMAGE, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    ],
    "upsample_bicubic2d.vec": [resized(IMAGE, size=(12, 20), mode="bicubic")],
    "upsample_trilinear3d.vec": [resized(VOLUME, scale_factor=2, mode="trilinear")],
}

MORE: dict[str, list[Case]] = {
    "elu": [case(lambda x: F.elu(x, 0.7), X)],
    "leaky_relu": [case(lambda x: F.leaky_relu(x, 0.2), X)],
    "prelu": [case(F.prelu, X, weights=(floats(4),)), case(F.prelu, IMAGE, weights=(floats(1),))],
    "hardtanh": [case(lambda x: F.hardtanh(x, -0.5, 0.25), X)],
    "log_sigmoid": [case(F.logsigmoid, 9 * X)],
    "glu": [case(F.glu, X), case(lambda x: F.glu(x, 1), CUBE)],
    "isnan": [case(lambda x: torch.isnan(x / x), ROUND)],
    "isinf": [case(lambda x: torch.isinf(1 / x), ROUND)],
    **{name: [case(getattr(torch, name), X)] for name in ("tan", "exp2", "trunc")},
    "fix": [case(torch.fix, 3 * X)],
    **{name: [case(getattr(torch, name), positive(USERS, 4))] for name in ("log2", "log10")},
    "logical_xor": [case(torch.logical_xor, MASK, OTHER_MASK), case(torch.logical_xor, ROUND, OTHER_ROUND)],
    "lerp.Scalar": [case(lambda x, y: torch.lerp(x, y, 0.3), X, Y)],
    "lerp.Tensor": [case(torch.lerp, X, Y, Z)],
    "addcmul": [case(lambda x, y, z: torch.addcmul(x, y, z, value=0.5), X, Y, Z)],
    "addcdiv": [case(torch.addcdiv, X, Y, positive(USERS, 4))],
    "flip": [case(lambda x: x.flip(1, 2), CUBE)],
    "roll": [case(lambda x: x.roll((2, -1), (1, 2)), CUBE)],
    "tril": [case(lambda x: x.tril(-1), CUBE), case(lambda x: x.tril(1), CUBE)],
    "triu": [case(lambda x: x.triu(1), CUBE), case(lambda x: x.triu(), INTS.float())],
    **{
        name: [case(lambda x, n=name: x + getattr(torch, n)(4, 4, 1).sum(1)[0], X)]
        for name in ("tril_indices", "triu_indices")
    },
    "embedding_bag": [
        *(
            case(lambda i, w, m=mode: F.embedding_bag(i, w, mode=m), numbers(9, USERS, 4), weights=(TABLE,))
            for mode in ("sum", "mean", "max")
        ),
        case(
            lambda i, f, w: F.embedding_bag(i, w, per_sample_weights=f, mode="sum"),
            numbers(9, USERS, 4),
            X,
            weights=(TABLE,),
        ),
    ],
    "one_hot": [case(lambda i: F.one_hot(i, 9), numbers(9, USERS, 2))],
    "pixel_shuffle": [case(lambda x: F.pixel_shuffle(x, 2), IMAGE)],
    "im2col": [case(lambda x: F.unfold(x, (3, 7), stride=(3, 7)), IMAGE)],
    "pixel_unshuffle": [case(lambda x: F.pixel_unshuffle(x, 2), floats(USERS, 2, 4, 6))],
    "index_select": [case(lambda x, i: x.index_select(1, i), CUBE, weights=(torch.tensor([3, 0, 2]),))],
    "sort": [case(lambda x: x.sort(descending=True), X), case(lambda x: x.sort(1), CUBE)],
    "sort.stable": [case(lambda x: x.sort(dim=1, stable=True), CUBE)],
    "argsort": [case(lambda x: x.argsort(-1, descending=True), X)],
    "argsort.stable": [case(lambda x: x.argsort(dim=1, stable=True), CUBE)],
    "max": [case(lambda x: x.max(), X)],
    "min": [case(lambda x: x.min(), X)],
    "max.dim": [case(lambda x: x.max(1), CUBE)],
    "min.dim": [case(lambda x: x.min(-1, keepdim=True), CUBE)],
    "argmin": [case(lambda x: x.argmin(-1), CUBE)],
    "any": [
        case(lambda x: x.any(-1), MASK),
        case(lambda x: x.any(), ROUND),
        case(lambda x: (x > 0).any(1, keepdim=True), X),
    ],
    "all": [case(lambda x: x.all(-1), MASK), case(lambda x: (x > -9).all(), X)],
    "var": [case(lambda x: x.var(-1), X)],
    "var.correction": [case(lambda x: x.var((1, 2), correction=0, keepdim=True), CUBE)],
    "std": [case(lambda x: x.std(-1, unbiased=False), X)],
    "std.correction": [case(lambda x: x.std(1, correction=1), CUBE)],
    "linalg_vector_norm": [
        case(lambda x: torch.linalg.vector_norm(x, dim=-1), X),
        case(lambda x: torch.linalg.vector_norm(x, 3, 1, keepdim=True), CUBE),
        *(case(lambda x, o=order: torch.linalg.vector_norm(x, o, -1), X) for order in (1, float("inf"), -float("inf"))),
    ],
    "cosine_similarity": [case(F.cosine_similarity, X, Y), case(lambda x, y: F.cosine_similarity(x, y, 2), CUBE, CUBE)],
    "mv": [case(torch.mv, X, weights=(floats(4),))],
    "dot": [case(lambda x: torch.dot(x.sum(0), x.sum(0)), X)],
    "vdot": [case(lambda x: torch.vdot(x.sum(0), x.sum(0)), X)],
    "outer": [case(lambda x: torch.outer(x.sum(0), x.sum(0)), X)],
    "ger": [case(lambda x: torch.ger(x.sum(0), x.sum(0)), X)],
    "baddbmm": [
        case(lambda x: torch.baddbmm(x.mT @ x, x.mT, x, beta=0.5, alpha=2), CUBE),
        case(lambda x: torch.baddbmm(x.mT @ x, x.mT, x), CUBE),
    ],
    "bilinear": [case(F.bilinear, X, Y, weights=(floats(5, 4, 4), floats(5)))],
    "einsum": [
        case(lambda x, w: torch.einsum("bij,jk->bik", x, w), CUBE, weights=(floats(6, 5),)),
        case(lambda x, y: torch.einsum("bhqd,bhkd->bhqk", x, y), HEADS, HEADS),
        case(lambda x, y: torch.einsum("...i,...i->...", x, y), CUBE, CUBE),
        case(lambda x, w: torch.einsum("ab,ecb->aec", x, w), X, weights=(floats(3, 5, 4),)),
        case(lambda x, y, w: torch.einsum("ab,ab,bc->ca", x, y, w), X, Y, weights=(floats(4, 5),)),
        case(lambda x: torch.einsum("bij->bj", x), CUBE),
        case(lambda x, y: torch.einsum("ab,ac->abc", x, y), X, Y),
        case(lambda x, y: torch.einsum("ab,bc", x, y), X, floats(4, 2)),
    ],
}

PLAIN: dict[str, list[Case]] = {
    "to": [case(lambda x: x.to(torch.float16), X)],
    "contiguous": [case(lambda x: x.transpose(1, 2).contiguous() + 1, CUBE)],
    "dropout": [case(lambda x: F.dropout(x, 0.5, training=False), X)],
    "reshape": [case(lambda x: x.reshape(-1, 24), CUBE)],
    "flatten": [case(lambda x: x.flatten(1), CUBE)],
    "unflatten": [case(lambda x: x.unflatten(2, (2, 3)), CUBE)],
    "expand_as": [case(lambda x, y: x[:, :, None].expand_as(y), X, CUBE)],
    "chunk": [case(lambda x: x.chunk(3, 1), CUBE)],
    "view_as": [case(lambda x, y: x.view_as(y), CUBE, floats(USERS, 6, 4))],
    "reshape_as": [case(lambda x, y: x.transpose(1, 2).reshape_as(y), CUBE, floats(USERS, 8, 3))],
    "batch_norm": [
        case(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), IMAGE, weights=CHANNELS),
        case(lambda x, m, v: F.batch_norm(x, m, v, eps=1e-3), X, weights=CHANNELS[:2]),
    ],
}
"""Of exports to which no decomposition was applied."""

CORE: dict[str, list[Case]] = {
    "_softmax": [case(lambda x: x.softmax(-1), X)],
    "_log_softmax": [case(lambda x: x.log_softmax(-1), X)],
    "convolution": [convolved(2, stride=2, padding=1, groups=2), transposed(1, stride=2)],
    "_native_batch_norm_legit_no_training": [
        case(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), IMAGE, weights=CHANNELS)
    ],
    "native_group_norm": [case(lambda x, w, b: F.group_norm(x, 2, w, b), IMAGE, weights=CHANNELS[:2])],
    **{
        f"max_pool{axes}d_with_indices": [
            case(lambda x, n=axes: getattr(F, f"max_pool{n}d")(x, 2, 2, 1, ceil_mode=True), x)
        ]
        for axes, x in ((2, IMAGE), (3, VOLUME))
    },
    "_adaptive_avg_pool2d": [case(lambda x: F.adaptive_avg_pool2d(x, 3), IMAGE)],
    "_adaptive_avg_pool3d": [case(lambda x: F.adaptive_avg_pool3d(x, 3), VOLUME)],
    "constant_pad_nd": [case(lambda x: F.pad(x, (1, 2, -1, 3), value=2.5), IMAGE)],
}
"""Of exports to which torch's own decompositions were applied."""

TABLES = {
    "element by element": ELEMENTWISE,
    "constants, copies and views": LAYOUT,
    "along axes": AXES,
    "products": PRODUCTS,
    "positions": SPATIAL,
    "more": MORE,
    "plain": PLAIN,
    "core": CORE,
}
DECOMPOSITIONS: dict[str, Callable[[], dict[str, Any] | None]] = {
    "plain": lambda: None,
    "core": torch.export.default_decompositions,
}
CAUSAL = True

HALVES = known.written(torch.tensor([0.5, -2.0]))
HOOKED: dict[str, Case] = {
    "waferc.attention": case(
        lambda q, sinks: torch.ops.waferc.attention(q, q, q, sinks, 0.5, CAUSAL, 3, 0, 30.0),
        HEADS,
        weights=(floats(2),),
    ),
    "waferc.grouped_linear": case(
        lambda x, i, w, b: torch.ops.waferc.grouped_linear(x[:, None], w, b, i, not CAUSAL),
        floats(USERS, 8),
        numbers(4, USERS, 2),
        weights=(EXPERTS, EXPERT_BIAS),
    ),
    "waferc.constant": case(
        lambda x: x + torch.ops.waferc.constant(HALVES, [2], torch.float32, torch.device("cpu")),
        floats(2),
    ),
}
"""Our own operators, which only ever stand in an export: see ``ir.ops.matrix`` for what they mean."""


def test_no_rule_lacks_a_case() -> None:
    assert RULES.keys() == {name for table in (*TABLES.values(), HOOKED) for name in table}


def rule_of(node: torch.fx.Node) -> str:
    """The name under which a rule is found for a node of an export."""
    namespace, _, name = str(node.target).partition(".")
    name = (name if namespace == "aten" else f"{namespace}.{name}").removesuffix(".default")
    return name if name in RULES else name.partition(".")[0]


def applied_in(program: ExportedProgram) -> set[tuple[str, str]]:
    """Which rule is applied in which module."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    return {(rule_of(node), path) for node in nodes for path, _ in node.meta["nn_module_stack"].values()}


@pytest.mark.parametrize("name", TABLES)
def test_graphs_compute_what_modules_do(name: str) -> None:
    names, given = zip(*((rule, one) for rule, cases in TABLES[name].items() for one in cases), strict=True)
    module = Cases(given)
    program = module.export(DECOMPOSITIONS.get(name, dict)())
    graph = lower(program)
    assert {(rule, f"cases.{number}") for number, rule in enumerate(names)} <= applied_in(program)
    got = iter(outputs_of(graph, {**program.state_dict, **program.constants}, module.inputs))
    for rule, wanted in zip(names, module(*module.inputs), strict=True):
        for theirs in pytree.tree_leaves(wanted):
            torch.testing.assert_close(next(got), theirs, rtol=1e-6, atol=1e-6, equal_nan=True, msg=rule)
    assert next(got, None) is None
    assert parse_graph(print_graph(graph)) == graph
    for value, x in zip(graph.inputs, module.inputs, strict=True):
        assert (Dim.symbol("users") in value.type.shape) == (x.shape[:1] == (USERS,))


def test_our_own_operators_take_their_place() -> None:
    attention, grouped, total = (lower(Cases([given]).export()).nodes for given in HOOKED.values())
    constant, attention, grouped = total[0], attention[-1], grouped[-1]
    assert (constant.op, constant.attributes["values"]) == ("constant", (0.5, -2.0))
    assert attention.op == "attention"
    assert attention.attributes == {"scale": 0.5, "causal": True, "window": 3, "softcap": 30.0}
    assert attention.inputs == ("inputs_0", "inputs_0", "inputs_0", "cases.0.weights.0")
    assert grouped.op == "grouped_linear"
    assert grouped.attributes == {"transposed": False}
    assert grouped.inputs[1:] == ("cases.0.weights.0", "inputs_1", "cases.0.weights.1")


# --- what has no rule -----------------------------------------------------------------------------------------------


class Outer(nn.Module):
    """A module whose parts hold what no rule covers."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Applied(function) for function in functions)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def faults_of(module: nn.Module, *inputs: Tensor) -> list[tuple[str, str, object]]:
    with pytest.raises(UnsupportedModelError) as caught:
        lower(export(module, inputs))
    assert {fault.code for fault in caught.value.diagnostics} == {"W0201"}
    assert all(fault.help for fault in caught.value.diagnostics)
    return [(fault.message, fault.where, fault.facts["occurrences"]) for fault in caught.value.diagnostics]


def test_everything_unsupported_is_told_at_once_with_place_and_count() -> None:
    def twice(x: Tensor) -> Tensor:
        return x.cummax(-1)[0] + x.cumprod(-1)

    module = Outer(torch.relu, lambda x: x.cumprod(1), twice, lambda x: F.softplus(x, threshold=2))
    assert faults_of(module, X) == [
        ("operator cumprod is not supported: no rule", "parts.1", 2),
        ("operator cummax is not supported: no rule", "parts.2", 1),
        ("operator softplus is not supported: softplus with a threshold of its own", "parts.3", 1),
    ]


FORMS: dict[str, Case] = {
    "softplus": case(lambda x: F.softplus(x, threshold=5), X),
    "division": case(lambda x: torch.div(x, 3, rounding_mode="trunc"), INTS),
    "a scalar under a mask": case(lambda x, i: x.index_put((i,), x.sum(0)), X, numbers(3, 2)),
    "under a mask": case(lambda x, i: x.index_put((i, i), torch.tensor(1.0)), X, numbers(3, 2)),
    "lie apart": case(lambda x, i: x[i, :, i], CUBE, numbers(3, 2)),
    "flattened": case(lambda x: x.repeat_interleave(2), X),
    "smallest integers": case(lambda x: x.sort(-1), INTS),
    "diagonals": case(lambda x: torch.einsum("bii->b", x), floats(USERS, 4, 4)),
    "several axes": case(lambda x: F.layer_norm(x, (4, 6)), CUBE),
    "normalising over several": case(lambda x: F.rms_norm(x, (4, 6)), CUBE),
    "a shift alone": case(lambda x: F.layer_norm(x, (4,), None, x.sum(0)), X),
    "mask of its own": case(lambda x, m: F.scaled_dot_product_attention(x, x, x, m), HEADS, bits(5, 5)),
    "part of a symbolic axis": case(lambda x: x[1:], X),
    "one element of a symbolic axis": case(lambda x: x[-1], X),
    "whose length is symbolic": case(lambda x, table: table[: x.shape[0]] + x, X, weights=(floats(9, 4),)),
    "splitting a symbolic axis": case(lambda x: x.split(9), X),
    "a symbolic size in the place of a number": case(lambda x: x * x.shape[0], X),
    "with a step": case(lambda x, y: written(x, y, slice(0, 4, 2)), X, floats(USERS, 2)),
    "does not cover": case(lambda x: torch.round(x, decimals=2), X),
}


@pytest.mark.parametrize("reason", FORMS)
def test_forms_that_a_rule_does_not_cover_are_told(reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"W0201.*is not supported: .*" + reason):
        lower(Cases([FORMS[reason]]).export())


def test_complex_inputs_and_what_pairs_do_not_cover_are_told() -> None:
    with pytest.raises(UnsupportedModelError, match=r"W0201.*complex64 is unknown"):
        lower(export(Applied(lambda x: x.real), (X + 0j,)))
    faults = faults_of(Outer(lambda x: torch.polar(x, x).exp().real, lambda x: x.cumprod(1)), X)
    assert [(fault[0].split()[1], fault[1]) for fault in faults] == [("exp", "parts.0"), ("cumprod", "parts.1")]


def as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))


def as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x).flatten(-2)


COMPLEX: dict[str, Callable[..., Tensor]] = {
    "rotation": lambda x, y: as_real(as_complex(x) * torch.polar(torch.ones_like(y[:, :2]), y[:, :2])),
    "a factor": lambda x, y: as_real(as_complex(x) * 3.0) * y,
    "a real factor": lambda x, y: as_real(y[:, 2:] * as_complex(x)),
    "sums": lambda x, y: as_real(as_complex(x) + as_complex(y) - as_complex(y) * as_complex(y)),
    "parts": lambda x, y: torch.complex(x, y).real * torch.complex(x, y).imag,
    "conjugate": lambda x, y: as_real(as_complex(x).conj() * as_complex(y)),
    "moves": lambda x, y: as_real(as_complex(x)[:, None, :].transpose(1, 2)[:, 1] * as_complex(y).unsqueeze(1)[:, 0]),
}


@pytest.mark.parametrize("name", COMPLEX)
@pytest.mark.parametrize("decompositions", [None, FUNCTIONAL])
def test_complex_numbers_become_pairs(name: str, decompositions: dict[str, Any] | None) -> None:
    module = Cases([case(COMPLEX[name], X, Y)])
    (got,) = outputs_of(lower(module.export(decompositions)), {}, module.inputs)
    torch.testing.assert_close(got, COMPLEX[name](X, Y), rtol=1e-6, atol=1e-6)


def views_see_writes(x: Tensor, y: Tensor) -> Tensor:
    whole = x.clone()
    row, rows, flat = whole[:, 1], whole.transpose(0, 1), whole.view(-1)
    before = row * 2
    rows[2:].mul_(y.t()[2:])
    row.add_(y[:, 0])
    whole.view(-1, 2, 2)[:, 0, 1].copy_(y[:, 3])
    return torch.cat((whole, before[:, None], row[:, None], rows.t(), flat.view(-1, 4)), dim=1)


def chained(x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros_like(x).add_(x).sub_(y, alpha=2)
    return total.masked_fill_(y > 0, 7.0).clamp_(max=3).zero_().add_(y)


def halves(x: Tensor, y: Tensor) -> Tensor:
    whole = x.clone()
    first, second = whole.chunk(2, dim=1)
    second.copy_(y[:, :2])
    return whole + first.sum()


WRITES: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "through views": (views_see_writes, True),
    "one after another": (chained, True),
    "integers keep their type": (lambda x, y: x.long().add_(3) + y, True),
    "narrow into wide": (lambda x, y: torch.empty_like(y).copy_(x[:, :1]), True),
    # Left to torch, which traces again.
    "through parts": (halves, False),
    "into an input": (lambda x, y: x.add_(y) * 2, False),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_in_place_become_functional(name: str) -> None:
    function, followed = WRITES[name]
    module = Cases([case(function, X.clone(), Y)])
    program = module.export(None)
    assert any(is_write(node) for node in program.graph.nodes)
    if followed:
        got = outputs_of(lower(program), {}, module.inputs)
        torch.testing.assert_close(got[0], function(X.clone(), Y), rtol=1e-6, atol=1e-6)
    else:
        with pytest.raises(UnsupportedModelError, match=r"W0201.*writing"):
            lower(program)


def test_sizes_that_are_no_polynomials_are_told() -> None:
    twice = 2 * torch.export.Dim("half", min=2, max=9)
    program = export(Applied(torch.relu), (floats(12, 4),), (({0: twice},),))
    with pytest.raises(UnsupportedModelError, match="W0306"):
        lower(program)


def test_what_contradicts_torch_is_told(monkeypatch) -> None:
    monkeypatch.setitem(RULES, "relu", lambda t, x: t.add("reshape", x, shape=(4, 3)))
    with pytest.raises(UnsupportedModelError, match=r"W0305.*f32\[4, 3\] here and f32\[3, 4\] in torch"):
        lower(export(Applied(torch.relu), (X,)))


# --- names and origins ----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose table is also the head's weight, a scale that is computed, and one that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("computed", torch.tensor([1.0, 2, 3, 4, 5, 6]), persistent=False)
        self.register_buffer("kept", torch.tensor([0.5] * 6))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids) * self.computed + self.kept)


def test_tied_weights_have_one_name_and_computed_buffers_become_constants() -> None:
    module, ids = Tied(), numbers(9, USERS, 4)
    program = export(module, (ids,))
    graph = lower(program, Names({}, tied_names(module), {"computed": module.computed}))
    assert tied_names(module) == {"head.weight": "embed.weight"}
    assert [parameter.name for parameter in graph.parameters] == ["embed.weight", "kept"]
    assert [node.op for node in graph.nodes] == ["constant", "embedding", "mul", "add", "linear"]
    assert [node.origin for node in graph.nodes] == ["computed", "embed", "", "", "head"]
    (got,) = outputs_of(graph, {"embed.weight": module.embed.weight, "kept": module.kept}, [ids])
    torch.testing.assert_close(got, module(ids))


def test_large_constants_stay_weights_and_unread_ones_are_dropped() -> None:
    module = Tied()
    module.computed = torch.randn(1 << 17).repeat_interleave(6).reshape(-1, 6)[:, :6]
    program = export(Applied(lambda x: x + 1), (X,))
    assert lower(program).parameters == ()
    wide = nn.Module()
    wide.register_buffer("table", torch.randn(1 << 17), persistent=False)
    wide.forward = lambda x: wide.table + x
    graph = lower(export(wide, (floats(1),)), Names({}, {}, {"table": wide.table}))
    assert [parameter.name for parameter in graph.parameters] == ["table"]


def test_a_prefix_is_dropped_from_names_and_origins() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tied()

        def forward(self, ids: Tensor) -> Tensor:
            return self.model(ids)

    wrapper = Wrapper()
    tied = tied_names(wrapper.model, "model.")
    names = Names({}, tied, {"model.computed": wrapper.model.computed}, "model.")
    graph = lower(export(wrapper, (numbers(9, USERS, 4),)), names)
    assert [parameter.name for parameter in graph.parameters] == ["embed.weight", "kept"]
    assert {node.origin for node in graph.nodes} == {"computed", "embed", "", "head"}
