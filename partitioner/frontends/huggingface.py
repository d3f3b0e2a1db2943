"""Models of the transformers library, built from a configuration alone: no weights, no code but the library's own."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.encoding import plain
from ir.graph import Graph, Parameter
from ir.types import TensorType
from partitioner.frontends import hooks
from partitioner.frontends.checkpoint import as_stored
from partitioner.frontends.exported import DTYPES, Names, lower_exported, tied_names
from partitioner.frontends.lowered import Lowered, Origin
from partitioner.frontends.quantization import EncodingRule, WeightRole, encoding_rule
from partitioner.frontends.stamp import Layers, NotRepeatableError, stamp

_ALIASES = {"kimi_k2": "deepseek_v3"}
"""Model types whose own code only renames another class of the library."""
_MOST_LAYERS = 10_000
_INDEX_NAMES = ("layer_idx", "layer_id", "layer_index")
_WRAPPER = "model."


class _Step(nn.Module):
    """One step of a causal model: token ids and positions in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits  # type: ignore[no-any-return]


def lower_config(config: Mapping[str, Any], name: str, checkpoint: str = "") -> Lowered:
    """Lower the model that a transformers configuration describes.

    Args:
        config: the content of a ``config.json``.
        name: the graph's name.
        checkpoint: the folder whose weights a run may read, if there is one.

    Raises:
        UnsupportedModelError: W0204 (unknown model type), W0205 (the configuration contradicts itself), W0206 (the
            model cannot be exported), W0207 (quantization), W0201 (an operator), W0225 to W0229 (the checkpoint).
        UsageError: W0220 to W0229 (the checkpoint's files).
    """
    config, notes = _without_foreign_code(config)
    model = build_model(config, torch.device("meta"), traced=True)
    parameters, stored = as_stored(checkpoint, model, tuple(_parameters(model, _encoding_rule(config, model))))
    notes += stored
    graph = _lower_by_layers(model, name, parameters)
    read = {name for node in graph.nodes for name in node.inputs}
    left_out = [parameter for parameter in parameters if parameter.name not in read]
    if _stated_dtype(config) is None:
        notes = (*notes, "the configuration states no dtype: bfloat16 is assumed")
    if left_out:
        modules = ", ".join(dict.fromkeys(".".join(parameter.name.split(".")[:2]) for parameter in left_out))
        millions = sum(parameter.elements for parameter in left_out) / 1e6
        notes = (*notes, f"left out, as the text model never reads it: {modules} ({millions:,.1f} million parameters)")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Lowered(graph, Origin("config", dict(config), checkpoint), context, notes)


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
    config, _ = _without_foreign_code(config)
    parsed = _parse_config(config)
    own = {"attn_implementation": hooks.NAME, "experts_implementation": hooks.NAME} if traced else {}
    plain_attention = {"attn_implementation": "eager", "experts_implementation": "eager"}
    dtype = _dtype_of(config)
    try:
        with _quietly(), device:
            return _auto_class(parsed).from_config(parsed, dtype=dtype, **(own or plain_attention)).eval()
    except Exception as error:
        raise _bad_config(error) from None


def _stated_dtype(config: Mapping[str, Any]) -> str | None:
    stated = [part.get(key) for part in (_text_part(config), config) for key in ("dtype", "torch_dtype")]
    return next((str(name) for name in stated if name), None)


def _dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The element type that the configuration states; bfloat16, as nearly all are published, where it states none."""
    name = _stated_dtype(config) or "bfloat16"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES or not dtype.is_floating_point:
        raise UnsupportedModelError(Diagnostic("W0205", f"dtype {name!r} is no floating-point type"))
    return dtype


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _without_foreign_code(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A copy without references to code in the checkpoint, with aliases of model types resolved and element types
    under their bare names, at any depth.
    """
    found: list[Any] = []

    def clean(part: Any) -> Any:
        if isinstance(part, Mapping):
            found.extend(part[key] for key in part if key == "auto_map")
            kept = {str(key): clean(value) for key, value in part.items() if key != "auto_map"}
            if isinstance(kept.get("model_type"), str):
                kept["model_type"] = _ALIASES.get(kept["model_type"], kept["model_type"])
            stated = {key: kept[key] for key in ("dtype", "torch_dtype") if isinstance(kept.get(key), str)}
            return kept | {key: name.removeprefix("torch.") for key, name in stated.items()}
        return [clean(item) for item in part] if isinstance(part, list) else part

    cleaned = clean(config)
    ignored = "the configuration's auto_map is ignored: code from a checkpoint is never run"
    return cleaned, (ignored,) if found else ()


