"""Matching checkpoints of full published size: files that hold headers alone, so that they take no disk.

    python benchmarks/checkpoints.py [MODEL ...]

For each model a row: tensors, bytes as stored, seconds to read the headers and to match them, and the most memory that
the process took (the model of transformers on the ``meta`` device included).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import checkpoints  # noqa: E402
import torch  # noqa: E402

from partitioner.frontends.catalog import configuration  # noqa: E402
from partitioner.frontends.checkpoint import match_checkpoint, open_checkpoint  # noqa: E402
from partitioner.frontends.huggingface import build_model  # noqa: E402


def _with_prediction(config: dict[str, Any]) -> checkpoints.Spec:
    """As published: with a further layer, which transformers ignores."""
    return checkpoints.deepseek_v3({**config, "num_nextn_predict_layers": 1})


MODELS: dict[str, tuple[Callable[[dict[str, Any]], checkpoints.Spec], int]] = {
    "kimi-k2.6": (checkpoints.kimi_k26, 64),
    "deepseek-v3": (_with_prediction, 163),
    "gpt-oss-120b": (checkpoints.gpt_oss, 15),
    "gpt-oss-20b": (checkpoints.gpt_oss, 3),
    "llama-3.1-405b": (checkpoints.llama, 191),
    "llama-3.1-8b": (checkpoints.llama, 4),
    "qwen3-235b-a22b": (checkpoints.qwen3_moe, 118),
    "mixtral-8x7b": (checkpoints.mixtral, 19),
}


def measure(name: str) -> None:
    """Print the row of one model."""
    config = configuration(name)
    assert config is not None
    spec, shards = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoints.write_headers(Path(folder), config, spec(config), shards)
        model = build_model(config, torch.device("meta"), traced=True)
        begin = time.perf_counter()
        checkpoint = open_checkpoint(path)
        assert checkpoint is not None
        opened = time.perf_counter()
        match = match_checkpoint(model, checkpoint)
        end = time.perf_counter()
    tensors = model.state_dict()
    held = sum(encoding.bytes(tuple(tensors[name].shape)) for name, encoding in match.encodings.items())
    ignored = sum(part.bytes for weight in match.ignored for part in weight.parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"{name:16} {len(checkpoint.tensors):8,} {checkpoint.bytes:18,} {held:18,} {ignored:15,}"
        f" {opened - begin:8.2f} {end - opened:8.2f} {peak:8,.0f}",
        flush=True,
    )


def main() -> None:
    """One process for each model, so that each has its own peak."""
    names = sys.argv[1:] or list(MODELS)
    if len(names) == 1:
        measure(names[0])
        return
    print(
        f"{'model':16} {'tensors':>8} {'stored B':>18} {'weights B':>18} {'ignored B':>15}   open s  match s  peak MB"
    )
    sys.stdout.flush()
    for name in names:
        subprocess.run([sys.executable, __file__, name], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
