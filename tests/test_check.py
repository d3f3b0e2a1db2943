"""The checker finds every wrong claim of a plan, and what is damaged on disk is told, quickly and without harm."""

import hashlib
import json
import os
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from ir.graph import Graph
from ir.machine import Machine
from ir.model import Block, BlockKind, Edge, Model
from ir.objective import Objective
from ir.plan import PlacedBlock, Plan, Rectangle, Score, Transfer
from ir.workload import Workload
from partitioner.case import Case
from partitioner.check import check
from partitioner.compile import compile_model
from partitioner.folder import write_plan
from partitioner.problem import ExpertLayout

EXPERTS, ROUTER, ATTENTION = "layers.1.experts", "layers.1.router", "layers.1.attention"


@pytest.fixture(scope="module")
def model(compiled_small_kimi):
    return compiled_small_kimi.model


@pytest.fixture(scope="module")
def plan(compiled_small_kimi):
    return compiled_small_kimi.plan


@pytest.fixture(scope="module")
def apart(model, plan):
    """A plan whose experts have regions of their own."""
    return compile_model(Case(model, plan.machine, plan.workload, ExpertLayout.APART)).plan


@pytest.fixture(params=["sliced", "apart"])
def either(request, plan, apart):
    """A plan whose experts share their group's region, and one in which they have their own."""
    assert named(plan, EXPERTS).sliced
    assert not named(apart, EXPERTS).sliced
    return {"sliced": plan, "apart": apart}[request.param]


def with_block(plan: Plan, name: str, **changes) -> Plan:
    return replace(plan, blocks=tuple(replace(b, **changes) if b.name == name else b for b in plan.blocks))


def named(plan: Plan, name: str) -> PlacedBlock:
    return next(block for block in plan.blocks if block.name == name)


def with_expert(plan: Plan, number: int, **changes) -> Plan:
    experts = list(named(plan, EXPERTS).experts)
    experts[number] = replace(experts[number], **changes)
    return with_block(plan, EXPERTS, experts=tuple(experts))


def codes(plan: Plan, model) -> set[str]:
    return {fault.code for fault in check(plan, model)}


def messages(plan: Plan, model) -> str:
    return "\n".join(map(str, check(plan, model)))


def test_a_sound_plan_passes(plan, model):
    assert check(plan, model) == ()


# --- every block and every weight, once -----------------------------------------------------------------------------


def test_a_missing_block_is_found(plan, model):
    faults = check(replace(plan, blocks=plan.blocks[1:]), model)
    assert ("W0501", plan.blocks[0].name) in {(fault.code, fault.where) for fault in faults}


def test_a_block_placed_twice_is_found(plan, model):
    elsewhere = replace(plan.blocks[0], wafer=3, region=Rectangle(47, 31, 1, 1))
    faults = check(replace(plan, blocks=(elsewhere, *plan.blocks)), model)
    assert "placed more than once" in str(faults[0])
    assert faults[0].code == "W0501"


def test_an_unknown_block_is_found(plan, model):
    free = replace(plan.blocks[0], name="intruder", wafer=3, region=Rectangle(47, 31, 1, 1))
    (fault,) = (f for f in check(replace(plan, blocks=(*plan.blocks, free)), model) if f.code == "W0501")
    assert fault.where == "intruder"


def test_a_weight_left_out_is_found(plan, model):
    changed = with_block(plan, ROUTER, parameters=named(plan, ROUTER).parameters[1:])
    assert "W0502" in codes(changed, model)


def test_a_weight_moved_to_another_block_is_found_at_both(plan, model):
    weight = named(plan, ROUTER).parameters[-1]
    changed = with_block(plan, ROUTER, parameters=named(plan, ROUTER).parameters[:-1])
    changed = with_block(changed, ATTENTION, parameters=(*named(plan, ATTENTION).parameters, weight))
    assert {f.where for f in check(changed, model) if f.code == "W0502"} == {ROUTER, ATTENTION}


