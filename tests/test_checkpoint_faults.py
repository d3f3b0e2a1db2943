"""Checkpoints that are damaged, hostile, or of another model: each is refused with a diagnostic."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from checkpoints import values, write, write_raw
from publishers import PUBLISHERS, codes, planned
from safetensors import deserialize

from ir.diagnostics import UnsupportedModelError, UsageError
from partitioner.frontends.checkpoint import open_checkpoint
from partitioner.frontends.checkpoint.headers import read_header

# --- what does not match --------------------------------------------------------------------------------------------

EXPERT = "model.layers.0.mlp.experts"
Tensors = dict[str, torch.Tensor]


def _without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def _with(name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(shape, dtype=dtype)}


def _one_more(tensors: Tensors) -> Tensors:
    return tensors | {n.replace(".10.", ".11."): v.clone() for n, v in tensors.items() if ".10." in n}


def _far_off(tensors: Tensors) -> Tensors:
    return {name.replace("experts.10.", "experts.999999999."): tensor for name, tensor in tensors.items()}


ZERO_POINT = "language_model.model.layers.1.mlp.experts.3.up_proj.weight_zero_point"
SCALES = "model.layers.0.mlp.up_proj.weight_scale_inv"
UP = f"{EXPERT}.3.up_proj.weight"
ROUTER = "model.layers.0.mlp.gate.weight"
UNMATCHED: dict[str, tuple[str, Callable[[Tensors], Tensors], str, str]] = {
    "a tensor left over": ("llama", _with("model.extra", 3), "W0225", "left over: 1"),
    "a bias that the class has not": ("llama", _with("model.layers.1.mlp.up_proj.bias", 96), "W0225", "up_proj.bias"),
    "zero points": ("kimi_k26", _with(ZERO_POINT, 32, 1), "W0225", "weight_zero_point"),
    "a tensor missing": ("llama", _without("layers.1.mlp.up"), "W0225", "missing 1: model.layers.1.mlp.up_proj.weight"),
    "a norm missing in each layer": (
        "llama",
        _without("input_l"),
        "W0225",
        "{0..1}.input_layernorm.weight (2 t",
    ),
    "an expert missing": (
        "qwen3_moe",
        _without("experts.5.up"),
        "W0225",
        "{0..1}.mlp.experts.5.up_proj.weight (2 t",
    ),
    "the last expert missing": ("qwen3_moe", _without("experts.10."), "W0226", "stored: [10, 64, 32]"),
    "no up projections": (
        "qwen3_moe",
        _without("up_proj"),
        "W0226",
        "stored for mlp.experts.*.up_proj.weight",
    ),
    "one expert more": ("qwen3_moe", _one_more, "W0226", "stored: [12, 64, 32]"),
    "an expert of another size": ("qwen3_moe", _with(UP, 31, 64), "W0226", "do not go together"),
    "a weight of another shape": ("llama", _with("model.norm.weight", 65), "W0226", "stored: [65]"),
    "an expert of another type": ("qwen3_moe", _with(UP, 32, 64, dtype=torch.float32), "W0227", "bf16 and f32"),
    "integers for a weight": ("llama", _with("model.norm.weight", 64, dtype=torch.int8), "W0227", "stored as i8"),
    "fp8 without scales": ("llama", _with("model.norm.weight", 64, dtype=torch.float8_e4m3fn), "W0227", "F8_E4M3"),
    "scales of another grid": ("deepseek_v3", _with(SCALES, 4, 2, dtype=torch.float32), "W0227", "do not fit together"),
    "no scales": ("gpt_oss", _without("gate_up_proj_scales"), "W0225", "gate_up_proj_blocks"),
    "two tensors for one parameter": ("mixtral", _with(ROUTER, 11, 64), "W0229", "block_sparse_moe"),
}


@pytest.mark.parametrize("what", UNMATCHED)
def test_what_does_not_match_is_listed(what: str, tmp_path) -> None:
    name, change, code, text = UNMATCHED[what]
    config, tensors = PUBLISHERS[name].config, values(PUBLISHERS[name].tensors)
    with pytest.raises(UnsupportedModelError) as caught:
        planned(config, write(tmp_path, config, change(tensors)))
    assert codes(caught.value) == [code]
    assert text in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_number_in_a_name_decides_on_neither_time_nor_memory(tmp_path) -> None:
    config, tensors = PUBLISHERS["qwen3_moe"].config, _far_off(values(PUBLISHERS["qwen3_moe"].tensors))
    planned(config, write(tmp_path / "as the library does", config, tensors))  # by order, not by number
    more = tensors | {f"{EXPERT}.11.up_proj.weight": torch.zeros(32, 64, dtype=torch.bfloat16)}
    with pytest.raises(UnsupportedModelError) as caught:
        planned(config, write(tmp_path / "more", config, more))
    (fault,) = caught.value.diagnostics
    assert (fault.code, fault.facts["missing"]) == ("W0225", 1)


def test_at_most_ten_patterns_are_listed(tmp_path) -> None:
    config = {**PUBLISHERS["llama"].config, "num_hidden_layers": 3}
    extra = {f"other_{letter}.{number}.x": torch.zeros(1) for letter in "abcdefghijklmno" for number in range(9)}
    tensors = values(PUBLISHERS["llama"].tensors) | extra
    with pytest.raises(UnsupportedModelError) as caught:
        planned(config, write(tmp_path, config, tensors))
    (fault,) = caught.value.diagnostics
    assert fault.facts["left_over"] == 15 * 9
    assert fault.facts["left_over_10"] == "other_j.{0..8}.x (9 tensors)"
    assert "left_over_11" not in fault.facts
    assert fault.facts["missing"] == 9
    assert fault.facts["missing_1"].startswith("model.layers.2.")


# --- folders --------------------------------------------------------------------------------------------------------


def entry(begin: int, end: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def file_with(path: Path, header: Any, data_bytes: int = 0, header_bytes: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return write_raw(path, text, data_bytes, header_bytes)


def indexed(folder: Path, **files: str) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_and_never_opened(name: str, tmp_path) -> None:
    os.mkfifo(tmp_path / name)  # opening it would wait for ever
    with pytest.raises(UsageError) as caught:
        open_checkpoint(tmp_path)
    assert codes(caught.value) == ["W0220"]
    assert "pickles" in str(caught.value)
    file_with(tmp_path / "model.safetensors", {"x": entry(0, 4)}, 4)
    assert open_checkpoint(tmp_path) is not None


def test_which_files_hold_the_weights(tmp_path) -> None:
    def names() -> list[str]:
        checkpoint = open_checkpoint(tmp_path)
        return [tensor.name for tensor in checkpoint.tensors] if checkpoint else []

    file_with(tmp_path / "b.safetensors", {"b": entry(0, 4)}, 4)
    file_with(tmp_path / "a.safetensors", {"a": entry(0, 4)}, 4)
    assert names() == ["a", "b"]
    file_with(tmp_path / "model.safetensors", {"c": entry(0, 4)}, 4)
    assert names() == ["c"]
    indexed(tmp_path, b="b.safetensors")
    assert names() == ["b"]


def _outside_by_link(folder: Path) -> None:
    file_with(folder.parent / "secret", {"x": entry(0, 4)}, 4)
    (folder / "model.safetensors").symlink_to(folder.parent / "secret")


def _outside_by_linked_index(folder: Path) -> None:
    indexed(folder, x="a.safetensors")
    (folder / "model.safetensors.index.json").rename(folder.parent / "index")
    (folder / "model.safetensors.index.json").symlink_to(folder.parent / "index")


def _twice(folder: Path) -> None:
    for name in "ab":
        file_with(folder / f"{name}.safetensors", {"x": entry(0, 4)}, 4)


def _named_in_the_wrong_file(folder: Path) -> None:
    for name in "ab":
        file_with(folder / f"{name}.safetensors", {name: entry(0, 4)}, 4)
    indexed(folder, a="b.safetensors", b="a.safetensors")


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a link to a file outside": (_outside_by_link, "W0223"),
    "a link to an index outside": (_outside_by_linked_index, "W0223"),
    "an index that leads upwards": (lambda f: indexed(f, x="../secret"), "W0223"),
    "an index that leads to the root": (lambda f: indexed(f, x="/etc/passwd"), "W0223"),
    "an index that leads to a folder inside": (lambda f: indexed(f, x="inner/a.safetensors"), "W0223"),
    "an index that names the folder": (lambda f: indexed(f, x=".."), "W0223"),
    "an index with NUL": (lambda f: indexed(f, x="a\0b"), "W0223"),
    "an index that names a missing file": (lambda f: indexed(f, x="gone.safetensors"), "W0224"),
    "a broken link": (lambda f: (f / "model.safetensors").symlink_to(f / "gone"), "W0224"),
    "a link to itself": (lambda f: (f / "model.safetensors").symlink_to(f / "model.safetensors"), "W0224"),
    "an index that names other files": (_named_in_the_wrong_file, "W0224"),
    "an empty index": (lambda f: indexed(f), "W0221"),
    "an index that is no JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "W0221"),
    "an index of numbers": (lambda f: indexed(f, x=3), "W0221"),  # type: ignore[arg-type]
    "an index that is a list": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "W0221"),
    "an index nested deeply": (lambda f: (f / "model.safetensors.index.json").write_text("[" * 10**5), "W0221"),
    "an index that is a folder": (lambda f: (f / "model.safetensors.index.json").mkdir(), "W0221"),
    "a pipe": (lambda f: os.mkfifo(f / "model.safetensors"), "W0221"),
    "a folder": (lambda f: (f / "model.safetensors").mkdir(), "W0221"),
    "a tensor in two files": (_twice, "W0229"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_folders_that_are_refused(what: str, tmp_path) -> None:
    make, code = FOLDERS[what]
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    with pytest.raises(UsageError) as caught:
        open_checkpoint(folder)
    assert codes(caught.value) == [code]


def test_a_snapshot_of_the_hubs_cache_is_read_where_it_lies(tmp_path) -> None:
    """And no link from there may lead elsewhere."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    file_with(blobs / "ffff", {"x": entry(0, 4)}, 4)
    (snapshot / "model.safetensors").symlink_to("../../blobs/ffff")
    assert open_checkpoint(snapshot) is not None
    file_with(tmp_path / "models--a--b" / "secret", {"x": entry(0, 4)}, 4)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../secret")
    with pytest.raises(UsageError) as caught:
        open_checkpoint(snapshot)
    assert codes(caught.value) == ["W0223"]


