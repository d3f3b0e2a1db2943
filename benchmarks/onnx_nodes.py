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
    """By onnxruntime, on the CPU."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=False)))


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
        counts = ", ".join(
            f"{sum(c.name in passing for c in share)} of {len(share)} {what}" for what, share in shares.items()
        )
        print(f"{name:12} {counts}; {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