def test_a_weight_placed_twice_is_found(plan, model):
    own = named(plan, ROUTER).parameters
    assert "twice" in messages(with_block(plan, ROUTER, parameters=(*own, own[-1])), model)


# --- rectangles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "region",
    [
        Rectangle(-1, 0, 5, 5),
        Rectangle(0, -1, 5, 5),
        Rectangle(44, 0, 5, 5),
        Rectangle(0, 28, 5, 5),
        Rectangle(0, 0, 0, 5),
        Rectangle(0, 0, 5, 0),
        Rectangle(5, 5, -5, -5),
        Rectangle(0, 0, 10**12, 10**12),
    ],
)
def test_a_region_off_the_mesh_is_found(plan, model, region):
    changed = with_block(plan, ATTENTION, region=region)
    assert ("W0503", ATTENTION) in {(fault.code, fault.where) for fault in check(changed, model)}


@pytest.mark.parametrize("wafer", [-1, 4, 10**12])
def test_a_wafer_that_does_not_exist_is_found(plan, model, wafer):
    assert "W0503" in codes(with_block(plan, "head", wafer=wafer), model)


def test_blocks_on_the_same_tiles_are_found(plan, model):
    a, b = plan.on_wafer(0)[:2]
    last = Rectangle(b.region.column + b.region.columns - 1, b.region.row + b.region.rows - 1, 1, 1)
    changed = with_block(plan, a.name, region=last)
    (fault,) = (fault for fault in check(changed, model) if fault.code == "W0504")
    assert set(fault.facts) == {a.name, b.name}


def test_regions_that_only_touch_do_not_overlap(plan, model):
    touching = Rectangle(0, 0, 4, 4), Rectangle(4, 0, 4, 4), Rectangle(0, 4, 8, 4)
    blocks = [replace(block, wafer=0, region=r) for block, r in zip(plan.blocks, touching, strict=False)]
    assert "W0504" not in codes(replace(plan, blocks=tuple(blocks)), model)


# --- experts --------------------------------------------------------------------------------------------------------


def test_experts_on_the_same_tiles_are_found(apart, model):
    other = named(apart, EXPERTS).experts[1].region
    assert codes(with_expert(apart, 0, region=other), model) == {"W0504"}


def test_experts_that_share_only_some_tiles_are_found(plan, model):
    region = named(plan, EXPERTS).region
    narrower = replace(region, columns=region.columns - 1)
    assert "W0504" in codes(with_expert(plan, 0, region=narrower), model)


def test_an_expert_on_another_wafer_is_found(either, model):
    away = (named(either, EXPERTS).wafer + 1) % 4
    assert codes(with_expert(either, 3, wafer=away), model) == {"W0506"}


def test_an_expert_outside_its_group_is_found(either, model):
    group = named(either, EXPERTS).region
    region = named(either, EXPERTS).experts[-1].region
    outside = replace(region, column=group.column + group.columns)
    assert "W0506" in codes(with_expert(either, -1, region=outside), model)


@pytest.mark.parametrize("columns", [0, -3])
def test_an_expert_without_tiles_is_found(either, model, columns):
    region = named(either, EXPERTS).experts[0].region
    assert "W0506" in codes(with_expert(either, 0, region=replace(region, columns=columns)), model)


def test_a_missing_expert_is_found(either, model):
    experts = named(either, EXPERTS).experts
    assert codes(with_block(either, EXPERTS, experts=experts[:-1]), model) >= {"W0506"}


@pytest.mark.parametrize("index", [1, 16, -1])
def test_an_expert_of_the_wrong_number_is_found(either, model, index):
    assert codes(with_expert(either, 0, index=index), model) == {"W0506"}


def test_experts_of_a_block_that_has_none_are_found(either, model):
    experts = named(either, EXPERTS).experts[:1]
    own = tuple(
        replace(e, wafer=named(either, ATTENTION).wafer, region=named(either, ATTENTION).region) for e in experts
    )
    assert "W0506" in codes(with_block(either, ATTENTION, experts=own), model)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [ATTENTION, "head", "embedding"])
