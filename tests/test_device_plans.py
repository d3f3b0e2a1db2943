"""Plans for GPUs and LPUs: every byte accounted for, damaged plans refused, and the commands that take them."""

import json
from dataclasses import replace

import pytest

from ir.device_plan import Degrees
from ir.diagnostics import CheckError, UsageError
from ir.workload import Workload
from partitioner.api import Request
from partitioner.check_devices import check_devices
from partitioner.compile import build_model
from partitioner.device_compile import compile_for_devices
from partitioner.device_folder import engine_flags, read_device_plan
from partitioner.device_plan import make_device_plan
from partitioner.passes.profile import profile_of
from targets.machines import load_devices, load_wafers
from targets.parallel import Candidate, decode_step, place_with

WORKLOAD = Workload(8, 256, 64)
DEGREES = ((1, 1, 1, 1), (4, 1, 1, 1), (3, 1, 2, 1), (2, 4, 1, 1), (1, 5, 2, 1), (2, 2, 4, 1), (8, 2, 3, 1))


@pytest.fixture(scope="module")
def model(lowered_small_kimi):
    return build_model(lowered_small_kimi.graph)


@pytest.fixture(scope="module")
def profile(model):
    return profile_of(model, 4096)


@pytest.fixture(scope="module")
def plan_of(profile):
    cluster = load_devices("h100", 8)

    def of(tensor, expert, pipeline, _replicas=1):
        placement = place_with(profile, cluster, WORKLOAD, Degrees(tensor, expert, pipeline))
        step = decode_step(placement, 1, 256)
        return make_device_plan(profile, cluster, WORKLOAD, Candidate(placement, step, 1.0, 1.0))

    return of


@pytest.fixture
def small_machine(tmp_path):
    """H100 in all but memory: 1.2 MB of it, so that small-kimi takes several."""
    path = tmp_path / "small.toml"
    path.write_text(
        'extends = "h100"\nname = "small"\ndescription = "H100 with little memory"\n'
        "[device]\nmemory_bytes = 1_200_000\nreserve_bytes = 0\n"
    )
    return path


@pytest.fixture
def folder(waferc, quick_load, small_machine, tmp_path):
    done = waferc(
        "compile", "small-kimi", "--target", small_machine, "--context", 64, "-o", tmp_path / "plan", "--json"
    )
    assert done.code == 0, done.out
    return tmp_path / "plan"


# --- what ranks hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", DEGREES)
def test_every_byte_is_held_once_in_each_group(plan_of, model, degrees):
    plan = plan_of(*degrees)
    assert check_devices(plan, model) == ()
    assert len(plan.ranks) == plan.degrees.devices
    if plan.degrees.expert == 1:
        own = sum(h.weight_bytes - h.copied_bytes for rank in plan.ranks for h in rank.holdings)
        copied = sum(h.copied_bytes for rank in plan.ranks if rank.tensor_rank == 0 for h in rank.holdings)
        assert own + copied == sum(block.weight_bytes for block in model.blocks)


def test_experts_are_dealt_evenly(plan_of):
    plan = plan_of(1, 5, 1)
    dealt = sorted(
        {(h.first_expert, h.experts) for rank in plan.ranks for h in rank.holdings if h.kind.value == "experts"}
    )
    assert dealt == [(0, 4), (4, 3), (7, 3), (10, 3), (13, 3)]
    rules = [holding.rule for holding in plan.ranks[0].holdings]
    assert "experts 0-3 of layers 1-3" in rules
    assert "attention of layers 0-3" in rules
    assert "experts 0-15 of layers 1-3, shard 0 of 4" in [h.rule for h in plan_of(4, 1, 1).ranks[0].holdings]


