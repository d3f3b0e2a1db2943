"""ONNX's own node tests, and when a result passes them; shared with ``benchmarks/onnx_nodes.py``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto
from onnx.backend.test.case.test_case import TestCase

Run = Callable[[onnx.ModelProto, list[Any]], Sequence[Any]]

TRANSFORMER_OPERATORS = frozenset(
    {
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "Attention", "BitShift", "BitwiseAnd", "BitwiseNot"),
        *("BitwiseOr", "BitwiseXor", "Cast", "CastLike", "CausalConvWithState", "Ceil", "Clip"),
        *("Concat", "Constant", "ConstantOfShape", "Cos", "CumProd", "CumSum", "DequantizeLinear"),
        *("Div", "Dropout", "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand"),
        *("EyeLike", "Flatten", "FlexAttention", "Floor", "Gather", "GatherElements", "GatherND"),
        *("Gelu", "Gemm", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Hardmax"),
        *("Identity", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual"),
        *("LinearAttention", "Log", "LogSoftmax", "LpNormalization", "MatMul", "MatMulInteger"),
        *("Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pad", "Pow", "QLinearMatMul"),
        *("QuantizeLinear", "RMSNormalization", "Range", "Reciprocal", "ReduceL1", "ReduceL2"),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
        *("ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "RotaryEmbedding", "Round"),
        *("ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice"),
        *("Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "SwiGLU", "Swish", "Tanh"),
        *("TensorScatter", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
    }
)
"""What a transformer or a mixture of experts may be made of, quantised ones and linear attention among them."""

COMMON_TYPES = frozenset(
    {
        *(TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL),
        *(TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8),
    }
)


@functools.cache
def load() -> tuple[TestCase, ...]:
    """All cases, in the package's own order."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return tuple(load_model_tests(kind="node"))


def operators(case: TestCase) -> set[str]:
    """The operators of a case, those of graphs inside of nodes among them."""
    found, waiting = set(), [case.model.graph]
    while waiting:
        for node in waiting.pop().node:
            found.add(node.op_type)
            waiting += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def element_types(case: TestCase) -> set[int]:
    """The element types of a case's inputs and outputs; sequences and optional values count as undefined."""
    return {value.type.tensor_type.elem_type for value in (*case.model.graph.input, *case.model.graph.output)}


def is_of_transformers(case: TestCase) -> bool:
    """Whether a transformer or a mixture of experts may need all of the case's operators, as they are when it runs:
    on tensors of numbers, and without training.
    """
    numbers = not element_types(case) & {TensorProto.STRING, TensorProto.UNDEFINED}
    return operators(case) <= TRANSFORMER_OPERATORS and numbers and not case.name.startswith("test_training_dropout")


def is_expanded(case: TestCase) -> bool:
    """Whether the case is of the operators that ONNX defines another one by."""
    return "_expanded" in case.name


def array(value: Any) -> Any:
    """A value of a data set as an array, or as a list of them."""
    if isinstance(value, TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value


def fault(case: TestCase, run: Run) -> str | None:
    """Why ``run`` does not pass the case; ``None`` if it does."""
    for inputs, outputs in case.data_sets:
        try:
            with np.errstate(all="ignore"):
                results = run(case.model, [array(value) for value in inputs])
            if len(results) != len(outputs):
                return f"{len(results)} outputs, not {len(outputs)}"
            for result, expected in zip(results, outputs, strict=True):
                _compare(result, array(expected), case)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip()[:300]}"
    return None


def _compare(result: Any, expected: Any, case: TestCase) -> None:
    """Type, shape and values as ``onnx.backend.test.runner`` compares them, two units in the last place for bfloat16
    included.
    """
    if isinstance(expected, list | tuple):
        assert isinstance(result, list | tuple) and len(result) == len(expected), "not the list that is expected"
        for one, other in zip(result, expected, strict=True):
            _compare(one, array(other), case)
        return
    if expected is None:
        assert result is None, "something where nothing is expected"
        return
    result, expected = np.asarray(result), np.asarray(expected)
    are_texts = result.dtype.kind in "OUS" and expected.dtype.kind in "OUS"
    assert result.dtype == expected.dtype or are_texts, f"{result.dtype} instead of {expected.dtype}"
    assert result.shape == expected.shape, f"{result.shape} instead of {expected.shape}"
    if are_texts:
        np.testing.assert_array_equal(result, expected)
        return
    tolerance = max(case.rtol, 2**-6) if expected.dtype.name == "bfloat16" else case.rtol
    if expected.dtype.kind not in "biuf":
        result, expected = result.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=case.atol)


def every(group: int, groups: int) -> Iterator[TestCase]:
    """One of ``groups`` shares of the cases."""
    yield from load()[group::groups]
