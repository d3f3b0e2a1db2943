"""Attention over what is remembered: the one operator that reads more than the step's own values."""

from __future__ import annotations

from dataclasses import replace

from targets.emulator.history import History
from targets.emulator.kernels import run
from targets.emulator.scope import Scope
from targets.program.instructions import CachedAttention, Instruction


def attend(instruction: Instruction, cached: CachedAttention, scope: Scope, history: History) -> None:
    """Let the new tokens' queries meet all of ``history``, whose keys and values are computed again."""
    node = instruction.node
    constants = {name: scope.read(name) for name in cached.constants}
    bindings = {**scope.bindings, "tokens": history.tokens}
    past = replace(scope, bindings=bindings, values={**constants, **history.values})
    for earlier in cached.recompute:
        run(earlier, past)
    named = {name: past.read(name) for name in node.inputs[1:3]}
    values = {name: scope.read(name) for name in (node.inputs[0], *node.inputs[3:])}
    meeting = replace(scope, values={**values, **named})
    run(instruction, meeting)
    scope.values[node.result.name] = meeting.values[node.result.name]
