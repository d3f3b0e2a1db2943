"""Runs over processes yield what one process does; a lost one ends them, and what was finished is gone on with."""

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
from torch.distributed import HashStore

from ir.diagnostics import CheckError, Diagnostic, UsageError
from partitioner.api import Request, compile_lowered
from partitioner.running.state import Keeper, RunState, read_state
from targets.emulator import Arithmetic, Emulator, Precision
from targets.emulator.arithmetic import require_device
from targets.emulator.distributed import alone, generate_over, launch, share_out
from targets.emulator.distributed.channel import _packed, _room, _unpacked
from targets.emulator.distributed.lookout import tell, told
from targets.emulator.distributed.route import find_route
from targets.emulator.distributed.schedule import Asked, in_order, in_pieces, plan_rounds
from targets.emulator.executor import Stage
from targets.emulator.seeded import Seeded

PROMPTS = ((1, 5, 9, 2, 7), (7, 8, 3), (4,))
TOKENS = 4
COMMAND = ("--prompt-ids", "1,5,9,2,7;7,8,3", "--tokens", 16, "--json")


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
def one_process(waferc, folder):
    """What one process makes of the command."""
    return waferc("run", folder, *COMMAND).record


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


def test_processes_make_what_one_makes(waferc, folder, one_process):
    record = waferc("run", folder, *COMMAND, "--processes", 3).record
    assert (record["processes"], len(record["processes_rss_bytes"])) == (3, 3)
    assert record["peak_rss_bytes"] == max(record["processes_rss_bytes"])
    for name in ("tokens", "steps", "counters", "weights", "wafers", "order"):
        assert record[name] == one_process[name], name
    assert one_process["processes"] == 1
    assert not (folder / "run.json").exists()


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
    with pytest.raises(UsageError, match="W0652"):
        read_state(Path("/dev/zero"))
    with pytest.raises(UsageError, match="W0652"):
        RunState("digest", 0, "float32", ((1,),), ((120,),)).require_tokens_below(120, "")
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="W0654"):
        keeper.begin()
    assert path.read_bytes() == b"{}"
    with pytest.raises(UsageError, match="W0654"):
        Keeper(tmp_path / "gone" / "run.json", state, must=True).begin()
    Keeper(tmp_path / "gone" / "run.json", state, must=False).begin()


def test_a_lost_process_ends_the_run_and_the_next_goes_on(waferc, folder, one_process, monkeypatch):
    """One of two is stopped once some tokens are finished; then the same command with --resume, by one process."""
    started, state = [], folder / "run.json"

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    def stop():
        while not (state.exists() and len(read_state(state).tokens[0]) >= 2):
            time.sleep(0.01)
        started[1].send_signal(signal.SIGSTOP)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    threading.Thread(target=stop, daemon=True).start()
    lost = waferc("run", folder, *COMMAND, "--processes", 2, "--timeout", 3)
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
    gone_on = waferc("run", folder, *COMMAND, "--resume").record
    assert gone_on["tokens"] == one_process["tokens"]
    assert gone_on["steps"] == 32 - sum(finished)
    assert not state.exists()
    nothing = waferc("run", folder, *COMMAND, "--resume")
    assert (nothing.code, nothing.codes) == (2, ["W0652"])


def test_a_process_that_ends_early_is_named_and_none_is_left():
    """Whatever ends it, at once and not after the time limit."""
    child = "import os, signal, sys, time; {} if os.environ['RANK'] == '1' else time.sleep(60)"
    for how, reason in (("os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"), ("sys.exit(3)", "exit code 3")):
        begin = time.monotonic()
        with pytest.raises(CheckError) as caught:
            launch([sys.executable, "-c", child.format(how)], b"", ((0,), (1, 4)), 50.0, {})
        (fault,) = caught.value.diagnostics
        assert (fault.code, fault.message, fault.facts["wafers"]) == ("W0650", "process 1 was lost", "1, 4")
        assert reason in fault.facts["reason"]
        assert time.monotonic() - begin < 40


def test_the_first_error_is_the_one_that_is_told():
    store = HashStore()
    assert told(store) is None
    wrong = Diagnostic("W0604", "wrong", "here", {"figure": 3}, ("help",))
    assert tell(store, UsageError(wrong))
    assert not tell(store, CheckError(Diagnostic("W0650", "process 0 was lost")))
    error = told(store)
    assert isinstance(error, UsageError)
    assert error.diagnostics == (wrong,)


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


def test_all_that_a_step_makes_lies_on_its_device(compiled):
    """Attention on torch's device without memory, which refuses operands that lie elsewhere as a GPU does."""
    graph = compiled.model.graph
    block = [block for block in compiled.model.blocks if block.caches][-1]
    (last,) = (placed.wafer for placed in compiled.plan.blocks if placed.name == block.name)
    how = Arithmetic.of(graph, device="meta")
    emulator = Emulator(compiled.model, compiled.plan, Seeded(graph.parameter, 3), how, wafers=(last,))
    (program,) = (p for stage in emulator.stages(0) for p in stage.programs if p.block.name == block.name)
    emulator._stages = ((Stage(last, (program,)),),)
    for position in (0, 2):
        flight = emulator.begin(
            {"input_ids": torch.zeros(1, 2).long(), "position_ids": torch.arange(2)[None] + position}
        )
        sent = [name for name in graph.producer if name.endswith("/add_18")]  # what layers hand on
        flight.values[last] |= {name: torch.ones(1, 2, 128, device="meta") for name in sent}
        emulator.advance(flight)
        emulator.finish(flight)
    (history,) = flight.histories.values()
    made = [*flight.values[last].values(), *history.values.values()]
    assert history.tokens == 4
    assert flight.values[last].keys() > {"input_ids", "position_ids"}
    assert {value.device.type for value in made} == {"meta"}
