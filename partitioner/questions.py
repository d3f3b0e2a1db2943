"""From what a user asks for to a question, a machine and a draft, each fault told in full."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from ir.profile import Profile
from ir.target import Target, Wafers
from partitioner.estimate import Question
from targets.machines import load_target
from targets.speculation import EAGLE3, Speculation

_REQUEST = (1000, 500)
"""Tokens in and out where nobody says, as benchmarks of services have them."""


def ask(
    most_tokens: int | None, *, input_tokens: int | None = None, output_tokens: int | None = None, **others: Any
) -> Question:
    """A question about a model that takes ``most_tokens`` at most. What is not given of the request is 1,000 tokens in
    and 500 out, or what the context leaves of that.

    Raises:
        UsageError: as :class:`~partitioner.estimate.Question`.
    """
    context = others.get("context")
    limits = [limit for limit in (context, most_tokens) if isinstance(limit, int) and limit > 1]
    room = min(limits, default=sum(_REQUEST))
    sent, written = input_tokens, output_tokens
    if written is None:
        written = min(_REQUEST[1], max(1, room - sent if sent is not None else room // 3))
    if sent is None:
        sent = min(_REQUEST[0], max(0, room - written))
    return Question(input_tokens=sent, output_tokens=written, **others)


def machine(target: str, mesh: tuple[int, int] | None = None, changes: Mapping[str, float] | None = None) -> Target:
    """The machine named ``target`` with figures of the user's own, and ``mesh`` (columns, rows) of its tiles alone.

    Raises:
        UsageError: W0705, it has no such mesh; W0110 and W0111, see :func:`targets.machines.load_target`.
    """
    if mesh is None:
        return load_target(target, changes)
    return load_target(target, {**(changes or {}), **_mesh(load_target(target), mesh)})


def _mesh(target: Target, mesh: tuple[int, int]) -> dict[str, float]:
    if not isinstance(target.cluster, Wafers):
        raise UsageError(Diagnostic("W0705", f"{target.name} has no mesh of tiles", "--mesh"))
    whole = target.cluster.machine
    columns, rows = mesh
    if not (1 <= columns <= whole.columns and 1 <= rows <= whole.rows):
        facts = {"columns": columns, "rows": rows, "columns_of_the_machine": whole.columns, "rows_of_it": whole.rows}
        raise UsageError(Diagnostic("W0705", f"{target.name} has no mesh of {columns:,} x {rows:,}", "--mesh", facts))
    return {"mesh.columns": columns, "mesh.rows": rows}


def parse_mesh(text: str) -> tuple[int, int] | None:
    """``420x420`` as columns and rows; ``None`` of an empty text.

    Raises:
        UsageError: W0104.
    """
    if not text:
        return None
    try:
        columns, rows = (int(part) for part in text.lower().split("x"))
    except ValueError:
        help_ = ("columns and rows, for example --mesh 420x420",)
        raise UsageError(Diagnostic("W0104", f"a mesh is not {text!r}", "--mesh", help=help_)) from None
    return columns, rows


def parse_numbers(texts: tuple[str, ...], flag: str, example: str) -> dict[str, float]:
    """``name=number`` pairs, several in a text where commas part them.

    Raises:
        UsageError: W0104.
    """
    found: dict[str, float] = {}
    for part in (part for text in texts for part in text.split(",") if part.strip()):
        name, is_pair, number = part.partition("=")
        try:
            value = float(number)
            if not (is_pair and name.strip() and math.isfinite(value)):
                raise ValueError
        except ValueError:
            help_ = (f"for example {flag} {example}",)
            raise UsageError(Diagnostic("W0104", f"not name=number: {part!r}", flag, help=help_)) from None
        found[name.strip()] = value
    return found


def speculation(
    short: str,
    draft_tokens: int | None,
    acceptance: float | None,
    draft: str | None,
    load: Callable[[str], Profile],
) -> Speculation | None:
    """What the options on speculative decoding say together; ``short`` is ``3:0.7``, tokens and their acceptance.

    Raises:
        UsageError: W0104, they do not go together; W0704, a figure is outside of its limits.
    """
    if short:
        if draft_tokens is not None or acceptance is not None:
            message = "--speculative 3:0.7 says the same as --draft-tokens 3 --acceptance 0.7: give one of both"
            raise UsageError(Diagnostic("W0104", message, "--speculative"))
        draft_tokens, acceptance = _tokens_and_acceptance(short)
    if draft_tokens is None and acceptance is None and draft is None:
        return None
    if draft_tokens is None or acceptance is None:
        help_ = ("for example --draft-tokens 3 --acceptance 0.7",)
        message = "a draft needs a number of tokens, and the probability that one is accepted"
        raise UsageError(Diagnostic("W0104", message, "--draft-tokens", help=help_))
    if draft is None or draft == EAGLE3:
        return Speculation(draft_tokens, acceptance)
    return Speculation(draft_tokens, acceptance, load(draft))


def _tokens_and_acceptance(text: str) -> tuple[int, float]:
    tokens, _, acceptance = text.partition(":")
    try:
        return int(tokens), float(acceptance)
    except ValueError:
        help_ = ("drafted tokens and their acceptance, for example --speculative 3:0.7",)
        fault = Diagnostic("W0104", f"speculation is not {text!r}", "--speculative", help=help_)
        raise UsageError(fault) from None
