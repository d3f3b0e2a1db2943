"""Which encoding a configuration's ``quantization_config`` gives to each weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ir.diagnostics import Diagnostic, UnsupportedModelError
from ir.encoding import ENCODINGS, Encoding


@dataclass(frozen=True, slots=True)
class WeightRole:
    """What a quantizer can tell of a weight: its module's path, and whether that is a linear layer or a stack of
    routed experts.
    """

    module: str
    is_linear: bool
    is_experts: bool


EncodingRule = Callable[[WeightRole], Encoding | None]
"""The encoding of a matrix, or ``None`` where it stays in the model's own element type."""


def encoding_rule(config: Mapping[str, Any] | None) -> EncodingRule:
    """The rule that ``quantization_config`` states; every matrix stays as it is where there is none.

    Raises:
        UnsupportedModelError: W0207, a method or scheme whose bytes are not known.
    """
    if not config:
        return lambda _role: None
    readers = {"compressed-tensors": _compressed_tensors, "fp8": _fp8, "mxfp4": _mxfp4}
    try:
        method = config.get("quant_method")
        if method not in readers:
            raise _unsupported(f"quantization method {method!r}", f"supported are {', '.join(sorted(readers))}")
        return readers[method](config)
    except (AttributeError, TypeError, re.error) as error:
        raise _unsupported(f"a quantization_config of this form ({error})") from None


def _compressed_tensors(config: Mapping[str, Any]) -> EncodingRule:
    groups = list(config.get("config_groups", {}).values())
    if len(groups) != 1 or groups[0].get("targets") != ["Linear"]:
        raise _unsupported("compressed-tensors with other groups than one for Linear")
    scheme = groups[0].get("weights") or {}
    told = (scheme.get("type"), scheme.get("num_bits"), scheme.get("strategy"), scheme.get("group_size"))
    if told != ("int", 4, "group", 32):
        raise _unsupported(f"compressed-tensors weights {told}", "supported is int, 4 bits, in groups of 32")
    kept = _matcher(config.get("ignore") or ())
    return lambda role: ENCODINGS["int4_g32"] if _is_product(role) and not kept(role.module) else None


def _fp8(config: Mapping[str, Any]) -> EncodingRule:
    block = config.get("weight_block_size")
    if list(block or ()) != [128, 128]:
        raise _unsupported(f"fp8 with weight_block_size {block}", "supported is [128, 128]")
    kept = _matcher(["lm_head", *(config.get("modules_to_not_convert") or ())])
    return lambda role: ENCODINGS["fp8_b128"] if _is_product(role) and not kept(role.module) else None


def _mxfp4(config: Mapping[str, Any]) -> EncodingRule:
    kept = _matcher(config.get("modules_to_not_convert") or ())
    return lambda role: ENCODINGS["mxfp4"] if role.is_experts and not kept(role.module) else None


def _is_product(role: WeightRole) -> bool:
    return role.is_linear or role.is_experts


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether ``patterns`` name a module or one that holds it: ``re:`` expressions for the start of its path, or globs
    for the path of either, or the last parts of that.
    """
    expressions = [_expression(pattern[3:]) for pattern in patterns if pattern.startswith("re:")]
    names = {pattern for pattern in patterns if not pattern.startswith("re:")}
    globs = [name for name in names if any(letter in name for letter in "*?[")]

    def matches(module: str) -> bool:
        parts = module.split(".")
        runs = {".".join(parts[i:j]) for j in range(1, len(parts) + 1) for i in range(j)}
        if not names.isdisjoint(runs) or any(fnmatchcase(run, glob) for run in runs for glob in globs):
            return True
        return any(expression.match(module) for expression in expressions)

    return matches


def _expression(pattern: str) -> re.Pattern[str]:
    """An expression of the kind that checkpoints use: names, choices and ``.*``. Others can take for ever to match."""
    if len(pattern) > 500 or pattern.count(".*") > 4 or re.search(r"[)\]}*+?][*+?{]|[^.][*+?{]|\(\?", pattern):
        raise _unsupported(f"the expression {pattern!r} in a list of modules")
    return re.compile(pattern)


def _unsupported(what: str, help_: str = "") -> UnsupportedModelError:
    fault = Diagnostic("W0207", f"{what} is not supported", "quantization_config", help=(help_,) if help_ else ())
    return UnsupportedModelError(fault)
