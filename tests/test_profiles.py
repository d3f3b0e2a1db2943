"""Profiles as files: bundled ones are current, remembered ones are of the same model, and damaged ones are no use."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ir.model import BlockKind
from ir.profile import (
    Attention,
    BlockProfile,
    CacheProfile,
    FlowProfile,
    Product,
    Profile,
    Reduction,
)
from partitioner import profiles, remembered
from partitioner.frontends.catalog import bundled_profile, catalog, source
from partitioner.options import LoadOptions
from partitioner.profiles import bundle, decode_profile, encode_profile, load_profile

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def block(name: str, layer: int | None) -> BlockProfile:
    kernels = (
        Reduction(64, 1),
        Product(64, 128, 4, group=32, experts=8, active=2),
        Attention(4, 1, 40, 32, 160, window=7, chunked=True),
        Product(64, 64, 16, vectors=3),
    )
    caches = (CacheProfile(160, 7),)
    return BlockProfile(
        name=name,
        kind=BlockKind.OTHER,
        layer=layer,
        weight_bytes=1234,
        experts=8,
        active_experts=2,
        caches=caches,
        live_bytes_per_token=99,
        takes_tokens=True,
        kernels=kernels,
        elementwise=321,
    )


PROFILE = Profile(
    name="a model",
    max_context=None,
    parameters=12345,
    blocks=tuple(block(f"layers.{layer}", layer) for layer in range(100)),
    flows=tuple(FlowProfile(layer, layer + 1, 128) for layer in range(99)),
    items=tuple((layer, layer + 1) for layer in range(0, 100, 2)),
)


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_profile_comes_back_as_it_was() -> None:
    assert decode_profile(encode_profile(PROFILE, "here"), "here") == PROFILE
    assert decode_profile(encode_profile(PROFILE, "here"), "there") is None


def test_equal_layers_are_written_once() -> None:
    assert encode_profile(PROFILE, "").count(b'"order"') == 1


def test_no_damaged_file_is_read() -> None:
    whole = encode_profile(PROFILE, "here")
    for place in range(0, len(whole) - 1, 7):
        assert decode_profile(whole[:place], "here") is None
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        assert decode_profile(flipped, "here") is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("items", [[0, 1000]]),
        ("items", []),
        ("flows", [[0, 1000, 3]]),
        ("blocks", [["a", None, 1]]),
        ("max_context", "many"),
        ("more", 1),
    ],
)
def test_no_file_that_contradicts_itself_is_read(field: str, value: object) -> None:
    """However right its digest is."""
    file = json.loads(encode_profile(PROFILE, "here"))
    content = json.dumps({**file["profile"], field: value})
    digest = hashlib.sha256(content.encode()).hexdigest()
    damaged = f'{{"made_from": "here", "sha256": "{digest}", "profile": {content}}}'
    assert decode_profile(damaged.encode(), "here") is None


@pytest.mark.parametrize("order", ["RPAPP", "RPAX", "RPPPP"])
def test_no_file_with_kernels_missing_is_read(order: str) -> None:
    data = encode_profile(PROFILE, "here")
    content = json.dumps(json.loads(data)["profile"]).replace('"RPAP"', f'"{order}"')
    digest = hashlib.sha256(content.encode()).hexdigest()
    damaged = f'{{"made_from": "here", "sha256": "{digest}", "profile": {content}}}'
    assert decode_profile(damaged.encode(), "here") is None


# --- bundled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog())
def test_every_bundled_model_has_a_profile_of_its_description(name: str) -> None:
    """If this fails: make profiles."""
    description, data = source(name), bundled_profile(name)
    assert description is not None
    assert data is not None
    profile = decode_profile(data, hashlib.sha256(description).hexdigest())
    assert profile is not None
    assert profile.name == name
    assert len(data) < 100_000


@pytest.mark.parametrize("name", ["small-kimi", "llama-3.1-8b", "gpt-oss-20b"])
def test_a_bundled_profile_is_what_lowering_gives(name: str) -> None:
    """If this fails: make profiles."""
    assert bundled_profile(name) == bundle(name)


def test_the_profile_of_kimi_holds_what_its_publisher_states() -> None:
    """Technical report of Kimi K2 and the configuration of K2.6: 61 layers, 1.03 T parameters, 32.9 B of them active
    (embeddings are looked up), a latent of 512 and a rotary key of 64 in bf16 for each token and layer.
    """
    profile = load_profile("kimi-k2.6", LoadOptions())
    assert profile.layers == 61
    assert profile.max_context == 262144
    assert profile.parameters == pytest.approx(1.026e12, rel=0.001)
    assert sum(block.macs(0) for block in profile.blocks) == pytest.approx(32.9e9 - 163840 * 7168, rel=0.02)
    assert profile.cache_bytes(1, 1) == 61 * 1152
    look = next(kernel for block in profile.blocks for kernel in block.kernels if isinstance(kernel, Attention))
    assert (look.heads, look.cached_heads, look.key_width, look.value_width) == (64, 1, 576, 512)
    around = [k for b in profile.blocks[1:2] for k in b.kernels if isinstance(k, Product) and k.parts == 64]
    assert [(product.inputs, product.outputs) for product in around] == [(128, 512), (512, 128)]


def test_a_bundled_profile_needs_no_large_library() -> None:
    heavy = ("torch", "transformers", "onnx", "ortools", "networkx", "numpy")
    program = (
        "import sys\nfrom partitioner.profiles import load_profile\nfrom partitioner.options import LoadOptions\n"
        "load_profile('kimi-k2.6', LoadOptions())\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- remembered -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where things are remembered."""
    monkeypatch.setenv("WAFERC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were lowered; lowering itself, which other tests check, is left out."""
    found: list[str] = []

    def lower(model: str, _options: LoadOptions) -> Profile:
        found.append(model)
        return PROFILE

    monkeypatch.setattr(profiles, "lower_profile", lower)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIG))
    return path


