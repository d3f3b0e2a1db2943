"""ONNX files: every operator of the table means what ONNX's own reference says, and bad files end in a diagnostic."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ir.diagnostics import UnsupportedModelError, UsageError, WafercError
from ir.graph import Graph
from ir.interpret import interpret
from ir.text import parse_graph, print_graph
from ir.types import Dim
from ir.verify import verify
from partitioner.frontends.onnx_file import OPERATORS, load_onnx, read_weights

RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + np.float32(0.1)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def node(op: str, inputs: str, outputs: str = "y", name: str = "", domain: str = "", **attributes) -> onnx.NodeProto:
    """A node; a dash stands for an input or output left out."""
    names = [["" if part == "-" else part for part in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op, *names, name=name or None, domain=domain, **attributes)


@dataclass
class Case:
    """A model whose ``weights`` are initializers.

    Where it is ``symbolic``, the first input's first axis is, and that of all inputs that are as long there.
    """

    nodes: list[onnx.NodeProto]
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    opset: int = 21
    symbolic: bool = True

    def model(self) -> onnx.ModelProto:
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), self._shape(array.shape))
            for name, array in self.inputs.items()
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "case", values, results, weights)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)

    def _shape(self, shape: tuple[int, ...]) -> list[int | str]:
        batch = next(iter(self.inputs.values())).shape[:1]
        return ["batch", *shape[1:]] if self.symbolic and shape and shape[:1] == batch else list(shape)


def one(op: str, *operands: np.ndarray, known: tuple[int, ...] = (), outputs: str = "y", **options) -> Case:
    """A model of one node; the operands whose numbers are in ``known`` are initializers."""
    names = [f"x{i}" for i in range(len(operands))]
    arrays = dict(zip(names, operands, strict=True))
    case_options = {name: options.pop(name) for name in ("opset", "symbolic") if name in options}
    return Case(
        [node(op, " ".join(names), outputs, **options)],
        {name: arrays[name] for i, name in enumerate(names) if i not in known},
        {name: arrays[name] for i, name in enumerate(names) if i in known},
        tuple(outputs.split()),
        **case_options,
    )


def bits(*shape: int) -> np.ndarray:
    return RNG.integers(0, 2, shape).astype(bool)


def numbers(high: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, high, shape)


def looped(turns: int, condition: bool = True) -> Case:
    """A loop that doubles x; its condition is an input of the model unless it is always true."""
    body = helper.make_graph(
        [node("Add", "a a", "b"), node("Identity", "c", "d")],
        "body",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (("i", 7, []), ("c", 9, []))]
        + [helper.make_tensor_value_info("a", 1, None)],
        [helper.make_tensor_value_info("d", 9, []), helper.make_tensor_value_info("b", 1, None)],
    )
    known = {"n": np.array(turns), **({"go": np.bool_(1)} if condition else {})}
    given = {"x": floats(3, 4), **({} if condition else {"go": np.bool_(1)})}
    return Case([node("Loop", "n go x", body=body)], given, known)


SIMPLE = (
    *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish"),
    *("Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Tanh"),
)
LEFT, RIGHT = np.round(floats(3, 4)), np.round(floats(3, 4))

CASES: dict[str, list[Case]] = {
    **{op: [one(op, floats(3, 4), opset=22)] for op in SIMPLE},
    **{op: [one(op, positive(3, 4))] for op in ("Log", "Sqrt", "Reciprocal")},
    **{
        op: [
            one(op, floats(3, 4), floats(4)),
            one(op, floats(3, 4), np.float32(0.3), known=(1,)),
            one(op, np.float32([0.7]), floats(3, 4), known=(0,)),
            one(op, floats(3, 4), floats(4), known=(1,)),
        ]
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")
    },
    **{
        op: [one(op, LEFT, RIGHT), one(op, LEFT, np.float32(0), known=(1,)), one(op, np.float32(1), RIGHT, known=(0,))]
        for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    },
    **{op: [one(op, bits(3, 4), bits(3, 4))] for op in ("And", "Or", "Xor")},
    "Not": [one("Not", bits(3, 4))],
    "Mod": [one("Mod", numbers(9, 3, 4) - 4, np.array(3), known=(1,))],
    "Pow": [
        one("Pow", positive(3, 4), floats(4)),
        one("Pow", floats(3, 4), np.array(2, dtype=np.int64), known=(1,)),
        one("Pow", numbers(5, 3, 4), np.float32(2), known=(1,)),
    ],
    "Gelu": [one("Gelu", floats(3, 4)), one("Gelu", floats(3, 4), approximate="tanh")],
    "Swish": [one("Swish", floats(3, 4), opset=24)],
    "Clip": [
        one("Clip", floats(3, 4), np.float32(-0.5), np.float32(0.5), known=(1, 2)),
        one("Clip", floats(3, 4), np.float32(-0.5), np.float32(0.5), symbolic=False),
        one("Clip", floats(3, 4), min=-0.25, opset=10),
        one("Clip", floats(3, 4)),
        Case([node("Clip", "x - high")], {"x": floats(3, 4)}, {"high": np.float32(0.1)}),
    ],
    "Where": [
        one("Where", bits(3, 4), floats(3, 4), floats(4)),
        one("Where", bits(3, 4), floats(3, 4), np.float32(-1e9), known=(2,)),
    ],
    "Cast": [
        one("Cast", floats(3, 4) * 9, to=TensorProto.INT32),
        one("Cast", numbers(3, 3, 4), to=TensorProto.BOOL),
        one("Cast", floats(3, 4), to=TensorProto.FLOAT),
    ],
    "Dropout": [one("Dropout", floats(3, 4)), one("Dropout", floats(3, 4), outputs="y mask")],
    "Softmax": [
        one("Softmax", floats(3, 4, 5), axis=1),
        one("Softmax", floats(3, 4)),
        one("Softmax", floats(3, 4), opset=11),
    ],
    "LogSoftmax": [one("LogSoftmax", floats(3, 4, 5), axis=-2)],
    "LayerNormalization": [
        one("LayerNormalization", floats(3, 4, 5), floats(5), floats(5), known=(1, 2), epsilon=1e-3),
        one("LayerNormalization", floats(3, 4, 5), floats(4, 5), known=(1,), axis=1),
        one("LayerNormalization", floats(3, 4, 5), floats(4, 5), floats(4, 5), known=(1, 2), axis=-2),
    ],
    "RMSNormalization": [
        one("RMSNormalization", floats(3, 4, 5), floats(5), known=(1,), opset=23),
        one("RMSNormalization", floats(3, 4, 5), floats(4, 5), known=(1,), opset=23, axis=1),
    ],
    **{
        op: [
            one(op, floats(3, 4, 5), axes=[-1], opset=17 if op != "ReduceSum" else 11),
            one(op, floats(3, 4, 5), ints(1, 2), known=(1,), keepdims=0, opset=18),
            one(op, floats(3, 4, 5), opset=18, keepdims=0),
            one(op, floats(3, 4, 5), opset=18, noop_with_empty_axes=1),
        ]
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
    },
    "ReduceProd": [
        Case(
            [
                node("Shape", "x", "s", start=1),
                node("ReduceProd", "s", "width"),
                node("Concat", "minus width", "t", axis=0),
                node("Reshape", "x t"),
            ],
            {"x": floats(3, 4, 5)},
            {"minus": ints(-1)},
        )
    ],
    "ArgMax": [one("ArgMax", floats(3, 4), axis=1), one("ArgMax", floats(3, 4), axis=-1, keepdims=0)],
    "CumSum": [
        one("CumSum", floats(3, 4), np.array(1), known=(1,)),
        one("CumSum", numbers(9, 3, 4).astype(np.int32), np.array(-1), known=(1,)),
        one("CumSum", floats(3, 4), np.array(1), known=(1,), exclusive=1),
    ],
    "TopK": [
        one("TopK", floats(3, 9), ints(4), known=(1,), outputs="y i"),
        one("TopK", floats(3, 9, 2), ints(2), known=(1,), outputs="y i", axis=1, largest=0),
    ],
    "GatherElements": [one("GatherElements", floats(3, 6), numbers(6, 3, 2), axis=1)],
    "MatMul": [
        one("MatMul", floats(3, 4), floats(4, 5), known=(1,)),
        one("MatMul", floats(3, 2, 4), floats(4, 5), known=(1,)),
        one("MatMul", floats(3, 2, 4), floats(3, 4, 5)),
        one("MatMul", floats(4), floats(4, 5), known=(1,), symbolic=False),
        one("MatMul", floats(2, 3, 4), floats(4), symbolic=False),
        one("MatMul", floats(4), floats(2, 4, 3), symbolic=False),
        one("MatMul", floats(4), floats(4), symbolic=False),
        one("MatMul", floats(5, 4), floats(4, 3), known=(0,), symbolic=False),
    ],
    "Gemm": [
        one("Gemm", floats(3, 4), floats(4, 5), floats(5), known=(1, 2)),
        one("Gemm", floats(3, 4), floats(5, 4), floats(5), known=(1, 2), transB=1),
        one("Gemm", floats(3, 4), floats(5, 4), floats(1, 5), known=(1, 2), transB=1, alpha=0.5, beta=2.0),
        one("Gemm", floats(3, 4), floats(5, 4), known=(1,), transB=1, alpha=0.25),
        one("Gemm", floats(4, 3), floats(4, 5), floats(3, 5), transA=1, symbolic=False),
        one("Gemm", floats(3, 4), floats(5, 4), transB=1, symbolic=False),
        one("Gemm", floats(3, 4), floats(4, 5), np.float32(2), known=(1, 2), beta=0.5),
    ],
    "Constant": [
        Case([node("Constant", "", "c", value_float=0.5), node("Mul", "x c")], {"x": floats(3, 4)}),
        Case([node("Constant", "", "c", value_floats=[0.5, 1, 2, 3]), node("Mul", "x c")], {"x": floats(3, 4)}),
        Case([node("Constant", "", "c", value_ints=[-1]), node("Reshape", "x c")], {"x": floats(3, 4)}),
        Case(
            [node("Constant", "", "c", value=numpy_helper.from_array(floats(4, 5))), node("MatMul", "x c")],
            {"x": floats(3, 4)},
        ),
    ],
    "Shape": [
        Case(
            [node("Shape", "x", "s", start=1), node("ConstantOfShape", "s", "z"), node("Add", "x z")],
            {"x": floats(3, 4)},
        )
    ],
    "Size": [
        Case(
            [node("Size", "w", "s"), node("Cast", "s", "f", to=1), node("Div", "x f")],
            {"x": floats(3, 4)},
            {"w": floats(6)},
        )
    ],
    "ConstantOfShape": [
        Case(
            [
                node("Shape", "x", "s"),
                node("ConstantOfShape", "s", "z", value=numpy_helper.from_array(np.float32([2.5]))),
                node("Mul", "x z"),
            ],
            {"x": floats(3, 4)},
        ),
        Case(
            [node("ConstantOfShape", "s", "z", value=numpy_helper.from_array(ints(1))), node("Expand", "x z")],
            {"x": floats(3, 4)},
            {"s": ints(2)},
        ),
    ],
    "Range": [
        Case(
            [
                node("Shape", "x", "s"),
                node("Squeeze", "s", "n"),
                node("Range", "zero n one", "r"),
                node("Gather", "x r", axis=0),
            ],
            {"x": floats(3)},
            {"zero": np.array(0), "one": np.array(1)},
        ),
        one("Range", np.array(2), np.array(9), np.array(3), known=(0, 1, 2)),
        one("Range", np.float32(1), np.float32(2), np.float32(0.25), known=(0, 1, 2)),
    ],
    "Reshape": [
        one("Reshape", floats(3, 4, 6), ints(0, -1, 3), known=(1,)),
        one("Reshape", floats(3, 4, 6), ints(-1, 6), known=(1,)),
        one("Reshape", floats(3, 4), ints(0, 4), known=(1,)),
        Case(
            [
                node("Shape", "x", "s"),
                node("Gather", "s first", "n"),
                node("Unsqueeze", "n axis", "n1"),
                node("Slice", "s one_ two", "m"),
                node("Mul", "m two", "m2"),
                node("Concat", "n1 minus m2", "t", axis=0),
                node("Reshape", "x t"),
            ],
            {"x": floats(3, 4, 6)},
            {"first": np.array(0), "axis": ints(0), "one_": ints(1), "two": ints(2), "minus": ints(-1)},
        ),
    ],
    "Flatten": [
        one("Flatten", floats(3, 4, 5)),
        one("Flatten", floats(3, 4, 5), axis=0),
        one("Flatten", floats(3, 4), axis=-1),
    ],
    "Unsqueeze": [
        one("Unsqueeze", floats(3, 4), ints(0, -1), known=(1,)),
        one("Unsqueeze", floats(3, 4), axes=[1], opset=11),
    ],
    "Squeeze": [
        one("Squeeze", floats(3, 1, 4, 1), ints(1, -1), known=(1,)),
        one("Squeeze", floats(3, 1, 4), axes=[1], opset=11),
        one("Squeeze", floats(3, 1, 4), symbolic=False),
    ],
    "Transpose": [
        one("Transpose", floats(3, 4, 5), perm=[0, 2, 1]),
        one("Transpose", floats(3, 4, 5)),
        one("Transpose", floats(3, 4), perm=[0, 1]),
        Case(
            [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t")], {"x": floats(3, 4)}, {"w": floats(5, 4)}
        ),
        Case([node("Transpose", "w", "t"), node("Add", "x t")], {"x": floats(3, 4)}, {"w": floats(4, 1)}),
        Case([node("Transpose", "w", "t"), node("Gemm", "x t", transB=1)], {"x": floats(3, 4)}, {"w": floats(4, 2)}),
    ],
    "Expand": [
        one("Expand", floats(3, 1, 4), ints(2, 1), known=(1,)),
        Case(
            [
                node("Shape", "x", "s"),
                node("ConstantOfShape", "two", "ones", value=numpy_helper.from_array(ints(1))),
                node("Mul", "ones minus", "m"),
                node("Equal", "s m", "e"),
                node("Where", "e ones s", "t"),
                node("Expand", "w t", "v"),
                node("Add", "x v"),
            ],
            {"x": floats(3, 4)},
            {"two": ints(2), "minus": ints(-1), "w": floats(1, 4)},
        ),
    ],
    "Concat": [
        one("Concat", floats(3, 4), floats(3, 2), axis=1),
        one("Concat", floats(3, 4), axis=-1),
        Case([node("Concat", "x x", axis=0)], {"x": floats(3, 4)}),
    ],
    "Split": [
        one("Split", floats(3, 7), ints(2, 5), known=(1,), outputs="y z", axis=1),
        one("Split", floats(3, 7), outputs="y z", axis=-1, num_outputs=2),
        one("Split", floats(3, 6), outputs="y z", axis=1, split=[4, 2], opset=11),
    ],
    "Slice": [
        one("Slice", floats(3, 7), ints(6), ints(0), ints(1), ints(-1), known=(1, 2, 3, 4)),
        one("Slice", floats(3, 7), ints(1), ints(6), ints(1), ints(2), known=(1, 2, 3, 4)),
        one("Slice", floats(3, 7, 5), ints(-3, 1), ints(2**62, -1), ints(1, 2), known=(1, 2, 3)),
        one("Slice", floats(3, 7), ints(0), ints(2**63 - 1), ints(0), known=(1, 2, 3)),
        one("Slice", floats(3, 7), ints(1), ints(-1), ints(0), known=(1, 2, 3)),
        one("Slice", floats(3, 7), starts=[2], ends=[5], axes=[1], opset=9),
        Case(
            [node("Shape", "x", "s", end=1), node("Slice", "table zero s", "t"), node("Add", "x t")],
            {"x": floats(3, 4)},
            {"table": floats(9, 4), "zero": ints(0)},
        ),
        Case(
            [node("Shape", "x", "s", end=1), node("Slice", "table zero s one", "t"), node("MatMul", "t x")],
            {"x": floats(3, 4)},
            {"table": floats(2, 9), "zero": ints(0), "one": ints(1)},
        ),
    ],
    "Gather": [
        one("Gather", floats(8, 4), numbers(8, 3, 2), known=(0,)),
        one("Gather", floats(3, 4, 5), np.array(-1), known=(1,), axis=1),
        one("Gather", floats(3, 6), ints(1, 2, 3), known=(1,), axis=1),
        one("Gather", floats(3, 6), ints(4, 0, -1), known=(1,), axis=1),
        one("Gather", floats(3, 6), ints(0), known=(1,)),
        one("Gather", floats(3, 6, 2), numbers(6, 2, 2), axis=1),
        one("Gather", floats(7), numbers(7, 3), known=(0,)),
        one("Gather", floats(7, 2, 3), numbers(7, 3), known=(0,)),
    ],
    "SimplifiedLayerNormalization": [],
    "SequenceAt": [
        Case(
            [
                node("SequenceConstruct", "x w x", "list"),
                node("SequenceErase", "list first", "shorter"),
                node("SequenceAt", "shorter last"),
            ],
            {"x": floats(3, 4)},
            {"w": floats(2), "first": np.array(0), "last": np.array(-1)},
        )
    ],
    "ConcatFromSequence": [
        Case(
            [node("SequenceConstruct", "x x", "list"), node("ConcatFromSequence", "list", "y", axis=-1)],
            {"x": floats(3, 4)},
        ),
        Case(
            [node("SequenceConstruct", "x x", "list"), node("ConcatFromSequence", "list", "y", axis=1, new_axis=1)],
            {"x": floats(3, 4)},
        ),
    ],
    "Optional": [
        Case(
            [node("Optional", "x", "o"), node("OptionalHasElement", "o", "h"), node("Where", "h x w")],
            {"x": floats(3, 4)},
            {"w": floats(4)},
        ),
    ],
    "Attention": [
        one("Attention", floats(3, 4, 5, 8), floats(3, 2, 5, 8), floats(3, 2, 5, 8), is_causal=1, opset=23),
        one("Attention", floats(3, 4, 8), floats(3, 6, 8), floats(3, 6, 8), q_num_heads=2, kv_num_heads=2, opset=23),
        one(
            *("Attention", floats(3, 4, 2, 8), floats(3, 2, 2, 8), floats(3, 2, 2, 8), floats(2, 7)),
            *(floats(3, 2, 5, 8), floats(3, 2, 5, 8)),
            softcap=2.0,
            outputs="y present_key present_value",
            opset=23,
        ),
    ],
    "RotaryEmbedding": [
        one(
            "RotaryEmbedding", floats(3, 2, 5, 8), floats(9, 4), floats(9, 4), numbers(9, 3, 5), known=(1, 2), opset=23
        ),
        one("RotaryEmbedding", floats(3, 2, 5, 8), floats(3, 5, 2), floats(3, 5, 2), opset=23, rotary_embedding_dim=4),
    ],
    "Pad": [
        one("Pad", floats(3, 4), ints(0, 1, 0, 2), known=(1,)),
        one("Pad", floats(3, 4), ints(0, 1, 0, 2), np.float32(7), known=(1,)),
        one("Pad", floats(3, 4), ints(3, 2), np.float32(0), ints(1), known=(1, 2, 3), mode="reflect"),
    ],
    "Tile": [one("Tile", floats(3, 1, 4), ints(1, 5, 2), known=(1,))],
    "Trilu": [one("Trilu", floats(3, 4, 5), np.array(1), known=(1,)), one("Trilu", floats(3, 4, 4), upper=0)],
    "Einsum": [
        one("Einsum", floats(3, 5, 4), floats(3, 4, 6), equation="bij,bjk->bik"),
        one("Einsum", floats(3, 5, 2, 4), floats(3, 6, 2, 4), equation="bqhd,bkhd->bhqk"),
        one("Einsum", floats(3, 4), floats(4, 6), known=(1,), equation="...i,io"),
    ],
    "ScatterND": [
        one("ScatterND", floats(6, 4), numbers(6, 3, 1), floats(3, 4), known=(0,), symbolic=False),
        one(
            "ScatterND", floats(6, 4), ints(5, 1, -1)[:, None], floats(3, 4), symbolic=False, reduction="add", opset=18
        ),
    ],
    "GatherND": [one("GatherND", floats(6, 4, 2), numbers(4, 3, 2), known=(0,))],
    "OneHot": [one("OneHot", numbers(9, 3, 2) - 2, np.array(7), np.float32([0.5, 2.0]), known=(1, 2), axis=1)],
    "Loop": [looped(3)],
    "If": [
        Case(
            [
                node("Shape", "w", "s"),
                node("Gather", "s one", "n"),
                node("Less", "n limit", "c"),
                helper.make_node(
                    "If",
                    ["c"],
                    ["y"],
                    **{
                        f"{name}_branch": helper.make_graph(
                            [node(op, "x", "z")], name, [], [helper.make_tensor_value_info("z", 1, None)]
                        )
                        for name, op in (("then", "Neg"), ("else", "Exp"))
                    },
                ),
            ],
            {"x": floats(3, 4)},
            {"w": floats(2, 9), "one": np.array(1), "limit": np.array(7)},
        )
    ],
}


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def lower(model: onnx.ModelProto, folder: Path) -> Graph:
    return load_onnx(save(model, folder)).graph


def assert_same(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path, reference=None) -> Graph:
    """Lower ``model``, check what every graph must keep, run it, and compare with ONNX's reference."""
    path = save(model, folder)
    graph = verify(load_onnx(path).graph)
    assert parse_graph(print_graph(graph)) == graph
    weights = read_weights(path)
    assert list(weights) == [parameter.name for parameter in graph.parameters]
    assert {name: array.shape for name, array in weights.items()} == {p.name: p.shape for p in graph.parameters}
    given = {value.name: inputs[value.name] for value in graph.inputs}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in (given | weights).items()}
    values = interpret(graph, tensors)
    expected = onnx.reference.ReferenceEvaluator(reference or model).run(None, inputs)
    for name, array in zip(graph.outputs, expected, strict=True):
        result = values[name].numpy()
        assert result.dtype == array.dtype, name
        np.testing.assert_allclose(result, array, rtol=1e-5, atol=1e-5)
        assert graph.types[name].shape == array.shape or any(isinstance(s, Dim) for s in graph.types[name].shape)
    return graph