def test_a_tile_over_its_memory_is_found(plan, model, name):
    region = named(plan, name).region
    changed = with_block(plan, name, region=replace(region, columns=1))
    (fault,) = (fault for fault in check(changed, model) if fault.code == "W0505")
    assert fault.facts["bytes_on_fullest_tile"] > fault.facts["bytes_of_a_tile"] == 3584


def test_a_tile_of_an_expert_over_its_memory_is_found(apart, model):
    region = named(apart, EXPERTS).experts[5].region
    assert codes(with_expert(apart, 5, region=replace(region, rows=1)), model) == {"W0505", "W0510"}


def test_sliced_experts_on_too_few_tiles_are_found(plan, model):
    block = named(plan, EXPERTS)
    region = replace(block.region, rows=block.region.rows // 2)
    experts = tuple(replace(expert, region=region) for expert in block.experts)
    assert codes(with_block(plan, EXPERTS, region=region, experts=experts), model) == {"W0505", "W0510"}


def test_tiles_without_room_for_code_are_found(plan, model):
    changed = replace(plan, machine=replace(plan.machine, reserve_bytes=4000))
    assert codes(changed, model) == {"W0505"}


def test_the_model_fills_tiles_to_the_last_byte_that_is_allowed(plan, model):
    fullest = max(block.tile_bytes for block in plan.blocks)
    tight = replace(plan.machine, reserve_bytes=plan.machine.tile_sram_bytes - fullest)
    assert check(replace(plan, machine=tight), model) == ()
    assert codes(replace(plan, machine=replace(tight, reserve_bytes=tight.reserve_bytes + 1)), model) == {"W0505"}


# --- between wafers -------------------------------------------------------------------------------------------------


def test_a_router_away_from_its_experts_is_found(plan, model):
    later = with_block(plan, ROUTER, wafer=0)
    assert named(plan, ROUTER).wafer != 0
    assert "W0507" in codes(later, model)


def test_a_value_flowing_back_is_found(plan, model):
    assert "W0508" in codes(with_block(plan, "head", wafer=0), model)
    assert "W0508" in codes(with_block(plan, "embedding", wafer=3), model)


def test_a_missing_transfer_is_found(plan, model):
    changed = replace(plan, transfers=plan.transfers[1:])
    (fault,) = (fault for fault in check(changed, model) if fault.code == "W0509")
    assert fault.where == plan.transfers[0].value
    assert "missing" in fault.message


@pytest.mark.parametrize(
    "change",
    [{"bytes_per_token": 1}, {"target_wafer": 3}, {"source": "head"}, {"value": "nothing"}, {"source_wafer": 2}],
)
def test_a_wrong_transfer_is_found(plan, model, change):
    wrong = replace(plan.transfers[0], **change)
    faults = [
        f.message for f in check(replace(plan, transfers=(wrong, *plan.transfers[1:])), model) if f.code == "W0509"
    ]
    assert len(faults) == 2


def test_an_extra_transfer_is_found(plan, model):
    extra = Transfer("tensor", "head", 3, 0, 4)
    assert "does not follow the graph" in messages(replace(plan, transfers=(*plan.transfers, extra)), model)
    assert "W0509" in codes(replace(plan, transfers=(*plan.transfers, plan.transfers[0])), model)


def test_wafers_need_not_follow_each_other_by_number(plan, model):
    """Two wafers that change places are a pipeline still; it is no other plan to the values that flow."""
    other = {0: 2, 2: 0}

    def moved(wafer: int) -> int:
        return other.get(wafer, wafer)

    blocks = tuple(
        replace(b, wafer=moved(b.wafer), experts=tuple(replace(e, wafer=moved(e.wafer)) for e in b.experts))
        for b in plan.blocks
    )
    routes = tuple(
        replace(t, source_wafer=moved(t.source_wafer), target_wafer=moved(t.target_wafer)) for t in plan.transfers
    )
    assert check(replace(plan, blocks=blocks, transfers=routes), model) == ()


# --- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure", ["weight_bytes", "cache_bytes", "activation_bytes", "tile_bytes", "macs_per_token", "active_experts"]
)
@pytest.mark.parametrize("by", [1, -1, 10**15])
def test_a_wrong_figure_of_a_block_is_found(plan, model, figure, by):
    block = named(plan, EXPERTS)
    changed = with_block(plan, EXPERTS, **{figure: getattr(block, figure) + by})
    faults = [fault for fault in check(changed, model) if fault.code == "W0510" and fault.where == EXPERTS]
    assert {"stated": getattr(block, figure) + by, "derived": getattr(block, figure)} in [f.facts for f in faults]