def test_the_checker_is_no_echo_of_the_cost_model(plan_of):
    """It imports nothing that chose the layout."""
    import ast
    from pathlib import Path

    import partitioner.check_devices as checker

    tree = ast.parse(Path(checker.__file__).read_text("utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert all(not name.startswith(("targets", "partitioner")) for name in names if name)


def change_rank(plan, number, **changes):
    ranks = list(plan.ranks)
    ranks[number] = replace(ranks[number], **changes)
    return replace(plan, ranks=tuple(ranks))


def change_holding(plan, number, index, **changes):
    holdings = list(plan.ranks[number].holdings)
    holdings[index] = replace(holdings[index], **changes)
    return change_rank(plan, number, holdings=tuple(holdings))


def experts_of(plan, number):
    return next(i for i, h in enumerate(plan.ranks[number].holdings) if h.experts)


DAMAGES = {
    "no users": ("W0514", lambda p: replace(p, workload=replace(p.workload, users=0))),
    "endless step": ("W0514", lambda p: replace(p, step_s=float("inf"))),
    "huge": ("W0514", lambda p: replace(p, degrees=replace(p.degrees, tensor=1 << 30))),
    "a block twice": ("W0501", lambda p: replace(p, stages=((*p.stages[0], p.stages[0][0]), *p.stages[1:]))),
    "a block less": ("W0501", lambda p: replace(p, stages=(p.stages[0][1:], *p.stages[1:]))),
    "an unknown block": ("W0501", lambda p: replace(p, stages=((*p.stages[0], 999), *p.stages[1:]))),
    "stages turned": ("W0508", lambda p: replace(p, stages=p.stages[::-1])),
    "too few stages": ("W0510", lambda p: replace(p, degrees=replace(p.degrees, pipeline=9))),
    "a rank less": ("W0503", lambda p: replace(p, ranks=p.ranks[:-1])),
    "a rank elsewhere": ("W0503", lambda p: change_rank(p, 1, tensor_rank=0)),
    "an unknown node": ("W0503", lambda p: change_rank(p, 1, node=99)),
    "crowded": ("W0503", lambda p: replace(p, devices_in_node=1)),
    "too many replicas": ("W0503", lambda p: replace(p, degrees=replace(p.degrees, replicas=1000))),
    "fewer weights": ("W0502", lambda p: change_holding(p, 0, 0, weight_bytes=p.ranks[0].holdings[0].weight_bytes - 1)),
    "another shard": ("W0502", lambda p: change_holding(p, 0, 0, shard=1)),
    "negative copies": ("W0501", lambda p: change_holding(p, 0, 0, copied_bytes=-1)),
    "other layers": ("W0501", lambda p: change_holding(p, 0, 1, first=1)),
    "endless layers": ("W0501", lambda p: change_holding(p, 0, 1, last=1 << 60)),
    "nothing held": ("W0501", lambda p: change_rank(p, 0, holdings=())),
    "other experts": ("W0506", lambda p: change_holding(p, 0, experts_of(p, 0), first_expert=1)),
    "no caches": ("W0510", lambda p: change_holding(p, 0, 1, cache_bytes=0)),
    "no activations": ("W0510", lambda p: change_rank(p, 0, activation_bytes=0)),
    "full": ("W0505", lambda p: replace(p, device_bytes=1000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_plans_are_refused(plan_of, model, damage):
    code, change = DAMAGES[damage]
    plan = plan_of(2, 4, 2)
    assert code in {fault.code for fault in check_devices(change(plan), model)}


# --- the folder and the commands ------------------------------------------------------------------------------------


def test_a_plan_comes_back_as_it_was_written(lowered_small_kimi, small_machine, tmp_path):
    placed = compile_for_devices(lowered_small_kimi, Request(target=str(small_machine), context=64))
    placed.save(tmp_path / "plan")
    stored = read_device_plan(tmp_path / "plan")
    assert stored.plan == placed.plan
    assert stored.faults == ()
    first = (tmp_path / "plan" / "manifest.json").read_bytes()
    placed.save(tmp_path / "plan")
    assert (tmp_path / "plan" / "manifest.json").read_bytes() == first


def test_engines_get_the_degrees_in_their_words():
    flags = engine_flags(Degrees(8, 1, 2))
    assert flags["vllm"] == {"--tensor-parallel-size": 8, "--pipeline-parallel-size": 2}
    assert engine_flags(Degrees(2, 4, 1))["vllm"]["--data-parallel-size"] == 4
    assert engine_flags(Degrees(2, 4, 1))["megatron"]["--expert-model-parallel-size"] == 4


def test_compile_tells_the_layout(waferc, quick_load, small_machine, tmp_path):
    done = waferc("compile", "small-kimi", "--target", small_machine, "--context", 64, "--json")
    record = done.record
    degrees = [record[f"{name}_parallel"] for name in ("tensor", "expert", "pipeline")]
    assert record["devices"] == degrees[0] * degrees[1] * degrees[2] * record["replicas"] > 1
    assert record["largest_device_bytes"] <= record["device_bytes"] == 1_200_000
    assert record["objective_value"] == max(layout["tokens_per_s_per_user"] for layout in record["layouts"])
    shown = waferc("compile", "small-kimi", "--target", small_machine, "--context", 64, "-o", tmp_path / "plan")
    assert "layouts, the chosen one first" in shown.out
    assert "plan in" in shown.out


def test_check_and_view_know_such_plans(waferc, folder):
    checked = waferc("check", folder)
    assert checked.code == 0
    assert checked.out.startswith("sound: 16 blocks on ")
    assert waferc("check", folder, "--json").record["ok"]
    ranks = waferc("view", folder, "--json").record["ranks"]
    assert any("experts" in rule for rank in ranks for rule in rank["holds"])
    shown = waferc("view", folder).out
    assert "attention of layer" in shown
    assert "tensor" in shown


def test_run_refuses_such_plans(waferc, folder):
    done = waferc("run", folder, "--prompt-ids", "1,2", "--json")
    assert (done.code, done.codes) == (2, ["W0616"])


def test_a_changed_manifest_is_found(waferc, folder):
    path = folder / "manifest.json"
    sound = json.loads(path.read_text())
    for change, code in (
        (lambda m: m["plan"]["ranks"][0]["holdings"][0].update(weight_bytes=1), "W0502"),
        (lambda m: m["engines"]["vllm"].update({"--tensor-parallel-size": 99}), "W0510"),
        (lambda m: m["model"].update(parameters=1), "W0510"),
        (lambda m: m["files"].update({"model.ir": "0"}), "W0511"),
        (lambda m: m.update(schema_version=9), "W0512"),
        (lambda m: m.update(more=9), "W0512"),
        (lambda m: m["plan"].update(ranks=[]), "W0503"),
    ):
        damaged = json.loads(json.dumps(sound))
        change(damaged)
        path.write_text(json.dumps(damaged))
        done = waferc("check", folder, "--json")
        assert done.code == 6, done.out
        assert code in done.codes
    path.write_text("{")
    assert waferc("check", folder, "--json").codes == ["W0512"]


def test_damaged_graphs_are_found(waferc, folder):
    (folder / "model.ir").write_text("graph {")
    done = waferc("check", folder, "--json")
    assert (done.code, done.codes) == (6, ["W0511", "W0302"])
    (folder / "model.ir").write_bytes(b"\xff")
    assert waferc("view", folder, "--json").codes == ["W0511", "W0512"]
    (folder / "model.ir").unlink()
    with pytest.raises(CheckError):
        read_device_plan(folder)


def test_what_does_not_fit_says_what_would(waferc, quick_load, small_machine):
    done = waferc("compile", "small-kimi", "--target", small_machine, "--users", 100_000, "--json")
    assert (done.code, done.codes) == (4, ["W0701"])
    fault = done.record["diagnostics"][0]
    assert fault["facts"]["cache_bytes"] > fault["facts"]["bytes_available"]


def test_wrong_requests_are_refused(waferc, tmp_path):
    for load, target in ((load_devices, "mini"), (load_wafers, "h100")):
        with pytest.raises(UsageError) as refused:
            load(target, 2, 1000)
        assert refused.value.diagnostics[0].code == "W0113"
    assert waferc("compile", "small-kimi", "--target", "h100", "--systems", 0, "--json").codes == ["W0103"]
    reserve = waferc("compile", "small-kimi", "--target", "h100", "--reserve-bytes", 80 * 10**9, "--json")
    assert reserve.codes == ["W0111"]
    (tmp_path / "mine.txt").write_text("mine")
    assert waferc("compile", "small-kimi", "--target", "h100", "-o", tmp_path, "--json").codes == ["W0105"]


def test_such_manifests_have_a_schema(waferc):
    assert "DevicePlan" in waferc("schema", "--devices").record["$defs"]