def test_every_case_is_of_an_operator() -> None:
    """That every operator has a case, here or among ONNX's own, is promised in ``test_onnx_nodes.py``."""
    assert set(CASES) - {op for domain, op in OPERATORS if not domain} == {"RotaryEmbedding"}, "defined by others"


@pytest.mark.parametrize(("op", "index"), [(op, i) for op, cases in CASES.items() for i in range(len(cases))])
def test_operator_means_what_onnx_says(op: str, index: int, tmp_path: Path) -> None:
    case = CASES[op][index]
    assert_same(case.model(), case.inputs, tmp_path)


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_names_of_onnxruntime(domain: str, tmp_path: Path) -> None:
    arrays = {"x": floats(3, 4)}, {"w": floats(4)}
    theirs = Case([node("SimplifiedLayerNormalization", "x w", domain=domain, axis=-1, epsilon=1e-6)], *arrays)
    standard = Case([node("RMSNormalization", "x w", axis=-1, epsilon=1e-6)], *arrays, opset=23)
    assert_same(theirs.model(), theirs.inputs, tmp_path, standard.model())
    gelu = Case([node("Gelu", "x", domain="com.microsoft")], arrays[0])
    assert_same(gelu.model(), gelu.inputs, tmp_path, Case([node("Gelu", "x")], arrays[0]).model())