@pytest.mark.parametrize("change", [{"kind": "router"}, {"layer": 7}])
def test_a_wrong_kind_or_layer_is_found(plan, model, change):
    assert codes(with_block(plan, EXPERTS, **change), model) == {"W0510"}


def with_score(plan: Plan, number: int, **changes) -> Plan:
    scores = list(plan.solver.scores)
    scores[number] = replace(scores[number], **changes)
    return replace(plan, solver=replace(plan.solver, scores=tuple(scores)))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "change", [{"value": 1}, {"bound": 1}, {"bound": 1 << 60}, {"proof": "", "bound": 1 << 60}, {"proof": ""}]
)
def test_a_wrong_score_is_found(plan, model, number, change):
    assert plan.solver.status == "optimal"
    assert codes(with_score(plan, number, **change), model) == {"W0510"}


@pytest.mark.parametrize("change", [{"status": "perfect"}, {"status": "feasible"}, {"scores": ()}])
def test_a_claim_without_sense_is_found(plan, model, change):
    assert codes(replace(plan, solver=replace(plan.solver, **change)), model) == {"W0510"}


def test_an_objective_named_twice_is_found(plan, model):
    twice = replace(plan.solver, scores=(*plan.solver.scores, plan.solver.scores[0]))
    assert codes(replace(plan, solver=twice), model) == {"W0510"}


@pytest.mark.parametrize(("objective", "right"), [("machines", 4), ("room", None)])
def test_other_scores_are_derived_too(plan, model, objective, right):
    """Room by its definition: the most users at which no wafer overflows."""

    def full(users: int) -> bool:
        known = {block.name: block for block in model.blocks}
        loads = [
            sum(b.weight_bytes + b.activation_bytes + known[b.name].cache_bytes(users, 256) for b in plan.on_wafer(w))
            for w in plan.wafers_used
        ]
        return max(loads) > plan.machine.wafer_bytes

    right = right or next(users for users in range(1, 10**6) if full(users + 1))
    for value, found in ((right, set()), (right - 1, {"W0510"}), (right + 1, {"W0510"})):
        bound = 1 << 40 if objective == "room" else 0
        score = Score(Objective(objective), value, bound, "")
        stated = replace(plan.solver, scores=(score,), status="feasible")
        assert codes(replace(plan, solver=stated), model) == found


def test_a_false_optimum_is_refuted(plan, model, compiled_small_kimi):
    """A plan for three wafers is the best for three, and not for four."""
    from partitioner.api import Request, compile_lowered

    three = compile_lowered(compiled_small_kimi.lowered, Request(target="mini", systems=3, context=256)).plan
    assert three.solver.status == "optimal"
    best = three.solver.scores[0]
    assert best.value > plan.solver.scores[0].value
    assert check(three, model) == ()
    (fault,) = check(replace(three, machine=plan.machine), model)
    assert fault.code == "W0515"
    assert fault.facts["stated_optimum"] == best.value
    modest = replace(with_score(three, 0, proof="", bound=0), machine=plan.machine)
    assert check(replace(modest, solver=replace(modest.solver, status="feasible")), model) == ()


