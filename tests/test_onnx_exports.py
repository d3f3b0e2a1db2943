"""Language models exported to ONNX: the blocks, bytes and caches of their configuration, and the same logits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir
import pytest
import torch
from test_huggingface import FAMILIES
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
from transformers.exporters.utils import decompose_for_generation

from ir.diagnostics import UnsupportedModelError
from ir.encoding import plain
from ir.graph import Graph, Node, Parameter, Value
from ir.interpret import interpret
from ir.types import Dim, DType, TensorType
from partitioner.compile import build_model as blocks_of
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.module import lower_module
from partitioner.frontends.onnx_file import load_onnx, read_weights
from partitioner.frontends.onnx_file.arrays import to_torch
from partitioner.passes.attention import recognise_attention
from partitioner.passes.uniform import fold_uniform
from partitioner.passes.unsort import undo_orders


@contextmanager
def quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def small(model_type: str) -> tuple[dict[str, Any], Any]:
    """A configuration of two layers, and its model with weights that differ from each other everywhere."""
    config = FAMILIES[model_type].config(model_type) | {"num_hidden_layers": 2}
    config |= {"n_layer": 2} if model_type == "gpt2" else {}
    options = {name: value for name, value in config.items() if name != "model_type"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return config, model


def export(model: Any, form: str, path: Path) -> None:
    """``whole``: a pass over a sequence; ``step``: new tokens beside a cache; ``fused``: that, with fused operators."""
    inputs = {"input_ids": torch.randint(1, 90, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    options = OnnxConfig(dynamic=True, ort_fusions="cpu" if form == "fused" else None)
    with quietly():
        if form != "whole":
            model, inputs = decompose_for_generation(model, inputs, multi_token_decode=True)["decode"]
        onnx_ir.save(OnnxExporter().export(model, inputs, config=options).program, str(path))


@pytest.mark.parametrize(
    ("model_type", "form"),
    [
        ("gpt2", "whole"),
        ("gpt_oss", "step"),
        pytest.param("deepseek_v3", "step", marks=pytest.mark.long),
        pytest.param("qwen3", "fused", marks=pytest.mark.long),
    ],
)
def test_an_export_is_the_model(model_type: str, form: str, tmp_path: Path) -> None:
    config, model = small(model_type)
    path = tmp_path / "model.onnx"
    export(model, form, path)
    lowered = load_onnx(path)
    ours, theirs = blocks_of(lowered.graph), blocks_of(lower_config(config, model_type).graph)

    def told(found: Any) -> list[tuple[Any, ...]]:
        return [
            (b.name, b.kind, b.weight_bytes, b.experts, b.active_experts, b.macs_per_token, cache_of(b))
            for b in found.blocks
        ]

    def cache_of(block: Any) -> list[tuple[int, int]]:
        return [(cache.bytes_per_token, cache.window) for cache in block.caches]

    assert told(ours) == told(theirs)
    assert ours.together == theirs.together
    assert [str(v.type) for v in ours.graph.inputs] == ["i64[users, tokens]"] * 2
    assert {v.name for v in ours.graph.inputs} == {"input_ids", "position_ids"}
    assert any("all ones" in note for note in lowered.notes) or form != "whole"
    ids = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(2))
    weights = {name: to_torch(torch, array) for name, array in read_weights(path).items()}
    feeds = {"input_ids": ids, "position_ids": torch.arange(9).expand(2, 9), **weights}
    (logits,) = (interpret(ours.graph, feeds)[name] for name in ours.graph.outputs)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(input_ids=ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)


# --- what a mask means ----------------------------------------------------------------------------------------------

TOKENS = 12
ROWS, COLUMNS = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)[None, :]


class Written(nn.Module):
    """Attention spelled out, with some way to hide tokens."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.wide = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.wide(x).reshape(2, TOKENS, 3, 2, 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = self.hide(query @ key.transpose(-1, -2) * 0.3)
        return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).reshape(2, TOKENS, 8)

    def hide(self, scores: Tensor) -> Tensor:
        distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None, :]
        later, low = distance < 0, torch.finfo(torch.float32).min
        if self.form == "causal":
            return scores + torch.where(later, low, 0.0)
        if self.form == "window":
            return scores.masked_fill(later | (distance >= 5), low)
        if self.form == "band":
            return torch.where(distance.abs() < 4, scores, low)
        if self.form == "capped":
            return torch.tanh(scores / 2.0) * 2.0 + torch.where(later, low, 0.0)
        if self.form == "by distance":
            return scores - 0.1 * distance.abs()
        if self.form == "prefix":
            return scores + torch.where(later & (torch.arange(TOKENS)[None, :] > 3), low, 0.0)
        return scores


EXPECTED: dict[str, tuple[bool, int, float] | None] = {
    "plain": (False, 0, 0.0),
    "causal": (True, 0, 0.0),
    "window": (True, 5, 0.0),
    "band": (False, 4, 0.0),
    "capped": (True, 0, 2.0),
    "by distance": None,
    "prefix": None,
}


@pytest.mark.parametrize("form", EXPECTED)
def test_a_mask_is_what_it_hides(form: str) -> None:
    x = torch.randn(2, TOKENS, 8)
    module = Written(form)
    graph = lower_module(module, [x]).lowered.graph
    found = recognise_attention(fold_uniform(graph))
    attention = [node for node in found.nodes if node.op == "attention"]
    expected = EXPECTED[form]
    assert len(attention) == (expected is not None)
    if expected is not None:
        causal, window, softcap = expected
        scale = attention[0].attributes["scale"]
        assert attention[0].attributes == {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
        assert scale == pytest.approx(0.3)
    feeds = {found.inputs[0].name: x, **dict(module.named_parameters())}
    torch.testing.assert_close(interpret(found, feeds)[found.outputs[0]], module(x), atol=1e-5, rtol=1e-4)


# --- sorted rows ----------------------------------------------------------------------------------------------------


def sorted_rows(*, put_back: bool) -> Graph:
    """Rows [n, 4] taken in any order, multiplied by a weight, and put back, or not."""
    count = Dim.symbol("n")
    rows, places = TensorType(DType.F32, (count, 4)), TensorType(DType.I64, (count,))

    def node(op: str, inputs: tuple[str, ...], name: str, type_: TensorType, **attributes: Any) -> Node:
        return Node(op, inputs, (Value(name, type_),), attributes, "experts")

    counting = {"dtype": DType.I64, "shape": (count,), "start": 0, "step": 1}
    nodes = [
        node("embedding", ("x", "any_order"), "taken", rows),
        node("linear", ("taken", "w"), "product", rows, transposed=False),
        node("arange", (), "counted", places, **counting),
        node("full", (), "empty", places, dtype=DType.I64, shape=(count,), value=0),
        node("scatter", ("empty", "any_order", "counted"), "back", places, dim=0),
        node("embedding", ("product", "back" if put_back else "counted"), "y", rows),
    ]
    weight = Parameter("w", TensorType(DType.F32, (4, 4)), plain(DType.F32))
    return Graph("rows", (Value("x", rows), Value("any_order", places)), (weight,), tuple(nodes), ("y",))


def test_rows_that_are_put_back_need_no_order() -> None:
    graph = undo_orders(sorted_rows(put_back=True), ("any_order",))
    x, weight = torch.randn(5, 4), torch.randn(4, 4)
    assert [value.name for value in graph.inputs] == ["x"]
    torch.testing.assert_close(interpret(graph, {"x": x, "w": weight})["y"], x @ weight.T)


def test_rows_that_stay_sorted_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="W0311"):
        undo_orders(sorted_rows(put_back=False), ("any_order",))