def test_attention_to_the_history_is_the_graphs_own(tmp_path: Path) -> None:
    arrays = floats(3, 4, 2, 8), floats(3, 2, 2, 8), floats(3, 2, 2, 8), floats(3, 2, 5, 8), floats(3, 2, 5, 8)
    case = Case(
        [node("Attention", "q k v - past_k past_v", "y all_k all_v", is_causal=1)],
        dict(zip(("q", "k", "v", "past_k", "past_v"), arrays, strict=True)),
        outputs=("y", "all_k", "all_v"),
        opset=24,
    )
    graph = assert_same(case.model(), case.inputs, tmp_path)
    assert [n.op for n in graph.nodes] == ["concat", "concat", "attention", "transpose"]
    assert graph.nodes[2].attributes["causal"] and graph.nodes[2].attributes["window"] == 0
    windowed = Case(
        [node("Attention", "q k v - past_k past_v", is_causal=1, left_window_size=3)], case.inputs, opset=25
    )
    graph = assert_same(windowed.model(), windowed.inputs, tmp_path)
    assert [n.attributes["window"] for n in graph.nodes if n.op == "attention"] == [4]
    masked = Case([node("Attention", "q k v mask")], {**case.inputs, "mask": bits(2, 2)}, opset=24)
    del masked.inputs["past_k"], masked.inputs["past_v"]
    graph = assert_same(masked.model(), masked.inputs, tmp_path)
    assert not any(n.op == "attention" for n in graph.nodes), "a mask may hide what it likes"