@pytest.mark.parametrize(("objective", "claimed"), [("machines", 4), ("room", 1)])
def test_a_false_optimum_of_another_kind_is_refuted(plan, model, objective, claimed):
    """On tiles of twice the memory fewer wafers do, and there is room for more users."""
    score = Score(Objective(objective), claimed, claimed, "someone's word")
    stated = replace(plan, solver=replace(plan.solver, scores=(score,)))
    roomy = replace(plan.machine, tile_sram_bytes=2 * plan.machine.tile_sram_bytes)
    assert "W0515" in codes(replace(stated, machine=roomy), model)


def test_what_lies_between_blocks_that_stay_together_refutes_nothing():
    """Parted from the blocks around it, the middle one would give a smaller bottleneck, but values would flow back."""
    kinds = (BlockKind.ROUTER, BlockKind.OTHER, BlockKind.EXPERTS)
    blocks = tuple(Block(str(kind), kind, 0, (), (), 0, 0, 0, (), 0, 0, 200) for kind in kinds)
    edges = (Edge(0, 1, "a", 1), Edge(1, 2, "b", 1), Edge(0, 2, "c", 1))
    model = Model(Graph("mixture", (), (), (), ()), blocks, edges, ((0, 2),))
    plan = compile_model(Case(model, Machine("m", "m", 10, 10, 100, 0, 2), Workload(1, 1, 1))).plan
    assert plan.solver.status == "optimal"
    assert plan.solver.scores[0].value == 600


@pytest.mark.parametrize("field", ["users", "context", "chunk"])
@pytest.mark.parametrize("value", [0, -1, 1 << 41])
def test_an_absurd_workload_is_found(plan, model, field, value):
    assert codes(replace(plan, workload=replace(plan.workload, **{field: value})), model) == {"W0514"}


@pytest.mark.parametrize("field", ["users", "context", "chunk"])
def test_another_workload_is_found(plan, model, field):
    workload = replace(plan.workload, **{field: getattr(plan.workload, field) * 2})
    assert codes(replace(plan, workload=workload), model) == {"W0510"}


@pytest.mark.parametrize("field", ["columns", "rows", "tile_sram_bytes", "reserve_bytes", "systems"])
@pytest.mark.parametrize("value", [-1, 10**15])
def test_an_absurd_machine_is_found(plan, model, field, value):
    assert codes(replace(plan, machine=replace(plan.machine, **{field: value})), model) == {"W0514"}


def test_all_faults_are_told_at_once(plan, model):
    changed = with_block(with_block(plan, "head", weight_bytes=0), ATTENTION, wafer=99)
    assert codes(replace(changed, transfers=()), model) >= {"W0503", "W0509", "W0510"}


# --- on disk --------------------------------------------------------------------------------------------------------


