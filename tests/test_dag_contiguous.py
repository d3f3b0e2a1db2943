"""Contiguous placements of graphs: exact against brute force, the same for every hash seed, and as published."""

import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import device_placement
from benchmarks.instances import read_instance, score, to_problem
from partitioner.solver.dag import exact, nested, prefixes, suffixes
from partitioner.solver.dag.contiguous import place_contiguous
from partitioner.solver.dag.items import item_graph, merged, weightless
from partitioner.solver.dag.problem import DagProblem, Kind, Node
from partitioner.solver.dag.score import broken_rules, largest_load

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT.parent / "shared" / "device-placement"


def some_problem(seed):
    """Up to seven nodes: groups, backward passes, memory, CPUs, nodes that run nowhere, things that take no time."""
    draw = random.Random(seed)
    count = draw.randint(1, 7)
    training = draw.random() < 0.4
    first_backward = draw.randint(1, count) if training else count
    grouped = draw.random() < 0.5
    nodes = []
    for index in range(count):
        accelerator = None if draw.random() < 0.08 else draw.choice((0, 0, draw.randint(1, 12)))
        cpu = None if draw.random() < 0.05 else draw.choice((0, (accelerator or 1) * 4, draw.randint(0, 30)))
        group = draw.randrange(count) if grouped and draw.random() < 0.5 else index + count
        held = draw.choice((0, 0, draw.randint(1, 5)))
        nodes.append(
            Node((accelerator, cpu), held, group, draw.choice((0, 1, draw.randint(1, 9))), index >= first_backward)
        )
    pairs = itertools.combinations(range(count), 2)
    edges = [pair for pair in pairs if draw.random() < draw.choice((0.2, 0.5))]
    memory = draw.choice((None, 100, draw.randint(2, 9)))
    kinds = (Kind("accelerator", draw.randint(0, 3), memory), Kind("cpu", draw.randint(0, 1), None, charged=False))
    return DagProblem(tuple(nodes), tuple(edges), kinds, contiguous=True)


def brute_force(problem):
    """The least largest load over all assignments that break no rule; ``None`` if every one breaks some."""
    everywhere = itertools.product(range(problem.machines), repeat=len(problem.nodes))
    good = (machines for machines in everywhere if not broken_rules(problem, machines))
    return min((largest_load(problem, machines) for machines in good), default=None)


@pytest.mark.parametrize("batch", range(10))
def test_the_optimum_of_small_graphs_is_that_of_brute_force(batch):
    statuses = set()
    for seed in range(batch * 50, batch * 50 + 50):
        problem = some_problem(seed)
        best = brute_force(problem)
        placement = place_contiguous(problem)
        statuses.add(placement.status)
        if best is None:
            assert placement.status == "infeasible", seed
        else:
            assert (placement.status, placement.value, placement.bound) == ("optimal", best, best), seed
            assert largest_load(problem, placement.machines) == best
            assert not broken_rules(problem, placement.machines)
        assert "; " in placement.proof, "two arguments"
    assert statuses == {"optimal", "infeasible"}


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_backward_pass_may_be_drawn_either_way(goes_on):
    """Each layer with its gradient; held to the other way, all of them would have to share one machine."""
    nodes = tuple(Node((3 + index % 3,), 2, index % 4, 1, index >= 4) for index in range(8))
    along = tuple((4 + a, 5 + a) for a in range(3)) if goes_on else tuple((5 + a, 4 + a) for a in range(3))
    order = [0, 1, 2, 3, *((4, 5, 6, 7) if goes_on else (7, 6, 5, 4))]
    place = {node: index for index, node in enumerate(order)}
    edges = tuple((place[a], place[b]) for a, b in (*((a, a + 1) for a in range(3)), *along))
    problem = DagProblem(tuple(nodes[node] for node in order), edges, (Kind("accelerator", 2, 9),), contiguous=True)
    placement = place_contiguous(problem)
    assert (placement.status, placement.value) == ("optimal", brute_force(problem))


@pytest.mark.parametrize("most_prefixes", [2, 6])
def test_what_has_too_many_prefixes_is_proven_by_a_model(monkeypatch, most_prefixes):
    monkeypatch.setattr(exact, "MOST_PREFIXES", most_prefixes)
    proofs = []
    for seed in range(30):
        problem = some_problem(seed)
        best = brute_force(problem)
        placement = place_contiguous(problem)
        found = None if placement.status == "infeasible" else placement.value
        assert found == best, seed
        assert placement.status in ("optimal", "infeasible")
        proofs.append(placement.proof)
    assert any("CP-SAT" in proof and "presolve" in proof for proof in proofs)


def test_one_argument_proves_nothing(monkeypatch):
    problems = [some_problem(seed) for seed in range(80)]
    confirmed = [place_contiguous(problem) for problem in problems]
    monkeypatch.setattr(exact, "nothing_within", lambda *_: False)
    doubted = [place_contiguous(problem) for problem in problems]
    changed = 0
    for sure, unsure in zip(confirmed, doubted, strict=True):
        if "suffixes" in sure.proof:
            changed += 1
            assert (unsure.status, unsure.proof) == ("feasible" if sure.machines else "unknown", "")
            assert unsure.bound <= unsure.value or not unsure.machines
    assert changed > 5