def test_mlp_with_normalisation_and_softmax(tmp_path: Path) -> None:
    case = Case(
        [
            node("LayerNormalization", "x scale shift", "n", name="/norm/LayerNormalization"),
            node("Gemm", "n up up_bias", "u", name="/mlp/up/Gemm", transB=1),
            node("Gelu", "u", "g", name="/mlp/act/Gelu"),
            node("MatMul", "g down", "d", name="/mlp/down/MatMul"),
            node("Add", "d down_bias", "a"),
            node("Add", "a x", "r"),
            node("Softmax", "r"),
        ],
        {"x": floats(3, 8)},
        {
            "scale": floats(8),
            "shift": floats(8),
            "up": floats(16, 8),
            "up_bias": floats(16),
            "down": floats(16, 8),
            "down_bias": floats(8),
        },
    )
    graph = assert_same(case.model(), case.inputs, tmp_path)
    assert [n.op for n in graph.nodes] == ["layer_norm", "linear", "gelu", "linear", "add", "add", "softmax"]
    assert [n.attributes["transposed"] for n in graph.nodes if n.op == "linear"] == [False, True]
    assert [len(n.inputs) for n in graph.nodes if n.op == "linear"] == [3, 2], "only Gemm's own bias is folded"
    assert graph.nodes[3].origin == "mlp.down"
    assert graph.nodes[-1].origin == "mlp.down", "a node that says nothing stands where its operand does"
    assert graph.outputs == ("y",)


