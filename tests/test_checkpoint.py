"""Checkpoint folders: every tensor is matched, every byte counted, every value unpacked as the publishers' own
libraries do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import Spec, spec_bytes, values, write
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ir.graph import Parameter
from partitioner.frontends import huggingface
from partitioner.frontends.checkpoint import Checkpoint, as_stored, open_checkpoint
from partitioner.frontends.checkpoint.reading import read_weight
from partitioner.frontends.checkpoint.schemes import StoredWeight, stored_weights
from partitioner.frontends.huggingface import build_model
from partitioner.frontends.lowered import Origin
from partitioner.frontends.original import open_original

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


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a publisher's checkpoint; nobody may change it."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            publisher = PUBLISHERS[name]
            shards = 3 if name in ("kimi_k26", "mixtral") else 1
            folder = tmp_path_factory.mktemp("checkpoints") / name
            made[name] = write(folder, publisher.config, values(publisher.tensors), shards)
        return made[name]

    return of


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
    config, _ = huggingface._without_foreign_code(config)
    model = build_model(config, torch.device("meta"), traced=True)
    said = tuple(huggingface._parameters(model, huggingface._encoding_rule(config, model)))
    return Planned(*as_stored(str(folder), model, said), folder, config)


@pytest.fixture(scope="module")
def planned_of(folder_of) -> Callable[[str], Planned]:
    made: dict[str, Planned] = {}

    def of(name: str) -> Planned:
        if name not in made:
            made[name] = planned(PUBLISHERS[name].config, folder_of(name))
        return made[name]

    return of


def opened(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


# --- what is stored decides -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHERS)
def test_every_byte_of_a_checkpoint_is_accounted_for(name: str, folder_of, planned_of) -> None:
    publisher, it = PUBLISHERS[name], planned_of(name)
    stored = spec_bytes(publisher.tensors)
    assert opened(folder_of(name)).bytes == stored
    held = sum(parameter.stored_bytes for parameter in it.parameters)
    further = {n: s for n, s in publisher.tensors.items() if n.startswith("model.layers.2.")}
    assert stored - held == (spec_bytes(further) if publisher.beside < 0 else publisher.beside)
    quantized = {p.name for p in it.parameters if p.encoding.name == QUANTIZED.get(name)}
    assert bool(quantized) == (name in QUANTIZED)
    assert {p.encoding.name for p in it.parameters if p.name not in quantized} <= {"bf16", "f32"}


def test_what_is_stored_wins_over_what_the_configuration_says(folder_of, tmp_path) -> None:
    config = dict(PUBLISHERS["deepseek_v3"].config)
    rule = config.pop("quantization_config")
    plain = planned(config, folder_of("deepseek_v3"))
    assert {p.encoding.name for p in plain.parameters} == {"bf16", "f32", "fp8_b128"}
    assert any("stored as fp8_b128, though the configuration says bf16" in note for note in plain.notes)

    tensors = load_file(folder_of("deepseek_v3") / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert tensors.pop(f"{name}_scale_inv").shape == (2, 3)
    tensors[name] = tensors[name].to(torch.float16)
    config["quantization_config"] = rule
    half = planned(config, write(tmp_path / "half", config, tensors))
    assert {p.name: p for p in half.parameters}[name].encoding.name == "f16"
    assert f"stored as f16, though the configuration says fp8_b128: {name}" in half.notes


def test_layers_for_prediction_are_ignored_and_told(planned_of) -> None:
    notes = [note for note in planned_of("deepseek_v3").notes if note.startswith("ignored")]
    assert len(notes) == 1
    assert "model.layers.2." in notes[0]


def test_without_weights_a_folder_is_planned_from_its_configuration(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path) is None
    assert planned(PUBLISHERS["llama"].config, tmp_path).notes == ()


# --- exact values ---------------------------------------------------------------------------------------------------


def scheme_int4() -> QuantizationScheme:
    weights = QuantizationArgs(**INT4["config_groups"]["group_0"]["weights"])  # type: ignore[index]
    return QuantizationScheme(targets=["Linear"], weights=weights)


def by_compressed_tensors(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    return compressor.decompress({f"weight{suffix}": part for suffix, part in parts.items()}, scheme_int4())["weight"]


def by_torch(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """As DeepSeek's own kernel: each value times the scale of its block."""
    values_, scales = parts[""].float(), parts["_scale_inv"]
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            values_[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128] *= scales[row, column]
    return values_


