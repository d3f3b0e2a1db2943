"""Compile a PyTorch module onto two small wafers, run it on emulated tiles, and compare."""

import torch
from torch import nn

import waferc

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 64), nn.Softmax(dim=-1))
example = torch.randn(4, 64)

placed = waferc.compile(module, (example,), target="mini", systems=2)
for block in placed.plan.blocks:
    print(f"{block.name:5} wafer {block.wafer}, {block.region.columns} x {block.region.rows} tiles")

(result,) = placed.run(example)
print("same result:", torch.allclose(result, module(example), atol=1e-6))
