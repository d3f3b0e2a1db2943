"""Checkpoint folders: every tensor is matched, every byte counted, every value unpacked as the publishers' own
libraries do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import spec_bytes, values, write
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from publishers import INT4, PUBLISHERS, QUANTIZED, Planned, codes, opened, planned, planned_config, tensors_of
from safetensors.torch import load_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ir.diagnostics import UsageError
from ir.ops import torch_dtype
from ir.types import DType
from partitioner.folder import read_plan
from partitioner.frontends.catalog import configuration
from partitioner.frontends.checkpoint import match_checkpoint, open_checkpoint
from partitioner.frontends.checkpoint.reading import read_weight
from partitioner.frontends.checkpoint.renaming import Renaming
from partitioner.frontends.checkpoint.schemes import StoredWeight, stored_weights
from partitioner.frontends.huggingface import build_model
from partitioner.frontends.load import load
from partitioner.frontends.lowered import Origin
from partitioner.frontends.weights import open_weights
from targets.emulator.weights import unpacked


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


@pytest.fixture(scope="module")
def planned_of(folder_of) -> Callable[[str], Planned]:
    made: dict[str, Planned] = {}

    def of(name: str) -> Planned:
        if name not in made:
            made[name] = planned(PUBLISHERS[name].config, folder_of(name))
        return made[name]

    return of


def weights_of(it: Planned) -> dict[str, torch.Tensor]:
    """All weights of a run, unpacked."""
    return unpacked(open_weights(it.origin, it.parameters, seed=0).source, it.parameters)


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


def test_without_a_stated_type_the_stored_one_is_taken(tmp_path) -> None:
    publisher = PUBLISHERS["mixtral"]
    config = {key: value for key, value in publisher.config.items() if key not in ("dtype", "torch_dtype")}
    tensors = {name: tensor.float() for name, tensor in values(publisher.tensors).items()}
    found = load(str(write(tmp_path, config, tensors)))
    assert {parameter.type.dtype for parameter in found.graph.parameters} == {DType.F32}
    assert "the configuration states no dtype: float32, as stored" in found.notes


@pytest.mark.parametrize("name", PUBLISHERS)
def test_names_are_those_that_the_library_gives_one_by_one(name: str) -> None:
    model = build_model(planned_config(name), torch.device("meta"))
    table = get_model_conversion_mapping(model)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    stored = [weight.name for weight in stored_weights(tensors_of(PUBLISHERS[name].tensors))]
    found = {it.stored: (it.name, it.pattern) for it in Renaming(model).rename_all(reversed(stored))}
    expected = dict.fromkeys(model.state_dict(), True)
    prefix = model.base_model_prefix
    for path in sorted(stored, key=dot_natural_key):
        assert found[path] == rename_source_key(path, renamings, converters, prefix, expected)


def test_scales_of_another_type_are_another_encoding(tmp_path) -> None:
    config, tensors = PUBLISHERS["deepseek_v3"].config, values(PUBLISHERS["deepseek_v3"].tensors)
    tensors = {n: t.to(torch.bfloat16) if n.endswith("_inv") else t for n, t in tensors.items()}
    it = planned(config, write(tmp_path, config, tensors))
    further = sum(t.nbytes for n, t in tensors.items() if n.startswith("model.layers.2."))
    assert sum(p.stored_bytes for p in it.parameters) == sum(t.nbytes for t in tensors.values()) - further
    assert {p.encoding.name for p in it.parameters} == {"bf16", "f32", "fp8_b128_bf16"}
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = by_torch({"": tensors[name], "_scale_inv": tensors[f"{name}_scale_inv"].float()}).to(torch.bfloat16)
    assert torch.equal(weights_of(it)[name], wanted)


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
        got = read_weight(weight).unpack(torch.bfloat16, "cpu")
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
    got = read_weight(stored).unpack(torch.bfloat16, "cpu")
    assert torch.equal(got, weight.to(torch.bfloat16))


def test_every_mxfp4_value_and_scale_is_unpacked(tmp_path) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 16).repeat(254, 1).view(1, 254, 16, 16)
    scales = torch.arange(1, 255, dtype=torch.uint8).view(1, 254, 1).expand(1, 254, 16).contiguous()
    folder = write(tmp_path, {}, {"x_blocks": blocks, "x_scales": scales})
    (stored,) = stored_weights(opened(folder).tensors)
    for dtype in (torch.bfloat16, torch.float32):
        got = read_weight(stored).unpack(dtype, "cpu")
        wanted = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
        assert got.shape == (1, 512, 254)
        assert torch.equal(got, wanted)


def test_every_fp8_value_is_unpacked(tmp_path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(300, 1).view(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)) + 0.01
    folder = write(tmp_path, {}, {"x.weight": codes, "x.weight_scale_inv": scales})
    (stored,) = stored_weights(opened(folder).tensors)
    got = read_weight(stored).unpack(torch.float32, "cpu")
    assert torch.equal(got.nan_to_num(7.0), by_torch({"": codes, "_scale_inv": scales}).nan_to_num(7.0))
    assert got.isnan().sum() == 2 * 300


# --- the library's own model with these weights ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "llama", "llama_tied", "qwen3_moe", "kimi_k26", "gpt_oss"])
def test_weights_are_those_that_the_library_finds_unpacks_and_joins(name: str, planned_of) -> None:
    """By its own loading code."""
    _require_the_same_weights(planned_of(name))


def test_fp8_weights_are_those_that_the_library_finds_unpacks_and_joins(tmp_path, monkeypatch) -> None:
    """For sizes that 128 divides: the library takes the blocks of others to be smaller. It asks for a package that it
    does not need on a CPU.
    """
    monkeypatch.setattr("transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available", lambda: True)
    sizes = {"hidden_size": 256, "intermediate_size": 384, "q_lora_rank": 128, "kv_lora_rank": 112}
    config = {**PUBLISHERS["deepseek_v3"].config, **sizes, "num_nextn_predict_layers": 0}
    folder = write(tmp_path, config, values(checkpoints.deepseek_v3(config)))
    _require_the_same_weights(planned(config, folder))


def _require_the_same_weights(it: Planned) -> None:
    kind = type(build_model(it.config, torch.device("meta")))
    theirs = library_model(kind, it.folder, it.config).state_dict()
    ours, types = open_weights(it.origin, it.parameters).source, {p.name: p.type.dtype for p in it.parameters}
    for path, tensor in theirs.items():
        assert path not in types or tensor.dtype == torch_dtype(torch, types[path]), path
        assert ours.shape(path) == tuple(tensor.shape), path
        assert torch.equal(tensor, ours.read(path).unpack(tensor.dtype, "cpu")), path


def library_model(kind: Any, folder: Path, config: dict[str, Any]) -> Any:
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

    said = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    if said is None:
        return kind.from_pretrained(folder, dtype=torch.bfloat16)
    if said["quant_method"] == "fp8":
        wanted = FineGrainedFP8Config(weight_block_size=[128, 128], dequantize=True)
    elif said["quant_method"] == "mxfp4":
        wanted = Mxfp4Config(modules_to_not_convert=said["modules_to_not_convert"], dequantize=True)
    else:
        wanted = CompressedTensorsConfig(**{k: v for k, v in said.items() if k != "quant_method"}, dequantize=True)
    return kind.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=wanted)


def test_a_checkpoint_that_has_changed_is_not_run(folder_of, planned_of, tmp_path) -> None:
    it = planned_of("llama")
    tensors = load_file(it.folder / "model.safetensors")
    write(tmp_path, it.config, {name: tensor.to(torch.float16) for name, tensor in tensors.items()})
    with pytest.raises(UsageError) as caught:
        open_weights(Origin("config", it.config, str(tmp_path)), it.parameters, seed=0)
    assert codes(caught.value) == ["W0611"]
    with pytest.raises(UsageError) as caught:
        open_weights(Origin("config", it.config, str(tmp_path / "gone")), it.parameters, seed=0)
    assert codes(caught.value) == ["W0611"]


def test_weights_that_are_gone_are_not_made_up(text_plan, tmp_path) -> None:
    it = read_plan(text_plan)
    with pytest.raises(UsageError) as caught:
        open_weights(replace(it.origin, path=str(tmp_path)), it.graph.parameters)
    assert codes(caught.value) == ["W0611"]


def test_values_that_contradict_the_header_are_refused(tmp_path) -> None:
    publisher = PUBLISHERS["kimi_k26"]
    tensors = values(publisher.tensors)
    name = next(name for name in tensors if name.endswith(".weight_shape"))
    tensors[name] = tensors[name].flip(0) + 1
    it = planned(publisher.config, write(tmp_path, publisher.config, tensors))
    with pytest.raises(UsageError) as caught:
        open_weights(it.origin, it.parameters, seed=0)
    assert codes(caught.value) == ["W0221"]


def test_tied_weights_may_be_stored_twice_if_they_are_equal(folder_of, tmp_path) -> None:
    config = PUBLISHERS["llama_tied"].config
    tensors = load_file(folder_of("llama_tied") / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    it = planned(config, write(tmp_path, config, tensors))
    assert "stored, though tied to another weight: lm_head.weight" in it.notes
    open_weights(it.origin, it.parameters, seed=0)
    tensors["lm_head.weight"][0, 0] += 1
    write(tmp_path, config, tensors)
    with pytest.raises(UsageError) as caught:
        open_weights(it.origin, it.parameters, seed=0)
    assert codes(caught.value) == ["W0230"]


def test_a_head_that_is_tied_may_be_stored_in_the_embeddings_place(folder_of, tmp_path) -> None:
    config = PUBLISHERS["llama_tied"].config
    tensors = load_file(folder_of("llama_tied") / "model.safetensors")
    embedding = tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    it = planned(config, write(tmp_path, config, tensors))
    weights = weights_of(it)
    assert torch.equal(weights["model.embed_tokens.weight"], embedding)


# --- full size ------------------------------------------------------------------------------------------------------


def test_kimi_k26_of_full_size_is_matched_in_seconds(tmp_path) -> None:
    """208,550 tensors of 595 GB in 64 files, which hold headers alone."""
    config = configuration("kimi-k2.6")
    spec = checkpoints.kimi_k26(config)
    assert len(spec) == 208_550
    checkpoints.write_headers(tmp_path, config, spec, 64)
    model = build_model(config, torch.device("meta"), traced=True)
    before = time.process_time()
    checkpoint = opened(tmp_path)
    match = match_checkpoint(model, checkpoint)
    assert time.process_time() - before < 10
    assert checkpoint.bytes == spec_bytes(spec)
    tensors = model.state_dict()
    assert match.encodings.keys() == tensors.keys()
    held = sum(encoding.bytes(tuple(tensors[name].shape)) for name, encoding in match.encodings.items())
    assert held == checkpoint.bytes - 8 * 60 * 384 * 3
    assert not match.ignored
