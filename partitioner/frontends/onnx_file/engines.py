"""Who runs an ONNX file as it is: onnx's own reference, or onnxruntime where that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from ir.diagnostics import Diagnostic, UsageError

Array: TypeAlias = npt.NDArray[Any]
_FATAL = 4
"""The level of messages from which on onnxruntime prints."""


def has_onnxruntime() -> bool:
    """Whether onnxruntime can be imported."""
    return importlib.util.find_spec("onnxruntime") is not None


def run_file(
    engine: str, path: Path, feeds: Mapping[str, Array], inner: Collection[str]
) -> tuple[list[Array], dict[str, Array]]:
    """The outputs of the file at ``path`` in order, and its tensors named in ``inner``, as far as they can be had.

    Args:
        engine: ``onnx`` or ``onnxruntime``.
        path: the file, which has been opened before and found sound.
        feeds: the file's inputs by name.
        inner: names of tensors; those that the file does not have are left out.

    Raises:
        UsageError: W0615, the engine cannot run the file; W0661, it is not installed.
    """
    if engine == "onnx":
        return _by_reference(path, feeds, inner)
    if not has_onnxruntime():
        help_ = ("pip install onnxruntime", "--reference onnx needs nothing more")
        raise UsageError(Diagnostic("W0661", "onnxruntime is not installed", "onnxruntime", help=help_))
    return _by_onnxruntime(path, feeds, inner)


def _by_reference(
    path: Path, feeds: Mapping[str, Array], inner: Collection[str]
) -> tuple[list[Array], dict[str, Array]]:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import RuntimeContextError

    try:
        evaluator = ReferenceEvaluator(str(path))
        found: dict[str, Any] = evaluator.run(None, dict(feeds), intermediate=True)
    except (NotImplementedError, RuntimeContextError) as error:
        raise _cannot("onnx's reference", error, path) from None
    outputs = [np.asarray(found[name]) for name in evaluator.output_names]
    return outputs, {name: found[name] for name in inner if isinstance(found.get(name), np.ndarray)}


def _by_onnxruntime(
    path: Path, feeds: Mapping[str, Array], inner: Collection[str]
) -> tuple[list[Array], dict[str, Array]]:
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    try:
        model = onnx.load(str(path))
        own = [value.name for value in model.graph.output]
        computed = {name for node in model.graph.node for name in node.output}
        further = sorted(computed.intersection(inner) - set(own))
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in further)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run([*own, *further], dict(feeds))
    except (EncodeError, ValueError, RuntimeError, *_faults_of(ort)) as error:
        raise _cannot("onnxruntime", error, path) from None
    named = dict(zip([*own, *further], found, strict=True))
    return [np.asarray(named[name]) for name in own], {n: named[n] for n in inner if n in named}


def _faults_of(ort: Any) -> tuple[type[Exception], ...]:
    """What onnxruntime raises: classes of its own, without a common one."""
    state = ort.capi.onnxruntime_pybind11_state
    return tuple(it for it in vars(state).values() if isinstance(it, type) and issubclass(it, Exception))


def _cannot(engine: str, error: Exception, path: Path) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    help_ = ("compare with another reference, or run the plan without --compare",)
    return UsageError(Diagnostic("W0615", f"{engine} cannot run this file: {reason}", str(path), help=help_))