def test_links_inside_of_the_folder_are_followed(tmp_path) -> None:
    file_with(tmp_path / "blob", {"x": entry(0, 4)}, 4)
    (tmp_path / "model.safetensors").symlink_to("blob")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint
    assert [tensor.name for tensor in checkpoint.tensors] == ["x"]


# --- headers --------------------------------------------------------------------------------------------------------

GOOD = {"x": entry(0, 8), "y": entry(8, 12, "F32", [1])}
X = json.dumps(entry(0, 8)).encode()
HEADERS: dict[str, tuple[Any, int, int | None, str]] = {
    "an empty header": (b"", 0, None, "W0221"),
    "a length of 2^63": (GOOD, 12, 1 << 63, "W0221"),
    "a length of 2^64 - 1": (GOOD, 12, (1 << 64) - 1, "W0221"),
    "a length beyond the file": (GOOD, 12, 10_000, "W0221"),
    "a length beyond 100 MB": (b"{}", 200_000_000, 150_000_000, "W0221"),
    "a length that cuts the JSON": (GOOD, 12, 20, "W0221"),
    "no JSON": (b"hello, world", 0, None, "W0221"),
    "no UTF-8": (b'{"\xff": 1}', 0, None, "W0221"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), 12, None, "W0221"),
    "a list": (b"[]", 0, None, "W0221"),
    "a number": (b"1", 0, None, "W0221"),
    "NaN": (b'{"x":{"dtype":"U8","shape":[NaN],"data_offsets":[0,8]}}', 8, None, "W0221"),
    "Infinity": (b'{"x":{"dtype":"U8","shape":[8],"data_offsets":[0,Infinity]}}', 8, None, "W0221"),
    "deep nesting": (b'{"x":' * 10**5, 0, None, "W0221"),
    "deep nesting of lists": (b'{"x":{"shape":' + b"[" * 10**6, 0, None, "W0221"),
    "text behind the JSON": (json.dumps(GOOD).encode() + b"{}", 12, None, "W0221"),
    "a name twice": (b'{"x":%b,"x":%b}' % (X, X), 8, None, "W0221"),
    "a name twice, once escaped": (b'{"x":%b,"\\u0078":%b}' % (X, X), 8, None, "W0221"),
    "a field twice": (b'{"x":{"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]}}', 8, None, "W0221"),
    "a name with NUL": ({"a\0b": entry(0, 8)}, 8, None, "W0221"),
    "a name with a line feed": ({"a\nb": entry(0, 8)}, 8, None, "W0221"),
    "a name of half a character": (b'{"\\ud800":%b}' % json.dumps(entry(0, 8)).encode(), 8, None, "W0221"),
    "an empty name": ({"": entry(0, 8)}, 8, None, "W0221"),
    "a long name": ({"x" * 2000: entry(0, 8)}, 8, None, "W0221"),
    "an unknown dtype": ({"x": entry(0, 8, "Q4_K")}, 8, None, "W0221"),
    "a dtype that is a number": ({"x": entry(0, 8, 3)}, 8, None, "W0221"),  # type: ignore[arg-type]
    "a dtype of another width": ({"x": entry(0, 8, "F32", [8])}, 8, None, "W0221"),
    "a shape of another size": ({"x": entry(0, 8, "U8", [9])}, 8, None, "W0221"),
    "a shape below zero": ({"x": entry(0, 8, "U8", [-2, -4])}, 8, None, "W0221"),
    "a shape of fractions": ({"x": entry(0, 8, "U8", [8.0])}, 8, None, "W0221"),
    "a shape of truths": ({"x": entry(0, 1, "U8", [True])}, 1, None, "W0221"),
    "a shape beyond all numbers": ({"x": entry(0, 8, "U8", [1 << 70])}, 8, None, "W0221"),
    "a shape of many large sizes": ({"x": entry(0, 8, "U8", [(1 << 63) - 1] * 16)}, 8, None, "W0221"),
    "a shape of too many axes": ({"x": entry(0, 1, "U8", [1] * 10**5)}, 1, None, "W0221"),
    "no shape": ({"x": {"dtype": "U8", "data_offsets": [0, 8]}}, 8, None, "W0221"),
    "nothing of a tensor": ({"x": {}}, 8, None, "W0221"),
    "offsets below zero": ({"x": entry(-8, 0, "U8", [8])}, 8, None, "W0221"),
    "offsets in the wrong order": ({"x": entry(8, 0, "U8", [8])}, 8, None, "W0221"),
    "three offsets": ({"x": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}}, 8, None, "W0221"),
    "half a byte": ({"x": entry(0, 1, "F4", [1])}, 1, None, "W0221"),
    "a file cut off": (GOOD, 11, None, "W0222"),
    "bytes behind the last tensor": (GOOD, 13, None, "W0222"),
    "a tensor beyond the file": ({"x": entry(0, 1 << 60)}, 8, None, "W0222"),
    "a gap": ({"x": entry(0, 8), "y": entry(9, 12)}, 12, None, "W0222"),
    "a gap at the start": ({"x": entry(1, 8)}, 8, None, "W0222"),
    "an overlap": ({"x": entry(0, 8), "y": entry(7, 12)}, 12, None, "W0222"),
    "the same bytes twice": ({"x": entry(0, 8), "y": entry(0, 8)}, 8, None, "W0222"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_are_refused(what: str, tmp_path) -> None:
    header, data_bytes, header_bytes, code = HEADERS[what]
    file = file_with(tmp_path / "model.safetensors", header, data_bytes, header_bytes)
    with pytest.raises(UsageError) as caught:
        read_header(file)
    assert codes(caught.value) == [code]
    text = str(caught.value)
    assert len(text) < 2000
    text.encode()


def test_files_that_are_shorter_than_a_length(tmp_path) -> None:
    for length in range(8):
        file = tmp_path / f"{length}.safetensors"
        file.write_bytes(b"\2" * length)
        with pytest.raises(UsageError) as caught:
            read_header(file)
        assert codes(caught.value) == ["W0221"]


def test_unusual_headers_that_are_right(tmp_path) -> None:
    """Padding, facts about the file, tensors without elements or axes, and names that look like fields."""
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "dtype": "U8", "shape": "[8]"},
        "y": entry(8, 12, "F32", []),
        "shape": entry(0, 8, "F4", [4, 4]),
        "none": entry(8, 8, "F64", [3, 0]),
    }
    file = file_with(tmp_path / "model.safetensors", json.dumps(header).encode() + b"   ", 12)
    tensors = read_header(file)
    assert [tensor.name for tensor in tensors] == ["shape", "none", "y"]
    assert [tensor.bytes for tensor in tensors] == [8, 0, 4]
    assert tensors[-1].end == file.stat().st_size


