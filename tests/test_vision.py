"""Vision towers: placed beside the text model, whole, and computing what the library's own method computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ir.diagnostics import UnsupportedModelError, UsageError
from ir.interpret import interpret
from ir.model import BlockKind
from partitioner.compile import build_model as blocks_of
from partitioner.frontends.catalog import configuration
from partitioner.frontends.huggingface import build_model, lower_config
from partitioner.frontends.load import load
from partitioner.frontends.lowered import Lowered

BOTH = ("text", "vision")
TEXT: dict[str, Any] = {
    "dtype": "float32",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZED = {**TOWER, "image_size": 56, "patch_size": 14, "initializer_range": 0.1}

SIBLINGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**TEXT, "model_type": "gemma3_text", "sliding_window": 8},
        "vision_config": {**SIZED, "model_type": "siglip_vision_model", "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**SIZED, "model_type": "siglip_vision_model", "vision_use_head": False},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full",
    },
    # Its projector stands outside of the method that yields features; rotations are products of complex numbers.
    "llama4": {
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": {
            **TEXT,
            "model_type": "llama4_text",
            "num_local_experts": 4,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
        },
        "vision_config": {
            **SIZED,
            "model_type": "llama4_vision_model",
            "intermediate_size": 128,
            "projector_input_dim": 48,
            "projector_output_dim": 48,
            "vision_output_dim": 48,
            "pixel_shuffle_ratio": 0.5,
        },
    },
    "qwen2_5_vl": {
        "text_config": {
            **TEXT,
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
    },
}


def described(model_type: str) -> dict[str, Any]:
    """A small sibling of a family's configuration."""
    if model_type == "kimi_k25":
        return configuration("small-kimi") or {}
    return {"model_type": model_type, "dtype": "float32", **SIBLINGS[model_type]}


@pytest.fixture(scope="module", params=["kimi_k25", *SIBLINGS])
def family(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lowered(family) -> Lowered:
    return lower_config(described(family), family, parts=BOTH)


def test_every_weight_that_the_model_reads_is_placed(family, lowered):
    model = blocks_of(lowered.graph)
    # Llava takes features before the tower's last layer, by its configuration; the library never reads what follows.
    behind = ("model.vision_tower.encoder.layers.2.", "model.vision_tower.post_layernorm.") if family == "llava" else ()
    assert all(parameter.name.startswith(behind) for parameter in model.unplaced)
    assert bool(model.unplaced) == bool(behind)
    assert len({block.name for block in model.blocks}) == len(model.blocks)


def test_blocks_of_the_tower_stand_behind_the_layers_of_the_text(family, lowered):
    text, both = blocks_of(lower_config(described(family), family).graph), blocks_of(lowered.graph)
    assert both.graph.nodes[: len(text.graph.nodes)] == text.graph.nodes
    tower = [block for block in both.blocks if block.layer is not None and block.layer >= text.layers]
    layers = both.layers - text.layers
    # Qwen's merger is a list of modules too.
    assert layers == {"kimi_k25": 1, "llava": 2, "qwen2_5_vl": 5}.get(family, 3)
    assert len([block for block in tower if block.kind is BlockKind.ATTENTION]) == min(layers, 3)
    assert {block.layer for block in tower if block.kind is BlockKind.DENSE_MLP} == {*range(text.layers, both.layers)}
    assert not any(block.caches or block.takes_tokens for block in tower)
    assert sum(len(block.caches) for block in both.blocks) == sum(len(block.caches) for block in text.blocks)


def reference(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Features as the library's own class computes them, eagerly."""
    patches = pixels.shape[0]
    grid = {} if pixels.dim() == 4 and patches == 1 else {"image_grid_thw": torch.tensor([[1, 32, patches // 32]])}
    found = model.get_image_features(pixels, **grid)
    features = found.pooler_output if found.pooler_output is not None else found.last_hidden_state
    features = torch.cat(list(features)) if isinstance(features, (list, tuple)) else features.flatten(0, -2)
    return model.multi_modal_projector(features) if model.config.model_type == "llama4" else features


def test_features_are_those_of_the_library(family, lowered):
    graph = lowered.graph
    torch.manual_seed(0)
    model = build_model(described(family), torch.device("cpu"))
    for weight in model.parameters():  # the library begins some with zeros, which would hide what is wrong
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    pixels = torch.randn([int(size) for size in graph.types["pixel_values"].shape])
    ids = torch.randint(0, 97, (2, 3))
    inputs = {"input_ids": ids, "position_ids": torch.arange(3).expand(2, 3), "pixel_values": pixels}
    with torch.no_grad():
        weights = dict(model.named_parameters()) | dict(model.named_buffers())
        logits, features = [interpret(graph, {**weights, **inputs})[name] for name in graph.outputs[:2]]
        expected = reference(model, pixels)
        text = model(input_ids=ids, use_cache=False).logits
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(features.reshape(expected.shape), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, text, rtol=0, atol=1e-3)


def test_a_plan_with_a_tower_is_sound(waferc, tmp_path):
    folder = tmp_path / "plan"
    options = ("--target", "mini", "--systems", 6, "--context", 256, "--parts", "text,vision")
    done = waferc("compile", "small-kimi", *options, "-o", folder, "--json")
    assert done.code == 0, done.out
    assert waferc("check", folder).code == 0
    inputs = {"input_ids": [[1, 5, 9]], "position_ids": [[0, 1, 2]], "pixel_values": torch.rand(1024, 3, 14, 14)}
    np.savez(
        tmp_path / "inputs.npz", **{k: np.asarray(v, dtype="f4" if "pix" in k else "i8") for k, v in inputs.items()}
    )
    compared = waferc("run", folder, "--inputs", tmp_path / "inputs.npz", "--compare", "--json")
    assert compared.record["ok"], compared.out
    assert len(compared.record["outputs"]) == 2
    refused = waferc("run", folder, "--prompt-ids", "1,2", "--json")
    assert refused.codes == ["W0613"]
    assert "pixel_values" in refused.record["diagnostics"][0]["message"]


@pytest.mark.parametrize("parts", ["vision", "text,sound", "", "vision,text"])
def test_other_parts_are_refused(waferc, parts):
    assert waferc("inspect", "small-kimi", "--parts", parts, "--json").codes == ["W0104"]


def test_a_model_without_a_tower_has_none_to_place(tmp_path):
    with pytest.raises(UnsupportedModelError) as caught:
        lower_config({"model_type": "llama", **TEXT}, "small", parts=BOTH)
    assert [fault.code for fault in caught.value.diagnostics] == ["W0244"]


def test_files_are_placed_whole(tmp_path):
    for name in ("model.onnx", "model.pt2"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UsageError) as caught:
            load(str(tmp_path / name), parts=BOTH)
        assert [fault.code for fault in caught.value.diagnostics] == ["W0112"]