def by_transformers(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return convert_moe_packed_tensors(parts["_blocks"], parts["_scales"])


UNPACKED = {"kimi_k26": by_compressed_tensors, "deepseek_v3": by_torch, "gpt_oss": by_transformers}


def quantized(folder: Path) -> list[StoredWeight]:
    return [weight for weight in stored_weights(opened(folder).tensors) if weight.scheme]


@pytest.mark.parametrize("name", UNPACKED)
def test_weights_are_unpacked_as_by_the_publishers_libraries(name: str, folder_of) -> None:
    folder = folder_of(name)
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    found = quantized(folder)
    assert len(found) > 3
    for weight in found:
        assert weight.scheme
        parts = {suffix: tensors[weight.name + suffix] for suffix in weight.scheme.suffixes}
        wanted = UNPACKED[name](parts).to(torch.bfloat16)
        got = read_weight(weight, torch.bfloat16)
        assert got.shape == weight.shape
        assert torch.equal(got.view(torch.int16), wanted.contiguous().view(torch.int16)), weight.name


def test_every_four_bit_integer_is_unpacked(tmp_path) -> None:
    """All values in all places, packed by the other library."""
    integers = torch.stack([torch.arange(-8, 8).roll(shift) for shift in range(16)]).repeat(1, 4).to(torch.int8)
    scales = (torch.rand(16, 2, generator=torch.Generator().manual_seed(0)) + 0.01).to(torch.bfloat16)
    weight = integers.float() * scales.float().repeat_interleave(32, 1)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    packed = compressor.compress({"weight": weight.to(torch.bfloat16), "weight_scale": scales}, scheme_int4())
    folder = write(
        tmp_path,
        {},
        {f"x.{name}": part.to(torch.int32) if name == "weight_shape" else part for name, part in packed.items()},
    )
    (stored,) = stored_weights(opened(folder).tensors)
    got = read_weight(stored, torch.bfloat16)
    assert torch.equal(got, weight.to(torch.bfloat16))


def test_every_mxfp4_value_and_scale_is_unpacked(tmp_path) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(254, 1).view(1, 254, 16, 16)
    scales = torch.arange(1, 255, dtype=torch.uint8).view(1, 254, 1).expand(1, 254, 16).contiguous()
    folder = write(tmp_path, {}, {"x_blocks": blocks, "x_scales": scales})
    (stored,) = stored_weights(opened(folder).tensors)
    for dtype in (torch.bfloat16, torch.float32):
        got = read_weight(stored, dtype)
        wanted = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        assert got.shape == (1, 512, 254)
        assert torch.equal(got, wanted)


def test_every_fp8_value_is_unpacked(tmp_path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(300, 1).view(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)) + 0.01
    folder = write(tmp_path, {}, {"x.weight": codes, "x.weight_scale_inv": scales})
    (stored,) = stored_weights(opened(folder).tensors)
    got = read_weight(stored, torch.float32)
    assert torch.equal(got.nan_to_num(7.0), by_torch({"": codes, "_scale_inv": scales}).nan_to_num(7.0))
    assert got.isnan().sum() == 2 * 300


# --- the library's own model with these weights ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "llama", "llama_tied", "qwen3_moe", "kimi_k26", "gpt_oss"])
def test_weights_are_those_that_the_library_finds_unpacks_and_joins(name: str, planned_of) -> None:
    """By its own loading code; for fp8 that asks for a package which is not there."""
    it = planned_of(name)
    kind = type(build_model(it.config, torch.device("meta")))
    theirs = library_model(kind, it.folder, it.config).state_dict()
    ours = open_original(it.origin, it.parameters, seed=0).weights
    assert theirs.keys() <= ours.keys()
    for path, tensor in theirs.items():
        assert torch.equal(tensor, ours[path]), path


def library_model(kind: Any, folder: Path, config: dict[str, Any]) -> Any:
    from transformers import CompressedTensorsConfig, Mxfp4Config

    said = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    if said is None:
        return kind.from_pretrained(folder, dtype=torch.bfloat16)
    if said["quant_method"] == "mxfp4":
        wanted = Mxfp4Config(modules_to_not_convert=said["modules_to_not_convert"], dequantize=True)
    else:
        wanted = CompressedTensorsConfig(**{k: v for k, v in said.items() if k != "quant_method"}, dequantize=True)
    return kind.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=wanted)
