"""Operators that onnxruntime contributes mean what its own kernels compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ir.encoding import ENCODINGS
from ir.interpret import interpret
from ir.text import parse_graph, print_graph
from partitioner.frontends.onnx_file import load_onnx, read_weights

RNG = np.random.default_rng(3)
Arrays = dict[str, np.ndarray]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def save(path: Path, op: str, inputs: list[str], given: Arrays, weights: Arrays, outputs: int, **attributes) -> Path:
    """A model of one contributed node; names in neither ``given`` nor ``weights`` are inputs left out."""
    names = [name if name in given or name in weights else "" for name in inputs]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name="node", domain="com.microsoft", **attributes)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], "case", values, ends, stored)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def assert_like_onnxruntime(
    path: Path, given: Arrays, outputs: tuple[int, ...] = (0,), tolerance: float = 2e-5
) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, given)
    graph = load_onnx(path).graph
    assert parse_graph(print_graph(graph)) == graph
    feeds = {n: torch.from_numpy(np.array(a)) for n, a in (given | read_weights(path)).items()}
    values = interpret(graph, {n: t for n, t in feeds.items() if n in graph.types})
    for index in outputs:
        ours = values[graph.outputs[index]].numpy()
        np.testing.assert_allclose(ours, expected[index], atol=tolerance, rtol=1e-4)


ACTIVATIONS = {
    "QuickGelu": (["x"], {"alpha": 1.5}),
    "FastGelu": (["x", "bias"], {}),
    "BiasGelu": (["x", "bias"], {}),
    "Gelu": (["x"], {}),
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations(op: str, tmp_path: Path) -> None:
    inputs, attributes = ACTIVATIONS[op]
    given = {"x": floats(2, 3, 8)}
    weights = {"bias": floats(8)} if "bias" in inputs else {}
    path = save(tmp_path / "m.onnx", op, inputs, given, weights, 1, **attributes)
    assert_like_onnxruntime(path, given, tolerance=2e-3 if op == "FastGelu" else 2e-5)


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("biased", [False, True])
def test_normalisation_of_a_sum(op: str, biased: bool, tmp_path: Path) -> None:
    given = {"x": floats(2, 3, 8), "skip": floats(2, 3, 8)}
    weights = {"scale": floats(8)} | ({"bias": floats(8)} if biased else {})
    shifted = op == "SkipLayerNormalization"
    weights |= {"shift": floats(8)} if shifted else {}
    inputs = ["x", "skip", "scale", *(["shift"] if shifted else []), "bias"]
    node = save(tmp_path / "m.onnx", op, inputs, given, weights, 4, epsilon=1e-5)
    model = onnx.load(node)
    model.graph.node[0].output[1] = model.graph.node[0].output[2] = ""
    del model.graph.output[1:3]
    onnx.save(model, node)
    assert_like_onnxruntime(node, given, (0, 1))


def test_embeddings_and_their_normalisation(tmp_path: Path) -> None:
    given = {
        "ids": RNG.integers(0, 11, (2, 5)).astype(np.int32),
        "segments": RNG.integers(0, 2, (2, 5)).astype(np.int32),
    }
    weights = {
        "word": floats(11, 8),
        "place": floats(7, 8),
        "part": floats(2, 8),
        "scale": floats(8),
        "shift": floats(8),
    }
    inputs = ["ids", "segments", "word", "place", "part", "scale", "shift"]
    path = save(tmp_path / "m.onnx", "EmbedLayerNormalization", inputs, given, weights, 2, epsilon=1e-5)
    model = onnx.load(path)
    del model.graph.output[1:]
    onnx.save(model, path)
    assert_like_onnxruntime(path, given)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("form", ["heads", "flat", "offset", "partial"])
def test_rotary_embedding(interleaved: int, form: str, tmp_path: Path) -> None:
    half = 2 if form == "partial" else 4
    x = floats(2, 3, 5, 8) if form == "heads" else floats(2, 5, 24)
    place = np.array([2]) if form == "offset" else RNG.integers(0, 9, (2, 5))
    given = {"x": x, "place": place.astype(np.int64)}
    weights = {"cosine": floats(9, half), "sine": floats(9, half)}
    options = {"num_heads": 3, "rotary_embedding_dim": 4} if form == "partial" else {}
    inputs = ["x", "place", "cosine", "sine"]
    path = save(tmp_path / "m.onnx", "RotaryEmbedding", inputs, given, weights, 1, interleaved=interleaved, **options)
    assert_like_onnxruntime(path, given)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
def test_products_by_weights_of_few_bits(bits: int, block: int, zeros: str, tmp_path: Path) -> None:
    if zeros == "float" and bits == 8:
        pytest.skip("onnxruntime has no kernel for it")
    outputs, width = 6, 128
    blocks = width // block
    given = {"x": floats(2, 3, width)}
    weights = {
        "packed": RNG.integers(0, 256, (outputs, blocks, block * bits // 8)).astype(np.uint8),
        "scales": np.abs(floats(outputs, blocks)) + np.float32(0.1),
        "bias": floats(outputs),
    }
    if zeros == "packed":
        weights["zeros"] = RNG.integers(0, 256, (outputs, -(-blocks * bits // 8))).astype(np.uint8)
    elif zeros == "float":
        weights["zeros"] = np.round(np.abs(floats(outputs, blocks)) * 4)
    inputs = ["x", "packed", "scales", "zeros", "", "bias"]
    sizes = {"K": width, "N": outputs, "bits": bits, "block_size": block}
    path = save(tmp_path / "m.onnx", "MatMulNBits", inputs, given, weights, 1, **sizes)
    (parameter,) = (p for p in load_onnx(path).graph.parameters if p.name == "packed")
    assert parameter.shape == (outputs, width)
    stored = sum(array.nbytes for name, array in weights.items() if name != "bias")
    assert parameter.stored_bytes == stored
    assert_like_onnxruntime(path, given, tolerance=2e-3)


def test_encodings_have_one_name_each() -> None:
    assert all(name == encoding.name for name, encoding in ENCODINGS.items())


GROUPED = {
    "plain": {},
    "rotary": {"do_rotary": 1},
    "interleaved": {"do_rotary": 1, "rotary_interleaved": 1},
    "window": {"local_window_size": 3},
    "cap": {"softcap": 5.0},
    "scale": {"scale": 0.7},
    "smooth": {"smooth_softmax": 1},
}


@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", GROUPED)
def test_group_query_attention(form: str, packed: bool, past: int, tmp_path: Path) -> None:
    users, heads, kv_heads, width = 2, 4, 2, 16
    tokens = 1 if past else 7
    total = past + tokens
    sizes = (heads * width, kv_heads * width, kv_heads * width)
    given: Arrays = {"q": floats(users, tokens, sum(sizes))} if packed else {}
    if not packed:
        given = {name: floats(users, tokens, size) for name, size in zip("qkv", sizes, strict=True)}
    given |= {name: floats(users, kv_heads, past, width) for name in ("past_k", "past_v")}
    weights = {"lengths": np.full((users,), total - 1, np.int32), "total": np.array(total, np.int32)}
    weights |= (
        {"cosine": floats(32, width // 2), "sine": floats(32, width // 2)} if "do_rotary" in GROUPED[form] else {}
    )
    inputs = ["q", "k", "v", "past_k", "past_v", "lengths", "total", "cosine", "sine"]
    options = {"num_heads": heads, "kv_num_heads": kv_heads, **GROUPED[form]}
    path = save(tmp_path / "m.onnx", "GroupQueryAttention", inputs, given, weights, 3, **options)
    assert_like_onnxruntime(path, given, (0, 1, 2))


@pytest.mark.parametrize("form", ["plain", "cross", "biased", "masked", "added", "cached", "ordered"])
def test_multi_head_attention(form: str, tmp_path: Path) -> None:
    users, heads, width, tokens = 2, 3, 8, 5
    keys = 4 if form == "cross" else tokens
    given = {"q": floats(users, tokens, 24), "k": floats(users, keys, 24), "v": floats(users, keys, 24)}
    weights: Arrays = {}
    if form == "biased":
        weights["bias"] = floats(72)
    elif form == "masked":
        weights["mask"] = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    elif form == "added":
        given["added"] = floats(users, heads, tokens, tokens)
    elif form == "cached":
        given |= {"past_k": floats(users, heads, 2, width), "past_v": floats(users, heads, 2, width)}
    inputs = ["q", "k", "v", "bias", "mask", "added", "past_k", "past_v"]
    options = {"num_heads": heads, "unidirectional": int(form == "ordered")}
    count = 3 if form == "cached" else 1
    path = save(tmp_path / "m.onnx", "MultiHeadAttention", inputs, given, weights, count, **options)
    assert_like_onnxruntime(path, given, tuple(range(count)))


@pytest.mark.parametrize("packed", ["all", "keys and values"])
def test_packed_heads_are_those_apart(packed: str, tmp_path: Path) -> None:
    """Onnxruntime has no kernel for them on a CPU."""
    users, heads, width, tokens = 2, 3, 8, 5
    parts = floats(3, users, tokens, heads, width)
    apart = dict(zip("qkv", parts.reshape(3, users, tokens, heads * width), strict=True))
    together = {"q": np.stack(list(parts), 3)}
    if packed != "all":
        together = {"q": apart["q"], "k": np.stack(list(parts[1:]), 3)}
    results = []
    for given in (apart, together):
        path = save(tmp_path / "m.onnx", "MultiHeadAttention", ["q", "k", "v"], given, {}, 1, num_heads=heads)
        graph = load_onnx(path).graph
        values = interpret(graph, {name: torch.from_numpy(array) for name, array in given.items()})
        results.append(values[graph.outputs[0]])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("form", ["plain", "ordered", "masked"])
def test_attention_with_its_projections(form: str, tmp_path: Path) -> None:
    given = {"x": floats(2, 5, 12)}
    weights = {"w": floats(12, 72), "bias": floats(72)}
    if form == "masked":
        weights["mask"] = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    options = {"num_heads": 3, "unidirectional": int(form == "ordered")}
    path = save(tmp_path / "m.onnx", "Attention", ["x", "w", "bias", "mask"], given, weights, 1, **options)
    assert_like_onnxruntime(path, given)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "identity", "swiglu"])
@pytest.mark.parametrize("normalised", [0, 1])
def test_mixture_of_experts(activation: str, normalised: int, tmp_path: Path) -> None:
    experts, width, inner = 4, 16, 32
    fused = 2 if activation == "swiglu" else 1
    given = {"x": floats(5, width), "router": floats(5, experts)}
    weights = {
        "first": floats(experts, fused * inner, width) * np.float32(0.3),
        "first_bias": floats(experts, fused * inner),
        "second": floats(experts, width, inner) * np.float32(0.3),
        "second_bias": floats(experts, width),
    }
    options = {"k": 2, "activation_type": activation, "normalize_routing_weights": normalised}
    if activation == "swiglu":
        options |= {"swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}
    path = save(tmp_path / "m.onnx", "MoE", ["x", "router", *weights], given, weights, 1, **options)
    assert_like_onnxruntime(path, given, tolerance=1e-3)


@pytest.mark.parametrize(("bits", "block"), [(4, 0), (8, 0), (4, 16), (4, 32)])
def test_quantised_mixture_of_experts(bits: int, block: int, tmp_path: Path) -> None:
    experts, width, inner = 4, 32, 64
    given = {"x": floats(5, width), "router": floats(5, experts)}

    def packed(outputs: int, inputs: int) -> np.ndarray:
        return RNG.integers(0, 256, (experts, outputs, inputs * bits // 8)).astype(np.uint8)

    def scales(outputs: int, inputs: int) -> np.ndarray:
        shape = (experts, outputs, inputs // block) if block else (experts, outputs)
        return (np.abs(floats(*shape)) + np.float32(0.1)) / np.float32(1 << bits)

    weights = {
        "first": packed(inner, width),
        "first_scales": scales(inner, width),
        "first_bias": floats(experts, inner),
        "second": packed(width, inner),
        "second_scales": scales(width, inner),
        "second_bias": floats(experts, width),
    }
    # Onnxruntime's kernel for CPUs takes the weights as normalised whatever is asked for.
    options = {"k": 2, "activation_type": "silu", "expert_weight_bits": bits, "normalize_routing_weights": 1}
    options |= {"block_size": block} if block else {}
    path = save(tmp_path / "m.onnx", "QMoE", ["x", "router", *weights], given, weights, 1, **options)
    first = next(p for p in load_onnx(path).graph.parameters if p.name == "first")
    assert first.stored_bytes == weights["first"].nbytes + weights["first_scales"].nbytes
    assert_like_onnxruntime(path, given, tolerance=5e-3)
