"""The model as its own library runs it: the source of weights for a run, and the reference to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ir.diagnostics import Diagnostic, Fact, UsageError
from ir.graph import Parameter
from partitioner.frontends.lowered import Origin

_MOST_WEIGHT_BYTES = 8 << 30
Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Original:
    """Weights by parameter name, and the original's own forward: inputs by name -> outputs in order; ``module`` is the
    library's own model where there is one.
    """

    weights: Mapping[str, torch.Tensor]
    forward: Callable[[Outputs], list[torch.Tensor]]
    note: str
    module: torch.nn.Module | None = None


def open_original(
    origin: Origin, parameters: tuple[Parameter, ...], seed: int, *, trust_code: bool = False
) -> Original:
    """The original of a plan, with a checkpoint's weights where there is one, else random ones from ``seed``;
    ``trust_code`` lets a file be opened that can run code.

    Raises:
        UsageError: W0610, its weights do not fit in this computer's memory; W0611, the checkpoint is not that of the
            plan any more; W0612, a model of this kind cannot be found again; W0202 or W0203 for ONNX files; W0220 to
            W0230 for checkpoints.
        UnsupportedModelError: W0225 to W0229 for checkpoints.
    """
    needed = sum(p.elements * p.type.dtype.bits // 8 for p in parameters)
    if needed > _MOST_WEIGHT_BYTES:
        facts = {"bytes_needed": needed, "bytes_allowed": _MOST_WEIGHT_BYTES}
        raise UsageError(Diagnostic("W0610", "the model is too large to run here", facts=facts))
    if origin.kind == "config":
        return _from_config(origin, parameters, seed)
    if origin.kind == "onnx":
        return _from_onnx(origin)
    if origin.kind == "exported":
        return _from_program(origin, trust_code=trust_code)
    help_ = ("plans of modules are run from Python: waferc.compile(module, inputs).run(inputs)",)
    raise UsageError(Diagnostic("W0612", f"a plan of kind {origin.kind!r} holds no weights", help=help_))


def _from_config(origin: Origin, parameters: tuple[Parameter, ...], seed: int) -> Original:
    from partitioner.frontends.huggingface import build_model
    from partitioner.frontends.tasks import step_inputs, step_outputs
    from partitioner.frontends.vision import PICTURE, features_of, picture_of

    _require_same_weights(build_model(origin.config, torch.device("meta")), parameters)
    torch.manual_seed(seed)
    model = build_model(origin.config, torch.device("cpu"))
    has_checkpoint = bool(origin.path) and _load_checkpoint(model, Path(origin.path), parameters)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    note = f"weights from {origin.path}" if has_checkpoint else f"random weights from seed {seed}"

    has_tower = not any(it.name == PICTURE for it in step_inputs(model))

    def forward(inputs: Outputs) -> list[torch.Tensor]:
        with torch.no_grad():
            if PICTURE not in inputs or not has_tower:
                return list(step_outputs(model, inputs))
            text = {name: tensor for name, tensor in inputs.items() if name != PICTURE}
            return [*step_outputs(model, text), *features_of(model, picture_of(model).sizes, inputs[PICTURE])]

    return Original({name: tensor.detach() for name, tensor in tensors.items()}, forward, note, model)


def _require_same_weights(model: Any, parameters: tuple[Parameter, ...]) -> None:
    """Refuse a configuration that builds another model than the plan's, before any memory is taken for it."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for parameter in parameters:
        built = tensors.get(parameter.name)
        if built is None or tuple(built.shape) != parameter.shape:
            facts: dict[str, Fact] = {
                "planned": str(parameter.shape),
                "built": str(built if built is None else tuple(built.shape)),
            }
            raise UsageError(Diagnostic("W0611", "the configuration is not that of the plan", parameter.name, facts))
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > _MOST_WEIGHT_BYTES:
        facts = {"bytes_needed": total, "bytes_allowed": _MOST_WEIGHT_BYTES}
        raise UsageError(Diagnostic("W0610", "the model is too large to run here", facts=facts))


def _load_checkpoint(model: Any, folder: Path, parameters: tuple[Parameter, ...]) -> bool:
    """Give the library's own model the folder's weights, unpacked exactly; whether there are any."""
    from partitioner.frontends.checkpoint import load_weights, match_checkpoint, open_checkpoint

    if not folder.is_dir():
        raise UsageError(Diagnostic("W0611", "the checkpoint's folder is not there any more", str(folder)))
    checkpoint = open_checkpoint(folder)
    if checkpoint is None:
        return False
    match = match_checkpoint(model, checkpoint)
    for parameter in parameters:
        stored = match.encodings.get(parameter.name, parameter.encoding)
        if stored != parameter.encoding:
            facts: dict[str, Fact] = {"planned": parameter.encoding.name, "stored": stored.name}
            message = "the checkpoint has changed since it was compiled"
            raise UsageError(Diagnostic("W0611", message, parameter.name, facts))
    load_weights(model, match)
    return True


def _from_program(origin: Origin, *, trust_code: bool) -> Original:
    from partitioner.frontends.program import lower_program, open_program, outputs_of

    path = Path(origin.path)
    try:
        changed = hashlib.sha256(path.read_bytes()).hexdigest() != origin.sha256
    except OSError as error:
        raise UsageError(Diagnostic("W0611", f"the program cannot be read: {error.strerror}", origin.path)) from None
    if changed:
        raise UsageError(Diagnostic("W0611", "the program has changed since it was compiled", origin.path))
    program = open_program(path, trust_code=trust_code)
    weights = lower_program(program, path.stem, origin).weights
    return Original(weights, lambda inputs: outputs_of(program, inputs), f"weights from {origin.path}")


def _from_onnx(origin: Origin) -> Original:
    from partitioner.frontends.onnx_file import read_weights, reference_outputs
    from partitioner.frontends.onnx_file.arrays import to_torch

    path = Path(origin.path)
    try:
        changed = hashlib.sha256(path.read_bytes()).hexdigest() != origin.sha256
    except OSError as error:
        raise UsageError(Diagnostic("W0611", f"the ONNX file cannot be read: {error.strerror}", origin.path)) from None
    if changed:
        raise UsageError(Diagnostic("W0611", "the ONNX file has changed since it was compiled", origin.path))
    weights = {name: to_torch(torch, array) for name, array in read_weights(path).items()}

    def forward(inputs: Outputs) -> list[torch.Tensor]:
        arrays, _ = reference_outputs(path, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(array.copy()) for array in arrays]

    return Original(weights, forward, f"weights from {origin.path}")
