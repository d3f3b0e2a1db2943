"""How a run is spread over processes, and what each of them does.

Every process opens the plan itself and runs the wafers that are its own. The first one keeps the state of the run and
has in the end what all have made. Processes are started here (:func:`run_on_this_computer`) or by torchrun.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import msgspec
import torch

import partitioner
from ir.diagnostics import Diagnostic, UsageError, WafercError
from partitioner.folder import MANIFEST, STATE, read_file
from partitioner.running.inputs import Prompts, read_arrays
from partitioner.running.setup import How, Opened, Runnable, open_plan, open_unchecked
from partitioner.running.state import Keeper, RunState, finished_of, read_state
from targets.emulator.distributed import (
    Member,
    Run,
    alone,
    decode,
    encode,
    generate_over,
    launch,
    member,
    share_out,
    step_over,
    threads_of_each,
)
from targets.emulator.pipeline import vocabulary_of

_WORKER = "from partitioner.running.spread import serve; serve()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a run is spread over processes, and what is kept of it.

    Attributes:
        processes: on this computer; more than wafers in use are not started.
        timeout_s: how long a process may give no sign of life.
        resume: go on with the run whose state is kept.
        state: file that the state is kept in; ``None``: in the plan's folder, for as long as the run lasts.
        failed: tells the user of an error, where torchrun has started the processes.

    Raises:
        UsageError: W0103, a number is not possible.
    """

    processes: int = 1
    timeout_s: float = 60.0
    resume: bool = False
    state: Path | None = None
    failed: Callable[[WafercError], object] = lambda _error: None

    def __post_init__(self) -> None:
        if self.processes < 1:
            message = f"--processes must be at least 1, not {self.processes}"
            raise UsageError(Diagnostic("W0103", message, "--processes"))
        if not 1 <= self.timeout_s <= 86400:
            message = f"--timeout must be from 1 to 86400 seconds, not {self.timeout_s:g}"
            raise UsageError(Diagnostic("W0103", message, "--timeout"))

    @property
    def keeps(self) -> bool:
        """Whether the state of the run was asked for."""
        return self.resume or self.state is not None


ONE_PROCESS = Spread()


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What each process is told to do: continue ``prompts``, or take one step on the arrays in ``inputs``.

    ``manifest`` is the SHA-256 of a manifest whose plan has been checked already, ``result`` the file for what is made.
    """

    folder: str
    how: How
    timeout_s: float
    trust_code: bool
    prompts: Prompts = ()
    tokens: int = 0
    resume: bool = False
    state: str = ""
    inputs: str = ""
    keep_logits: bool = False
    manifest: str = ""
    result: str = ""

    @property
    def same_for_all(self) -> str:
        """What decides the result; the processes of a run must have the same."""
        how = msgspec.json.encode(replace(self.how, host_bytes=None)).decode()
        return f"{how} {self.prompts} {self.tokens} {bool(self.inputs)} {self.keep_logits}"

    def keeper(self) -> Keeper:
        """Keeps the state of the run, which has finished nothing yet."""
        nothing = tuple(() for _ in self.prompts)
        state = RunState(manifest_of(Path(self.folder)), self.how.seed, self.how.precision, self.prompts, nothing)
        return Keeper(Path(self.state or Path(self.folder) / STATE), state, must=bool(self.state))


def manifest_of(folder: Path) -> str:
    """SHA-256 of a plan's manifest."""
    return sha256(read_file(folder / MANIFEST)).hexdigest()


def run_on_this_computer(task: Task, runnable: Runnable, processes: int) -> Run:
    """Start processes for ``task``, whose plan is ``runnable``, and wait for what they make.

    Raises:
        CheckError: W0650, a process was lost.
        WafercError: what a process raised.
    """
    groups = share_out(runnable.plan, processes)
    with tempfile.TemporaryDirectory(prefix="waferc-") as room:
        result = Path(room) / "result"
        given = msgspec.json.encode(msgspec.structs.replace(task, result=str(result)))
        here = str(Path(partitioner.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-P", "-c", _WORKER]
        launch(command, given, groups, task.timeout_s, {"PYTHONPATH": path})
        return decode(result.read_bytes())


def serve() -> None:
    """A process of :func:`run_on_this_computer`: does the task on its standard input; that one tells of errors."""
    take_part(msgspec.json.decode(sys.stdin.buffer.read(), type=Task), lambda _error: None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what Python and torch would tidy up takes seconds, and goes with the process


def take_part(task: Task, failed: Callable[[WafercError], object]) -> Run | None:
    """Do one process's part of ``task``; what all have made in the first, ``None`` in the others.

    Where the run fails the process ends; in the one that tells the user, ``failed`` is called before.
    """
    run = None
    with member(task.timeout_s, task.how.device, failed) as me:
        torch.set_num_threads(threads_of_each())
        folder, digest = Path(task.folder), manifest_of(Path(task.folder))
        opening = open_unchecked if digest == task.manifest else open_plan
        runnable = opening(folder, trust_code=task.trust_code)
        most = len(runnable.plan.wafers_used)
        if me.processes > most:
            message = f"{me.processes} processes are more than the {most} wafers that the plan uses"
            raise UsageError(Diagnostic("W0651", message, "run", help=(f"start {most} processes at most",)))
        me.groups = share_out(runnable.plan, me.processes)
        me.agree("plan", digest)
        me.agree("command", task.same_for_all)
        opened = Opened(runnable, replace(task.how, device=me.device), me.groups[me.rank])
        run = do(task, opened, me)
        if run is not None and task.result:
            Path(task.result).write_bytes(encode(run))
    return run


def do(task: Task, opened: Opened, me: Member | None = None) -> Run | None:
    """Do a task as one of several processes, or alone.

    Raises:
        UsageError: W0604 to W0609, the prompts or inputs do not fit the plan; W0652 to W0654, the state of the run
            cannot be read, is another run's or cannot be written.
        PeerLostError: another process is not there any more.
    """
    me = me or alone(opened.runnable.plan, opened.how.device)
    if task.inputs:
        run = step_over(opened.emulator, me, read_arrays(Path(task.inputs)))
        return None if run is None else replace(run, note=opened.weights.note)
    keeper, vocabulary = task.keeper(), vocabulary_of(opened.runnable.model.graph)
    finished = msgspec.json.decode(me.from_first("finished", lambda: _begin(task, keeper, vocabulary)), type=Prompts)
    run = generate_over(
        opened.emulator, me, task.prompts, finished, task.tokens, keep_logits=task.keep_logits, on_token=keeper.add
    )
    if run is None:
        return None
    keeper.end()
    run.made.tokens.update({(u, place): t for u, tokens in enumerate(finished) for place, t in enumerate(tokens)})
    return replace(run, note=opened.weights.note)


def _begin(task: Task, keeper: Keeper, vocabulary: int) -> str:
    """Begin to keep a run's state: that of the run before, if it is to go on. The tokens that are finished, as JSON."""
    if task.resume:
        kept = read_state(keeper.path)
        kept.require_same_run(keeper.state, str(keeper.path))
        kept.require_tokens_below(vocabulary, str(keeper.path))
        keeper.state = kept
    keeper.begin()
    return msgspec.json.encode(finished_of(keeper.state, task.tokens)).decode()
