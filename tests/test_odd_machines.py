"""Wafers and links unlike the others, pipelines in any order of wafers, and copies of blocks: planned, checked, run."""

import re
from dataclasses import replace

import pytest
import torch

from ir.diagnostics import CheckError, UsageError
from ir.machine import Machine, OddLink, OddWafer, absurdities
from ir.objective import Objective
from ir.plan import FEASIBLE, Plan, Rectangle, Score, SolverRecord
from ir.rules import Rule, RuleKind
from ir.workload import Workload
from partitioner.case import Case
from partitioner.check import check
from partitioner.compile import compile_model, transfers
from partitioner.floorplan.wafers import FloorPlanner
from partitioner.folder import read_plan, write_plan
from partitioner.frontends.original import open_original
from partitioner.planned import planned
from partitioner.problem import Copy, shared_groups
from partitioner.viewer.report import render_report
from targets.cost.pipeline import pipeline_cost
from targets.emulator import Emulator
from targets.emulator.memory import HostMemory
from targets.emulator.weights import Tensors, unpacked
from targets.machines import load_target, load_wafers, with_changes

MINI = load_wafers("mini")
USERS = 3
WORKLOAD = Workload(users=USERS, context=64, chunk=16)
IDS = torch.randint(0, 256, (USERS, 6), generator=torch.Generator().manual_seed(5))
FILE = """extends = "mini"
name = "odd"
description = "unequal wafers"
[cluster]
systems = 6
"""


def machine_of(systems: int = 6, wafers=(), links=()) -> Machine:
    return replace(MINI.machine, systems=systems, odd_wafers=tuple(wafers), odd_links=tuple(links))


def plan_of(model, machine: Machine, assignment) -> Plan:
    """The plan in which item i lies on the wafers ``assignment[i]``, one for each copy; its regions laid out."""
    groups = shared_groups(model)
    held: list[list[Copy]] = [[] for _ in range(machine.systems)]
    for group, wafers in zip(groups, assignment, strict=True):
        for number, wafer in enumerate(wafers):
            held[wafer] += [Copy(block, number, len(wafers)) for block in group]
    blocks = FloorPlanner(model, machine, WORKLOAD).lay_out(held)
    return scored(Plan(model.graph.name, machine, WORKLOAD, tuple(blocks), transfers(model, blocks), None))


def scored(plan: Plan) -> Plan:
    sent = sum(t.bytes_per_token * plan.machine.link_cost(t.source_wafer, t.target_wafer) for t in plan.transfers)
    scores = (Score(Objective.BALANCE, plan.largest_wafer_bytes, 0, ""), Score(Objective.TRAFFIC, sent, 0, ""))
    return replace(plan, solver=SolverRecord(FEASIBLE, scores, 0, 60.0))