def test_no_search_finds_what_the_other_does_not():
    for seed in range(100):
        problem = some_problem(seed)
        best = brute_force(problem)
        if best is None:
            continue
        graph = item_graph(problem, onward=False)
        found = suffixes.all_suffixes(graph, 1000)
        full = (1 << len(graph.items)) - 1
        assert sorted(full ^ suffix for suffix in found) == sorted(prefixes.all_prefixes(graph, 1000))
        onward = item_graph(problem, onward=True)
        also = suffixes.all_suffixes(onward, 1000)
        work = prefixes.Work(10**9)
        for limit, expected in ((best, False), (best - 1, True)):
            nothing = suffixes.nothing_within(graph, found, limit, work)
            assert (nothing and suffixes.nothing_within(onward, also, limit, work)) == expected, seed


def test_joined_items_keep_the_optimum_and_a_relaxation_bounds_it():
    for seed in range(300, 350):
        problem = some_problem(seed)
        best = brute_force(problem)
        values = []
        for onward in (False, True):
            graph = item_graph(problem, onward=onward)
            relaxed = merged(weightless(graph), with_bytes=False)
            answer = exact.solve(relaxed, prefixes.Work(10**9), exact.quiet)
            values.extend([answer.value] if answer.stages else [])
        if best is not None:
            assert min(values) <= best, seed


def test_an_allowance_that_runs_out_leaves_a_bound():
    nodes = tuple(Node((7 + index % 5, 90), 0, index, 3) for index in range(40))
    kinds = (Kind("accelerator", 5, None), Kind("cpu", 1, None, charged=False))
    problem = DagProblem(nodes, tuple((a, a + 2) for a in range(38)), kinds, contiguous=True)
    full = place_contiguous(problem)
    assert full.status == "optimal"
    for seconds in (0.0, 1e-5, 1e-3):
        placement = place_contiguous(problem, seconds)
        assert placement.bound <= full.value
        if placement.machines:
            assert placement.value >= full.value
            assert not broken_rules(problem, placement.machines)
        else:
            assert placement.status == "unknown"


def test_units_that_are_too_fine_are_refused():
    huge = DagProblem((Node((1 << 60,), 0, 0, 0),), (), (Kind("a", 1, None),), contiguous=True)
    with pytest.raises(ValueError, match="coarser"):
        place_contiguous(huge)


def test_the_same_for_every_hash_seed():
    program = (
        "from tests.test_dag_contiguous import *\nprint([place_contiguous(some_problem(seed)) for seed in range(12)])"
    )
    outputs = set()
    for seed in ("0", "1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published instances are not here")
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("LayerGraphs-bert24_training", 41.7458),
        ("LayerGraphs-gnmt_inference", 32.9107),
        ("LayerGraphs-inceptionv3_inference", 51.5519),
        ("LayerGraphs-resnet50_training", 78.6318),
        ("OperatorGraphs-bert_l-3_training", 65.3031),
        ("OperatorGraphs-bert_l-6_inference", 29.5795),
        ("OperatorGraphs-resnet50_inference", 124.3488),
    ],
)
def test_published_instances_have_their_published_optimum(name, published):
    instance = read_instance(PUBLISHED / f"{name}.json")
    result = device_placement.solve(name, instance, free=False, time_limit_s=60)
    assert result.placement.status == "optimal"
    assert result.objective == pytest.approx(published, rel=1e-5)
    assert result.bound == result.objective
    assert result.score.broken == ()


NODES = [
    {"id": 5, "supportedOnFpga": True, "cpuLatency": 9.0, "fpgaLatency": 0.5, "isBackwardNode": 0, "size": 8.0},
    {"id": 3, "supportedOnFpga": 1, "cpuLatency": 9, "fpgaLatency": 0.75, "isBackwardNode": 0, "size": 4.5},
]
EDGES = [{"sourceId": 5, "destId": 3, "cost": 0.125}]
INSTANCE = {"maxSizePerFPGA": 8.0, "maxFPGAs": 2, "maxCPUs": 1, "nodes": NODES, "edges": EDGES}


def written(folder, **changes):
    path = folder / "instance.json"
    path.write_text(json.dumps(INSTANCE | changes))
    return path


