"""Which of the library's classes a configuration builds, what goes into a step of it, and what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ir.diagnostics import Diagnostic, UnsupportedModelError
from partitioner.frontends.generality import Watched

USERS, TOKENS, SOURCE_TOKENS = "users", "tokens", "source_tokens"
_AUTO_CLASSES = (
    *("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq"),
    *("AutoModelForMaskedLM", "AutoModelForZeroShotImageClassification", "AutoModelForImageClassification"),
    "AutoModel",
)
"""In order of preference, where the configuration does not name a class."""
_FURTHER_CLASSES = (
    *("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering"),
    *("AutoModelForMultipleChoice", "AutoModelForPreTraining"),
)
"""For those that are named in ``architectures`` alone."""
_SIDE_OUTPUTS = frozenset({"loss", "past_key_values", "router_logits", "aux_loss"})


def auto_class(config: Any) -> Any:
    """The library's auto class that builds the model of ``config``: the one for the first of its ``architectures``
    where that is a class of the library, else the first that knows it.

    Raises:
        UnsupportedModelError: W0204, there is none.
    """
    import transformers

    known = [getattr(transformers, name) for name in (*_preferred(config), *_FURTHER_CLASSES)]
    fitting = [auto for auto in known if type(config) in auto._model_mapping]
    named = next(iter(config.architectures or ()), None)
    for auto in fitting:
        if named in _names_of(auto._model_mapping[type(config)]):
            return auto
    if not fitting:
        help_ = "language models, encoders, encoder-decoders and vision models of transformers are placed"
        raise UnsupportedModelError(
            Diagnostic("W0204", f"model_type {config.model_type!r} has no class that can be placed", help=(help_,))
        )
    return fitting[0]


def _preferred(config: Any) -> tuple[str, ...]:
    """Encoders and encoder-decoders are often causal models too, where their configuration says so."""
    if getattr(config, "is_encoder_decoder", False):
        first: tuple[str, ...] = _AUTO_CLASSES[2:4]
    elif getattr(config, "is_decoder", None) is False and not getattr(config, "is_causal", False):
        first = ("AutoModelForMaskedLM",)
    else:
        first = ()
    return (*first, *(name for name in _AUTO_CLASSES if name not in first))


def _names_of(classes: Any) -> set[str]:
    return {item.__name__ for item in (classes if isinstance(classes, tuple) else (classes,))}


@dataclass(frozen=True, slots=True)
class StepInput:
    """An input of a step: its axes are symbols or fixed sizes."""

    name: str
    axes: tuple[str | int, ...]
    dtype: torch.dtype = torch.long


def step_inputs(model: Any) -> tuple[StepInput, ...]:
    """What a step of the model takes; text of any length for any number of users, pictures and sounds of the
    configuration's size.

    Raises:
        UnsupportedModelError: W0206, an input whose form the configuration does not say.
    """
    accepted = inspect.signature(model.forward).parameters
    decoder = model.config.is_encoder_decoder and "decoder_input_ids" in accepted
    if model.main_input_name == "input_ids":
        text = StepInput("input_ids", (USERS, SOURCE_TOKENS if decoder else TOKENS))
        inputs = [text, *([StepInput("position_ids", text.axes)] if "position_ids" in accepted else [])]
        if "pixel_values" in accepted and "vision_config" in model.config and "text_config" in model.config:
            inputs += [pictures(model)] if "logit_scale_init_value" in model.config else []
    elif model.main_input_name == "pixel_values":
        inputs = [pictures(model)]
    elif model.main_input_name == "input_features":
        inputs = [_sounds(model)]
    else:
        raise _unknown_input(model.main_input_name)
    return (*inputs, *([StepInput("decoder_input_ids", (USERS, TOKENS))] if decoder else []))


def pictures(model: Any) -> StepInput:
    """Pictures of the size that the configuration states.

    Raises:
        UnsupportedModelError: W0206, it states none.
    """
    config = getattr(model.config, "vision_config", model.config)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or not isinstance(width, int) or not isinstance(channels, int):
        raise _unknown_input("pixel_values")
    return StepInput("pixel_values", (USERS, channels, height, width), model.dtype)


def _sounds(model: Any) -> StepInput:
    bins, frames = (getattr(model.config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    if not isinstance(bins, int) or not isinstance(frames, int):
        raise _unknown_input("input_features")
    # Two frames make one position: the second convolution has a stride of two.
    return StepInput("input_features", (USERS, bins, 2 * frames), model.dtype)


def _unknown_input(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        Diagnostic("W0206", f"the model cannot be exported: the configuration does not say the form of its {name}")
    )


def step_outputs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """One step: the logits, or all tensors that a model without them yields, in order."""
    accepted = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in accepted or "kwargs" in accepted else {}
    known = {name: tensor for name, tensor in inputs.items() if name in accepted}
    output = model(**known, **options)
    logits = getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return (logits,)
    return tuple(v for k, v in output.items() if isinstance(v, torch.Tensor) and k not in _SIDE_OUTPUTS)


class Step(nn.Module):
    """One step of a model as a function of its inputs in order, whose names stand in its signature."""

    def __init__(self, model: nn.Module, step: Sequence[StepInput]) -> None:
        super().__init__()
        self.model = model

        def forward(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with Watched(inputs, [it.axes for it in step]):
                return step_outputs(model, {it.name: tensor for it, tensor in zip(step, inputs, strict=True)})

        named = [inspect.Parameter(it.name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for it in step]
        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        self.forward = forward