def transformer_block() -> Case:
    width, heads = 8, 2
    nodes = [
        node("Gather", "embed ids", "h"),
        node("LayerNormalization", "h n_scale n_shift", "n"),
        node("Shape", "h", "shape"),
        node("Slice", "shape zero two", "batch_tokens"),
        node("Concat", "batch_tokens head_sizes", "split_shape", axis=0),
        node("Concat", "batch_tokens width", "joined_shape", axis=0),
    ]
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"n w{part}", f"{part}_flat", name=f"/layers.0/attn/{part}_proj/MatMul"),
            node("Reshape", f"{part}_flat split_shape", f"{part}_heads"),
            node("Transpose", f"{part}_heads", part, perm=order),
        ]
    nodes += [
        node("MatMul", "q k", "scores"),
        node("Cast", "head_width", "head_width_f", to=TensorProto.FLOAT),
        node("Sqrt", "head_width_f", "root"),
        node("Div", "scores root", "scaled"),
        node("Softmax", "scaled", "probabilities", axis=-1),
        node("MatMul", "probabilities v", "mixed"),
        node("Transpose", "mixed", "mixed_t", perm=[0, 2, 1, 3]),
        node("Reshape", "mixed_t joined_shape", "joined"),
        node("MatMul", "joined wo", "o"),
        node("Add", "o h", "y"),
    ]
    weights = {f"w{part}": floats(width, width) for part in "qkvo"}
    weights |= {"embed": floats(32, width), "n_scale": floats(width), "n_shift": floats(width)}
    weights |= {
        "zero": ints(0),
        "two": ints(2),
        "head_sizes": ints(heads, -1),
        "width": ints(width),
        "head_width": np.array(width // heads),
    }
    return Case(nodes, {"ids": numbers(32, 3, 5)}, weights)


def test_transformer_block(tmp_path: Path) -> None:
    case = transformer_block()
    model = case.model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch size", "0seq"]))
    graph = assert_same(model, case.inputs, tmp_path)
    assert str(graph.types["y"]) == "f32[users, tokens, 8]"
    assert {n.op for n in graph.nodes} == {
        "embedding", "layer_norm", "linear", "reshape", "transpose", "attention", "add"
    }  # fmt: skip
    (attention,) = (n for n in graph.nodes if n.op == "attention")
    assert attention.attributes == {"scale": 0.5, "causal": False, "window": 0, "softcap": 0.0}
    assert {p.name for p in graph.parameters} == {"embed", "n_scale", "n_shift", "wq", "wk", "wv", "wo"}


def test_module_exported_by_torch(tmp_path: Path) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = torch.nn.Embedding(32, 16), torch.nn.LayerNorm(16)
            self.qkv, self.out = torch.nn.Linear(16, 48, bias=False), torch.nn.Linear(16, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.norm(self.embed(ids))
            users, tokens, width = hidden.shape
            q, k, v = self.qkv(hidden).reshape(users, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
            mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1) @ v
            return torch.nn.functional.silu(self.out(mixed.transpose(1, 2).reshape(users, tokens, width))) + hidden

    module, ids = Block().eval(), torch.randint(0, 32, (2, 5))
    buffer = io.BytesIO()
    axes = {"ids": {0: "users", 1: "tokens"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The exporter that needs nothing but torch; the newer one wants a package that we do not depend on.
        torch.onnx.export(module, (ids,), buffer, dynamo=False, input_names=["ids"], dynamic_axes=axes)
    path = tmp_path / "model.onnx"
    path.write_bytes(buffer.getvalue())
    graph = load_onnx(path).graph
    weights = {name: torch.from_numpy(array.copy()) for name, array in read_weights(path).items()}
    other = torch.randint(0, 32, (3, 7))
    result = interpret(graph, {"ids": other, **weights})[graph.outputs[0]]
    torch.testing.assert_close(result, module(other), rtol=1e-5, atol=1e-5)
    assert sum(n.op == "linear" for n in graph.nodes) == 2


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    body = [
        node("Constant", "", "c", value=numpy_helper.from_array(np.float32(2))),
        node("Mul", "a c", "b"),
    ]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], body, imports[:1])
    case = Case([node("Twice", "x", domain="mine")], {"x": floats(3, 4)})
    model = case.model()
    model.opset_import.append(imports[1])
    model.functions.append(function)
    graph = assert_same(model, case.inputs, tmp_path)
    assert [n.op for n in graph.nodes] == ["mul"]


def test_numbers_are_rounded_as_their_type_holds_them(tmp_path: Path) -> None:
    """A number that is computed while lowering is the one that the running model would compute."""
    for array in (floats(3, 4).astype(np.float16), floats(3, 4)):
        weights = {"three": array.dtype.type(3), "half": array.dtype.type(0.1)}
        nodes = [node("Div", "half three", "c"), node("Sqrt", "c", "r"), node("Mul", "x r")]
        case = Case(nodes, {"x": array}, weights)
        model = case.model()
        graph = load_onnx(save(model, tmp_path)).graph
        assert [n.op for n in graph.nodes] == ["mul"]
        scalar = graph.nodes[0].attributes["scalar"]
        assert float(array.dtype.type(scalar)) == pytest.approx(scalar, rel=1e-7)
        expected = np.sqrt(weights["half"] / weights["three"])
        assert array.dtype.type(scalar) == expected


def test_names_and_symbols(tmp_path: Path) -> None:
    case = Case(
        [node("MatMul", "in%1 w,1", "a", name="x y"), node("Add", "a w_1", "out%put")],
        {"in%1": floats(3, 4)},
        {"w,1": floats(4, 4), "w_1": floats(4)},
        outputs=("out%put",),
    )
    model = case.model()
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[0].dim_param = "context"
    graph = load_onnx(save(model, tmp_path)).graph
    assert [p.name for p in graph.parameters] == ["w_1", "w_1.1"]
    assert str(graph.inputs[0].type) == "f32[context_, 4]", "context is the graph's own symbol"
    assert graph.nodes[0].origin == "x y"
    assert parse_graph(print_graph(graph)) == graph
    shape.dim[0].Clear()
    shape.dim[0].dim_value = -1
    lowered = load_onnx(save(model, tmp_path))
    assert str(lowered.graph.inputs[0].type) == "f32[d0, 4]"
    assert lowered.notes == ("axis 0 of in%1 has no name; it is called d0",)


def test_origin(tmp_path: Path) -> None:
    import hashlib

    path = save(one("Relu", floats(3, 4)).model(), tmp_path)
    origin = load_onnx(path).origin
    assert (origin.kind, origin.config, origin.path) == ("onnx", {}, str(path.absolute()))
    assert origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_half_precision_weights(tmp_path: Path) -> None:
    case = one("MatMul", floats(3, 4), floats(4, 5), known=(1,))
    model = case.model()
    bf16 = helper.make_tensor("x1", TensorProto.BFLOAT16, (4, 5), np.arange(20, dtype=np.float32))
    model.graph.initializer[0].CopyFrom(bf16)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    path = save(model, tmp_path)
    parameter = load_onnx(path).graph.parameters[0]
    assert (parameter.encoding.name, parameter.stored_bytes) == ("bf16", 40)
    assert read_weights(path)["x1"].astype(np.float32).tolist() == np.arange(20).reshape(4, 5).tolist()


# Files that cannot be lowered.


def failure(path: Path, kind: type[WafercError], code: str) -> WafercError:
    with pytest.raises(kind) as caught:
        load_onnx(path)
    assert {d.code for d in caught.value.diagnostics} == {code}, str(caught.value)
    assert all(d.message for d in caught.value.diagnostics)
    return caught.value


def test_unreadable_files(tmp_path: Path) -> None:
    model = one("Relu", floats(3, 4)).model().SerializeToString()
    contents = {"empty": b"", "text": b"hello world", "zeros": b"\0" * 64, "cut": model[:-7], "proto": b"\x12\x01a"}
    for name, data in contents.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        failure(path, UsageError, "W0202")
    failure(tmp_path / "missing.onnx", UsageError, "W0202")
    assert "cut.onnx" in str(failure(tmp_path, UsageError, "W0202"))
    os.mkfifo(tmp_path / "fifo.onnx")
    failure(tmp_path / "fifo.onnx", UsageError, "W0202")
    failure(tmp_path / "nul\0.onnx", UsageError, "W0202")


def test_all_unsupported_operators_are_named(tmp_path: Path) -> None:
    case = Case(
        [
            node("Unique", "x", "a", name="/head/Unique"),
            node("Unique", "x", "b"),
            node("Relu", "x", "c"),
            node("Attend", "x", "y", domain="custom.ops", name="/attn"),
        ],
        {"x": floats(3, 3)},
    )
    model = case.model()
    model.opset_import.append(helper.make_opsetid("custom.ops", 3))
    error = failure(save(model, tmp_path), UnsupportedModelError, "W0201")
    unique, attend = error.diagnostics
    assert unique.where == "/head/Unique"
    assert unique.facts == {"operator": "Unique", "domain": "ai.onnx", "opset": 21, "nodes": 2}
    assert attend.where == "/attn"
    assert attend.facts == {"operator": "Attend", "domain": "custom.ops", "opset": 3, "nodes": 1}


def test_operators_unknown_to_onnx_are_named(tmp_path: Path) -> None:
    error = failure(save(Case([node("Nope", "x")], {"x": floats(3)}).model(), tmp_path), UnsupportedModelError, "W0201")
    assert "Nope" in str(error)


UNSUPPORTED_FORMS = {
    "index outside": Case(
        [node("GatherElements", "w far", "n"), node("Reshape", "x n")],
        {"x": floats(3, 4)},
        {"w": ints(3, 4), "far": ints(1, 2)},
    ),
    "endless loop": looped(10**12),
    "loop that the data stops": looped(3, condition=False),
    "far border": one("Pad", floats(3, 4), ints(0, 10**9, 0, 0), known=(1,), mode="reflect"),
    "large picture": one("Resize", floats(3, 4), np.float32([]), np.float32([]), ints(3, 10**9), known=(1, 2, 3)),
    "many parts": Case(
        [node("SplitToSequence", "w one", "l", axis=0), node("SequenceAt", "l zero")],
        {"x": floats(3)},
        {"w": np.zeros(10**6, np.float32), "one": np.array(1), "zero": np.array(0)},
    ),
    "long sequence": one("RNN", floats(600, 1, 2), floats(1, 3, 2), floats(1, 3, 3), hidden_size=3, symbolic=False),
    "old opset": one("Add", floats(3, 4), floats(3, 4), opset=6),
    "shape unknown": one("Reshape", floats(3, 4), ints(4, 3)),
    "does not divide": one("Reshape", floats(3, 4), ints(-1, 5), known=(1,)),
    "symbolic start": one("Slice", floats(3, 7), ints(-1), ints(2**63 - 1), ints(0), known=(1, 2, 3)),
    "training": Case([node("Dropout", "x - t")], {"x": floats(3, 4)}, {"t": np.bool_(1)}),
    "size as data": Case(
        [node("Shape", "x", "s", end=1), node("Cast", "s", "f", to=1), node("Mul", "x f")], {"x": floats(3, 4)}
    ),
    "element type": one("MatMul", floats(3, 4), np.ones((4, 2), dtype=np.complex64), known=(1,)),
    "cast": one("Cast", floats(3), to=TensorProto.COMPLEX64),
    "joins axes": one("Softmax", floats(3, 4, 5), opset=11, axis=1),
}


@pytest.mark.parametrize("name", UNSUPPORTED_FORMS)
def test_unsupported_forms_name_their_node(name: str, tmp_path: Path) -> None:
    error = failure(save(UNSUPPORTED_FORMS[name].model(), tmp_path), UnsupportedModelError, "W0201")
    assert error.diagnostics[0].where


def test_models_that_break_the_rules(tmp_path: Path) -> None:
    undefined = Case([node("Add", "x nothing")], {"x": floats(3, 4)})
    failure(save(undefined.model(), tmp_path), UnsupportedModelError, "W0208")
    wrong_size = one("Add", floats(3, 4), floats(4), known=(1,)).model()
    wrong_size.graph.initializer[0].dims[0] = -4
    failure(save(wrong_size, tmp_path), UnsupportedModelError, "W0208")
    mismatch = one("MatMul", floats(3, 4), floats(5, 6), known=(1,))
    failure(save(mismatch.model(), tmp_path), UnsupportedModelError, "W0303")


def test_inputs_must_be_tensors_with_a_shape(tmp_path: Path) -> None:
    model = one("Identity", floats(3, 4)).model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    failure(save(model, tmp_path), UnsupportedModelError, "W0209")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x0", TensorProto.STRING, [2]))
    failure(save(model, tmp_path), UnsupportedModelError, "W0209")


def external(location: str, length: int | None = 80, offset: int = 0) -> onnx.ModelProto:
    """A model whose weight [4, 5] lies in another file."""
    model = one("MatMul", floats(3, 4), floats(4, 5), known=(1,)).model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, **({"length": length} if length is not None else {})}
    tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in entries.items())
    return model


