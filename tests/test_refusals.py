"""Models whose tokens meet outside of attention, or that bypass the library's interfaces: what is said, and where."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ir.diagnostics import Diagnostic, UnsupportedModelError, UsageError
from ir.interpret import interpret
from partitioner.api import LoadOptions, lower
from partitioner.compile import build_model as blocks_of
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.original import open_original
from targets.emulator.weights import unpacked

SMALL = {
    "dtype": "float32",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MIXTURE = {
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
MAMBA2 = {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1}
INDEXER = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 4}
ZEROS = {"ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "moe_topk": 2, "zero_expert_num": 4, "num_layers": 2}

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "mamba": ({"state_size": 8}, "backbone.layers.0.mixer", "the number of tokens is taken as a fixed one"),
    "mamba2": (MAMBA2, "backbone.layers.0.mixer", "at reshape, the result holds only where"),
    "jamba": (MIXTURE, "model.layers.0.mamba", "the number of tokens is taken as a fixed one"),
    "qwen3_next": ({**MIXTURE, **DELTA}, "model.layers.0.linear_attn", "at reshape, the result holds only where"),
    "minimax": (MIXTURE, "model.layers.1.self_attn", "(tokens + 255)//256"),
    "clip": ({}, "text_model.embeddings", "tokens <= 77"),
    "bloom": ({}, "transformer.h.0.self_attention", "exported at add: the model's attention computes with a mask"),
    "mpt": ({"d_model": 64, "n_heads": 4, "n_layers": 2}, "transformer", "with a mask itself"),
    "codegen": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "transformer.h.0.attn", "exported at add"),
    "gptj": ({"rotary_dim": 8, "head_dim": None}, "transformer.h.0", "attention does not go through"),
    "deepseek_v32": ({**MIXTURE, **LATENT, **INDEXER}, "model.layers.0.self_attn", "with a mask itself"),
    "longcat_flash": ({**MIXTURE, **LATENT, **ZEROS}, "model.layers.0.mlp.experts", "exported at unbind"),
}
"""For each type of model the module that breaks the rule, and part of what is said of it."""


def refusal(model_type: str, **options: Any) -> tuple[Diagnostic, ...]:
    with pytest.raises(UnsupportedModelError) as caught:
        lower_config({"model_type": model_type, **SMALL, **options}, "refused")
    return caught.value.diagnostics


@pytest.mark.parametrize("model_type", REFUSED)
def test_the_operator_and_the_module_are_named(model_type: str) -> None:
    options, where, words = REFUSED[model_type]
    before = time.process_time()
    (fault,) = refusal(model_type, **options)
    assert fault.code == "W0206"
    assert fault.where.startswith(where)
    assert words in fault.message
    assert time.process_time() - before < 20


# --- fixed sizes ----------------------------------------------------------------------------------------------------

FIXED = ("mamba", "mamba2", "jamba", "minimax")


@pytest.mark.parametrize("model_type", FIXED)
def test_at_fixed_sizes_the_graph_computes_what_the_model_does(model_type: str) -> None:
    options, *_ = REFUSED[model_type]
    config = {"model_type": model_type, **SMALL, **options}
    lowered = lower_config(config, model_type, fix={"users": 2, "tokens": 5})
    assert lowered.fixed == {"users": 2, "tokens": 5}
    original = open_original(lowered.origin, lowered.graph.parameters, seed=0)
    inputs = {
        "input_ids": torch.randint(1, 97, (2, 5), generator=torch.Generator().manual_seed(2)),
        "position_ids": torch.arange(5).expand(2, 5),
    }
    (wanted,) = original.forward(inputs)
    assert wanted.std() > 0.01
    graph = blocks_of(lowered.graph).graph
    (output,) = graph.outputs
    got = interpret(graph, {**unpacked(original.weights, lowered.graph.parameters), **inputs})[output]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_user_fixes_sizes_and_only_those_that_there_are(tmp_path: Path) -> None:
    config = {"model_type": "mamba", **SMALL, "state_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lowered = lower(str(tmp_path), LoadOptions(fix={"tokens": 4}))
    assert [str(size) for size in lowered.graph.inputs[0].type.shape] == ["users", "4"]
    with pytest.raises(UsageError, match=r"W0109.*pixels"):
        lower(str(tmp_path), LoadOptions(fix={"tokens": 4, "pixels": 3}))


def test_a_model_of_any_number_of_tokens_is_not_exported_at_fixed_ones() -> None:
    lowered = lower_config({"model_type": "llama", **SMALL}, "llama", fix={"tokens": 4})
    assert lowered.fixed == {}
    assert [str(size) for size in lowered.graph.inputs[0].type.shape] == ["users", "tokens"]