def test_a_model_is_lowered_once(folder: Path, calls: list[str], model: Path) -> None:
    for _ in range(3):
        assert load_profile(str(model), LoadOptions()) == PROFILE
    assert len(calls) == 1
    load_profile(str(model), LoadOptions(fix={"tokens": 4}))
    load_profile(str(model), LoadOptions(parts=("text", "vision")))
    assert len(calls) == 3
    model.write_text(json.dumps({**CONFIG, "vocab_size": 97}))
    load_profile(str(model), LoadOptions())
    assert len(calls) == 4
    assert len(list(folder.iterdir())) == 4


def test_bundled_models_with_other_options_are_lowered(folder: Path, calls: list[str]) -> None:
    load_profile("small-kimi", LoadOptions(fix={"tokens": 4}))
    assert calls == ["small-kimi"]


def test_a_damaged_memory_is_replaced(folder: Path, calls: list[str], model: Path) -> None:
    load_profile(str(model), LoadOptions())
    (file,) = folder.iterdir()
    for damage in (b"", b"{}", file.read_bytes()[:-20], b"\xff\xfe"):
        whole = file.read_bytes()
        file.write_bytes(damage)
        assert load_profile(str(model), LoadOptions()) == PROFILE
        assert file.read_bytes() == whole
    assert len(calls) == 5


def test_what_cannot_be_written_is_not_remembered(
    tmp_path: Path, calls: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (str(tmp_path / "file"), str(tmp_path / "file" / "below"), ""):
        monkeypatch.setenv("WAFERC_CACHE", place)
        assert load_profile(str(model), LoadOptions()) == PROFILE
    assert len(calls) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_where_things_are_remembered(tmp_path: Path, calls: list[str], model: Path, monkeypatch) -> None:
    monkeypatch.delenv("WAFERC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    load_profile(str(model), LoadOptions())
    assert len(list((tmp_path / "home" / ".cache" / "waferc").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_profile(str(model), LoadOptions())
    assert len(list((tmp_path / "xdg" / "waferc").iterdir())) == 1


def key(path: Path) -> str | None:
    return remembered.key_of(str(path), {}, ("text",))


def test_a_checkpoint_is_known_by_its_headers(model: Path) -> None:
    """Values decide nothing; names, types, shapes and the files that are there do."""

    def write(name: str, header: dict[str, object], values: bytes) -> None:
        text = json.dumps(header).encode()
        (model.parent / name).write_bytes(len(text).to_bytes(8, "little") + text + values)

    header: dict[str, object] = {"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    seen = [key(model.parent)]
    write("model.safetensors", header, b"ab")
    seen.append(key(model.parent))
    write("model.safetensors", header, b"cd")
    assert key(model.parent) == seen[-1]
    write("model.safetensors", {"w": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}, b"cd")
    seen.append(key(model.parent))
    write("model.safetensors", {"w": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}, b"c")
    seen.append(key(model.parent))
    write("other.safetensors", header, b"ab")
    seen.append(key(model.parent))
    index = model.parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "other.safetensors"}}))
    seen.append(key(model.parent))
    assert None not in seen
    assert len(set(seen)) == len(seen)
    index.write_text(json.dumps({"weight_map": {"w": "below/other.safetensors"}}))
    assert key(model.parent) is None


def test_what_is_not_known_completely_has_no_key(tmp_path: Path) -> None:
    assert key(tmp_path / "missing.onnx") is None
    (tmp_path / "program.pt2").write_bytes(b"program")
    assert key(tmp_path / "program.pt2") is None
    (tmp_path / "a.onnx").write_bytes(b"weights: \x0a\x08location\x12\x03w.bin")
    assert key(tmp_path / "a.onnx") is None
    (tmp_path / "a.onnx").write_bytes(b"weights")
    first = key(tmp_path / "a.onnx")
    (tmp_path / "a.onnx").write_bytes(b"Weights")
    assert None not in (first, key(tmp_path / "a.onnx"))
    assert first != key(tmp_path / "a.onnx")


def test_another_version_forgets(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = key(model)
    monkeypatch.setattr(remembered, "version", lambda _library: "0")
    assert key(model) not in (None, first)