def edit(folder, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def set_hash(folder, name: str) -> None:
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(folder, lambda manifest: manifest["files"].update({name: digest}))


def edit_tables(folder, change) -> None:
    """Change the tables as someone would who knows the format: hash and all."""
    columns = load((folder / "tables.safetensors").read_bytes())
    change(columns)
    (folder / "tables.safetensors").write_bytes(save(columns))
    set_hash(folder, "tables.safetensors")


def set_manifest(*path, value):
    def change(manifest) -> None:
        for step in path[:-1]:
            manifest = manifest[step]
        manifest[path[-1]] = value

    return lambda folder: edit(folder, change)


def set_column(name: str, row: int, value: int):
    return lambda folder: edit_tables(folder, lambda columns: columns[f"experts.{name}"].__setitem__(row, value))


def fails(waferc, folder, code: str):
    """``waferc check`` fails with ``code``, in the form that scripts read, soon and without much memory."""
    tracemalloc.start()
    begin = time.perf_counter()
    done = waferc("check", folder, "--json")
    seconds = time.perf_counter() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.code == 6, done.out + done.err
    assert done.record["ok"] is False
    assert done.record["exit_code"] == 6
    for fault in done.record["diagnostics"]:
        assert set(fault) == {"code", "message", "where", "facts", "help"}
    assert any(told.startswith(code) for told in done.codes)
    assert seconds < 10
    assert peak < 200 << 20
    return done.record["diagnostics"]


def test_a_sound_folder_passes(waferc, stored_plan):
    done = waferc("check", stored_plan, "--json")
    assert done.code == 0
    assert done.record == {"ok": True, "diagnostics": [], "blocks": 16, "experts": 48}
    assert "sound: 16 blocks and 48 experts on 4 wafers" in waferc("check", stored_plan).out


MODEL_FIGURES = (
    "parameters",
    "weight_bytes",
    "copied_bytes",
    "layers",
    "moe_layers",
    "experts_per_layer",
    "cache_bytes_per_token",
    "left_out_parameters",
)


@pytest.mark.parametrize("path", [*(("model", name) for name in MODEL_FIGURES), ("solver", "scores", 0, "gap")])
def test_a_wrong_figure_in_the_manifests_summary_is_found(waferc, plan_folder, path):
    set_manifest(*path, value=7)(plan_folder)
    assert [fault["where"] for fault in fails(waferc, plan_folder, "W0510")] == ["manifest.json"]


def test_another_name_of_the_model_is_found(waferc, plan_folder):
    set_manifest("model", "name", value="large-kimi")(plan_folder)
    fails(waferc, plan_folder, "W0510")


def test_a_damaged_plan_is_not_shown(waferc, plan_folder):
    flip_a_byte(plan_folder)
    done = waferc("view", plan_folder, "--json")
    assert (done.code, done.codes) == (6, ["W0511"])


def flip_a_byte(folder) -> None:
    page = bytearray((folder / "report.html").read_bytes())
    page[1000] ^= 1
    (folder / "report.html").write_bytes(page)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        pytest.param(set_manifest("blocks", 3, "wafer", value=2), "W0508", id="block-on-another-wafer"),
        pytest.param(set_manifest("blocks", 3, "parameters", value=[]), "W0502", id="weights-gone"),
        pytest.param(set_manifest("transfers", value=[]), "W0509", id="transfers-gone"),
        pytest.param(set_column("wafer", 7, 3), "W0506", id="expert-on-another-wafer"),
        pytest.param(set_column("columns", 1, 1), "W0504", id="experts-on-some-of-the-same-tiles"),
        pytest.param(set_column("index", 2, 3), "W0506", id="expert-twice"),
        pytest.param(flip_a_byte, "W0511", id="byte-flipped-in-the-page"),
    ],
)
def test_a_plan_damaged_by_hand_is_refused(waferc, plan_folder, damage, code):
    damage(plan_folder)
    assert fails(waferc, plan_folder, code)


def test_each_fault_is_printed_for_people(waferc, plan_folder):
    set_manifest("blocks", 3, "cache_bytes", value=5)(plan_folder)
    done = waferc("check", plan_folder)
    assert done.code == 6
    assert done.out == ""
    assert "error[W0510]: cache bytes is wrong\n  --> layers.1.attention\n   = stated: 5\n" in done.err


@pytest.mark.parametrize("name", ["tables.safetensors", "model.ir", "model.json", "diagnostics.jsonl", "report.html"])
def test_a_deleted_file_is_told(waferc, plan_folder, name):
    (plan_folder / name).unlink()
    assert fails(waferc, plan_folder, "W0512")[0]["where"] == name


@pytest.mark.parametrize("name", ["tables.safetensors", "model.ir", "model.json", "diagnostics.jsonl", "report.html"])
def test_a_changed_file_is_told(waferc, plan_folder, name):
    (plan_folder / name).write_bytes((plan_folder / name).read_bytes() + b"\n")
    faults = fails(waferc, plan_folder, "W0511")
    assert ("W0511", name) in {(fault["code"], fault["where"]) for fault in faults}


