"""Programs of ``torch.export``: in memory, or in a ``.pt2`` file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ir.diagnostics import Diagnostic, UnsupportedModelError, UsageError
from partitioner.frontends.aten import RULES
from partitioner.frontends.configuration import quietly
from partitioner.frontends.exported import Names, lower_exported
from partitioner.frontends.lowered import Lowered, Origin, stacked
from partitioner.passes.experts import group_experts
from partitioner.passes.simplify import simplify

_MOST_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class LoweredProgram:
    """A lowered program and its weights by the names that the graph has for them; ``forward`` is the program's own."""

    lowered: Lowered
    weights: Mapping[str, torch.Tensor]
    forward: Callable[[Mapping[str, torch.Tensor]], list[torch.Tensor]]


def lower_program(
    program: ExportedProgram, name: str, origin: Origin, axes: Mapping[tuple[str, int], str] | None = None
) -> LoweredProgram:
    """Lower an exported program.

    Args:
        program: of ``torch.export.export``; it stays as it is.
        name: the graph's name.
        origin: where the program came from.
        axes: names of symbolic sizes by input and axis. Where there are none and the first input of integers is
            [batch, sequence] and both are symbolic, these are ``users`` and ``tokens``; others go by their input's
            name and the axis.

    Raises:
        UnsupportedModelError: W0206, the program cannot be made functional; W0240, it writes into a buffer or an
            input; W0241, sizes that depend on data; W0201, an operator.
    """
    functional = _functional(program, name)
    written = {**functional.graph_signature.buffers_to_mutate, **functional.graph_signature.user_inputs_to_mutate}
    if written:
        help_ = ("what a step remembers is found by waferc itself: return the new value instead of storing it",)
        raise UnsupportedModelError(
            *(Diagnostic("W0240", f"the model writes into {target}", name, help=help_) for target in written.values())
        )
    _require_known_sizes(functional, name)
    tensors: dict[str, Any] = {**program.constants, **program.state_dict}
    weights = {key: value.detach() for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    computed = {key: value for key, value in weights.items() if key not in program.state_dict}
    tied = _tied(program.state_dict)
    named = _axes_of_tokens(functional) if axes is None else axes
    grouped = group_experts(simplify(lower_exported(functional, name, Names(named, tied, computed))))
    lowered = Lowered(grouped.graph, origin, stacks=grouped.stacks)
    return LoweredProgram(lowered, stacked(weights, grouped.stacks), partial(outputs_of, program))


def open_program(path: Path, *, trust_code: bool) -> ExportedProgram:
    """The program in a ``.pt2`` file.

    Raises:
        UsageError: W0242, nobody has said that the file may run code; W0243, it cannot be read.
    """
    if not trust_code:
        help_ = ("--trust-code (trust_code=True) opens it: only for a file whose author you trust",)
        message = "a .pt2 file is a pickle, which can run any code when it is opened"
        raise UsageError(Diagnostic("W0242", message, str(path), help=help_))
    try:
        with quietly():
            return torch.export.load(path)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        fault = Diagnostic("W0243", f"the program cannot be read: {type(error).__name__}: {reason}", str(path))
        raise UsageError(fault) from None


def load_program(path: Path, *, trust_code: bool) -> LoweredProgram:
    """Lower the program in a ``.pt2`` file.

    Raises:
        UsageError: W0242 or W0243, it may not or cannot be opened.
        UnsupportedModelError: see :func:`lower_program`.
    """
    program = open_program(path, trust_code=trust_code)
    origin = Origin("exported", {}, str(path.resolve()), hashlib.sha256(path.read_bytes()).hexdigest())
    return lower_program(program, path.stem, origin)


def outputs_of(program: ExportedProgram, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the program itself computes, for inputs by the graph's names."""
    given = [inputs[name] for name in program.graph_signature.user_inputs if isinstance(name, str)]
    args, kwargs = pytree.tree_unflatten(given, program.call_spec.in_spec)
    with torch.no_grad():
        found = program.module()(*args, **kwargs)
    return [value for value in pytree.tree_leaves(found) if isinstance(value, torch.Tensor)]


# --- making a program functional ------------------------------------------------------------------------------------


def _functional(program: ExportedProgram, name: str) -> ExportedProgram:
    """Without writes in place, and with torch's own decompositions of operators that have no rule."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = program.run_decompositions({})
            for _ in range(_MOST_ROUNDS):
                table = torch.export.default_decompositions()
                lacking = {node.target for node in program.graph.nodes if _lacks_rule(node)}
                chosen = {operator: table[operator] for operator in lacking if operator in table}
                if not chosen:
                    break
                program = program.run_decompositions(chosen)
    except Exception as error:
        raise not_exported(error, name) from None
    return program


def _lacks_rule(node: torch.fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return False
    full = str(node.target).removeprefix("aten.").removesuffix(".default")
    return full not in RULES and full.split(".")[0] not in RULES


def not_exported(error: Exception, name: str) -> UnsupportedModelError:
    """The diagnostic for what ``torch.export`` cannot follow."""
    reason = " ".join(str(error).split())[:300]
    return UnsupportedModelError(
        Diagnostic("W0206", f"the module cannot be exported: {type(error).__name__}: {reason}", name)
    )


def _require_known_sizes(program: ExportedProgram, name: str) -> None:
    """Refuse sizes that only the data decides, such as the number of tokens that chose an expert."""
    faults: dict[str, Diagnostic] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if not isinstance(first, torch.Tensor) or not any(_is_unbacked(size) for size in first.shape):
            continue
        stack = node.meta.get("nn_module_stack") or {}
        path = next((path for path, _ in reversed(stack.values()) if path), name)
        faults.setdefault(path, data_dependent(path))
    if faults:
        raise UnsupportedModelError(*list(faults.values())[:1])


def data_dependent(path: str) -> Diagnostic:
    """What to say of a module whose sizes depend on its data."""
    return Diagnostic(
        "W0241",
        "a size depends on the data: tokens are selected by what was computed of them",
        path,
        help=(
            "write experts without selecting tokens: `table = zeros(tokens, experts).scatter(-1, chosen, weights)`, "
            "then `sum(expert(x) * table[:, i:i + 1] for i, expert in enumerate(experts))`; waferc computes the chosen "
            "ones alone",
        ),
    )


def _is_unbacked(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and any(str(s).startswith("u") for s in size.node.expr.free_symbols)


# --- names ----------------------------------------------------------------------------------------------------------


def _tied(tensors: Mapping[str, Any]) -> dict[str, str]:
    """For each further name of the same weight, its first name."""
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.numel() or tensor.device.type == "meta":
            continue
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if first.setdefault(key, name) != name:
            tied[name] = first[key]
    return tied


def _axes_of_tokens(program: ExportedProgram) -> dict[tuple[str, int], str]:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        given = node.op == "placeholder" and node.name in program.graph_signature.user_inputs
        if given and isinstance(value, torch.Tensor) and not value.dtype.is_floating_point:
            symbolic = [isinstance(size, torch.SymInt) for size in value.shape]
            return {(node.name, 0): "users", (node.name, 1): "tokens"} if symbolic == [True, True] else {}
    return {}
