"""Where a model holds for some numbers of users and tokens alone.

An export with symbolic sizes that fails on this says so only at its end, in terms of the sizes, after it has unrolled
whatever loops the model runs over its tokens. Here the operator after which it no longer holds for every size is told
when it is called, while the stack still knows the module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from ir.diagnostics import Diagnostic

_SIZES = (2, 3, 5, 64, 1000, 1 << 31)
"""Numbers at which what a model asked of its sizes is tried. One that fails is proof that the export would."""


class HeldSizesError(NotImplementedError):
    """The model holds for some sizes alone; the message names the operator and what it took for granted."""


class Watched(TorchFunctionMode):
    """Within the block, which stands inside of an export, the first operator that asks something of the symbolic sizes
    that is not so for all of them fails; one that fails by itself is noted on its error.

    Args:
        inputs: the tensors of the export.
        axes: for each of them the names of its axes; those that are no symbols are left out of account.

    Raises:
        HeldSizesError: on the call after which the sizes are no longer free.
    """

    def __init__(self, inputs: Sequence[torch.Tensor], axes: Sequence[Sequence[str | int]]) -> None:
        super().__init__()
        pairs = [
            pair for tensor, names in zip(inputs, axes, strict=True) for pair in zip(tensor.shape, names, strict=True)
        ]
        symbols: list[tuple[Any, str]] = [(size, str(name)) for size, name in pairs if isinstance(size, torch.SymInt)]
        self._names = {size.node.expr: name for size, name in symbols}
        self._environment = symbols[0][0].node.shape_env if symbols else None
        self._seen = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._require_free("in the module's own code before", function)
        try:
            result = function(*args, **(kwargs or {}))
        except HeldSizesError:
            raise
        except Exception as error:
            if not getattr(error, "__notes__", ()):
                error.add_note(_name_of(function))
            raise
        self._require_free("at", function)
        return result

    def _require_free(self, place: str, function: Any) -> None:
        if self._environment is None or len(self._environment.guards) == self._seen:
            return
        for guard in self._environment.guards[self._seen :]:
            if any(guard.expr.xreplace(sizes) == False for sizes in self._trials()):  # noqa: E712 - sympy's false
                raise HeldSizesError(f"{place} {_name_of(function)}, {self._in_words(guard.expr)}")
        self._seen = len(self._environment.guards)

    def _trials(self) -> Iterator[dict[Any, int]]:
        """Sizes to try, the same for symbols of the same name: all of them equal in no trial."""
        order = list(dict.fromkeys(self._names.values()))
        for start in range(len(_SIZES)):
            chosen = {name: _SIZES[(start + number) % len(_SIZES)] for number, name in enumerate(order)}
            yield {symbol: chosen[name] for symbol, name in self._names.items()}

    def _in_words(self, expression: Any) -> str:
        names = {str(symbol): name for symbol, name in self._names.items()}
        text = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), str(expression))
        if fixed := re.fullmatch(r"Eq\((\w+), \d+\)", text):
            return f"the number of {fixed[1]} is taken as a fixed one"
        return f"the result holds only where {text if len(text) <= 120 else f'{text[:117]}...'}"


def _name_of(function: Callable[..., Any]) -> str:
    """An operator's name without the library's namespaces."""
    name = str(resolve_name(function) or getattr(function, "__name__", function))
    return name.removesuffix(".__get__").rpartition(".")[2]


def not_exported(error: Exception, where: str) -> Diagnostic:
    """What to say of a model that an export inside of :class:`Watched` did not get through."""
    if isinstance(error, HeldSizesError):
        help_ = ("it can be compiled for one number of them: --fix users=1,tokens=64, for example",)
        return Diagnostic("W0206", f"the model cannot be run token by token: {error}", where, help=help_)
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    reason = reason if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {reason}"
    at = f" at {operator}" if (operator := next(iter(getattr(error, "__notes__", ())), "")) else ""
    return Diagnostic("W0206", f"the model cannot be exported{at}: {reason}", where)
