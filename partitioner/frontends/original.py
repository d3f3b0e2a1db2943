"""The model as its own library runs it, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ir.graph import Parameter
from partitioner.frontends.lowered import Origin
from partitioner.frontends.weights import Weights, fits_memory, open_weights, require_unchanged
from targets.emulator.weights import WeightSource

Outputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Original:
    """The original with its weights.

    Attributes:
        weights: by parameter name, as they are stored.
        forward: the original's own: inputs by name -> outputs in order.
        note: where the weights are from, to be told to users.
        module: the library's own model where there is one.
    """

    weights: WeightSource
    forward: Callable[[Outputs], list[torch.Tensor]]
    note: str
    module: torch.nn.Module | None = None


def open_original(
    origin: Origin,
    parameters: tuple[Parameter, ...],
    seed: int = 0,
    *,
    weights: Weights | None = None,
    trust_code: bool = False,
) -> Original:
    """The original of a plan with its ``weights``, which are those of :func:`open_weights` if none are given.

    The library's own models compute in f32, whatever type their checkpoint has, with weights unpacked exactly; those
    that do not fit in this computer's memory read them when they need them. Programs and ONNX files compute in the
    types that they state.

    Raises:
        UsageError: as :func:`open_weights`.
        UnsupportedModelError: as :func:`open_weights`.
    """
    weights = weights or open_weights(origin, parameters, seed, trust_code=trust_code)
    if origin.kind == "config":
        return _from_config(origin, weights, seed)
    forward = _of_onnx(origin) if origin.kind == "onnx" else _of_program(origin, trust_code=trust_code)
    return Original(weights.source, forward, weights.note)


def streamed_original(origin: Origin, weights: Weights) -> Original:
    """The original of a model of any size; see :mod:`partitioner.frontends.streamed`."""
    from partitioner.frontends.streamed import streamed_model
    from partitioner.frontends.tasks import step_outputs

    module = streamed_model(origin.config, weights.source)

    def forward(inputs: Outputs) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(step_outputs(module, inputs))

    return Original(weights.source, forward, weights.note, module)


def _from_config(origin: Origin, weights: Weights, seed: int) -> Original:
    from partitioner.frontends.huggingface import build_model
    from partitioner.frontends.tasks import step_inputs, step_outputs
    from partitioner.frontends.vision import PICTURE, features_of, picture_of

    meta = build_model(origin.config, torch.device("meta"))
    if not fits_memory(sum(tensor.numel() * 4 for tensor in meta.state_dict().values())):
        return streamed_original(origin, weights)
    torch.manual_seed(seed)
    # Built in its own type: what it computes once, such as tables of positions, is then rounded as ever.
    model = build_model(origin.config, torch.device("cpu")).float()
    source, done = weights.source, set[int]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in done and source.shape(name) is not None:
            tensor.data.copy_(source.read(name).unpack(tensor.dtype, "cpu"))
            done.add(id(tensor))
    has_tower = not any(it.name == PICTURE for it in step_inputs(model))

    def forward(inputs: Outputs) -> list[torch.Tensor]:
        wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
        with torch.no_grad():
            if PICTURE not in inputs or not has_tower:
                return list(step_outputs(model, wide))
            text = {name: tensor for name, tensor in wide.items() if name != PICTURE}
            return [*step_outputs(model, text), *features_of(model, picture_of(model).sizes, wide[PICTURE])]

    return Original(source, forward, weights.note, model)


def _of_program(origin: Origin, *, trust_code: bool) -> Callable[[Outputs], list[torch.Tensor]]:
    from partitioner.frontends.program import open_program, outputs_of

    program = open_program(require_unchanged(origin, "program"), trust_code=trust_code)
    return lambda inputs: outputs_of(program, inputs)


def _of_onnx(origin: Origin) -> Callable[[Outputs], list[torch.Tensor]]:
    from partitioner.frontends.onnx_file import reference_outputs

    path = require_unchanged(origin, "ONNX file")

    def forward(inputs: Outputs) -> list[torch.Tensor]:
        arrays, _ = reference_outputs(path, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(array.copy()) for array in arrays]

    return forward
