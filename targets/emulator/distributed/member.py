"""One process among those of a run: how it meets the others, and how it ends when one of them is lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore, rendezvous  # type: ignore[attr-defined]

from ir.diagnostics import CheckError, Diagnostic, UsageError, WafercError
from ir.plan import Plan
from targets.emulator.distributed.channel import PeerLostError
from targets.emulator.distributed.lookout import Lookout, lost_diagnostic, tell
from targets.emulator.distributed.pipeline import FIRST

_NEVER = timedelta(days=365)
"""Waiting for a process that computes has no limit; the lookout finds those that are lost."""
_LOOK_S = 0.02


@dataclass(slots=True)
class Member:
    """Process ``rank`` of ``processes``; ``store`` is what they met by, and ``None`` where there is but one.

    Attributes:
        device: where this process computes.
        wire: where tensors must lie to travel to other processes.
        groups: the wafers of each process, once that is known.
    """

    rank: int
    processes: int
    store: Any
    device: str
    wire: str = "cpu"
    groups: Sequence[Sequence[int]] = ()

    def agree(self, name: str, value: str) -> None:
        """All processes must have the same ``value``.

        Raises:
            UsageError: W0651, the first process has another one.
        """
        if self.store is None:
            return
        wanted = self.store.compare_set(f"agree/{name}", "", value).decode()
        if wanted != value:
            message = f"process {self.rank} was started with another {name} than the others"
            raise UsageError(Diagnostic("W0651", message, "run", help=("give every process the same command",)))

    def from_first(self, name: str, make: Callable[[], str]) -> str:
        """What ``make`` says in the first process, in all of them."""
        if self.store is None:
            return make()
        if self.rank == FIRST:
            self.store.set(f"first/{name}", make())
        _wait(lambda: bool(self.store.check([f"first/{name}"])))
        return bytes(self.store.get(f"first/{name}")).decode()


def alone(plan: Plan, device: str) -> Member:
    """The only process of a run."""
    return Member(FIRST, 1, None, _device_of(device), groups=(plan.wafers_used,))


def under_torchrun() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def threads_of_each() -> int:
    """Threads that torch may use in each process on this computer."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def member(timeout_s: float, device: str, failed: Callable[[WafercError], object]) -> Iterator[Member]:
    """This process among the others, for as long as the block runs; ends the process when another one is lost.

    ``failed`` is called in the one process that tells the user of an error.

    Raises:
        WafercError: what the block raises, W0650 for a lost process, unless another process has told already.
    """
    store, rank, processes = next(rendezvous("env://", timeout=timedelta(seconds=max(120.0, timeout_s))))
    prefix = f"waferc/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    met = PrefixStore(prefix, store)
    me = Member(rank, processes, met, device)
    watched = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )
    signs = PrefixStore(prefix, watched)

    def end(error: WafercError) -> NoReturn:
        if tell(signs, error):
            failed(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(error.exit_code))  # threads of torch.distributed may wait for the lost process for ever

    def lost(ranks: list[int]) -> None:
        end(CheckError(lost_diagnostic(ranks, me.groups, "no sign of life", timeout_s)))

    lookout = Lookout(signs, range(processes), timeout_s, lost, rank)
    lookout.start()
    try:
        me.device = _device_of(device)
        alone = _alone_on_device(met, processes, me.device)
        me.wire = me.device if alone else "cpu"
        place = PrefixStore("torch", met)
        backend = "nccl" if alone else "gloo"
        dist.init_process_group(backend, store=place, rank=rank, world_size=processes, timeout=_NEVER)
        yield me
        _part(me, lookout)
    except PeerLostError as error:
        end(CheckError(lost_diagnostic([error.rank], me.groups, error.reason, timeout_s)))
    except WafercError as error:
        end(error)
    except Exception as error:
        end(WafercError(Diagnostic("W0000", f"internal error: {type(error).__name__}: {error}", f"process {rank}")))
    finally:
        lookout.stop()


def _part(me: Member, lookout: Lookout) -> None:
    """Leave in good order: all give signs until the first process has everything, and it goes last, as others may have
    met by a store of its own.
    """
    if me.rank == FIRST:
        me.store.set("done", "1")
        _wait(lambda: bool(me.store.add("parted", 0) == me.processes - 1))
        lookout.stop()
    else:
        _wait(lambda: bool(me.store.check(["done"])))
        lookout.stop()
        me.store.add("parted", 1)
    dist.destroy_process_group()


def _wait(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(_LOOK_S)


def _device_of(device: str) -> str:
    """A GPU for each process on a computer, in turn, where ``device`` is ``cuda``."""
    if device != "cuda":
        return device
    name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    torch.cuda.set_device(name)
    return name


def _alone_on_device(store: Any, processes: int, device: str) -> bool:
    """Whether every process has a GPU for itself, which NCCL needs."""
    alone = device.startswith("cuda") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    store.add("alone", int(alone))
    store.add("counted", 1)
    _wait(lambda: bool(store.add("counted", 0) == processes))
    return bool(store.add("alone", 0) == processes)
