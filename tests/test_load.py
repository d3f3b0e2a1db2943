"""What a user may call a model: names of the catalogue, folders, configurations and ONNX files; all else is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from ir.diagnostics import ExitCode, UnsupportedModelError, UsageError
from partitioner.frontends.catalog import catalog, configuration
from partitioner.frontends.load import load

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "dtype": "float32",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
}


def code_of(model: object) -> str:
    with pytest.raises(UsageError) as caught:
        load(str(model))
    assert caught.value.exit_code is ExitCode.USAGE
    (fault,) = caught.value.diagnostics
    assert "\n" not in fault.message
    return fault.code


def test_every_bundled_model_has_a_description_and_a_configuration() -> None:
    names = catalog()
    assert list(names) == sorted(names)
    assert {"kimi-k2.6", "deepseek-v3", "llama-3.3-70b", "small-kimi"} <= names.keys()
    for name, description in names.items():
        config = configuration(name)
        assert description and config and isinstance(config["model_type"], str)
        assert "auto_map" not in json.dumps(config)
    assert configuration("no-such-model") is None


def test_names_are_not_paths() -> None:
    for name in ("../models/small-kimi", "small-kimi.toml", "models/small-kimi", "", "*"):
        assert configuration(name) is None


def test_a_folder_and_its_configuration_are_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    from_folder = load(str(folder))
    assert from_folder.graph.name == "my-model"
    assert (from_folder.origin.kind, from_folder.origin.config, from_folder.origin.path) == (
        "config",
        CONFIG,
        str(folder),
    )
    assert (from_folder.max_context, from_folder.notes) == (48, ())

    from_file = load(str(folder / "config.json"))
    assert (from_file.graph, from_file.origin.path) == (from_folder.graph, "")

    other = tmp_path / "other.json"
    other.write_text(json.dumps(CONFIG))
    assert load(str(other)).graph.name == "other"

    monkeypatch.chdir(folder)
    assert load(".").graph == load("config.json").graph == from_folder.graph


def test_a_name_of_the_catalogue_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "small-kimi"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedModelError, match="W0204"):
        load("./small-kimi")
    config = configuration("small-kimi")
    loaded = load("small-kimi")
    assert (loaded.origin.config, loaded.origin.path) == (config, "")


def test_an_onnx_file(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", value[:1], value[1:])
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    loaded = load(str(path))
    assert [node.op for node in loaded.graph.nodes] == ["relu"]
    assert (loaded.origin.kind, loaded.origin.path) == ("onnx", str(path))


def test_close_names_are_suggested() -> None:
    for given, meant in {"kimi-k2": "kimi-k2.6", "Llama-3.1-8B": "llama-3.1-8b", "deepseek_v3": "deepseek-v3"}.items():
        with pytest.raises(UsageError) as caught:
            load(given)
        assert caught.value.diagnostics[0].code == "W0101"
        assert meant in caught.value.diagnostics[0].help[0]
    with pytest.raises(UsageError) as caught:
        load("nothing at all like it")
    (help_,) = caught.value.diagnostics[0].help
    assert "waferc models" in help_


@pytest.mark.parametrize("name", ["no/such/folder", "no-such.onnx", "config.json", "x" * 5000, "a\0b", "\ud800", "🦙"])
def test_what_is_not_there_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(name) == "W0101"


CONTENTS: dict[str, bytes] = {
    "no JSON": b"{",
    "nothing": b"",
    "no object": b"[1, 2]",
    "a number": b"7",
    "no text": b"\xff\xfe\x00\x01",
    "too deep": b"[" * 200_000,
    "too deep for a model": b'{"model_type": "llama", "a": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a number without end": b'{"model_type": ' + b"9" * 5000 + b"}",
    "too large": b"{}" + b" " * (16 << 20),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_configurations_that_are_none_are_told(what: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(CONTENTS[what])
    assert code_of(path) == code_of(tmp_path) == "W0102"


def test_folders_without_a_configuration_are_told(tmp_path: Path) -> None:
    assert code_of(tmp_path) == "W0102"
    (tmp_path / "config.json").mkdir()
    assert code_of(tmp_path) == "W0102"


def test_files_that_are_no_model_are_told(tmp_path: Path) -> None:
    for name, content in {"weights.bin": b"\x80\x02}q\x00.", "readme.md": b"# hello", "empty.onnx": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert code_of(tmp_path / name) == "W0202"


def test_a_configuration_that_is_refused_is_told_as_the_models_fault(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "model_type": "llamma"}))
    with pytest.raises(UnsupportedModelError, match="W0204") as caught:
        load(str(path))
    assert caught.value.exit_code is ExitCode.UNSUPPORTED_MODEL