def test_external_data_is_read_for_running_only(tmp_path: Path) -> None:
    path = save(external("sub/weights.bin", offset=4), tmp_path)
    assert load_onnx(path).graph.parameters[0].stored_bytes == 80, "planning needs no weights"
    with pytest.raises(UsageError, match="W0202"):
        read_weights(path)
    data = np.arange(21, dtype=np.float32)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(data.tobytes())
    assert np.array_equal(read_weights(path)["x1"], data[1:].reshape(4, 5))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "/etc/passwd",
        "a/../../secret",
        "",
        "C:\\secret",
        "..\\secret",
        "\\\\host\\share",
        "a\0b",
        "out",
        "dir/secret",
    ],
)
def test_external_data_stays_in_the_models_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(80))
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "dir").symlink_to(tmp_path)
    path = save(external(location), folder)
    failure(path, UsageError, "W0203")
    with pytest.raises(UsageError, match="W0203"):
        read_weights(path)


@pytest.mark.parametrize(("length", "offset"), [(79, 0), (80, 9), (-1, 0), (80, -8), (None, 10**18), (10**18, 0)])
def test_external_data_of_the_wrong_length(length: int | None, offset: int, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(84))
    path = save(external("weights.bin", length, offset), tmp_path)
    with pytest.raises(UsageError, match="W0202"):
        read_weights(path)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(80))
    (tmp_path / "weights.bin").symlink_to(tmp_path / "data")
    assert read_weights(save(external("weights.bin"), tmp_path))["x1"].shape == (4, 5)


def test_newer_opsets_are_read_where_the_form_is_the_same(tmp_path: Path) -> None:
    case = one("MatMul", floats(3, 4), floats(4, 5), known=(1,), opset=26)
    graph = lower(case.model(), tmp_path)
    assert [n.op for n in graph.nodes] == ["linear"]


SMALL = transformer_block().model().SerializeToString()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 400))
def test_damaged_files_end_in_a_diagnostic(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(SMALL)
    for position, byte in changes:
        data[position] = byte
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(data[: len(data) - (cut if cut < 40 else 0)]))
    try:
        load_onnx(path)
        read_weights(path)
    except WafercError as error:
        assert error.diagnostics
