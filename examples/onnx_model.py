"""Write a small ONNX model, compile it, and run it on emulated tiles beside ONNX's own reference."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

import waferc

TEXT = """
<ir_version: 9, opset_import: ["" : 20]>
mlp (float[users, 32] x) => (float[users, 8] y) <float[32, 64] up, float[64] scale, float[64] shift, float[64, 8] down>
{
    h = MatMul (x, up)
    r = Relu (h)
    n = LayerNormalization <axis = -1> (r, scale, shift)
    d = MatMul (n, down)
    y = Softmax <axis = -1> (d)
}
"""

model = onnx.parser.parse_model(TEXT)
random = np.random.default_rng(0)
shapes = {"up": (32, 64), "scale": (64,), "shift": (64,), "down": (64, 8)}
weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mlp.onnx"
    onnx.save(model, path)
    placed = waferc.compile(path, target="mini", systems=2)
    x = random.standard_normal((3, 32)).astype(np.float32)
    (result,) = placed.run(torch.from_numpy(x))

(reference,) = ReferenceEvaluator(model).run(None, {"x": x})
for block in placed.plan.blocks:
    print(f"{block.name:6} wafer {block.wafer}, {block.region.columns} x {block.region.rows} tiles")
print("same result:", np.allclose(result, reference, atol=1e-6))