def _parse_config(config: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    _refuse_towers_of_layers(config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        help_ = "the configuration needs the model_type of a class that transformers ships"
        fault = Diagnostic("W0204", f"model_type {model_type!r} is unknown", "config.json", help=(help_,))
        raise UnsupportedModelError(fault)
    # Copied, because transformers keeps and changes nested dictionaries; quantization is accounted for by our rules.
    stripped = copy.deepcopy({k: v for k, v in config.items() if k not in ("quantization_config", "model_type")})
    if isinstance(stripped.get("text_config"), dict):
        stripped["text_config"].pop("quantization_config", None)
    try:
        with _quietly():
            return AutoConfig.for_model(model_type, **stripped)
    except Exception as error:
        raise _bad_config(error) from None


def _refuse_towers_of_layers(part: Any) -> None:
    """Every layer takes memory and time while the model is built, so a number in a file must not decide on both."""
    for key, value in part.items() if isinstance(part, Mapping) else ():
        _refuse_towers_of_layers(value)
        least = 1 if key in ("num_hidden_layers", "n_layer") else -_MOST_LAYERS
        if ("layers" in key or key == "n_layer") and isinstance(value, int) and not least <= value <= _MOST_LAYERS:
            raise UnsupportedModelError(
                Diagnostic("W0205", f"{key} is {value}; it must be from {least} to {_MOST_LAYERS}")
            )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the libraries log and warn of on the way: where it matters, it ends in a diagnostic of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _auto_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    help_ = "causal language models and the text part of image-text models are placed"
    raise UnsupportedModelError(
        Diagnostic("W0204", f"model_type {config.model_type!r} has no language model head", help=(help_,))
    )


def _bad_config(error: Exception) -> UnsupportedModelError:
    if isinstance(error, UnsupportedModelError):
        return error
    if isinstance(error, KeyError) and error.args == (hooks.NAME,):
        fault = "the model cannot be exported: its attention does not go through the library's interface for it"
        return UnsupportedModelError(Diagnostic("W0206", fault))
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UnsupportedModelError(Diagnostic("W0205", f"the configuration is refused: {' '.join(reason)[:300]}"))


def _encoding_rule(config: Mapping[str, Any], model: Any) -> EncodingRule:
    """The configuration's rule; one that stands in the text part says nothing of a vision tower beside it."""
    whole, text = config.get("quantization_config"), _text_part(config).get("quantization_config")
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
        role = WeightRole(path, isinstance(modules[path], nn.Linear), _is_expert_stack(modules[path], tensor))
        type_ = TensorType(DTYPES[tensor.dtype], tuple(tensor.shape))
        encoding = encode(role) if tensor.dim() >= 2 else None
        yield Parameter(name, type_, encoding or plain(type_.dtype))


def _is_expert_stack(module: nn.Module, tensor: torch.Tensor) -> bool:
    return tensor.dim() == 3 and getattr(module, "num_experts", None) == tensor.shape[0]


# --- export ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LayerList:
    """A list of layers in the model, and the first layer of each distinct kind."""

    path: str
    representatives: tuple[int, ...]
    kind_of: tuple[int, ...]


def _lower_by_layers(model: Any, name: str, parameters: tuple[Parameter, ...]) -> Graph:
    """Export one layer of each kind and stamp the rest; the whole model where its layers are not alike."""
    found = _layer_list(model)
    if found is None or len(found.representatives) == len(found.kind_of):
        return _with_parameters(_export(model, name), parameters)
    whole = model.get_submodule(found.path)
    try:
        with _only(model, found):
            body = _export(model, name)
        return stamp(body, Layers(found.path, found.kind_of), parameters)
    except NotRepeatableError:
        assert model.get_submodule(found.path) is whole
        return _with_parameters(_export(model, name), parameters)


def _with_parameters(graph: Graph, parameters: tuple[Parameter, ...]) -> Graph:
    constants = tuple(p for p in graph.parameters if p.name not in {q.name for q in parameters})
    return Graph(graph.name, graph.inputs, (*parameters, *constants), graph.nodes, graph.outputs)


class _only:  # noqa: N801 - reads as a verb where it is used
    """Within the block the model has only one layer of each kind, and a configuration that says so."""

    def __init__(self, model: Any, layers: _LayerList) -> None:
        self._config = model.config.get_text_config()
        self._parent = model.get_submodule(layers.path.rpartition(".")[0])
        self._attribute = layers.path.rpartition(".")[2]
        self._whole = getattr(self._parent, self._attribute)
        self._chosen = layers.representatives
        self._before = (self._config.num_hidden_layers, vars(self._config).get("layer_types"))

    def __enter__(self) -> None:
        count, types = self._before
        setattr(self._parent, self._attribute, nn.ModuleList([self._whole[i] for i in self._chosen]))
        if types is not None and len(types) == count:
            self._config.layer_types = [types[i] for i in self._chosen]
        self._config.num_hidden_layers = len(self._chosen)

    def __exit__(self, *_: object) -> None:
        count, types = self._before
        setattr(self._parent, self._attribute, self._whole)
        self._config.num_hidden_layers = count
        if types is not None:
            self._config.layer_types = types


def _layer_list(model: Any) -> _LayerList | None:
    """The list of layers with the most weights whose length is the configuration's number of layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        return None
    path, layers = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    kinds: dict[object, int] = {}
    kind_of = tuple(kinds.setdefault(_signature(layer), len(kinds)) for layer in layers)
    return _LayerList(path, tuple(kind_of.index(kind) for kind in range(len(kinds))), kind_of)


def _signature(module: nn.Module) -> object:
    """What decides what a layer computes: classes, plain attributes, shapes; its position left out."""
    plain_types = (bool, int, float, str, tuple, type(None))
    attributes = tuple(
        sorted((k, repr(v)) for k, v in vars(module).items() if isinstance(v, plain_types) and k not in _INDEX_NAMES)
    )
    tensors = tuple((k, tuple(t.shape), t.dtype) for k, t in module.named_parameters(recurse=False))
    buffers = tuple((k, tuple(t.shape), t.dtype) for k, t in module.named_buffers(recurse=False))
    children = tuple((k, _signature(child)) for k, child in module.named_children())
    return type(module), attributes, tensors, buffers, children


def _export(model: Any, name: str) -> Graph:
    users, tokens = torch.export.Dim("users"), torch.export.Dim("tokens")
    # Sizes of at least 2, and different: torch specialises a size of 1, and unites equal ones.
    ids = torch.zeros(2, 3, dtype=torch.long, device="meta")
    axes = {0: users, 1: tokens}
    try:
        with _quietly():
            program = torch.export.export(_Step(model), (ids, ids.clone()), dynamic_shapes=(axes, axes), strict=False)
            program = program.run_decompositions({})
        constants = _computed_buffers(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            Diagnostic("W0206", f"the model cannot be exported: {type(error).__name__}: {reason}", name)
        ) from None
    symbols = {
        (value, axis): symbol
        for value in ("input_ids", "position_ids")
        for axis, symbol in enumerate(("users", "tokens"))
    }
    return lower_exported(program, name, Names(symbols, tied_names(model, _WRAPPER), constants, _WRAPPER))


def _computed_buffers(model: Any) -> dict[str, torch.Tensor]:
    """Buffers that are computed when the model is built (rotary frequencies): made again on the CPU, as they have no
    values on the meta device.
    """
    stored = model.state_dict(keep_vars=True)
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_buffers(recurse=False) if f"{path}.{name}".lstrip(".") not in stored]
        if names and any(getattr(module, name).is_meta for name in names):
            real = copy.deepcopy(module).to_empty(device="cpu", recurse=False)
            model._init_weights(real)
            found |= {f"{_WRAPPER}{path}.{name}": getattr(real, name) for name in names}
    return found
