"""Processes on this computer: started, looked after and ended together.

They find each other as under torchrun, by the same variables of the environment, through a store in this process that
listens on the loopback interface alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from ir.diagnostics import CheckError, WafercError
from targets.emulator.distributed.lookout import Lookout, lost_diagnostic, told

_LOOK_S = 0.05
_GRACE_S = 3.0
"""Time for the others to say why, once a process has failed."""
PREFIX = "waferc/0"


def launch(
    command: Sequence[str],
    given: bytes,
    groups: Sequence[Sequence[int]],
    timeout_s: float,
    environment: Mapping[str, str],
) -> None:
    """Run ``command`` once for each of ``groups`` (the wafers of each process) until all are done.

    Each reads ``given`` from its standard input. None is left when this returns or raises.

    Raises:
        CheckError: W0650, a process was lost: it ended by a signal, or gave no sign of life for ``timeout_s``.
        WafercError: what a process raised.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    store = PrefixStore(PREFIX, server)
    watched = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    silent: list[int] = []
    gone = Event()

    def lost(ranks: list[int]) -> None:
        silent.extend(ranks)
        gone.set()

    lookout = Lookout(PrefixStore(PREFIX, watched), range(len(groups)), timeout_s, lost)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(len(groups)):
            variables = {**os.environ, **environment, **_meeting(rank, len(groups), port)}
            process = subprocess.Popen(  # noqa: S603 - the caller's own command
                command, stdin=subprocess.PIPE, env=variables, start_new_session=True
            )
            processes.append(process)
            assert process.stdin
            process.stdin.write(given)
            process.stdin.close()
        lookout.start()
        _look_after(processes, store, groups, timeout_s, gone, silent)
    finally:
        lookout.stop()
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _meeting(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would tell a process, and that both stay on the loopback interface."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        "NCCL_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }


def _look_after(
    processes: Sequence[subprocess.Popen[bytes]],
    store: Any,
    groups: Sequence[Sequence[int]],
    timeout_s: float,
    gone: Event,
    silent: list[int],
) -> None:
    """Return when all processes are done, raise when one has failed."""
    while any(process.poll() is None for process in processes):
        if gone.wait(_LOOK_S) and not store.check(["failure"]):
            raise CheckError(lost_diagnostic(silent, groups, "no sign of life", timeout_s))
        if gone.is_set() or any(process.poll() for process in processes):
            break
    if gone.is_set() or any(process.poll() for process in processes):
        raise _failure(processes, store, groups, timeout_s)


def _failure(
    processes: Sequence[subprocess.Popen[bytes]], store: Any, groups: Sequence[Sequence[int]], timeout_s: float
) -> WafercError:
    """Why a process has failed: a signal that ended it, or what one of them has left."""
    end = time.monotonic() + min(_GRACE_S, timeout_s)
    while time.monotonic() < end:
        killed = [rank for rank, process in enumerate(processes) if (process.poll() or 0) < 0]
        if killed:
            return CheckError(
                lost_diagnostic(killed, groups, f"ended by signal {-(processes[killed[0]].returncode)}", timeout_s)
            )
        if error := told(store):
            return error
        time.sleep(_LOOK_S)
    ended = [rank for rank, process in enumerate(processes) if process.poll()]
    reason = f"ended with exit code {processes[ended[0]].returncode}"
    return CheckError(lost_diagnostic(ended, groups, reason, timeout_s))
