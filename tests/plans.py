"""Two small plans for tests of runs: a language model with checkpoint and tokenizer, and an ONNX file."""

from pathlib import Path

import numpy as np

WORDS = ("wafers", "hold", "every", "weight")
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 120,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "dtype": "float32",
}


def compile_llama(waferc, shared: Path) -> Path:
    """A language model of three layers for three users on two wafers, with a file of tests: the plan's folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, plan = shared / "small-llama", shared / "small-llama-plan"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    options = ("--users", 3, "--context", 32, "--prefill-chunk", 4, "--tests")
    done = waferc("compile", folder, "--target", "mini", "--systems", 2, *options, "-o", plan)
    assert done.code == 0, done.err
    return plan


def compile_mlp(waferc, shared: Path) -> Path:
    """Three products of an ONNX file, each on a wafer of its own: the plan's folder."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    file, plan = shared / "mlp.onnx", shared / "mlp-plan"
    rng, nodes, weights = np.random.default_rng(0), [], []
    for i in range(3):
        weights.append(numpy_helper.from_array(rng.standard_normal((32, 32), dtype=np.float32) / 4, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"], name=f"/layers.{i}/MatMul"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"x{i + 1}"], name=f"/layers.{i}/Relu"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 32]) for name in ("x0", "x3")]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    done = waferc("compile", file, "--target", "mini", "--apart", "layers.0.*,layers.1.*,layers.2.*", "-o", plan)
    assert done.code == 0, done.err
    return plan
