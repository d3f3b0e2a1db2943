"""Where output goes: results on stdout, diagnostics and progress on stderr; with ``--json`` one object on stdout."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ir.diagnostics import Diagnostic, WafercError

if TYPE_CHECKING:
    from partitioner.solver.place import Incumbent


@dataclass(frozen=True, slots=True)
class Output:
    """How the user wants to read results."""

    json: bool

    def result(self, record: Mapping[str, Any]) -> None:
        """Print the command's one object."""
        print(json_text.dumps(record, indent=2))

    def listing(self, name: str, lines: Mapping[str, str]) -> None:
        """Print names with a line on each."""
        if self.json:
            self.result({name: dict(lines)})
            return
        width = max(len(key) for key in lines)
        for key, line in lines.items():
            print(f"{key:{width}}  {line}")

    def note(self, text: str) -> None:
        """Tell the user something beside the result."""
        print(f"note: {text}", file=sys.stderr)

    def diagnostics(self, faults: tuple[Diagnostic, ...], most: int = 20) -> None:
        """Print diagnostics for a person."""
        for fault in faults[:most]:
            print(f"{fault}\n", file=sys.stderr)
        if len(faults) > most:
            print(f"... and {len(faults) - most} more", file=sys.stderr)

    def failure(self, error: WafercError) -> int:
        """Print why the command failed; its exit code."""
        self._show(error, {})
        return int(error.exit_code)

    def failed(self, record: Mapping[str, Any], error: WafercError) -> NoReturn:
        """Print a result that shows a failure (``record``, with ``--json``) and why; end with the error's exit code."""
        self._show(error, record)
        sys.exit(int(error.exit_code))

    def _show(self, error: WafercError, record: Mapping[str, Any]) -> None:
        if self.json:
            faults = [fault.to_dict() for fault in error.diagnostics]
            status = {"status": "error", "ok": False, "exit_code": int(error.exit_code), "diagnostics": faults}
            self.result({**record, **status})
        else:
            self.diagnostics(error.diagnostics)

    @contextmanager
    def progress(self) -> Iterator[Any]:
        """A function that shows what is being done, on a terminal; it prints nothing elsewhere."""
        if not sys.stderr.isatty():
            yield lambda _step: None
            return
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("starting") as status:
            yield lambda step: status.update(step if isinstance(step, str) else _line(step))


def _line(found: Incumbent) -> str:
    """``placing: balance 30.1 GB, bound 30.1 GB, gap 0.0 %, 1.2 s``."""
    value, bound = (amount(figure, found.objective.unit) for figure in (found.value, found.bound))
    return f"placing: {found.objective} {value}, bound {bound}, gap {100 * found.gap:.1f} %, {found.elapsed_s:.1f} s"


def amount(value: int, unit: str) -> str:
    """``value`` of an objective in three or four digits with its unit: 30.1 GB, 12.5 us, 20 wafers."""
    scales = {
        "bytes": (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)),
        "fs": (("s", 1e15), ("ms", 1e12), ("us", 1e9), ("ns", 1e6), ("ps", 1e3)),
    }
    for name, scale in scales.get(unit, ()):
        if abs(value) >= scale:
            return f"{value / scale:,.1f} {name}"
    return f"{value:,} {unit}"


def scaled(number: float) -> str:
    """``number`` with a decimal prefix: 1.027 T, 594.205 G, 12.5 k."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:,.3f} {prefix}"
    return f"{number:,} "
