"""Language models in the standard's own operators, Attention and RotaryEmbedding among them, with and without past."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ir.interpret import interpret
from ir.model import BlockKind, Model
from partitioner.compile import build_model
from partitioner.frontends.onnx_file import load_onnx, read_weights

WIDTH, HEADS, KV_HEADS, HEAD, LAYERS, VOCABULARY, POSITIONS = 16, 4, 2, 4, 2, 32, 64


def weight(name: str, *shape: int) -> onnx.TensorProto:
    generator = np.random.default_rng(len(name) + sum(map(ord, name)))
    return numpy_helper.from_array((generator.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32), name)


def layer(index: int, attention: list[str], options: dict[str, int]) -> tuple[list[onnx.NodeProto], list]:
    """One layer from ``h<index>`` to ``h<index + 1>``; ``attention`` are the further operands of Attention."""
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: str, outputs: str, part: str = "attn", **attributes: float) -> None:
        names = [text.replace("#", str(index)).split() for text in (inputs, outputs)]
        name = f"/layers.{index}/{part}/{op}_{len(nodes)}"
        names[0] = ["" if one == "-" else one for one in names[0]]
        nodes.append(helper.make_node(op, *names, name=name, **attributes))

    add("RMSNormalization", "h# attn_norm#", "n#")
    for part in "qkv":
        add("MatMul", f"n# w{part}#", f"{part}#")
    add("RotaryEmbedding", "q# cosines sines positions", "qr#", num_heads=HEADS)
    add("RotaryEmbedding", "k# cosines sines positions", "kr#", num_heads=KV_HEADS)
    outputs = "a# present_k# present_v#" if "past_k#" in attention else "a#"
    add("Attention", " ".join(["qr# kr# v#", *attention]), outputs, **options)
    add("MatMul", "a# wo#", "o#")
    add("Add", "h# o#", "g#")
    add("RMSNormalization", "g# mlp_norm#", "m#", "mlp")
    add("MatMul", "m# gate#", "y#", "mlp")
    add("MatMul", "m# up#", "u#", "mlp")
    add("SwiGLU", "y# u#", "s#", "mlp")
    add("MatMul", "s# down#", "d#", "mlp")
    add("Add", "g# d#", f"h{index + 1}", "mlp")
    kv = KV_HEADS * HEAD
    shapes = {"wq": (WIDTH, WIDTH), "wk": (WIDTH, kv), "wv": (WIDTH, kv), "wo": (WIDTH, WIDTH), "attn_norm": (WIDTH,)}
    shapes |= {"mlp_norm": (WIDTH,), "gate": (WIDTH, 24), "up": (WIDTH, 24), "down": (24, WIDTH)}
    return nodes, [weight(f"{name}{index}", *shape) for name, shape in shapes.items()]


def language_model(kind: str) -> onnx.ModelProto:
    """``kind``: causal, past (with keys and values of before), or mask (causal by a mask that the model computes)."""
    options = {"q_num_heads": HEADS, "kv_num_heads": KV_HEADS, **({} if kind == "mask" else {"is_causal": 1})}
    further = {"causal": [], "past": ["-", "past_k#", "past_v#"], "mask": ["mask"]}[kind]
    angles = np.arange(POSITIONS)[:, None] / 100.0 ** (np.arange(HEAD // 2) * 2 / HEAD)
    weights = [
        numpy_helper.from_array(f(angles).astype(np.float32), n) for f, n in ((np.cos, "cosines"), (np.sin, "sines"))
    ]
    weights += [weight("embed", VOCABULARY, WIDTH), weight("head", WIDTH, VOCABULARY)]
    nodes = [helper.make_node("Gather", ["embed", "ids"], ["h0"], name="/embed/Gather")]
    if kind == "mask":
        constants = {"zero": np.array(0), "one": np.array(1), "first": np.array([0]), "second": np.array([1])}
        weights += [numpy_helper.from_array(array, name) for name, array in constants.items()]
        steps = (("Shape", "ids", "s"), ("Gather", "s one", "count"), ("Range", "zero count one", "places"))
        steps += (("Unsqueeze", "places second", "rows"), ("Unsqueeze", "places first", "columns"))
        steps += (("LessOrEqual", "columns rows", "mask"),)
        nodes += [helper.make_node(op, i.split(), [o], name=f"/mask/{o}/{op}") for op, i, o in steps]
    for index in range(LAYERS):
        more, theirs = layer(index, further, options)
        nodes, weights = nodes + more, weights + theirs
    nodes.append(helper.make_node("MatMul", [f"h{LAYERS}", "head"], ["logits"], name="/head/MatMul"))
    row = ["users", "tokens"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, row) for name in ("ids", "positions")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*row, VOCABULARY])]
    for values, prefix, length in ((inputs, "past", "past"), (outputs, "present", "total")) if kind == "past" else ():
        values += [
            helper.make_tensor_value_info(
                f"{prefix}_{part}{index}", TensorProto.FLOAT, ["users", KV_HEADS, length, HEAD]
            )
            for index in range(LAYERS)
            for part in "kv"
        ]
    graph = helper.make_graph(nodes, "lm", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 28)], ir_version=13)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="module", params=["causal", "past", "mask"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    path = tmp_path_factory.mktemp("lm") / "model.onnx"
    onnx.save(language_model(request.param), path)
    return build_model(load_onnx(path).graph), path


def test_blocks_and_what_is_cached(built: tuple[Model, Path]) -> None:
    model, _path = built
    kinds = [block.kind for block in model.blocks]
    assert kinds == [BlockKind.EMBEDDING, *[BlockKind.ATTENTION, BlockKind.DENSE_MLP] * LAYERS, BlockKind.HEAD]
    caches = [block.cache_bytes_per_token for block in model.of_kind(BlockKind.ATTENTION)]
    assert caches == [2 * KV_HEADS * HEAD * 4] * LAYERS, "keys and values of the smaller heads, four bytes each"
    assert model.layers == LAYERS


def test_it_means_what_onnx_says(built: tuple[Model, Path]) -> None:
    model, path = built
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (2, 5))
    inputs = {"ids": ids, "positions": np.broadcast_to(np.arange(5), (2, 5)).copy()}
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    weights = {name: torch.from_numpy(array.copy()) for name, array in read_weights(path).items()}
    names = {value.name for value in model.graph.inputs} | model.graph.parameter.keys()
    values = interpret(model.graph, {name: tensor for name, tensor in (given | weights).items() if name in names})
    theirs = onnx.load(path)
    pasts = [value.name for value in theirs.graph.input if value.name.startswith("past")]
    none = {name: np.zeros((2, KV_HEADS, 0, HEAD), np.float32) for name in pasts}
    expected = ReferenceEvaluator(theirs).run(["logits"], inputs | none)[0]
    np.testing.assert_allclose(values[model.graph.outputs[0]].numpy(), expected, rtol=1e-4, atol=1e-5)