def test_a_million_tensors_are_read_in_seconds(tmp_path) -> None:
    entries = (b'"%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (n, n, n + 1) for n in range(10**6))
    file = file_with(tmp_path / "model.safetensors", b"{%b}" % b",".join(entries), 10**6)
    before = time.process_time()
    assert len(read_header(file)) == 10**6
    assert time.process_time() - before < 20


def _mutated(content: bytes, random: Random) -> bytes:
    """With a few bytes changed, cut out or put in, most of them in the header."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 3)):
        place = random.randrange(min(len(changed), 8 + 400))
        kind = random.randrange(4)
        if kind == 0:
            changed[place] = random.randrange(256)
        elif kind == 1:
            del changed[place]
        elif kind == 2:
            changed.insert(place, random.choice(b'0123456789[]{}",:- \0\xff'))
        else:
            changed[place] = random.choice(b'0123456789[]{}",:-')
    if random.random() < 0.5:  # so that the length still fits, and what comes after is looked at
        changed[:8] = (len(changed) - 8 - 12).to_bytes(8, "little")
    return bytes(changed)


def test_what_is_accepted_is_what_the_library_reads(tmp_path) -> None:
    """A damaged header is refused, or read as the library reads it."""
    random, accepted = Random(0), 0
    text = json.dumps({"__metadata__": {"a": "b"}, **GOOD}, separators=(",", ":")).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(12)
    for index in range(1500):
        damaged = content if index == 0 else _mutated(content, random)
        file = tmp_path / "model.safetensors"
        file.write_bytes(damaged)
        try:
            ours = {tensor.name: tensor for tensor in read_header(file)}
        except UsageError:
            continue
        accepted += 1
        theirs = dict(deserialize(damaged))
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert (tensor.dtype, list(tensor.shape)) == (theirs[name]["dtype"], list(theirs[name]["shape"]))
            assert damaged[tensor.begin : tensor.end] == bytes(theirs[name]["data"])
    assert 25 < accepted < 1000
