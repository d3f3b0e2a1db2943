"""Small siblings of published models, the checkpoints that publishers would write, and what is planned of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import torch
from checkpoints import Spec

from ir.diagnostics import WafercError
from ir.graph import Parameter
from partitioner.frontends.checkpoint import Checkpoint, open_checkpoint
from partitioner.frontends.checkpoint.headers import StoredTensor
from partitioner.frontends.configuration import without_foreign_code
from partitioner.frontends.huggingface import build_model, stored_parameters
from partitioner.frontends.lowered import Origin

INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
        }
    },
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
PLAIN: dict[str, Any] = {
    "dtype": "bfloat16",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_routed_experts": 12,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
EXPERTS = {"num_experts": 11, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Publisher:
    """A small sibling of a published model, and what its checkpoint holds."""

    config: dict[str, Any]
    spec: Callable[[dict[str, Any]], Spec]
    beside: int = 0
    """Bytes that are stored, but are no weights of the model."""

    @property
    def tensors(self) -> Spec:
        return self.spec(self.config)


TEXT = {**PLAIN, **LATENT, "model_type": "deepseek_v3"}
KIMI = {
    "model_type": "kimi_k25",
    "tie_word_embeddings": False,
    "text_config": {**TEXT, "quantization_config": INT4},
    "vision_config": {"patch_size": 14, **VISION},
    "projection_hidden_size": 32,
}
WIDE = {**TEXT, "hidden_size": 192, "intermediate_size": 320, "moe_intermediate_size": 128, "quantization_config": FP8}
GPT_OSS = {**PLAIN, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2}
GPT_OSS |= {"quantization_config": MXFP4}
PUBLISHERS: dict[str, Publisher] = {
    "kimi_k26": Publisher(KIMI, checkpoints.kimi_k26, beside=3 * 12 * 8),
    # Widths that 128 does not divide, and a further layer for prediction, as the real one has.
    "deepseek_v3": Publisher({**WIDE, "num_nextn_predict_layers": 1}, checkpoints.deepseek_v3, beside=-1),
    "kimi_k2": Publisher({**WIDE, "model_type": "kimi_k2"}, checkpoints.deepseek_v3),
    "gpt_oss": Publisher(
        {
            **PLAIN,
            "model_type": "gpt_oss",
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "quantization_config": MXFP4,
        },
        checkpoints.gpt_oss,
    ),
    "mixtral": Publisher({**PLAIN, "model_type": "mixtral", "num_local_experts": 11}, checkpoints.mixtral),
    "llama": Publisher({**PLAIN, "model_type": "llama"}, checkpoints.llama),
    "llama_tied": Publisher({**PLAIN, "model_type": "llama", "tie_word_embeddings": True}, checkpoints.llama),
    "qwen3_moe": Publisher({**PLAIN, **EXPERTS, "model_type": "qwen3_moe"}, checkpoints.qwen3_moe),
}
QUANTIZED = {"kimi_k26": "int4_g32", "deepseek_v3": "fp8_b128", "kimi_k2": "fp8_b128", "gpt_oss": "mxfp4"}


@dataclass(frozen=True)
class Planned:
    """A model's parameters as its folder holds them, and what was told of that."""

    parameters: tuple[Parameter, ...]
    notes: tuple[str, ...]
    folder: Path
    config: dict[str, Any]

    @property
    def origin(self) -> Origin:
        return Origin("config", self.config, str(self.folder))


def planned(config: dict[str, Any], folder: Path) -> Planned:
    """What lowering does before it exports the graph, which takes seconds."""
    config, _ = without_foreign_code(config)
    model = build_model(config, torch.device("meta"), traced=True)
    return Planned(*stored_parameters(config, model, str(folder)), folder, config)


def planned_config(name: str) -> dict[str, Any]:
    return without_foreign_code(PUBLISHERS[name].config)[0]


def tensors_of(spec: Spec) -> list[StoredTensor]:
    """As they would stand in a file; their bytes do not."""
    return [StoredTensor(name, dtype, shape, Path(), 0, 0) for name, (dtype, shape) in spec.items()]


def opened(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def codes(error: WafercError) -> list[str]:
    return [fault.code for fault in error.diagnostics]
