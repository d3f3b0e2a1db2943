"""``waferc verify``: plan and original side by side, layer by layer, and that a wrong weight is found where it lies."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import waferc as library
from partitioner.frontends.weights import Weights
from partitioner.running.setup import How, open_plan
from partitioner.running.verify import verify_plan
from targets.emulator.weights import Plain

LAYERS = ["embedding", "layers.0", "layers.1", "layers.2"]


@dataclass(frozen=True)
class Corrupted:
    """A source of weights of which one has one wrong element."""

    source: object
    name: str
    change: float = 0.5

    def shape(self, name):
        return self.source.shape(name)

    def read(self, name, expert=None, rows=None):
        stored = self.source.read(name, expert, rows)
        if name != self.name:
            return stored
        tensor = stored.unpack(torch.float32, "cpu").clone()
        tensor.view(-1)[5] += self.change
        return Plain(tensor)


def verified(folder, how=How(), corrupt=None, **options):  # noqa: B008 - frozen
    """A verification of a plan, some weights of which the emulator alone has wrong."""
    opened = open_plan(folder).opened(how)
    assert opened.original.weights.shape
    if corrupt:
        opened.__dict__["weights"] = Weights(Corrupted(opened.weights.source, corrupt), "")
    return verify_plan(opened, **options)


def test_each_layer_is_that_of_the_original(waferc, text_plan):
    done = waferc("verify", text_plan, "--json")
    record = done.record
    assert (done.code, record["ok"], record["reference"], record["first_wrong"]) == (0, True, "torch", None)
    assert [row["layer"] for row in record["layers"]] == LAYERS
    assert record["unseen_layers"] == []
    assert [row["wafer"] for row in record["layers"]] == [0, 0, 1, 1]
    assert all(0 <= row["error"] <= row["tolerance"] < 1e-2 < row["greatest"] for row in record["layers"])
    assert record["layers"][3]["error"] > 0
    assert len(record["prompt_ids"][0]) > 4, "longer than the plan's prefill chunk"
    assert record["tokens"] == record["reference_tokens"]
    assert record["tokens_equal"] is True


def test_verify_shows_a_table(waferc, text_plan):
    done = waferc("verify", text_plan, "--prompt-ids", "1,5;3", "--tokens", 2)
    assert done.code == 0
    for text in (*LAYERS, "logits", "wafer", "allowed", "4 tokens, all the original's", "the same as the original"):
        assert text in done.out


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.mlp.down_proj.weight", "layers.0"),
        ("model.layers.1.self_attn.k_proj.weight", "layers.1"),
        ("model.layers.2.input_layernorm.weight", "layers.2"),
        ("lm_head.weight", "logits"),
    ],
)
def test_a_wrong_weight_is_found_in_its_layer(text_plan, weight, layer):
    found = verified(text_plan, corrupt=weight, prompts=((5, 0, 7, 9, 2, 1),), tokens=2)
    assert not found.ok
    assert found.first_wrong.layer == layer


def test_a_wrong_weight_ends_with_6(waferc, text_plan, monkeypatch):
    import partitioner.running.setup as setup

    open_weights = setup.open_weights

    def corrupted(*arguments, **options):
        found = open_weights(*arguments, **options)
        return Weights(Corrupted(found.source, "model.layers.1.mlp.up_proj.weight"), found.note)

    def unharmed(origin, parameters, seed, *, weights, trust_code):
        return open_original(origin, parameters, seed, trust_code=trust_code)

    open_original = setup.open_original
    monkeypatch.setattr(setup, "open_weights", corrupted)
    monkeypatch.setattr(setup, "open_original", unharmed)
    done = waferc("verify", text_plan, "--tokens", 2, "--json")
    assert (done.code, done.codes, done.record["exit_code"]) == (6, ["W0663"], 6)
    assert done.record["first_wrong"] == "layers.1"
    (fault,) = done.record["diagnostics"]
    assert "first in layers.1" in fault["message"]
    assert fault["facts"]["error"] > fault["facts"]["tolerance"]
    assert [row["ok"] for row in done.record["layers"]] == [True, True, False, False]
    plain = waferc("verify", text_plan, "--tokens", 2)
    assert plain.code == 6
    assert "wrong" in plain.out
    assert "error[W0663]" in plain.err
    run = waferc("run", text_plan, "--prompt-ids", "1,5,9", "--compare", "--json")
    assert (run.code, run.codes) == (6, ["W0620"])
    assert run.record["tokens"], "what was generated is told even so"


@pytest.mark.parametrize("reference", ["torch", "onnxruntime", "onnx"])
def test_layers_of_an_onnx_file(waferc, onnx_plan, reference):
    record = waferc("verify", onnx_plan, "--reference", reference, "--json").record
    assert (record["ok"], record["reference"], record["unseen_layers"]) == (True, reference, [])
    assert [row["layer"] for row in record["layers"]] == ["layers.0", "layers.1"]
    assert [row["value"] for row in record["outputs"]] == ["x3"]
    wrong = verified(onnx_plan, corrupt="w1", asked=reference)
    assert (wrong.ok, wrong.first_wrong.layer) == (False, "layers.1")


def test_native_precision_is_verified_within_its_bound(text_plan):
    found = verified(text_plan, How(precision="native"), tokens=3)
    assert found.ok
    assert max(place.error for place in found.places) > 1e-4


def test_a_module_is_verified_from_python():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    placed = library.compile(module, (torch.randn(4, 32),), target="mini", systems=1)
    assert placed.verify().ok
    assert placed.opened().run(compare="auto").ok


def test_a_damaged_checkpoint_is_refused(waferc, text_plan, tmp_path):
    """Whatever happened to the checkpoint since the plan was made, no run begins with it."""
    folder = shutil.copytree(text_plan.parent / "small-llama", tmp_path / "model")
    plan = shutil.copytree(text_plan, tmp_path / "plan")
    origin = json.loads((plan / "model.json").read_text())
    text = json.dumps({**origin, "path": str(folder)})
    (plan / "model.json").write_text(text)
    assert waferc("verify", plan, "--json").codes == ["W0511"], "the plan's files are not those of its manifest"
    weights = text_plan.parent / "small-llama" / "model.safetensors"
    kept = weights.read_bytes()
    try:
        for damaged in (kept[:-100], b"\xff" * 64 + kept[64:]):
            weights.write_bytes(damaged)
            for command in (("verify", text_plan), ("run", text_plan, "--prompt-ids", "1")):
                done = waferc(*command, "--json")
                assert (done.code, done.codes[0][:4]) == (2, "W022"), done.out
    finally:
        weights.write_bytes(kept)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--reference", "tensorflow"), "W0661"),
        (("--reference", "onnx"), "W0661"),
        (("--tokens", 0), "W0103"),
        (("--prompt-ids", "1,120"), "W0604"),
        (("--prompt-ids", "1;2;3;4"), "W0660"),
        (("--prompt-ids", "1", "--inputs", "x.npz"), "W0104"),
        (("--inputs", "none.npz"), "W0614"),
        (("--precision", "half"), "W0104"),
    ],
)
def test_bad_questions_are_refused(waferc, text_plan, arguments, code):
    done = waferc("verify", text_plan, *arguments, "--json")
    assert (done.code, done.codes) == (2, [code]), done.out


def test_inputs_of_a_file_are_verified(waferc, onnx_plan, tmp_path):
    np.savez(tmp_path / "x.npz", x0=np.ones((4, 32), np.float32))
    assert waferc("verify", onnx_plan, "--inputs", tmp_path / "x.npz", "--json").record["ok"] is True
    np.savez(tmp_path / "x.npz", x0=np.ones((4, 32), np.float64))
    assert waferc("verify", onnx_plan, "--inputs", tmp_path / "x.npz", "--json").codes == ["W0609"]
