"""Work, in multiply-adds, against torch's own count over the original's eager forward."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from partitioner.compile import build_model
from partitioner.frontends.huggingface import lower_config
from partitioner.frontends.lowered import Lowered
from partitioner.frontends.original import open_original

TOKENS = 24
"""As long as the windows: the original computes what it masks, and ours counts a window in full."""

SMALL: dict[str, Any] = {
    "dtype": "float32",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": TOKENS},
    "gemma2": {"sliding_window": TOKENS, "query_pre_attn_scalar": 16},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {**MIXTURE, "num_experts": 8},
    "glm4_moe": {**MIXTURE, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": TOKENS},
    "deepseek_v3": {**MIXTURE, **LATENT, "head_dim": None},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "head_dim": None},
}


@cache
def lowered_family(family: str) -> Lowered:
    """A small model of a family; other tests look at it too."""
    config = {key: value for key, value in {**SMALL, **FAMILIES[family]}.items() if value is not None}
    return lower_config({**config, "model_type": family}, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_work_is_torchs_own_count(family: str) -> None:
    """The chosen experts' work only, and attention's over the whole square of tokens, as the original computes it."""
    users, tokens = 2, TOKENS
    lowered = lowered_family(family)
    model = build_model(lowered.graph)
    original = open_original(lowered.origin, model.placed, seed=0)
    ids = torch.randint(1, 96, (users, tokens), generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": ids, "position_ids": torch.arange(tokens).expand(users, tokens)}
    given = {value.name: inputs[value.name] for value in lowered.graph.inputs}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        original.forward(given)
    seen = tokens * sum(block.macs_per_cached_token for block in model.blocks)
    ours = 2 * users * tokens * (sum(block.macs_per_token for block in model.blocks) + seen)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)
