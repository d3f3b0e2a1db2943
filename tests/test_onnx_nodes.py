"""ONNX's own node tests, lowered and dealt out to several emulated wafers; what fails is listed, with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.backend.test.case.test_case import TestCase
from onnx_nodes import COMMON_TYPES, Run, element_types, every, fault, is_expanded, is_of_transformers, load, operators
from onnx_wafers import Tally

from ir.diagnostics import UnsupportedModelError
from partitioner.frontends.onnx_file import OPERATORS, backend

GROUPS = 16

RANDOM = "draws random numbers"
IMAGES = "finds or decodes what is in an image: how much it yields depends on the data"
SIZES = "how much it yields depends on the data"
CLASSIC = "classical machine learning on tables and text"
TRAINING = "a step of training"

UNSUPPORTED_OPERATORS = {
    **dict.fromkeys(("RandomUniformLike",), RANDOM),
    **dict.fromkeys(("ImageDecoder", "NonMaxSuppression", "RoiAlign", "DeformConv"), IMAGES),
    **dict.fromkeys(("NonZero", "Unique"), SIZES),
    **dict.fromkeys(("ArrayFeatureExtractor", "Binarizer", "LabelEncoder", "TreeEnsemble", "TfIdfVectorizer"), CLASSIC),
    **dict.fromkeys(("Adagrad", "Adam", "Momentum"), TRAINING),
    "MelWeightMatrix": "filters for sound, which a model holds as a weight",
}
UNSUPPORTED_TYPES = {TensorProto.STRING: "strings"}
HALF_SOFTMAX = "two of 192 half floats are one unit off, 0.1 %: softmax rounds once here, at each of its steps there"
FOURIER = "what is zero is 2e-7 there, where rounding leaves it, and 3e-15 here"
UNSUPPORTED_CASES = {
    **dict.fromkeys(("test_attention_4d_causal_fp16", "test_attention_4d_causal_fp16_expanded"), HALF_SOFTMAX),
    **dict.fromkeys(("test_bernoulli", "test_bernoulli_double", "test_bernoulli_seed"), RANDOM),
    **dict.fromkeys((f"test_training_dropout{kind}" for kind in ("", "_mask", "_default", "_default_mask")), RANDOM),
    **dict.fromkeys(
        ("test_dft_inverse", "test_dft_inverse_opset19"), "zeros: rounding there leaves 2e-7 of them, here 0"
    ),
}
ONE_UNIT_OFF_ON_WAFERS = {"test_attention_4d_fp16"}
"""As by ``HALF_SOFTMAX``, where the emulator's attention kernel rounds; the graph's reference meaning passes."""


def expected_failure(case: TestCase) -> str | None:
    """Why the case is known to fail."""
    by_operator = [UNSUPPORTED_OPERATORS[op] for op in sorted(operators(case)) if op in UNSUPPORTED_OPERATORS]
    by_type = [UNSUPPORTED_TYPES[type_] for type_ in sorted(element_types(case)) if type_ in UNSUPPORTED_TYPES]
    return next(iter([*by_operator, *by_type]), UNSUPPORTED_CASES.get(case.name))


def run(model: onnx.ModelProto, inputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    return backend.prepare(model).run(inputs)


def run_over_wafers(tally: Tally) -> Run:
    """The graph's nodes dealt out to two emulated wafers or three."""
    return lambda model, inputs: backend.GraphRep(model, tally.evaluate).run(inputs)


@pytest.mark.parametrize("group", range(GROUPS))
def test_nodes_mean_what_onnx_says(group: int) -> None:
    """Also that what is expected to fail does: a case that passes must leave the table."""
    wrong = {}
    tally = Tally()
    for case in every(group, GROUPS):
        known = expected_failure(case)
        alone = known or case.name in ONE_UNIT_OFF_ON_WAFERS
        found = fault(case, run if alone else run_over_wafers(tally))
        if (known is None) != (found is None):
            wrong[case.name] = found or f"passes, and is expected to fail: {known}"
    assert not wrong, "\n".join(f"{name}: {text}" for name, text in wrong.items())
    assert tally.graphs.keys() == {2, 3}


def test_how_many_pass() -> None:
    cases = load()
    assert len(cases) == 1884
    assert len({case.name for case in cases}) == len(cases)
    passing = [case for case in cases if expected_failure(case) is None]
    of_transformers = [case for case in cases if is_of_transformers(case)]
    common = [case for case in of_transformers if element_types(case) <= COMMON_TYPES]
    known = {case.name for case in of_transformers if expected_failure(case) is not None}
    assert known == {name for name, reason in UNSUPPORTED_CASES.items() if reason is HALF_SOFTMAX}
    assert (len(passing), len(of_transformers), len(common)) == (1791, 1383, 1141)
    plain = [case for case in common if not is_expanded(case)]
    assert (len([c for c in of_transformers if not is_expanded(c)]), len(plain)) == (981, 795)
    names = {case.name for case in cases}
    assert set(UNSUPPORTED_CASES) <= names
    used = {op for case in cases for op in operators(case)}
    assert set(UNSUPPORTED_OPERATORS) <= used


def test_every_operator_has_a_case() -> None:
    """Here or in ``test_onnx.py``."""
    from test_onnx import CASES

    passing = {op for case in load() if expected_failure(case) is None for op in operators(case)}
    own = {node.op_type for cases in CASES.values() for case in cases for node in case.nodes}
    assert {op for domain, op in OPERATORS if not domain} - passing - own == {"SimplifiedLayerNormalization"}


# The interface itself.


def model_of(*nodes: onnx.NodeProto, inputs: dict[str, list[int | str | None] | None], opset: int = 21):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_model(
        helper.make_graph(list(nodes), "g", values, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )


def test_a_prepared_model_runs_at_every_size() -> None:
    model = model_of(helper.make_node("Softmax", ["x"], ["y"]), inputs={"x": ["users", None]})
    prepared = backend.prepare(model)
    for shape in ((2, 3), (1, 7)):
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        (y,) = prepared.run([x])
        np.testing.assert_allclose(y.sum(axis=-1), np.ones(shape[0]), rtol=1e-6)
        np.testing.assert_array_equal(prepared.run({"x": x})[0], y)
    (again,) = backend.run_model(model, [x])
    np.testing.assert_array_equal(again, y)


def test_one_node_runs() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    (c,) = backend.run_node(node, [np.int64([1, 2]), np.int64([3, 4])])
    assert c.tolist() == [4, 6]


def test_what_the_backend_does_not_run() -> None:
    det = model_of(helper.make_node("Unique", ["x"], ["y"]), inputs={"x": [3]})
    assert not backend.is_compatible(det)
    with pytest.raises(UnsupportedModelError, match="Unique"):
        backend.prepare(det)
    relu = model_of(helper.make_node("Relu", ["x"], ["y"]), inputs={"x": [3]})
    assert backend.is_compatible(relu) and backend.supports_device("CPU") and not backend.supports_device("CUDA:0")
    with pytest.raises(UnsupportedModelError, match="CUDA"):
        backend.prepare(relu, "CUDA")