def test_the_command_prints_the_answer(tmp_path, capsys):
    path = written(tmp_path)
    assert device_placement.main([str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objective"] == found["bound"] == 0.875
    assert found["assignment"] == {"5": "acc0", "3": "acc1"}
    assert device_placement.main([str(path), "--memory", "12.5", "--k", "1"]) == 0
    assert "objective 1.25\nbound 1.25\nstatus optimal: " in capsys.readouterr().out
    assert device_placement.main([str(path), str(path), "--json", "--k", "0"]) == 0
    assert [entry["objective"] for entry in json.loads(capsys.readouterr().out)["instances"]] == [18.0, 18.0]


def test_the_command_says_that_there_is_no_placement(tmp_path, capsys):
    path = written(tmp_path, maxCPUs=0, maxSizePerFPGA=5)
    assert device_placement.main([str(path), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["objective"], found["assignment"]) == ("infeasible", None, {})
    assert "; " in found["proof"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nodes": [{**NODES[0], "size": -1}], "edges": []}, "size of node 5 must be finite and not negative"),
        ({"nodes": [{**NODES[0], "cpuLatency": float("nan")}], "edges": []}, "cpuLatency of node 5"),
        ({"nodes": [{**NODES[0], "fpgaLatency": "1"}], "edges": []}, "must be a number"),
        ({"nodes": [{"id": 5}], "edges": []}, "node 5 has no fpgaLatency"),
        ({"nodes": [NODES[0], NODES[0]], "edges": []}, "belongs to two nodes"),
        ({"nodes": 3}, "nodes must be a list"),
        ({"edges": [{"sourceId": 5, "destId": 4, "cost": 0}]}, "names node 4"),
        ({"edges": [*EDGES, {"sourceId": 3, "destId": 5, "cost": 0}]}, "cycle"),
        ({"edges": [*EDGES, {"sourceId": 5, "destId": 3, "cost": 1}]}, "must cost the same"),
        ({"maxFPGAs": -1}, "non-negative integer"),
        ({"maxSizePerFPGA": float("inf")}, "finite"),
        ({"nodes": [{**node, "cpuLatency": 1.7e308} for node in NODES]}, "more than a number can hold"),
    ],
)
def test_files_that_are_no_instance_are_refused(tmp_path, capsys, changes, why):
    assert device_placement.main([str(written(tmp_path, **changes))]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1]", "{", "{}"])
def test_files_that_are_no_json_object_are_refused(tmp_path, capsys, text):
    path = tmp_path / "instance.json"
    path.write_text(text)
    assert device_placement.main([str(path)]) == 2
    assert device_placement.main([str(tmp_path / "missing.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_score_of_a_file_sees_what_is_broken(tmp_path):
    instance = read_instance(written(tmp_path, nodes=[{**node, "colorClass": 1} for node in NODES]))
    assert instance.devices == ("acc0", "acc1", "cpu0")
    apart = score(instance, {5: "acc0", 3: "cpu0"}, contiguous=True)
    assert apart.loads == {"acc0": 0.625, "acc1": 0.0, "cpu0": 9.0}
    assert apart.broken == ("node 3 is not on acc0 with its color class 1",)
    assert "bytes" in score(instance, {5: "acc0", 3: "acc0"}, contiguous=True).broken[0]
    nodes = [{**NODES[0], "id": number} for number in (1, 2, 3)]
    edges = [{"sourceId": a, "destId": a + 1, "cost": 0} for a in (1, 2)]
    chain = read_instance(written(tmp_path, nodes=nodes, edges=edges))
    back = score(chain, {1: "acc0", 2: "acc1", 3: "acc0"}, contiguous=True)
    assert "a path leaves acc0 and comes back to it at node 3" in back.broken
    assert "no device" in score(chain, {1: "acc0", 2: "acc9", 3: "acc0"}, contiguous=True).broken[0]


def test_the_scores_of_the_solver_and_of_the_file_agree(tmp_path):
    instance = read_instance(written(tmp_path))
    problem = to_problem(instance, contiguous=True)
    for machines in itertools.product(range(3), repeat=2):
        assignment = {o.id: instance.devices[m] for o, m in zip(instance.operators, machines, strict=True)}
        theirs = score(instance, assignment, contiguous=True)
        assert largest_load(problem, machines) / instance.units == pytest.approx(theirs.objective, rel=1e-9)
        assert bool(broken_rules(problem, machines)) == bool(theirs.broken)


def chains(count: int, length: int) -> DagProblem:
    """Parallel chains: with many of them, more prefixes than can be looked at."""
    rng = random.Random(0)
    nodes = tuple(Node((rng.randint(1, 99),), 0, i, rng.randint(1, 9)) for i in range(count * length))
    edges = tuple((i, i + count) for i in range(count * (length - 1)))
    return DagProblem(nodes, edges, (Kind("acc", 4, None),), contiguous=True)


def test_ctrl_c_keeps_the_best_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MOST_PREFIXES", 1000)
    seen: list[int] = []

    def stop(value: int, _bound: int | None) -> None:
        seen.append(value)
        raise KeyboardInterrupt

    problem = chains(12, 3)
    found = place_contiguous(problem, 5.0, stop)
    assert (found.status, [found.value]) == ("feasible", seen)
    assert largest_load(problem, found.machines) == found.value and not broken_rules(problem, found.machines)


def test_a_bound_of_the_model_is_the_bound_of_what_it_left_unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MOST_PREFIXES", 1000)
    problem = chains(12, 3)
    fluid = -(-sum(node.times[0] or 0 for node in problem.nodes) // 4)
    monkeypatch.setattr(nested, "solve_nested", lambda *_: nested.Nested("UNKNOWN", -1, (), fluid + 1))
    found = place_contiguous(problem, 5.0)
    assert (found.status, found.bound) == ("feasible", fluid + 1)
    assert found.bound < found.value == largest_load(problem, found.machines)