@pytest.mark.parametrize("name", ["manifest.json", "tables.safetensors", "report.html"])
def test_a_link_is_not_followed(waferc, plan_folder, tmp_path, name):
    (plan_folder / name).rename(tmp_path / "elsewhere")
    (plan_folder / name).symlink_to(tmp_path / "elsewhere")
    assert "link" in fails(waferc, plan_folder, "W0512")[0]["message"]


def test_only_the_files_of_plans_are_opened(waferc, plan_folder, monkeypatch):
    edit(plan_folder, lambda manifest: manifest["files"].update({"../../etc/passwd": "0" * 64}))
    faults = fails(waferc, plan_folder, "W0511")
    assert [fault["where"] for fault in faults] == ["../../etc/passwd"]


@pytest.mark.parametrize("size", [0, 7, 8, 100, 1000])
def test_truncated_tables_are_told(waferc, plan_folder, size):
    tables = plan_folder / "tables.safetensors"
    tables.write_bytes(tables.read_bytes()[:size])
    fails(waferc, plan_folder, "W0511")
    set_hash(plan_folder, "tables.safetensors")
    fails(waferc, plan_folder, "W0513")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda columns: columns.pop("experts.row"), id="a-column-less"),
        pytest.param(lambda columns: columns.update({"experts.row": np.zeros(3, np.int32)}), id="a-short-column"),
        pytest.param(lambda columns: columns.update({k: v.astype(np.int64) for k, v in columns.items()}), id="64-bit"),
        pytest.param(lambda columns: columns.update({k: v.astype(np.float32) for k, v in columns.items()}), id="float"),
        pytest.param(lambda columns: columns.update({k: v.reshape(-1, 2) for k, v in columns.items()}), id="square"),
        pytest.param(lambda columns: columns["experts.block"].__setitem__(0, 99), id="unknown-block"),
        pytest.param(lambda columns: columns["experts.block"].__setitem__(0, -1), id="negative-block"),
    ],
)
def test_wrong_tables_are_told(waferc, plan_folder, change):
    edit_tables(plan_folder, change)
    fails(waferc, plan_folder, "W0513")


def test_a_header_that_promises_too_much_is_told(waferc, plan_folder):
    (plan_folder / "tables.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    set_hash(plan_folder, "tables.safetensors")
    fails(waferc, plan_folder, "W0513")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe\x00" * 99,
        b"[" * 200_000,
        b'{"model":' * 200_000,
        b'{"schema_version": 1e999}',
    ],
)
def test_a_garbage_manifest_is_told(waferc, plan_folder, content):
    (plan_folder / "manifest.json").write_bytes(content)
    fails(waferc, plan_folder, "W0512")


@pytest.mark.parametrize("version", [0, 1, 3, -1, 10**30])
def test_a_manifest_of_another_version_is_told(waferc, plan_folder, version):
    set_manifest("schema_version", value=version)(plan_folder)
    fails(waferc, plan_folder, "W0512")


@pytest.mark.parametrize("value", [-1, 10**9, 10**12, 10**30])
@pytest.mark.parametrize(
    ("path", "code"),
    [
        (("machine", "columns"), "W0514"),
        (("machine", "rows"), "W0514"),
        (("machine", "systems"), "W0514"),
        (("machine", "tile_sram_bytes"), None),
        (("machine", "reserve_bytes"), "W0514"),
        (("workload", "users"), ("W0510", "W0514")),
        (("workload", "context"), ("W0510", "W0514")),
        (("workload", "chunk"), ("W0510", "W0514")),
        (("blocks", 3, "wafer"), "W0503"),
        (("blocks", 3, "region", "columns"), "W0503"),
        (("blocks", 3, "region", "row"), "W0503"),
        (("blocks", 3, "cache_bytes"), "W0510"),
        (("solver", "scores", 0, "value"), "W0510"),
        (("transfers", 0, "target_wafer"), "W0509"),
    ],
)
def test_absurd_figures_are_told(waferc, plan_folder, path, code, value):
    set_manifest(*path, value=value)(plan_folder)
    if code is None:
        done = waferc("check", plan_folder, "--json")
        assert done.code == (0 if value in (10**9, 10**12) else 6), "memory to spare is no fault"
        return
    if isinstance(code, tuple):
        code = code[0] if value in (10**9, 10**12) else code[1]
    fails(waferc, plan_folder, code)
    assert waferc("view", plan_folder, "--json").code in (0, 6)


