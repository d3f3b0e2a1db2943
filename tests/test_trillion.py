"""The road of the largest model on a small sibling of it: weights from a seed, and every layer beside the original."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from ir.diagnostics import UnsupportedModelError, UsageError
from ir.encoding import ENCODINGS, plain
from ir.graph import Parameter
from ir.types import DType, TensorType
from partitioner.api import Request, compile_lowered
from partitioner.frontends.load import load
from partitioner.frontends.original import open_original
from partitioner.frontends.streamed import streamed_model
from partitioner.frontends.weights import open_weights
from partitioner.running.layers import compare_layers, compare_mixture, faults_of
from partitioner.running.mixture import mixture_of
from targets.emulator import Arithmetic, Emulator, Precision, generate
from targets.emulator.encodings import Int4
from targets.emulator.seeded import Seeded
from tests import checkpoints

ROOT = Path(__file__).parent.parent
IDS = torch.tensor([[3, 250, 7]])
INPUTS = {"input_ids": IDS, "position_ids": torch.arange(3)[None]}


def config():
    """A sibling as small as INT4 groups allow, stored as Kimi K2.6 is."""
    text = (ROOT / "partitioner/frontends/models/kimi-k2.6.toml").read_text()
    found = tomllib.loads(text)["config"]
    found["text_config"] |= {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "intermediate_size": 320,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 64,
        "max_position_embeddings": 4096,
    }
    found["vision_config"] |= {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32}
    found["vision_config"]["intermediate_size"] = 64
    return found | {"image_token_id": 511, "video_token_id": 511, "projection_hidden_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sibling")
    (folder / "config.json").write_text(json.dumps(config()))
    return folder


@pytest.fixture(scope="module")
def compiled(folder):
    return compile_lowered(load(str(folder)), Request(target="mini", systems=2, context=64, users=1))


@pytest.fixture(scope="module")
def source(compiled):
    return Seeded(compiled.model.graph.parameter, 5, held=False)


@pytest.fixture(scope="module")
def library(compiled, source):
    return streamed_model(compiled.lowered.origin.config, source)


def emulator(compiled, source, precision, host_bytes=1 << 16):
    arithmetic = Arithmetic.of(compiled.model.graph, precision)
    return Emulator(compiled.model, compiled.plan, source, arithmetic, host_bytes)


# --- weights from a seed --------------------------------------------------------------------------------------------


def parameter(name, shape, dtype=DType.BF16, encoding=None):
    return Parameter(name, TensorType(dtype, shape), ENCODINGS[encoding] if encoding else plain(dtype))


MADE = (
    parameter("a.weight", (384, 1536)),
    parameter("b.weight", (96, 512), DType.F32),
    parameter("c.weight", (96, 512), DType.F16),
    parameter("experts", (3, 64, 256), encoding="int4_g32"),
    parameter("blocks", (3, 64, 256), encoding="mxfp4"),
    parameter("tiles", (200, 256), encoding="fp8_b128"),
    parameter("norm.weight", (512,)),
    parameter("router.bias", (512,), DType.F32),
)


@pytest.mark.parametrize("made", MADE, ids=lambda p: p.name)
def test_made_weights_depend_on_seed_and_name_alone(made):
    whole = Seeded({made.name: made}, 7).read(made.name)
    values = whole.unpack(torch.float32, "cpu")
    assert tuple(whole.shape) == values.shape == made.shape
    assert whole.nbytes == made.stored_bytes
    same = Seeded({made.name: made}, 7, threads=2, held=False).read(made.name)
    assert torch.equal(same.unpack(torch.float32, "cpu"), values)
    other = Seeded({made.name: made}, 8).read(made.name).unpack(torch.float32, "cpu")
    assert not torch.equal(other, values)
    if len(made.shape) == 3:
        part = Seeded({made.name: made}, 7).read(made.name, 2, range(5, 9))
        assert torch.equal(part.unpack(torch.float32, "cpu"), values[2, 5:9])
    elif len(made.shape) == 2:
        part = Seeded({made.name: made}, 7).read(made.name, None, range(5, 9))
        assert torch.equal(part.unpack(torch.float32, "cpu"), values[5:9])


@pytest.mark.parametrize("made", [p for p in MADE if len(p.shape) > 1], ids=lambda p: p.name)
def test_made_matrices_keep_activations_near_one(made):
    values = Seeded({made.name: made}, 7).read(made.name).unpack(torch.float32, "cpu")
    spread = float(values.square().mean().sqrt()) * made.shape[-1] ** 0.5
    assert 0.65 < spread < 1.5
    assert abs(float(values.mean())) < 0.02 / made.shape[-1] ** 0.5, "a mean of the inputs would grow"


def test_the_first_bytes_of_a_made_weight_never_change():
    """Another machine, or a later release, must make the same model."""
    made = MADE[0]
    words = Seeded({made.name: made}, 7).read(made.name).unpack(torch.bfloat16, "cpu").view(torch.int16)
    assert words[0, :4].tolist() == [15480, -17400, 15462, -17203]


def test_integers_cannot_be_made_up():
    table = parameter("table", (4,), DType.I64)
    with pytest.raises(UnsupportedModelError) as refusal:
        Seeded({"table": table}).read("table")
    assert refusal.value.diagnostics[0].code == "W0640"


# --- layer by layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [*Precision])
def test_every_layer_is_the_originals(compiled, source, library, precision):
    told = []
    check = compare_layers(emulator(compiled, source, precision), library, INPUTS, told.append)
    assert [layer.layer for layer in check.layers] == ["embedding", "layers.0", "layers.1", "layers.2", "logits"]
    assert told == list(check.layers)
    assert not list(faults_of(check, "sibling"))
    assert check.layers[2].experts >= 4
    assert check.worst.error < (2e-6 if precision is Precision.FLOAT32 else check.bound)
    if precision is Precision.FLOAT32:
        assert check.tokens == check.reference == check.fed
        assert not check.ties
    else:
        assert check.worst.error > 1e-4, "16-bit values are rounded"


class Wrong(Seeded):
    """One weight of the second layer has another value."""

    def read(self, name, expert=None, rows=None):
        return Seeded(self.parameters, 6 if "layers.1.self_attn.o_proj" in name else 5).read(name, expert, rows)


def test_the_layer_with_a_fault_is_named(compiled, library):
    wrong = Wrong(compiled.model.graph.parameter, 5)
    check = compare_layers(emulator(compiled, wrong, Precision.NATIVE), library, INPUTS)
    errors = {layer.layer: layer.error for layer in check.layers}
    assert [name for name, error in errors.items() if error > check.bound] == ["layers.1"]
    fault = next(faults_of(check, "sibling"))
    assert (fault.code, fault.facts["layer"]) == ("W0641", "layers.1")


def test_the_mixture_of_one_layer_runs_alone(compiled, source, library):
    mixture = mixture_of(compiled.model, compiled.plan, 1)
    held = Seeded(compiled.model.graph.parameter, 5)
    arithmetic = Arithmetic.of(mixture.model.graph, Precision.NATIVE)
    alone = Emulator(mixture.model, mixture.plan, held, arithmetic)
    hidden = torch.randn(1, 24, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = compare_mixture(alone, library, mixture, hidden)
    assert found.experts == 16
    assert alone.held_bytes == mixture.model.weight_bytes
    assert found.error < 4 * 2**-8
    with pytest.raises(UsageError) as refusal:
        mixture_of(compiled.model, compiled.plan, 0)
    assert refusal.value.diagnostics[0].code == "W0642"


# --- a checkpoint with the same weights -----------------------------------------------------------------------------


def published(found, source):
    """The seed's weights of the text model under the publisher's names, and others for the vision tower."""
    spec = checkpoints.kimi_k26(found)
    tensors = checkpoints.values(spec)
    stacks = {}
    for name in spec:
        base, _, part = name.rpartition("_") if ".experts." in name else (name, "", "")
        if not base.startswith("language_model."):
            continue
        ours = base.removeprefix("language_model.").replace("model.", "model.language_model.", 1)
        if part and part != "shape":
            path, _, rest = ours.partition(".experts.")
            expert, matrix, _ = rest.split(".")
            stack = f"{path}.experts.{'down_proj' if matrix == 'down_proj' else 'gate_up_proj'}"
            if (stack, expert) not in stacks:
                stacks[stack, expert] = source.read(stack, int(expert), range(source.shape(stack)[1]))
            stored = stacks[stack, expert]
            assert isinstance(stored, Int4)
            values = stored.words if part == "packed" else stored.scales
            half = len(values) // 2
            rows = {"gate_proj": slice(0, half), "up_proj": slice(half, None), "down_proj": slice(None)}[matrix]
            tensors[name] = values[rows].contiguous()
        elif not part:
            dtype = torch.float32 if "correction" in name else torch.bfloat16
            tensors[name] = source.read(ours).unpack(dtype, "cpu")
    return tensors


def test_a_checkpoint_with_the_seeds_bytes_gives_the_same_tokens(compiled, source, tmp_path):
    found = config()
    folder = checkpoints.write(tmp_path / "checkpoint", found, published(found, source))
    stored = load(str(folder))
    weights = open_weights(stored.origin, compiled.model.placed).source
    runs = [generate(emulator(compiled, it, Precision.NATIVE), [3, 250, 7], 4) for it in (source, weights)]
    assert runs[0].tokens == runs[1].tokens
    assert all(torch.equal(a, b) for a, b in zip(runs[0].logits, runs[1].logits, strict=True))


def test_the_demo_runs_on_a_small_sibling(compiled, tmp_path):
    compiled.save(tmp_path / "plan")
    command = [sys.executable, "-m", "benchmarks.trillion", str(tmp_path / "plan"), "--json", "--threads", "1"]
    done = subprocess.run([*command, "--ids", "3,250,7"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["ok"]
    assert record["counters"] == record["predicted_counters"]
    assert record["layers"] == 5


def test_a_model_too_large_for_memory_has_made_weights_and_an_original_all_the_same(compiled, source, monkeypatch):
    monkeypatch.setattr("partitioner.frontends.weights._SHARE_OF_MEMORY", 1e-9)
    origin = compiled.lowered.origin
    origin = type(origin)(origin.kind, origin.config)
    weights = open_weights(origin, compiled.model.placed, 5)
    assert weights.note == "weights made from seed 5"
    original = open_original(origin, compiled.model.placed, 5, weights=weights)
    (theirs,) = original.forward(INPUTS)
    (ours,) = emulator(compiled, weights.source, Precision.FLOAT32).step(INPUTS).values()
    assert torch.allclose(ours, theirs, atol=1e-4)
