"""What can be wrong between a checkpoint and its model."""

from __future__ import annotations

from collections.abc import Sequence

from ir.diagnostics import Diagnostic, Fact, UnsupportedModelError
from partitioner.frontends.checkpoint.names import grouped

_MOST_SHOWN = 10


def not_matched(left_over: Sequence[str], missing: Sequence[str], where: str) -> UnsupportedModelError:
    """W0225: names without a parameter, and parameters without a tensor."""
    facts: dict[str, Fact] = {}
    for what, names in (("left_over", left_over), ("missing", missing)):
        patterns = grouped(names)
        facts |= {what: len(names)} if names else {}
        facts |= {f"{what}_{place}": _line(*found) for place, found in enumerate(patterns[:_MOST_SHOWN], 1)}
    message = "the checkpoint's tensors are not those of the configuration's model"
    help_ = ("is config.json that of this checkpoint, and is every file there? X_scale, X_zero_point and the like that"
             " are left over belong to a quantization which is not known")  # fmt: skip
    return UnsupportedModelError(Diagnostic("W0225", message, where, facts, (help_,)))


def _line(name: str, count: int) -> str:
    return name if count == 1 else f"{name} ({count:,} tensors)"


def shape(name: str, stored: Sequence[int], wanted: Sequence[int] | None, where: str) -> UnsupportedModelError:
    """W0226: a parameter has another shape than the tensors that are stored for it."""
    facts: dict[str, Fact] = {"stored": str(list(stored)), "wanted": str(wanted and list(wanted))}
    message = f"the tensors stored for {name} are of another shape"
    return UnsupportedModelError(
        Diagnostic("W0226", message, where, facts, ("is config.json that of this checkpoint?",))
    )


def no_fit(name: str, where: str, reason: str, absent: Sequence[str]) -> UnsupportedModelError:
    """W0226: stored tensors cannot be put together to a parameter."""
    why = f"nothing is stored for {', '.join(absent)}" if absent else " ".join(reason.split())[:200]
    message = f"the tensors stored for {name} do not go together: {why}"
    return UnsupportedModelError(Diagnostic("W0226", message, where))


def encoding(name: str, reason: str, where: str) -> UnsupportedModelError:
    """W0227: bytes whose meaning is not known."""
    return UnsupportedModelError(Diagnostic("W0227", f"the encoding of {name} is not known: {reason}", where))


def ambiguous(name: str, where: str, stored: Sequence[str] = ()) -> UnsupportedModelError:
    """W0229: a parameter with two values."""
    facts: dict[str, Fact] = {"tensors": ", ".join(sorted(stored)[:_MOST_SHOWN])} if stored else {}
    return UnsupportedModelError(Diagnostic("W0229", f"several tensors are stored for {name}", where, facts))