@pytest.mark.parametrize("column", ["wafer", "column", "row", "columns", "rows", "index"])
@pytest.mark.parametrize("value", [-(1 << 31), -1, (1 << 31) - 1])
def test_absurd_rows_are_told(waferc, plan_folder, column, value):
    set_column(column, 5, value)(plan_folder)
    fails(waferc, plan_folder, "W0506")


@pytest.mark.parametrize("value", ["four", 1.5, None, [], {}])
def test_figures_of_the_wrong_kind_are_told(waferc, plan_folder, value):
    set_manifest("machine", "systems", value=value)(plan_folder)
    fails(waferc, plan_folder, "W0512")


def test_an_unknown_entry_is_told(waferc, plan_folder):
    set_manifest("solver", "speed", value=3)(plan_folder)
    assert "speed" in fails(waferc, plan_folder, "W0512")[0]["message"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('graph "small-kimi" {', "grph {"),
        (" = linear(", " = nonsense("),
        (" = linear(%", " = linear(%zz"),
        ("f32[512, 128]", "f32[511, 128]"),
        ("i64[users, tokens]", "i64[users, tokens + "),
    ],
)
def test_a_graph_damaged_by_hand_is_refused(waferc, plan_folder, before, after):
    text = (plan_folder / "model.ir").read_text()
    assert before in text
    (plan_folder / "model.ir").write_text(text.replace(before, after, 1))
    set_hash(plan_folder, "model.ir")
    done = waferc("check", plan_folder, "--json")
    assert done.code == 6
    assert done.codes


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\x00" * 999])
def test_a_graph_that_is_no_text_is_refused(waferc, plan_folder, content):
    (plan_folder / "model.ir").write_bytes(content)
    set_hash(plan_folder, "model.ir")
    assert waferc("check", plan_folder, "--json").code == 6


@pytest.mark.parametrize("content", [b"", b"[]", b'{"kind": 3}', b'{"kind": "config", "config": ' + b'{"a":' * 99_999])
def test_a_garbage_origin_is_told(waferc, plan_folder, content):
    (plan_folder / "model.json").write_bytes(content)
    set_hash(plan_folder, "model.json")
    fails(waferc, plan_folder, "W0512")


def test_a_plan_of_another_model_is_refused(waferc, tmp_path, compiled_small_kimi):
    """The graph is the one beside the plan, so a plan of fewer layers does not pass for the whole."""
    plan, lowered = compiled_small_kimi.plan, compiled_small_kimi.lowered
    fewer = replace(plan, blocks=tuple(block for block in plan.blocks if block.layer != 2))
    write_plan(tmp_path / "plan", fewer, compiled_small_kimi.model, lowered, "")
    assert "W0501" in {fault["code"] for fault in fails(waferc, tmp_path / "plan", "W0501")}


def test_a_huge_file_is_not_read(waferc, plan_folder):
    os.truncate(plan_folder / "report.html", (1 << 30) + 1)
    assert "gigabyte" in fails(waferc, plan_folder, "W0512")[0]["message"]


@pytest.mark.parametrize("command", ["check", "view"])
def test_where_there_is_no_plan_that_is_said(waferc, tmp_path, command):
    for folder in (tmp_path, tmp_path / "nothing", "/dev/null", ""):
        done = waferc(command, folder, "--json")
        assert (done.code, done.codes) == (2, ["W0106"])
