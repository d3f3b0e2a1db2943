"""Checkpoint folders as publishers write them: their names, types and shapes, at any size, with or without values.

What is written here follows the publishers' own files, not the code under test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Spec = dict[str, tuple[str, tuple[int, ...]]]
"""Type, by safetensors' names, and shape of each tensor."""

BITS = {"BF16": 16, "F16": 16, "F32": 32, "I32": 32, "U8": 8, "F8_E4M3": 8}


# --- what publishers store ------------------------------------------------------------------------------------------


def _dense(prefix: str, hidden: int, inner: int, dtype: str) -> Spec:
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {f"{prefix}.{part}.weight": (dtype, shape) for part, shape in shapes.items()}


def _ends(config: dict[str, Any], prefix: str = "model.", head: str = "lm_head") -> Spec:
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    spec: Spec = {
        f"{prefix}embed_tokens.weight": ("BF16", (vocabulary, hidden)),
        f"{prefix}norm.weight": ("BF16", (hidden,)),
    }
    return spec if config.get("tie_word_embeddings") else spec | {f"{head}.weight": ("BF16", (vocabulary, hidden))}


def _grouped_query(config: dict[str, Any], layer: str, *, norms: bool = False, dtype: str = "BF16") -> Spec:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    keys = config["num_key_value_heads"] * width
    spec: Spec = {
        f"{layer}.self_attn.q_proj.weight": (dtype, (heads * width, hidden)),
        f"{layer}.self_attn.k_proj.weight": (dtype, (keys, hidden)),
        f"{layer}.self_attn.v_proj.weight": (dtype, (keys, hidden)),
        f"{layer}.self_attn.o_proj.weight": (dtype, (hidden, heads * width)),
        f"{layer}.input_layernorm.weight": (dtype, (hidden,)),
        f"{layer}.post_attention_layernorm.weight": (dtype, (hidden,)),
    }
    if norms:
        spec |= {f"{layer}.self_attn.{part}_norm.weight": (dtype, (width,)) for part in "qk"}
    return spec


def _latent(config: dict[str, Any], layer: str) -> Spec:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    rank, latent, rope = config["q_lora_rank"], config["kv_lora_rank"], config["qk_rope_head_dim"]
    plain, values = config["qk_nope_head_dim"], config["v_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "q_a_proj": (rank, hidden),
        "q_a_layernorm": (rank,),
        "q_b_proj": (heads * (plain + rope), rank),
        "kv_a_proj_with_mqa": (latent + rope, hidden),
        "kv_a_layernorm": (latent,),
        "kv_b_proj": (heads * (plain + values), latent),
        "o_proj": (hidden, heads * values),
    }
    spec: Spec = {f"{layer}.self_attn.{part}.weight": ("BF16", shape) for part, shape in shapes.items()}
    norms = ("input_layernorm", "post_attention_layernorm")
    return spec | {f"{layer}.{part}.weight": ("BF16", (hidden,)) for part in norms}


def _deepseek(config: dict[str, Any], prefix: str, layers: int) -> Spec:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    spec: Spec = {}
    for index in range(layers):
        layer = f"{prefix}layers.{index}"
        spec |= _latent(config, layer)
        if index < config["first_k_dense_replace"]:
            spec |= _dense(f"{layer}.mlp", hidden, config["intermediate_size"], "BF16")
            continue
        spec[f"{layer}.mlp.gate.weight"] = ("BF16", (config["n_routed_experts"], hidden))
        spec[f"{layer}.mlp.gate.e_score_correction_bias"] = ("F32", (config["n_routed_experts"],))
        spec |= _dense(f"{layer}.mlp.shared_experts", hidden, inner * config["n_shared_experts"], "BF16")
        for expert in range(config["n_routed_experts"]):
            spec |= _dense(f"{layer}.mlp.experts.{expert}", hidden, inner, "BF16")
    return spec


