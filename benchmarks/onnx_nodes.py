"""How many of ONNX's own node tests pass: here, in ONNX's reference and in onnxruntime, compared in the same way.

python benchmarks/onnx_nodes.py [waferc] [reference] [onnxruntime]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from onnx_nodes import COMMON_TYPES, Run, element_types, fault, is_expanded, is_of_transformers, load  # noqa: E402


def by_waferc(model: onnx.ModelProto, inputs: list[Any]) -> Sequence[Any]:
    """Through lowering and the graph's reference meaning."""
    from partitioner.frontends.onnx_file import backend

    return backend.prepare(model).run(inputs)


def by_reference(model: onnx.ModelProto, inputs: list[Any]) -> Sequence[Any]:
    """ONNX's own evaluator in numpy."""
    from onnx.reference import ReferenceEvaluator

    names = [value.name for value in model.graph.input]
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=False)))


def by_onnxruntime(model: onnx.ModelProto, inputs: list[Any]) -> Sequence[Any]:
    """By onnxruntime, on the CPU; it takes types that numpy lacks as bits."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip([value.name for value in session.get_inputs()], inputs, strict=False))
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    if not types & _AS_BITS.keys():
        return session.run(None, feeds)
    given = {name: _ort_value(np.asarray(array)) for name, array in feeds.items()}
    return [_from_ort_value(value) for value in session.run_with_ort_values(None, given)]


_AS_BITS = {onnx.TensorProto.BFLOAT16: np.uint16}
_AS_BITS |= {
    getattr(onnx.TensorProto, f"FLOAT8{kind}"): np.uint8 for kind in ("E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ")
}


def _ort_value(array: np.ndarray) -> Any:
    from onnxruntime import OrtValue

    type_ = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    if type_ not in _AS_BITS:
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(_AS_BITS[type_]), type_)


def _from_ort_value(value: Any) -> np.ndarray:
    type_ = value.element_type()
    if type_ not in _AS_BITS:
        return value.numpy()
    import torch

    own = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(type_))
    if type_ != onnx.TensorProto.BFLOAT16:
        return value.numpy().view(own)
    return torch.from_dlpack(value._ortvalue.to_dlpack()).view(torch.int16).numpy().view(own)


RUNS: dict[str, Run] = {"waferc": by_waferc, "reference": by_reference, "onnxruntime": by_onnxruntime}


def main(names: Sequence[str]) -> None:
    """Print a line for each implementation."""
    warnings.simplefilter("ignore")
    cases = load()
    transformer = [case for case in cases if is_of_transformers(case)]
    common = [case for case in transformer if element_types(case) <= COMMON_TYPES]
    shares = {"all": cases, "of transformer operators": transformer, "of these in common types": common}
    shares |= {f"{what}, none expanded": [c for c in share if not is_expanded(c)] for what, share in shares.items()}
    for name in names or RUNS:
        begin = time.perf_counter()
        passing = {case.name for case in cases if fault(case, RUNS[name]) is None}
        seconds = time.perf_counter() - begin
        print(f"{name}, {seconds:.1f} s")
        for what, share in shares.items():
            print(f"  {sum(case.name in passing for case in share):5} of {len(share):5} {what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
