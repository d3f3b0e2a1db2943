"""Configurations of transformers: read as data, cleaned of references to code, and parsed by the library's classes."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch

from ir.diagnostics import Diagnostic, UnsupportedModelError, UsageError
from partitioner.frontends.exported import DTYPES

_ALIASES = {"kimi_k2": "deepseek_v3", "gpt3": "gpt2"}
"""Model types that only rename another class of the library."""
_MOST_LAYERS = 10_000
_MOST_DEPTH = 64


def without_foreign_code(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A copy without references to code in the checkpoint, with aliases of model types resolved and element types
    under their bare names, at any depth.

    Raises:
        UsageError: W0102, it is nested deeper than any model is.
    """
    found: list[Any] = []

    def clean(part: Any, depth: int) -> Any:
        if depth > _MOST_DEPTH:
            raise UsageError(Diagnostic("W0102", f"the configuration is nested more than {_MOST_DEPTH} levels deep"))
        if isinstance(part, Mapping):
            found.extend(part[key] for key in part if key == "auto_map")
            kept = {str(key): clean(value, depth + 1) for key, value in part.items() if key != "auto_map"}
            if isinstance(kept.get("model_type"), str):
                kept["model_type"] = _ALIASES.get(kept["model_type"], kept["model_type"])
            stated = {key: kept[key] for key in ("dtype", "torch_dtype") if isinstance(kept.get(key), str)}
            return kept | {key: name.removeprefix("torch.") for key, name in stated.items()}
        return [clean(item, depth + 1) for item in part] if isinstance(part, list) else part

    cleaned = clean(config, 0)
    ignored = "the configuration's auto_map is ignored: code from a checkpoint is never run"
    return cleaned, (ignored,) if found else ()


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, or all of it."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The element type that the configuration names, the text part first."""
    stated = [part.get(key) for part in (text_part(config), config) for key in ("dtype", "torch_dtype")]
    return next((str(name) for name in stated if name), None)


def dtype_of(config: Mapping[str, Any]) -> torch.dtype:
    """The element type that the configuration states; bfloat16, as nearly all are published, where it states none."""
    name = stated_dtype(config) or "bfloat16"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES or not dtype.is_floating_point:
        raise UnsupportedModelError(Diagnostic("W0205", f"dtype {name!r} is no floating-point type"))
    return dtype


def parse_config(config: Mapping[str, Any]) -> Any:
    """The library's configuration object for a cleaned configuration.

    Raises:
        UnsupportedModelError: W0204 (unknown model type) or W0205 (it contradicts itself).
    """
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
        with quietly():
            return AutoConfig.for_model(model_type, **stripped)
    except Exception as error:
        raise bad_config(error) from None


_WIDTHS = ("dim", "size", "heads", "rank", "experts")
_MOST_WIDTH = 10_000_000


def _refuse_towers_of_layers(part: Any) -> None:
    """Every layer takes memory and time while the model is built, and so do tables as wide as a head; a number in a
    file must not decide on both.
    """
    for key, value in part.items() if isinstance(part, Mapping) else ():
        _refuse_towers_of_layers(value)
        if str(key).endswith(_WIDTHS) and isinstance(value, int) and value > _MOST_WIDTH:
            raise UnsupportedModelError(Diagnostic("W0205", f"{key} is {value:,}; it must be at most {_MOST_WIDTH:,}"))
        least = 1 if key in ("num_hidden_layers", "n_layer") else -_MOST_LAYERS
        if ("layers" in key or key == "n_layer") and isinstance(value, int) and not least <= value <= _MOST_LAYERS:
            raise UnsupportedModelError(
                Diagnostic("W0205", f"{key} is {value}; it must be from {least} to {_MOST_LAYERS}")
            )


@contextmanager
def quietly() -> Iterator[None]:
    """Keep what the libraries log, print and warn of on the way: where it matters, it ends in a diagnostic of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def lean_trace() -> Iterator[None]:
    """Trace without what serves debuggers and recompilation alone: a stack trace for every node, and remembering what
    operators yield, which costs more than it saves where sizes are symbols. Together a third of an export's time.
    """
    import torch._dynamo.config
    import torch.fx.config

    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False), torch.no_grad():
            yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


def bad_config(error: Exception) -> UnsupportedModelError:
    """What a failure to build the model says of its configuration."""
    if isinstance(error, UnsupportedModelError):
        return error
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UnsupportedModelError(Diagnostic("W0205", f"the configuration is refused: {' '.join(reason)[:300]}"))