def _fp8(spec: Spec) -> Spec:
    """Every linear layer but router and head as e4m3 with a scale for each 128 x 128 values."""
    found: Spec = {}
    for name, (dtype, shape) in spec.items():
        kept = len(shape) < 2 or any(part in name for part in ("embed_tokens", "lm_head", "mlp.gate.", "eh_proj"))
        if kept:
            found[name] = (dtype, shape)
            continue
        found[name] = ("F8_E4M3", shape)
        found[f"{name}_scale_inv"] = ("F32", (-(-shape[0] // 128), -(-shape[1] // 128)))
    return found


def deepseek_v3(config: dict[str, Any]) -> Spec:
    """DeepSeek-V3 and Kimi K2-Instruct, with the layers for prediction that the configuration counts."""
    layers, further = config["num_hidden_layers"], config.get("num_nextn_predict_layers") or 0
    spec = _ends(config) | _deepseek(config, "model.", layers + further)
    hidden = config["hidden_size"]
    for index in range(layers, layers + further):
        layer = f"model.layers.{index}"
        spec |= {f"{layer}.{part}.weight": ("BF16", (hidden,)) for part in ("enorm", "hnorm", "shared_head.norm")}
        spec[f"{layer}.eh_proj.weight"] = ("BF16", (hidden, 2 * hidden))
        spec[f"{layer}.embed_tokens.weight"] = ("BF16", (config["vocab_size"], hidden))
        spec[f"{layer}.shared_head.head.weight"] = ("BF16", (config["vocab_size"], hidden))
    return _fp8(spec)


def kimi_k26(config: dict[str, Any]) -> Spec:
    """Kimi K2.5 and K2.6: routed experts in four bits, a vision tower, and a prefix before the text model."""
    text, prefix = config["text_config"], "language_model."
    spec: Spec = {}
    for name, (dtype, shape) in _deepseek(text, f"{prefix}model.", text["num_hidden_layers"]).items():
        if ".experts." not in name:
            spec[name] = ("BF16", shape)
            continue
        assert dtype == "BF16"
        spec[f"{name}_packed"] = ("I32", (shape[0], shape[1] // 8))
        spec[f"{name}_scale"] = ("BF16", (shape[0], shape[1] // 32))
        spec[f"{name}_shape"] = ("I32", (2,))
    spec |= _ends(text, f"{prefix}model.", f"{prefix}lm_head")
    return spec | _vision(config["vision_config"], text["hidden_size"])


def _vision(config: dict[str, Any], hidden: int) -> Spec:
    def stated(name: str) -> int:
        return config[f"vt_{name}"] if f"vt_{name}" in config else config[name]

    width, inner, patch = stated("hidden_size"), stated("intermediate_size"), config["patch_size"]
    spec: Spec = {
        "vision_tower.patch_embed.proj.weight": ("BF16", (width, 3, patch, patch)),
        "vision_tower.patch_embed.proj.bias": ("BF16", (width,)),
        "vision_tower.patch_embed.pos_emb.weight": (
            "BF16",
            (config.get("pos_emb_height", 64), config.get("pos_emb_width", 64), width),
        ),
        "vision_tower.encoder.final_layernorm.weight": ("BF16", (width,)),
        "vision_tower.encoder.final_layernorm.bias": ("BF16", (width,)),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "norm0": (width,),
        "norm1": (width,),
        "wqkv": (3 * width, width),
        "wo": (width, width),
        "mlp.fc0": (inner, width),
        "mlp.fc1": (width, inner),
    }
    for index in range(stated("num_hidden_layers")):
        for part, shape in shapes.items():
            spec[f"vision_tower.encoder.blocks.{index}.{part}.weight"] = ("BF16", shape)
            spec[f"vision_tower.encoder.blocks.{index}.{part}.bias"] = ("BF16", shape[:1])
    joined = 4 * width
    projector = {"pre_norm": (width,), "proj.0": (joined, joined), "proj.2": (hidden, joined)}
    for part, shape in projector.items():
        spec[f"mm_projector.{part}.weight"] = ("BF16", shape)
        spec[f"mm_projector.{part}.bias"] = ("BF16", shape[:1])
    return spec


def gpt_oss(config: dict[str, Any]) -> Spec:
    """gpt-oss: experts in MXFP4, all of a layer in one tensor."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    heads, width = config["num_attention_heads"], config["head_dim"]
    spec = _ends(config)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        spec |= _grouped_query(config, layer)
        for part, size in {"q": heads * width, "k": config["num_key_value_heads"] * width}.items():
            spec[f"{layer}.self_attn.{part}_proj.bias"] = ("BF16", (size,))
        spec[f"{layer}.self_attn.v_proj.bias"] = spec[f"{layer}.self_attn.k_proj.bias"]
        spec[f"{layer}.self_attn.o_proj.bias"] = ("BF16", (hidden,))
        spec[f"{layer}.self_attn.sinks"] = ("BF16", (heads,))
        spec[f"{layer}.mlp.router.weight"] = ("BF16", (experts, hidden))
        spec[f"{layer}.mlp.router.bias"] = ("BF16", (experts,))
        for part, outputs, inputs in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            spec[f"{layer}.mlp.experts.{part}_blocks"] = ("U8", (experts, outputs, inputs // 32, 16))
            spec[f"{layer}.mlp.experts.{part}_scales"] = ("U8", (experts, outputs, inputs // 32))
            spec[f"{layer}.mlp.experts.{part}_bias"] = ("BF16", (experts, outputs))
    return spec


def mixtral(config: dict[str, Any]) -> Spec:
    """Mixtral: w1 is the gate, w3 goes up, w2 down."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    spec = _ends(config)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        spec |= _grouped_query(config, layer)
        moe = f"{layer}.block_sparse_moe"
        spec[f"{moe}.gate.weight"] = ("BF16", (config["num_local_experts"], hidden))
        for expert in range(config["num_local_experts"]):
            shapes = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
            spec |= {f"{moe}.experts.{expert}.{part}.weight": ("BF16", shape) for part, shape in shapes.items()}
    return spec


def llama(config: dict[str, Any]) -> Spec:
    """Llama 3."""
    spec = _ends(config)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        spec |= _grouped_query(config, layer)
        spec |= _dense(f"{layer}.mlp", config["hidden_size"], config["intermediate_size"], "BF16")
    return spec


def qwen3_moe(config: dict[str, Any]) -> Spec:
    """Qwen3-235B-A22B and its siblings."""
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    spec = _ends(config)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        spec |= _grouped_query(config, layer, norms=True)
        spec[f"{layer}.mlp.gate.weight"] = ("BF16", (config["num_experts"], hidden))
        for expert in range(config["num_experts"]):
            spec |= _dense(f"{layer}.mlp.experts.{expert}", hidden, inner, "BF16")
    return spec


# --- files ----------------------------------------------------------------------------------------------------------


def spec_bytes(spec: Spec) -> int:
    return sum(BITS[dtype] * math.prod(shape) // 8 for dtype, shape in spec.values())


def values(spec: Spec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values of the kind that each tensor holds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], scale: float = 0.1) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    def make(name: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("_packed"):
            return torch.randint(-(1 << 31), 1 << 31, shape, generator=generator).to(torch.int32)
        if name.endswith("_shape"):
            outputs, words = spec[name.removesuffix("_shape") + "_packed"][1]
            return torch.tensor([outputs, words * 8], dtype=torch.int32)
        if dtype == "U8":
            low, high = (115, 125) if name.endswith("_scales") else (0, 256)
            return torch.randint(low, high, shape, generator=generator).to(torch.uint8)
        if dtype == "F8_E4M3":
            return normal(shape, 60.0).to(torch.float8_e4m3fn)
        if name.endswith(("_scale", "_scale_inv")):
            made = normal(shape, 0.01).abs() * (0.1 if name.endswith("_inv") else 1) + 0.001
        elif len(shape) == 1 and "norm" in name and name.endswith("weight"):
            made = 1 + normal(shape)
        else:
            made = normal(shape)
        return made.to({"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}[dtype])

    return {name: make(name, dtype, shape) for name, (dtype, shape) in spec.items()}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """A checkpoint folder with values, written by the library itself."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    where = dict(zip(tensors, _shards(len(tensors), shards), strict=True))
    for file in sorted(set(where.values())):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file, {"format": "pt"})
    _write_index(folder, where)
    return folder


def write_headers(folder: Path, config: dict[str, Any], spec: Spec, shards: int) -> Path:
    """A checkpoint folder of full size whose files hold headers alone: the rest is a hole that takes no disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    where = dict(zip(spec, _shards(len(spec), shards), strict=True))
    headers: dict[str, list[str]] = {file: [] for file in where.values()}
    ends = dict.fromkeys(headers, 0)
    for name, (dtype, shape) in spec.items():
        file = where[name]
        begin, end = ends[file], ends[file] + BITS[dtype] * math.prod(shape) // 8
        headers[file].append(f'"{name}":{{"dtype":"{dtype}","shape":{[*shape]},"data_offsets":[{begin},{end}]}}')
        ends[file] = end
    for file, entries in headers.items():
        write_raw(folder / file, f"{{{','.join(entries)}}}".encode(), ends[file])
    _write_index(folder, where)
    return folder


def write_raw(path: Path, header: bytes, data_bytes: int, header_bytes: int | None = None) -> Path:
    """A file with this header, right or wrong, and a hole of ``data_bytes``."""
    length = len(header) if header_bytes is None else header_bytes
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + data_bytes)
    return path


def _shards(count: int, shards: int) -> Iterator[str]:
    return (f"model-{index * shards // count + 1:05}-of-{shards:05}.safetensors" for index in range(count))


def _write_index(folder: Path, where: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
