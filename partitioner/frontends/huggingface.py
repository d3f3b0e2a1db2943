"""Models of the transformers library, built from a configuration alone: no weights, no code but the library's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.encoding import plain
from ir.graph import Graph, Parameter
from ir.types import Dim, TensorType
from partitioner.frontends import hooks, vision
from partitioner.frontends.checkpoint import as_stored, holds_weights, most_stored_dtype
from partitioner.frontends.configuration import (
    bad_config,
    dtype_of,
    lean_trace,
    parse_config,
    quietly,
    stated_dtype,
    text_part,
    without_foreign_code,
)
from partitioner.frontends.exported import DTYPES, Names, lower_exported, tied_names
from partitioner.frontends.generality import NotGeneralError, not_exported
from partitioner.frontends.in_place import is_write
from partitioner.frontends.layers import computed_buffers, layer_list, only
from partitioner.frontends.lowered import Lowered, Origin
from partitioner.frontends.quantization import EncodingRule, WeightRole, encoding_rule
from partitioner.frontends.stamp import Layers, NotRepeatableError, stamp
from partitioner.frontends.tasks import TOKENS, Step, auto_class, step_inputs
from partitioner.passes.experts import Grouped, group_experts
from partitioner.passes.positions import take_positions
from partitioner.passes.simplify import simplify

_WRAPPER = "model."


def lower_config(
    config: Mapping[str, Any],
    name: str,
    checkpoint: str = "",
    *,
    parts: Sequence[str] = ("text",),
    fix: Mapping[str, int] | None = None,
) -> Lowered:
    """Lower the model that a transformers configuration describes.

    Args:
        config: the content of a ``config.json``.
        name: the graph's name.
        checkpoint: the folder whose weights a run may read, if there is one.
        parts: with ``vision`` among them, the graph also computes the features of one picture, by the vision tower.
        fix: numbers for symbolic sizes, for a model that can only be exported with them; any other keeps its symbols.

    Raises:
        UnsupportedModelError: W0204 (unknown model type), W0205 (the configuration contradicts itself), W0206 (the
            model cannot be exported), W0207 (quantization), W0201 (an operator), W0225 to W0229 (the checkpoint), W0244
            (a vision tower is asked for and there is none).
        UsageError: W0220 to W0229 (the checkpoint's files).
    """
    config, notes = without_foreign_code(config)
    if stated_dtype(config) is None:
        found = most_stored_dtype(checkpoint)
        config |= {"dtype": found} if found else {}
        notes = (
            *notes,
            f"the configuration states no dtype: {f'{found}, as stored' if found else 'bfloat16 is assumed'}",
        )
    model = build_model(config, torch.device("meta"), traced=True)
    parameters, stored = stored_parameters(config, model, checkpoint)
    notes += stored
    grouped, fixed = _lower_at_any_size(model, name, parameters, fix or {})
    graph = _with_tower(model, name, grouped.graph) if "vision" in parts else grouped.graph
    read = {name for node in graph.nodes for name in node.inputs}
    left_out = [parameter for parameter in parameters if parameter.name not in read]
    if left_out:
        modules = ", ".join(dict.fromkeys(".".join(parameter.name.split(".")[:2]) for parameter in left_out))
        millions = sum(parameter.elements for parameter in left_out) / 1e6
        reader = "model" if "vision" in parts else "text model"
        notes = (*notes, f"left out, as the {reader} never reads it: {modules} ({millions:,.1f} million parameters)")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    origin = Origin("config", dict(config), checkpoint, stored=bool(checkpoint) and holds_weights(Path(checkpoint)))
    return Lowered(graph, origin, context, notes, grouped.stacks, fixed)


def build_model(config: Mapping[str, Any], device: torch.device, *, traced: bool = False) -> Any:
    """The library's own model for ``config``, with random weights (none on the ``meta`` device).

    Args:
        config: a sanitised configuration, as :class:`Origin` keeps it.
        device: where to build it.
        traced: put our operators in the place of attention and experts; such a model can only be exported.

    Raises:
        UnsupportedModelError: W0204 or W0205.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    hooks.register()
    config, _ = without_foreign_code(config)
    parsed = parse_config(config)
    own = {"attn_implementation": hooks.NAME, "experts_implementation": hooks.NAME} if traced else {}
    plain_attention = {"attn_implementation": "eager", "experts_implementation": "eager"}
    dtype = dtype_of(config)
    try:
        with quietly(), device:
            model = auto_class(parsed).from_config(parsed, dtype=dtype, **(own or plain_attention)).eval()
    except Exception as error:
        if traced and isinstance(error, KeyError) and error.args == (hooks.NAME,):
            raise _bypasses(error, build_model(config, torch.device("meta"))) from None
        raise bad_config(error) from None
    _keep_in_f32(model, dtype)
    return model


def _bypasses(error: KeyError, model: nn.Module) -> UnsupportedModelError:
    """W0206: a module looked for its attention by name, and not where the library's interface keeps it. ``error`` says
    in the making of which module, ``model`` is the same one with attention of its own.
    """
    makers = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    classes = {type(maker) for maker in makers[-1:]}
    where = next((path for path, module in model.named_modules() if type(module) in classes), "")
    fault = "the model cannot be exported: attention does not go through the library's interface for it"
    return UnsupportedModelError(Diagnostic("W0206", fault, where))


def _keep_in_f32(model: Any, dtype: torch.dtype) -> None:
    """Give tensors the type that the library gives them when it loads a checkpoint: its classes name some, such as the
    correction of a router's choice, that stay in f32 whatever the model's type is.
    """
    kept = [re.compile(pattern.replace("*", ".*")) for pattern in model._get_dtype_plan(dtype)]
    for name, tensor in model.state_dict(keep_vars=True).items() if kept else ():
        if any(pattern.search(name) for pattern in kept):
            tensor.data = tensor.data.to(torch.float32)


def stored_parameters(
    config: Mapping[str, Any], model: Any, checkpoint: str
) -> tuple[tuple[Parameter, ...], tuple[str, ...]]:
    """The parameters of ``model`` as the folder ``checkpoint`` stores them, or as ``config`` says where it stores none;
    and notes on where the two differ.

    Raises:
        UnsupportedModelError: W0207, W0225 to W0229.
        UsageError: W0220 to W0229.
    """
    return as_stored(checkpoint, model, tuple(_parameters(model, _encoding_rule(config, model))))


def _encoding_rule(config: Mapping[str, Any], model: Any) -> EncodingRule:
    """The configuration's rule; one that stands in the text part says nothing of a vision tower beside it."""
    whole, text = config.get("quantization_config"), text_part(config).get("quantization_config")
    if whole or not text:
        return encoding_rule(whole)
    decoder, rule = model.get_decoder(), encoding_rule(text)
    inside = {name for name, module in model.named_modules() if module is decoder}
    return lambda role: rule(role) if any(role.module.startswith(f"{path}.") for path in inside) else None


def _parameters(model: nn.Module, encode: EncodingRule) -> Iterator[Parameter]:
    """Every tensor that checkpoints keep, parameters and buffers, in the model's order, with its encoding."""
    stored = dict(model.named_parameters())
    kept = model.state_dict(keep_vars=True)
    buffers = {name: value for name, value in model.named_buffers() if name in kept}
    modules = dict(model.named_modules())
    for name, tensor in (stored | buffers).items():
        path = name.rpartition(".")[0]
        role = WeightRole(path, isinstance(modules[path], nn.Linear), is_expert_stack(modules[path], tensor))
        type_ = TensorType(DTYPES[tensor.dtype], tuple(tensor.shape))
        encoding = encode(role) if tensor.dim() >= 2 else None
        yield Parameter(name, type_, encoding or plain(type_.dtype))


def is_expert_stack(module: nn.Module, tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` of ``module`` is of all its routed experts, one after the other."""
    return tensor.dim() == 3 and getattr(module, "num_experts", None) == tensor.shape[0]


# --- export ---------------------------------------------------------------------------------------------------------


def _lower_at_any_size(
    model: Any, name: str, parameters: tuple[Parameter, ...], fix: Mapping[str, int]
) -> tuple[Grouped, Mapping[str, int]]:
    """The model with symbolic sizes, or with those of ``fix`` where it can only be exported so; and what was fixed."""
    axes = {axis for it in step_inputs(model) for axis in it.axes}
    fixed = {axis: size for axis, size in fix.items() if axis in axes}
    try:
        return _lower_by_layers(model, name, parameters, {}), {}
    except NotGeneralError:
        if not fixed:
            raise
    return _lower_by_layers(model, name, parameters, fixed), fixed


def _lower_by_layers(model: Any, name: str, parameters: tuple[Parameter, ...], fixed: Mapping[str, int]) -> Grouped:
    """Export one layer of each kind and stamp the rest; the whole model where its layers are not alike."""
    found = layer_list(model)
    if found is not None and found.repeats:
        with only(model, found):
            body = _export(model, name, fixed)
        try:
            if not body.stacks:
                return Grouped(stamp(body.graph, Layers(found.path, found.kind_of), parameters))
        except NotRepeatableError:
            pass
    whole = _export(model, name, fixed)
    return replace(whole, graph=_with_parameters(whole, parameters))


def _with_parameters(grouped: Grouped, parameters: tuple[Parameter, ...]) -> Graph:
    """The graph with the model's parameters; those that it stacks are replaced by the stack, in their encoding."""
    graph, stacks = grouped.graph, grouped.stacks
    known = {parameter.name: parameter for parameter in parameters}
    parts = {part for names in stacks.values() for part in names}
    own = [parameter for parameter in parameters if parameter.name not in parts]
    further = [p for p in graph.parameters if p.name not in known]
    stacked = [replace(p, encoding=known[stacks[p.name][0]].encoding) if p.name in stacks else p for p in further]
    return replace(graph, parameters=(*own, *stacked))


def _export(model: Any, name: str, fixed: Mapping[str, int]) -> Grouped:
    inputs = tuple(replace(it, axes=tuple(fixed.get(str(a), a) for a in it.axes)) for it in step_inputs(model))
    decoder = any(it.name == "decoder_input_ids" for it in inputs)
    symbols = {axis: torch.export.Dim(axis) for it in inputs for axis in it.axes if isinstance(axis, str)}
    # Sizes of at least 2, and different: torch specialises a size of 1, and unites equal ones.
    sizes = {axis: 2 + number for number, axis in enumerate(symbols)}
    examples = tuple(
        torch.zeros([sizes[a] if isinstance(a, str) else a for a in it.axes], dtype=it.dtype, device="meta")
        for it in inputs
    )
    shapes = tuple({i: symbols[a] for i, a in enumerate(it.axes) if isinstance(a, str)} for it in inputs)
    axes = {(it.name, i): axis for it in inputs for i, axis in enumerate(it.axes) if isinstance(axis, str)}
    graph = _traced(model, Step(model, inputs), examples, shapes, axes, name)
    counts = TOKENS not in fixed and not decoder
    if counts and any(node.op == "attention" and node.attributes["causal"] for node in graph.nodes):
        # Without a cache the library's models count a token's position within the step.
        graph = take_positions(graph, "input_ids", Dim.symbol(TOKENS), Dim.symbol("past"))
    grouped = group_experts(simplify(graph))
    return grouped if _products_by_expert(grouped.graph) > _products_by_expert(graph) else Grouped(graph)


def _traced(
    model: Any,
    module: nn.Module,
    examples: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, Any], ...],
    axes: Mapping[tuple[str, int], str],
    name: str,
) -> Graph:
    """The graph of ``module``, which calls ``model``; ``shapes`` and ``axes`` say which axes of inputs are symbols.

    Raises:
        UnsupportedModelError: W0206, with the path of the module that cannot be traced; W0201.
    """
    # Without gradients, parts that the model computes without them stand in the same graph as the rest.
    try:
        with quietly(), lean_trace():
            program = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
        constants = {f"{_WRAPPER}{name}": value for name, value in computed_values(model).items()}
    except Exception as error:
        raise not_exported(error, _place_of(error, model) or name) from None
    return _translate(program, name, Names(axes, tied_names(model, _WRAPPER), constants, _WRAPPER))


def _with_tower(model: Any, name: str, text: Graph) -> Graph:
    """``text`` and what the vision tower makes of one picture, in one graph."""
    picture = vision.picture_of(model)
    found = layer_list(model)
    pixels = torch.zeros(picture.shape, dtype=model.dtype, device="meta")
    with nullcontext() if found is None else only(model, found):
        tower = _traced(model, vision.Features(model, picture), (pixels,), ({},), {}, name)
    return vision.join(text, simplify(tower))


def _products_by_expert(graph: Graph) -> int:
    return sum(node.op == "grouped_linear" for node in graph.nodes)


def _place_of(error: BaseException, model: nn.Module) -> str:
    """The path of the innermost module of ``model`` in whose code the error arose; empty where there is none."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    for frame, _ in walk_tb(error.__traceback__):
        found = paths.get(id(frame.f_locals.get("self"))) or found
    return found


def _translate(program: ExportedProgram, name: str, names: Names) -> Graph:
    """The program's graph; one that writes in ways that we do not follow is made functional by torch, which is slow."""
    try:
        return lower_exported(program, name, names)
    except UnsupportedModelError as error:
        if not any(is_write(node) for node in program.graph.nodes):
            raise
        with quietly():
            functional = program.run_decompositions({})
        try:
            return lower_exported(functional, name, names)
        except UnsupportedModelError:
            raise error from None


def computed_values(model: Any) -> dict[str, torch.Tensor]:
    """The values of buffers that are computed, by their full name; each part of a model knows how to make its own."""
    parts = {path: part for path, part in model.named_modules() if hasattr(part, "_init_weights")}
    return {
        f"{path}.{name}" if path else name: value
        for path, module in model.named_modules()
        for name, value in computed_buffers(_innermost(parts, path), module).items()
    }


def _innermost(parts: Mapping[str, Any], path: str) -> Any:
    """The part with the longest path that ``path`` lies in."""
    while path and path not in parts:
        path = path.rpartition(".")[0]
    return parts[path]
