"""Runs over processes yield what one process does; a lost one ends them, and what was finished is gone on with."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ir.diagnostics import CheckError, UsageError
from partitioner.api import Request, compile_lowered
from partitioner.run_state import Keeper, RunState, read_state
from targets.counters import Counters
from targets.emulator import Arithmetic, Emulator, Precision, generate
from targets.emulator.arithmetic import require_device
from targets.emulator.distributed import alone, decode, generate_over, launch, share_out
from targets.emulator.distributed.channel import _packed, _room, _unpacked
from targets.emulator.distributed.route import find_route
from targets.emulator.distributed.schedule import Asked, in_order, in_pieces, plan_rounds
from targets.emulator.seeded import Seeded

ROOT = Path(__file__).parent.parent
PROMPTS = ((1, 5, 9, 2, 7), (7, 8, 3), (4,))
TOKENS = 4
CHILD = """
import json, sys
from pathlib import Path
from partitioner.running.setup import open_unchecked
from targets.emulator import Emulator
from targets.emulator.distributed import encode, generate_over, member, share_out
from targets.emulator.seeded import Seeded

given = json.load(sys.stdin)
with member(20.0, "cpu", print) as me:
    it = open_unchecked(Path(given["folder"]))
    me.groups = share_out(it.plan, me.processes)
    emulator = Emulator(it.model, it.plan, Seeded(it.model.graph.parameter, 3), wafers=me.groups[me.rank])
    told = []
    prompts, tell = given["prompts"], lambda *it: told.append(it)
    run = generate_over(
        emulator, me, prompts, [()] * 3, given["tokens"], keep_logits=True, on_token=tell
    )
    if run:
        Path(given["result"]).write_bytes(encode(run))
        Path(given["result"] + ".told").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def compiled(lowered_small_kimi):
    """``small-kimi`` for three users on four wafers, with pieces of four tokens."""
    return compile_lowered(lowered_small_kimi, Request(target="mini", users=3, context=64, prefill_chunk=4))