def in_turn(model, wafers) -> list[tuple[int]]:
    """As many items to each of ``wafers``, in the order given."""
    count = len(shared_groups(model))
    return [(wafers[item * len(wafers) // count],) for item in range(count)]


def relabelled(plan: Plan, names: dict[int, int]) -> Plan:
    """The same plan on wafers of other numbers."""
    blocks = tuple(
        replace(b, wafer=names[b.wafer], experts=tuple(replace(e, wafer=names[e.wafer]) for e in b.experts))
        for b in plan.blocks
    )
    sent = tuple(
        replace(t, source_wafer=names[t.source_wafer], target_wafer=names[t.target_wafer]) for t in plan.transfers
    )
    return replace(plan, blocks=blocks, transfers=sent)


def codes(plan: Plan, model) -> set[str]:
    return {fault.code for fault in check(plan, model)}


@pytest.fixture(scope="module")
def model(compiled_small_kimi):
    return compiled_small_kimi.model


@pytest.fixture(scope="module")
def original(compiled_small_kimi, model):
    return open_original(compiled_small_kimi.lowered.origin, model.placed, seed=0)


@pytest.fixture(scope="module")
def runs_like_the_original(model, original):
    def inputs(first: int, end: int) -> dict[str, torch.Tensor]:
        tensors = {
            "input_ids": IDS[:, first:end],
            "position_ids": torch.arange(first, end)[None].expand(USERS, -1).contiguous(),
        }
        return {value.name: tensors[value.name] for value in model.graph.inputs}

    expected = original.forward(inputs(0, 6))[0]

    def agrees(plan: Plan) -> Emulator:
        emulator = Emulator(model, plan, original.weights)
        name = model.graph.outputs[0]
        steps = [emulator.step(inputs(*ends))[name] for ends in ((0, 4), (4, 5), (5, 6))]
        torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-4, rtol=1e-4)
        return emulator

    return agrees


ODD = machine_of(
    wafers=[OddWafer(1, 0, 0), OddWafer(2, 60, 40), OddWafer(3, 32, 48, 2000), OddWafer(5, 48, 32, 1111)],
    links=[OddLink(2, 4, 3)],
)


# --- plans on unequal wafers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_plan(model):
    return plan_of(model, ODD, in_turn(model, (4, 2, 3)))


def test_each_wafer_is_laid_out_on_its_own_mesh(odd_plan, model):
    assert check(odd_plan, model) == ()
    sides = {w: max(b.region.row + b.region.rows for b in odd_plan.on_wafer(w)) for w in odd_plan.wafers_used}
    assert sides[3] > 32, "the plan uses rows that only this wafer has"


def test_a_plan_on_unequal_wafers_runs(odd_plan, runs_like_the_original):
    emulator = runs_like_the_original(odd_plan)
    assert {wafer: ledger.bytes.shape[1:] for wafer, ledger in emulator.ledgers.items()} == {
        4: (32, 48),
        2: (40, 60),
        3: (48, 32),
    }


def test_a_block_on_a_wafer_out_of_service_is_a_fault(odd_plan, model):
    moved = relabelled(odd_plan, {4: 1, 2: 2, 3: 3})
    assert "out of service" in "\n".join(map(str, check(moved, model)))
    assert codes(moved, model) >= {"W0503"}
    with pytest.raises(CheckError, match="W0607"):
        Emulator(model, moved, {p.name: torch.zeros(p.shape) for p in model.placed})


def test_a_region_must_lie_on_the_mesh_of_its_own_wafer(odd_plan, model):
    narrow = replace(ODD, odd_wafers=(ODD.odd_wafers[0], OddWafer(2, 20, 20), *ODD.odd_wafers[2:]))
    assert codes(replace(odd_plan, machine=narrow), model) >= {"W0503"}


def test_costly_links_count_in_the_traffic(odd_plan, model):
    cheap = replace(odd_plan, machine=replace(ODD, odd_links=()))
    assert [fault.code for fault in check(cheap, model)] == ["W0510"]
    stated = [plan.solver.value(Objective.TRAFFIC) for plan in (scored(cheap), odd_plan)]
    sent = sum(t.bytes_per_token for t in odd_plan.transfers if {t.source_wafer, t.target_wafer} == {2, 4})
    assert sent > 0
    assert stated[1] - stated[0] == 2 * sent


def test_an_impossible_cluster_is_a_fault(odd_plan, model):
    for wafers in ([OddWafer(6, 4, 4)], [OddWafer(1, 4, 0)], [OddWafer(2, 4, 4), OddWafer(1, 4, 4)]):
        assert codes(replace(odd_plan, machine=machine_of(wafers=wafers)), model) == {"W0514"}
    assert absurdities(machine_of(1, [OddWafer(0, 0, 0)])) == ("no wafer is in service",)
    assert absurdities(machine_of(links=[OddLink(2, 1, 3)]))
    assert absurdities(ODD) == ()


def latency_s(plan: Plan, model) -> float:
    found = planned(plan, model)
    pipeline = found.placed.pipeline
    return pipeline_cost(found.profile, pipeline.stages, 1, 32, MINI.speed, link_costs=pipeline.links).latency_s


def test_slow_wafers_and_costly_links_slow_the_forecast(model):
    plan = plan_of(model, machine_of(), in_turn(model, (0, 1)))
    usual = latency_s(plan, model)
    slow = latency_s(
        replace(plan, machine=machine_of(wafers=[OddWafer(0, 48, 32, 2000), OddWafer(1, 48, 32, 2000)])), model
    )
    (way,) = {t.bytes_per_token for t in plan.transfers}
    hand_over = MINI.speed.system_latency_s + way / MINI.speed.system_bytes_per_s
    host = MINI.speed.host_latency_s + MINI.speed.sampling_s
    assert slow - hand_over - host == pytest.approx(2 * (usual - hand_over - host))
    far = latency_s(replace(plan, machine=machine_of(links=[OddLink(0, 1, 5)])), model)
    assert far - usual == pytest.approx(4 * hand_over)


# --- a pipeline that is not in the order of numbers -------------------------------------------------------------------


def test_wafers_may_follow_each_other_in_any_order(model, tmp_path, runs_like_the_original, compiled_small_kimi):
    plan = plan_of(model, machine_of(), in_turn(model, (0, 1, 2)))
    other = relabelled(plan, {0: 5, 1: 2, 2: 4})
    assert check(other, model) == ()
    assert other.wafers_used == (5, 2, 4)
    runs_like_the_original(other)
    assert latency_s(other, model) == latency_s(plan, model)
    page = render_report(other)
    assert '"pipeline":[5,2,4]' in page
    write_plan(tmp_path / "plan", other, model, compiled_small_kimi.lowered, page)
    assert read_plan(tmp_path / "plan").plan == other


def test_the_table_lists_wafers_along_the_pipeline(model, capsys):
    from partitioner.cli.table import print_plan

    print_plan(plan_of(model, machine_of(wafers=[OddWafer(3, 0, 0)]), in_turn(model, (5, 2, 4))))
    shown = capsys.readouterr().out
    assert re.findall(r"^\W*(\d)\s.*%", shown, flags=re.MULTILINE) == ["5", "2", "4"]
    assert "2 of 6 systems unused; 1 of 6 out of service" in shown


def test_values_that_flow_back_are_found_whatever_the_numbers(model):
    plan = plan_of(model, machine_of(), in_turn(model, (5, 2, 4)))
    last = plan.blocks[-1]
    merged = relabelled(plan, {5: 5, 2: 2, 4: 5})  # from 5 to 2 and back
    assert last.wafer == 4
    assert codes(merged, model) >= {"W0508"}


# --- copies -----------------------------------------------------------------------------------------------------------


def copied(model, first=(0, 3), middle=(1, 4, 5)) -> Plan:
    """The embedding and the first items in copies on ``first``, the middle in others, the rest on wafer 2."""
    count = len(shared_groups(model))
    third = count // 3
    return plan_of(model, machine_of(), [*[first] * third, *[middle] * third, *[(2,)] * (count - 2 * third)])


def test_users_are_served_by_copies_in_turn(model, runs_like_the_original, tmp_path, compiled_small_kimi):
    plan = copied(model)
    assert check(replace(plan, rules=(Rule(RuleKind.REPLICATE, ("embedding",), count=2),)), model) == ()
    emulator = runs_like_the_original(plan)
    assert set(emulator.ledgers) == {0, 1, 2, 3, 4, 5}
    held = [emulator.ledgers[wafer].bytes[0].sum() for wafer in (0, 3)]
    assert held[0] == held[1] > 0, "each copy has all weights"
    caches = [emulator.ledgers[wafer].bytes[1].sum() for wafer in (0, 3)]
    assert caches[0] == 2 * caches[1] > 0, "of three users two are served by the first copy"
    write_plan(tmp_path / "plan", plan, model, compiled_small_kimi.lowered, render_report(plan))
    assert read_plan(tmp_path / "plan").plan == plan


def test_a_copy_that_is_broken_fails_its_own_users_alone(model, original):
    plan = copied(model)
    emulator = Emulator(model, plan, original.weights)
    whole = unpacked(original.weights, model.placed)
    broken = HostMemory(
        Tensors({name: torch.full_like(weight, torch.nan) for name, weight in whole.items()}),
        emulator.arithmetic,
    )
    memory = emulator.memories["embedding #1"]
    emulator.memories["embedding #1"] = replace(memory, own=replace(memory.own, host=broken))
    inputs = {"input_ids": IDS, "position_ids": torch.arange(6)[None].expand(USERS, -1).contiguous()}
    found = emulator.step({value.name: inputs[value.name] for value in model.graph.inputs})
    broken = found[model.graph.outputs[0]].isnan().flatten(1).any(dim=1)
    assert broken.tolist() == [False, True, False]


def test_bytes_are_sent_once_for_each_user(model, original):
    plan, single = copied(model), copied(model, (0,), (1,))
    inputs = {"input_ids": IDS, "position_ids": torch.arange(6)[None].expand(USERS, -1).contiguous()}
    sent = []
    for each in (plan, single):
        emulator = Emulator(model, each, original.weights)
        emulator.step({value.name: inputs[value.name] for value in model.graph.inputs})
        sent.append((emulator.counters.transfer_bytes, emulator.counters.multiply_adds))
    assert sent[0] == sent[1]


def test_damaged_copies_are_found(model):
    plan = copied(model)
    one = next(b for b in plan.blocks if b.copy == 1)

    def with_copy(**changes) -> Plan:
        return replace(plan, blocks=tuple(replace(b, **changes) if b is one else b for b in plan.blocks))

    assert codes(plan, model) == set()
    assert codes(with_copy(copy=2), model) >= {"W0501"}
    assert codes(with_copy(copy=0), model) >= {"W0501"}
    assert codes(with_copy(parameters=one.parameters[1:]), model) >= {"W0502"}
    first = next(b for b in plan.blocks if (b.name, b.copy) == (one.name, 0))
    assert codes(with_copy(wafer=first.wafer), model) >= {"W0501"}
    cached = next(b for b in plan.blocks if b.copy == 1 and b.cache_bytes)
    whole = replace(
        plan, blocks=tuple(replace(b, cache_bytes=2 * b.cache_bytes) if b is cached else b for b in plan.blocks)
    )
    assert codes(whole, model) >= {"W0510"}
    assert codes(replace(plan, transfers=plan.transfers[1:]), model) >= {"W0509"}
    parted = next(b for b in plan.blocks if b.copy == 1 and b.experts)
    away = tuple(replace(b, wafer=2, region=Rectangle(0, 0, 1, 1)) if b is parted else b for b in plan.blocks)
    assert codes(replace(plan, blocks=away), model) >= {"W0507"}


def test_copies_share_the_time_of_their_station(model):
    plan, single = copied(model), copied(model, (0,), (1,))
    held = []
    for each in (plan, single):
        found = planned(each, model)
        cost = pipeline_cost(found.profile, found.placed.pipeline.stages, 1, 32, MINI.speed)
        held.append(cost.stations)
    assert held[0]["embedding"] == pytest.approx(held[1]["embedding"] / 2)
    assert held[0]["head"] == held[1]["head"]
    assert len(planned(plan, model).placed.turns) == 2, "three users, no two of whom meet the same copies"


# --- placed by the solver ---------------------------------------------------------------------------------------------


def test_the_solver_places_on_unequal_wafers(model, runs_like_the_original):
    plan = compile_model(Case(model, ODD, WORKLOAD, speed=MINI.speed)).plan
    assert 1 not in plan.wafers_used
    assert check(plan, model) == ()
    runs_like_the_original(plan)


def test_what_fits_the_largest_wafer_alone_is_placed_there(model):
    """Each item is too large for the small wafers, so that all lie on the only other one."""
    small = [OddWafer(wafer, 4, 4) for wafer in range(3)]
    plan = compile_model(Case(model, machine_of(4, [*small, OddWafer(3, 90, 60)]), WORKLOAD)).plan
    assert plan.wafers_used == (3,)


def test_rules_of_copies_are_placed_checked_and_run(model, runs_like_the_original):
    rules = (Rule(RuleKind.REPLICATE, ("embedding",), count=2), Rule(RuleKind.PIN, ("head",), wafers=(0,)))
    plan = compile_model(Case(model, machine_of(4), WORKLOAD, rules=rules)).plan
    assert [len(own) for name, own in plan.copies.items() if name == "embedding"] == [2]
    assert plan.wafers_used[-1] == 0
    runs_like_the_original(plan)


# --- machine files ----------------------------------------------------------------------------------------------------


def test_machine_files_state_what_is_unlike_the_others(tmp_path):
    path = tmp_path / "odd.toml"
    path.write_text(
        FILE
        + "[[cluster.odd_wafer]]\nwafer = 4\nspeed = 0.9\n"
        + "[[cluster.odd_wafer]]\nwafer = 1\nout_of_service = true\n"
        + "[[cluster.odd_wafer]]\nwafer = 2\ncolumns = 20\n"
        + "[[cluster.odd_link]]\nbetween = [5, 2]\ncost = 4\n"
    )
    target = load_target(str(path))
    machine = target.cluster.machine
    assert machine.odd_wafers == (OddWafer(1, 0, 0), OddWafer(2, 20, 32), OddWafer(4, 48, 32, 1111))
    assert machine.odd_links == (OddLink(2, 5, 4),)
    assert (machine.in_service, machine.total_tiles) == ((0, 2, 3, 4, 5), 4 * 48 * 32 + 20 * 32)
    assert (machine.link_cost(5, 2), machine.link_cost(2, 4)) == (4, 1)
    fewer = with_changes(target, {"cluster.systems": 3, "mesh.rows": 30}).cluster.machine
    assert (fewer.odd_wafers, fewer.odd_links) == ((OddWafer(1, 0, 0), OddWafer(2, 20, 30)), ())
    assert load_wafers(str(path), without=(0, 4)).machine.in_service == (2, 3, 5)


WRONG = {
    "wafer = 6": "wafer must be from 0 to 5, not 6",
    "wafer = -1": "wafer must be from 0 to 5, not -1",
    "speed = 0.5": "wafer is missing",
    "wafer = true": "wafer must be an integer",
    "wafer = 1\ncolumns = 10001": "columns must be from 1 to 10,000",
    "wafer = 1\ncolumns = 0": "columns must be from 1 to 10,000",
    "wafer = 1\nspeed = 0": "speed must be a number",
    "wafer = 1\nspeed = nan": "speed must be a number",
    "wafer = 1\nspeed = 'fast'": "speed must be a number",
    "wafer = 1\nout_of_service = 1": "out_of_service must be true or false",
    "wafer = 1\nout_of_service = true\nspeed = 2": "neither mesh nor speed",
    "wafer = 1\nsize = 3": "unknown entry 'size'",
    "wafer = 1\n[[cluster.odd_wafer]]\nwafer = 1": "wafer 1 twice",
}
WRONG_LINKS = {
    "between = [1, 1]\ncost = 2": "no wafer has a link to itself",
    "between = [1, 6]\ncost = 2": "between must be from 0 to 5, not 6",
    "between = [1]\ncost = 2": "between must be two wafers",
    "between = [1, 2]\ncost = 0": "cost must be from 1 to 10,000, not 0",
    "between = [1, 2]\ncost = 1.5": "cost must be an integer",
    "between = [1, 2]": "cost is missing",
    "between = [1, 2]\ncost = 2\n[[cluster.odd_link]]\nbetween = [2, 1]\ncost = 3": "link 1-2 twice",
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((f"[[cluster.odd_wafer]]\n{text}\n", message) for text, message in WRONG.items()),
        *((f"[[cluster.odd_link]]\n{text}\n", message) for text, message in WRONG_LINKS.items()),
        ("odd_wafer = 3\n", "must be tables"),
        ("".join(f"[[cluster.odd_wafer]]\nwafer = {n}\nout_of_service = true\n" for n in range(6)), "no wafer is in"),
    ],
)
def test_wrong_machine_files_are_refused(tmp_path, text, message):
    path = tmp_path / "odd.toml"
    path.write_text(FILE + text)
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        load_target(str(path))
    assert {fault.code for fault in raised.value.diagnostics} == {"W0111"}


@pytest.mark.parametrize(
    ("without", "message"), [("9", "no wafer 9"), ("0,1,2,3", "no wafer is left"), ("x", "names no wafer")]
)
def test_wafers_that_are_not_there_cannot_be_left_out(waferc, without, message):
    done = waferc("compile", "small-kimi", "--target", "mini", f"--without={without}", "--json")
    assert done.code == 2
    assert message in done.out
