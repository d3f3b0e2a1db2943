"""Who is still there: every process gives a sign of life and looks for those of the others.

Signs are numbers in the store that torch.distributed met by. A process whose number has not changed for the time limit
is lost, be it dead, stopped or cut off; one that computes for long is not, as a thread of its own gives the signs.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ir.diagnostics import CheckError, Diagnostic, Fact, UnsupportedModelError, UsageError, WafercError

_START_S = 120.0
"""Time for all processes to give their first sign: they may read a large plan from a slow disk before."""
_ERRORS: Mapping[int, type[WafercError]] = {
    int(kind.exit_code): kind for kind in (UsageError, UnsupportedModelError, CheckError)
}


@dataclass(slots=True)
class Lookout:
    """Looks after ``ranks`` through ``store``, and gives signs for ``own`` if that is one.

    ``lost`` is called in its thread with the ranks that gave no sign for ``timeout_s``, or with none where
    another process has ended the run, or the store itself is gone.
    """

    store: Any
    ranks: Sequence[int]
    timeout_s: float
    lost: Callable[[list[int]], None]
    own: int | None = None
    _over: threading.Event | None = None

    def start(self) -> None:
        """Begin, in a thread that ends with the process."""
        self._over = threading.Event()
        threading.Thread(target=self._look, args=(self._over,), name="lookout", daemon=True).start()

    def stop(self) -> None:
        """Neither give signs nor look for any from now on."""
        if self._over:
            self._over.set()

    def _look(self, over: threading.Event) -> None:
        begin = time.monotonic()
        others = [rank for rank in self.ranks if rank != self.own]
        last: dict[int, tuple[int, float]] = dict.fromkeys(others, (0, begin))
        while not over.wait(min(1.0, self.timeout_s / 5)):
            try:
                if self.own is not None:
                    self.store.add(_sign(self.own), 1)
                signs = {rank: self.store.add(_sign(rank), 0) for rank in others}
                ended = bool(self.store.check(["failure"]))
            except Exception:  # torch has several, and any of them means the same
                if not over.is_set():
                    self.lost([])
                return
            if ended:
                self.lost([])
                return
            now = time.monotonic()
            last = {r: (signs[r], now) if signs[r] != last[r][0] else last[r] for r in others}
            patience = {r: self.timeout_s if signs[r] else max(self.timeout_s, _START_S) for r in others}
            if silent := [rank for rank in others if now - last[rank][1] > patience[rank]]:
                if not over.is_set():
                    self.lost(silent)
                return


def _sign(rank: int) -> str:
    return f"sign/{rank}"


def lost_diagnostic(ranks: Sequence[int], groups: Sequence[Sequence[int]], reason: str, timeout_s: float) -> Diagnostic:
    """What the user is told of processes that are not there any more, and of how to go on."""
    names = ", ".join(map(str, ranks))
    wafers = ", ".join(str(wafer) for rank in ranks if rank < len(groups) for wafer in groups[rank])
    what = f"process {names} was lost" if len(ranks) == 1 else f"processes {names} were lost"
    if not ranks:
        what = "the process that all others met by was lost"
    facts: dict[str, Fact] = {"wafers": wafers} if wafers else {}
    facts |= {"reason": " ".join(reason.split())[:200], "timeout_s": timeout_s}
    help_ = ("run the same command with --resume to go on from the last finished token",)
    return Diagnostic("W0650", what, "run", facts, help_)


def tell(store: Any, error: WafercError) -> bool:
    """Leave for all why the run ends; whether nobody did before."""
    text = json.dumps({"exit_code": int(error.exit_code), "diagnostics": [d.to_dict() for d in error.diagnostics]})
    try:
        return bool(store.compare_set("failure", "", text).decode() == text)
    except Exception:  # the store is gone, and with it whoever could have told
        return True


def told(store: Any) -> WafercError | None:
    """Why the run ends, if some process has left it."""
    if not store.check(["failure"]):
        return None
    record = json.loads(store.get("failure"))
    faults = [
        Diagnostic(d["code"], d["message"], d["where"], d["facts"], tuple(d["help"])) for d in record["diagnostics"]
    ]
    return _ERRORS.get(record["exit_code"], WafercError)(*faults)