@pytest.fixture(scope="module")
def folder(compiled, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("distributed") / "plan"
    compiled.save(place)
    return place


@dataclass
class Noted:
    """Weights from a seed, and what was read of them."""

    source: Seeded
    read_names: Counter

    def shape(self, name):
        return self.source.shape(name)

    def read(self, name, expert=None, rows=None):
        self.read_names[name] += 1
        return self.source.read(name, expert, rows)


@pytest.fixture(scope="module")
def one_process(compiled):
    """What one process generates for each prompt."""
    emulator = Emulator(compiled.model, compiled.plan, Seeded(compiled.model.graph.parameter, 3))
    return [generate(emulator, prompt, TOKENS) for prompt in PROMPTS]


def total(made) -> Counters:
    return sum((counted for text in made for counted in text.counters), Counters())


def same_counts(one: Counters, other: Counters) -> bool:
    routing = [{name: counts.tolist() for name, counts in it.routing.items()} for it in (one, other)]
    return (one.ops, one.links, one.by_reference, routing[0]) == (
        other.ops,
        other.links,
        other.by_reference,
        routing[1],
    )


# --- Who runs what, and when ------------------------------------------------------------------------------------------


def test_wafers_are_shared_out_in_order_with_the_least_on_the_fullest_process(compiled):
    plan = compiled.plan
    wafers, sizes = plan.wafers_used, [plan.wafer_bytes(wafer) for wafer in plan.wafers_used]
    for processes in range(1, len(wafers) + 1):
        groups = share_out(plan, processes)
        assert len(groups) == processes
        assert tuple(wafer for group in groups for wafer in group) == wafers
        fullest = max(sum(map(plan.wafer_bytes, group)) for group in groups)
        if processes == 2:
            assert fullest == min(max(sum(sizes[:cut]), sum(sizes[cut:])) for cut in range(1, len(sizes)))


def test_each_process_is_at_work_on_another_user(compiled):
    """In the common order each user's step passes the processes in turn, users right behind each other."""
    emulator = Emulator(compiled.model, compiled.plan, Seeded(compiled.model.graph.parameter, 3))
    graph, groups = compiled.model.graph, share_out(compiled.plan, 3)
    names = [value.name for value in graph.inputs]
    routes = tuple(find_route(stages, groups, names, graph.outputs) for stages in emulator.turns)
    assert [segment.rank for segment in routes[0].segments] == [0, 1, 2]
    asked = [Asked(tuple(in_pieces(prompt, (), 4)), 0, TOKENS) for prompt in PROMPTS]
    rounds = plan_rounds(asked, names, routes)
    assert [len(items) for items in rounds] == [4, 3, 3, 3]
    at: dict[int, list[tuple[int, int]]] = {rank: [] for rank in range(3)}
    for number, item, segment in in_order(rounds, routes):
        at[segment].append((number, item.index))
    assert at[0] == at[1] == at[2] == sorted(at[0])
    in_round = [(item.index, segment) for number, item, segment in in_order(rounds, routes) if number == 1]
    assert in_round == [(4, 0), (4, 1), (5, 0), (4, 2), (5, 1), (6, 0), (5, 2), (6, 1), (6, 2)]


def test_tensors_arrive_as_they_were_sent():
    sent = [
        torch.randn(3, 5),
        torch.arange(7),
        torch.tensor([True, False]),
        torch.randn(2, 3).bfloat16(),
        torch.ones(0, 4),
    ]
    specs = [(tuple(tensor.shape), tensor.dtype) for tensor in sent]
    message = _packed(sent, "cpu")
    assert message.numel() == sum(map(_room, specs))
    for tensor, arrived in zip(sent, _unpacked(message, specs), strict=True):
        assert torch.equal(tensor, arrived)


# --- The same as one process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [3])
def test_processes_make_what_one_makes(compiled, folder, one_process, tmp_path, processes):
    groups = share_out(compiled.plan, processes)
    result = tmp_path / "result"
    given = {"folder": str(folder), "prompts": PROMPTS, "tokens": TOKENS, "result": str(result)}
    launch([sys.executable, "-c", CHILD], json.dumps(given).encode(), groups, 20.0, {"PYTHONPATH": str(ROOT)})
    run = decode(result.read_bytes())
    for user, text in enumerate(one_process):
        assert [run.made.tokens[user, place] for place in range(TOKENS)] == list(text.tokens)
        ours = [
            run.made.results[i, "linear_17"] for i, step in enumerate(run.steps) if step.user == user and step.place
        ]
        for mine, theirs in zip(ours, text.logits[1:], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert same_counts(sum((step.counted for step in run.steps), Counters()), total(one_process))
    assert len(run.rss_bytes) == processes
    assert all(rss > 100 << 20 for rss in run.rss_bytes)
    told = json.loads(Path(f"{result}.told").read_text())
    assert {(user, place): token for user, place, token in told} == run.made.tokens


def test_a_process_reads_the_weights_of_its_own_wafers_alone(compiled):
    graph = compiled.model.graph
    groups = share_out(compiled.plan, 2)
    read = []
    for wafers in groups:
        noted = Noted(Seeded(compiled.model.graph.parameter, 3), Counter())
        emulator = Emulator(compiled.model, compiled.plan, noted, wafers=wafers)
        assert tuple(emulator.ledgers) == wafers
        lying_here = {name for block in compiled.plan.blocks if block.wafer in wafers for name in block.parameters}
        flight = emulator.begin({"input_ids": torch.tensor([[1, 2]]), "position_ids": torch.tensor([[0, 1]])})
        for index, stage in enumerate(emulator.stages(0)):
            if stage.wafer in wafers:
                for name in graph.types:
                    if name in {transfer.value for transfer in compiled.plan.transfers}:
                        shape = tuple(size if isinstance(size, int) else 0 for size in graph.types[name].shape)
                        flight.values[stage.wafer].setdefault(name, torch.ones(1, 2, shape[-1]))
                flight.stage = index
                emulator.advance(flight)
        assert noted.read_names.keys() <= lying_here
        read.append(noted.read_names.keys())
    assert not read[0] & read[1]
    assert len(read[0]) > 10
    assert len(read[1]) > 10
    lacking = {p.name: torch.zeros(p.shape) for p in compiled.model.placed if p.name not in read[0]}
    with pytest.raises(UsageError, match="W0606"):
        Emulator(compiled.model, compiled.plan, lacking, wafers=groups[0])


# --- Going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", Precision)
def test_a_run_goes_on_from_what_is_finished(compiled, precision):
    """With the cache rebuilt, for users who have finished different numbers of tokens."""
    how = Arithmetic.of(compiled.model.graph, precision)
    emulator = Emulator(compiled.model, compiled.plan, Seeded(compiled.model.graph.parameter, 3), how)
    me, told = alone(compiled.plan, "cpu"), []

    def run(finished):
        return generate_over(
            emulator, me, PROMPTS, finished, TOKENS, keep_logits=True, on_token=lambda *mark: told.append(mark)
        )

    whole = run([(), (), ()])
    texts = [[whole.made.tokens[user, place] for place in range(TOKENS)] for user in range(3)]
    told.clear()
    rest = run([texts[0][:3], texts[1][:1], texts[2]])
    assert sorted(told) == [(0, 3, texts[0][3]), *((1, place, texts[1][place]) for place in (1, 2, 3))]
    pieces = [step.remembered for step in rest.steps if step.user == 0]
    assert pieces == ([0, 4] if precision is Precision.FLOAT32 else [0, 4, 5, 6, 7])


def test_a_state_is_whole_and_of_one_run_alone(tmp_path):
    path = tmp_path / "run.json"
    state = RunState("digest", 0, "float32", ((1, 2), (3,)), ((), ()))
    keeper = Keeper(path, state, must=True)
    keeper.begin()
    for user, place, token in ((0, 0, 5), (1, 0, 6), (0, 1, 7), (0, 1, 8)):
        keeper.add(user, place, token)
    assert read_state(path).tokens == ((5, 7), (6,))
    assert [it.name for it in tmp_path.iterdir()] == ["run.json"]
    for changed in (
        RunState("other", 0, "float32", state.prompts, state.tokens),
        RunState("digest", 1, "float32", state.prompts, state.tokens),
        RunState("digest", 0, "native", state.prompts, state.tokens),
        RunState("digest", 0, "float32", ((1, 2), (4,)), state.tokens),
    ):
        with pytest.raises(UsageError, match="W0653"):
            read_state(path).require_same_run(changed, "")
    written = path.read_bytes()
    for damaged in (
        written[:-9],
        b"\xff",
        b"[]",
        written.replace(b"[6]", b'["6"]'),
        written.replace(b"[[5,7],[6]]", b"[]"),
    ):
        assert damaged != written
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="W0652"):
            read_state(path)
    path.unlink()
    with pytest.raises(UsageError, match="W0652"):
        read_state(path)
    with pytest.raises(UsageError, match="W0654"):
        Keeper(tmp_path / "gone" / "run.json", state, must=True).begin()
    Keeper(tmp_path / "gone" / "run.json", state, must=False).begin()


def test_a_killed_process_ends_the_run_and_the_next_goes_on(waferc, folder, monkeypatch):
    """As a user does it: kill -9 once some tokens are finished, then the same command with --resume."""
    started, state = [], folder / "run.json"

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    def kill():
        while not (state.exists() and len(read_state(state).tokens[0]) >= 2):
            time.sleep(0.01)
        started[1].send_signal(signal.SIGKILL)
        killed.append(time.monotonic())

    killed: list[float] = []
    monkeypatch.setattr(subprocess, "Popen", Popen)
    command = ("run", folder, "--prompt-ids", "1,5,9,2;7,8,3", "--tokens", 24, "--json")
    threading.Thread(target=kill, daemon=True).start()
    lost = waferc(*command, "--processes", 2)
    assert time.monotonic() - killed[0] < 10
    assert (lost.code, lost.codes) == (6, ["W0650"])
    (fault,) = lost.record["diagnostics"]
    assert fault["message"] == "process 1 was lost"
    assert fault["facts"]["wafers"] == "2, 3"
    assert "--resume" in fault["help"][0]
    assert all(process.poll() is not None for process in started)
    finished = [len(tokens) for tokens in read_state(state).tokens]
    assert min(finished) >= 1
    other = waferc("run", folder, "--prompt-ids", "1,5", "--resume", "--json")
    assert (other.code, other.codes) == (2, ["W0653"])
    gone_on = waferc(*command, "--processes", 2, "--resume").record
    assert not state.exists()
    assert (gone_on["processes"], len(gone_on["processes_rss_bytes"])) == (2, 2)
    assert gone_on["steps"] == 48 - sum(finished)
    assert waferc(*command).record["tokens"] == gone_on["tokens"]
    nothing = waferc(*command, "--resume")
    assert (nothing.code, nothing.codes) == (2, ["W0652"])


def test_a_stopped_process_is_noticed_and_errors_are_those_of_the_process(tmp_path):
    """Without torch's own channels: one process gives no sign of life; another one says itself what is wrong."""
    child = """
import os, signal, sys
from ir.diagnostics import Diagnostic, UsageError
from targets.emulator.distributed import member
with member(1.0, "cpu", print) as me:
    if me.rank == 1 and sys.argv[1] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if me.rank == 1:
        raise UsageError(Diagnostic("W0604", "wrong", "here", {"figure": 3}))
    me.from_first("never", lambda: "") if me.rank else __import__("time").sleep(60)
"""
    begin = time.monotonic()
    for how, error, code in (("stop", CheckError, "W0650"), ("raise", UsageError, "W0604")):
        with pytest.raises(error) as caught:
            launch([sys.executable, "-c", child, how], b"", ((0,), (1,)), 1.0, {"PYTHONPATH": str(ROOT)})
        (fault,) = caught.value.diagnostics
        assert fault.code == code
    assert fault.facts == {"figure": 3}
    assert time.monotonic() - begin < 40


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--processes", 0), "W0103"),
        (("--processes", 2, "--timeout", 0), "W0103"),
        (("--device", "cuda:-1"), "W0655"),
        (("--device", "tpu"), "W0655"),
        (("--processes", 2, "--trace", "trace.json"), "W0656"),
        (("--state", "/nowhere/run.json"), "W0654"),
    ],
)
def test_options_that_make_no_sense_are_refused(waferc, folder, options, code):
    done = waferc("run", folder, "--prompt-ids", "1,5", "--json", *options)
    assert (done.code, done.codes) == (2, [code])


def test_cuda_is_refused_where_there_is_none():
    require_device("cpu")
    if torch.cuda.is_available():
        require_device("cuda")
    else:
        with pytest.raises(UsageError, match="W0655"):
            require_device("cuda")
    with pytest.raises(UsageError, match="W0655"):
        require_device("cuda:99")
