"""Plans for what has changed: the fewest bytes move, by brute force; and the new plan is a whole one."""

import json
import random
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest

from ir.diagnostics import InfeasibleError, UsageError
from ir.objective import Objective
from partitioner.case import Case
from partitioner.compile import compile_model
from partitioner.former import Former, furthest
from partitioner.problem import ExpertLayout, measure
from partitioner.replan import Change, replan
from partitioner.rules import as_rules
from partitioner.solver import moves
from partitioner.solver.cpsat import Limits
from partitioner.solver.moves import applies, fewest_moves
from partitioner.solver.naming import renamed
from partitioner.solver.problem import Curve, Flow, Item, Problem, Wafer, equal_wafers
from partitioner.solver.score import faults, score
from targets.machines import load_wafers

ORDER = (Objective.MOVES, Objective.BALANCE, Objective.TRAFFIC)


# --- the search -------------------------------------------------------------------------------------------------------


def tiny(seed: int) -> Problem:
    """A chain of a few items that lay in runs on wafers of one or two kinds, some of which may be lost."""
    rng = random.Random(seed)
    count, wafers = rng.randint(2, 5), rng.randint(1, 4)
    items = tuple(
        Item(
            (i,),
            bytes=rng.randint(1, 9),
            tiles=rng.randint(1, 4),
            alike=rng.randint(0, 2),
            state_bytes=rng.randint(0, 1),
            weight_bytes=rng.randint(0, 9),
            slowest=Curve(rng.randint(1, 20), ((1, 2), (2, 1))),
        )
        for i in range(count)
    )
    further = [[i + 1, *(j for j in range(i + 2, count) if rng.random() < 0.2)] for i in range(count - 1)]
    flows = tuple(Flow(i, tuple(to), rng.randint(1, 5), rng.randint(0, 9)) for i, to in enumerate(further))
    kinds = [Wafer(rng.randint(3, 10), rng.randint(8, 30)) for _ in range(rng.choice([1, 1, 2]))]
    names = rng.sample(range(wafers), wafers)
    cuts = sorted(rng.sample(range(1, count), min(count - 1, rng.randint(0, wafers - 1))))
    lay = [names[run] for run, (a, b) in enumerate(pairwise([0, *cuts, count])) for _ in range(a, b)]
    limits = {
        Objective.BALANCE: rng.randint(8, 25),
        Objective.MACHINES: rng.randint(1, wafers),
        Objective.BOTTLENECK: rng.randint(8, 25),
        Objective.ROOM: rng.randint(1, 4),
    }
    return Problem(
        items,
        flows,
        tuple(Wafer(0) if rng.random() < 0.15 else rng.choice(kinds) for _ in range(wafers)),
        misfits=((0, 1),) if rng.random() < 0.3 else (),
        previous=tuple(None if rng.random() < 0.1 else wafer for wafer in lay),
        thresholds=tuple((name, limit) for name, limit in limits.items() if rng.random() < 0.3),
    )


def best_of_all(problem: Problem):
    """The least (moves, balance, traffic) of all placements, by trying every one; ``None`` if there is none."""
    every = product(range(len(problem.wafers)), repeat=len(problem.items))
    return min(
        (tuple(score(problem, each, name) for name in ORDER) for each in every if not faults(problem, each)),
        default=None,
    )


def test_the_fewest_bytes_move_by_brute_force():
    outcomes = {"none": 0, "found": 0, "proven": 0, "something moves": 0}
    for problem in map(tiny, range(150)):
        assert applies(problem)
        found, best = fewest_moves(problem), best_of_all(problem)
        outcomes["none" if best is None else "found"] += 1
        if best is None:
            assert found is None
            continue
        assert found is not None
        assert faults(problem, found.assignment) == ()
        assert tuple(score(problem, found.assignment, name) for name in ORDER) == best
        assert found.moved_bytes == best[0]
        outcomes["proven"] += bool(found.proof)
        outcomes["something moves"] += best[0] > 0
    assert min(outcomes["none"], outcomes["something moves"]) > 20
    assert outcomes["proven"] > 0.95 * outcomes["found"]


def chain(weights, wafers, previous, capacity=100, **more):
    items = tuple(Item((i,), weight, weight, weight_bytes=weight) for i, weight in enumerate(weights))
    flows = tuple(Flow(i, (i + 1,), 1) for i in range(len(weights) - 1))
    return Problem(items, flows, equal_wafers(wafers, capacity, capacity), previous=previous, **more)


def lost(problem: Problem, *wafers: int) -> Problem:
    offered = tuple(Wafer(0, 0) if index in wafers else wafer for index, wafer in enumerate(problem.wafers))
    return replace(problem, wafers=offered)


def test_a_spare_wafer_takes_the_place_of_a_lost_one_in_the_pipeline():
    problem = lost(chain([50, 50] * 4, 5, (0, 0, 1, 1, 2, 2, 3, 3)), 1)
    found = fewest_moves(problem)
    assert found is not None
    assert found.assignment == (0, 0, 4, 4, 2, 2, 3, 3)
    assert found.moved_bytes == 100
    assert found.proof == moves.PROOF


def test_without_a_spare_one_blocks_move_to_the_neighbours():
    found = fewest_moves(lost(chain([30, 30] * 3, 3, (0, 0, 1, 1, 2, 2)), 1))
    assert found is not None
    assert found.assignment == (0, 0, 0, 2, 2, 2)


def test_a_wafer_split_between_two_keeps_one_side_only():
    problem = chain([40, 40, 40, 40], 2, (0, 0, 0, 0), capacity=80)
    found = fewest_moves(problem)
    assert found is not None
    assert found.moved_bytes == 80
    assert set(found.assignment) == {0, 1}


def test_potentials_that_promise_too_little_are_no_proof():
    problem = lost(chain([30, 30] * 3, 3, (0, 0, 1, 1, 2, 2)), 1)
    graph = moves.Chain(problem)
    found = moves.LongestPaths(graph, moves.first_readers(problem)).best()
    assert found is not None
    _, kept, potentials = found
    assert moves.is_dual(graph, potentials, kept)
    assert not moves.is_dual(graph, potentials, kept - 1)
    for place in np.argwhere(potentials[1:] > 0)[:10]:
        lower = potentials.copy()
        lower[1:][tuple(place)] -= 1
        assert not moves.is_dual(graph, lower, kept)


def test_it_does_not_claim_what_it_was_not_made_for():
    problem = chain([10, 10, 10], 3, (0, 1, 0))
    assert not applies(problem)  # the spans of 0 and 1 overlap
    assert not applies(replace(problem, previous=(0, 1, 2), thresholds=((Objective.TRAFFIC, 1),)))
    assert not applies(replace(problem, previous=()))
    assert applies(replace(problem, previous=(0, 1, 2)))


def test_the_gap_decides_what_may_stay():
    """A new wafer would halve the load; what moves there depends on how close to that it has to be."""
    problem = chain([25, 25, 25, 25], 2, (0, 0, 0, 0))
    plan = Former.__new__(Former)
    moved = []
    for within in (0, Fraction(1, 2), 1):
        object.__setattr__(plan, "within", Fraction(within))
        found = Former.place(plan, problem, (Objective.BALANCE, Objective.TRAFFIC), Limits(), lambda _found: None)
        balance, moves_score, _ = found.scores
        assert balance.bound == 50
        assert balance.value <= 50 * (1 + within)
        assert moves_score.objective is Objective.MOVES
        assert moves_score.bound == moves_score.value
        moved.append(moves_score.value)
    assert moved == [50, 25, 0]


def test_groups_get_the_names_of_which_they_keep_most():
    for seed in range(60):
        rng = random.Random(seed)
        count, wafers = 5, 4
        weights = [rng.randint(1, 9) for _ in range(count)]
        previous = tuple(rng.choice([None, *range(wafers)]) for _ in range(count))
        problem = replace(chain(weights, wafers, previous), wafers=(Wafer(50),) * 3 + (Wafer(40),))
        given = tuple(rng.randrange(wafers) for _ in range(count))
        best = min(
            score(problem, tuple(names[wafer] for wafer in given), Objective.MOVES)
            for names in ((*three, 3) for three in permutations(range(3)))
        )
        named = renamed(problem, given)
        assert score(problem, named, Objective.MOVES) == best
        assert all(
            (a == b) == (x == y) for a, x in zip(given, named, strict=True) for b, y in zip(given, named, strict=True)
        )
        assert all((a == 3) == (x == 3) for a, x in zip(given, named, strict=True))


def test_what_is_no_chain_stays_as_far_as_it_can():
    """A fork: two items that read a third. Nothing has to move while the old wafers do; then what lay on a lost one."""
    items = tuple(Item((i,), 10, 10, weight_bytes=10) for i in range(3))
    problem = Problem(items, (Flow(0, (1, 2), 1),), equal_wafers(4, 100, 100), previous=(1, 0, 2))
    former = Former.__new__(Former)
    object.__setattr__(former, "within", Fraction(0))
    ask = (Objective.BALANCE, Objective.TRAFFIC), Limits(), lambda _found: None
    found = Former.place(former, problem, *ask)
    assert found.assignment == (1, 0, 2)
    assert found.scores[1].proof
    found = Former.place(former, lost(problem, 0), *ask)
    assert found.assignment == (1, 3, 2)
    assert (found.scores[1].value, found.scores[1].bound) == (10, 10)
    assert found.scores[1].proof


@pytest.mark.parametrize(("objective", "value", "limit"), [(Objective.BALANCE, 200, 210), (Objective.ROOM, 200, 190)])
def test_what_is_within_a_gap(objective, value, limit):
    from ir.plan import Score

    assert furthest(Score(objective, value, value, "two arguments"), Fraction(1, 20)) == limit
    assert furthest(Score(objective, value, value, "two arguments"), Fraction(0)) == value
    loose = value // 2 if not objective.is_maximum else value * 2
    assert furthest(Score(objective, value, loose, ""), Fraction(1, 20)) == value  # the optimum is not known


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replanned(compiled_small_kimi):
    """Replans ``small-kimi`` on four wafers, each change once."""
    known = {}

    def of(**change):
        key = tuple(sorted(change.items()))
        if key not in known:
            plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
            known[key] = replan(plan, model, Change(**change), None, ExpertLayout.AUTO)
        return known[key]

    return of


CHANGES = [{"lost": (1,)}, {"lost": (0,), "added": 1}, {"added": 1, "within": Fraction(0)}, {"users": 40}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(change))
def test_no_placement_within_the_gap_moves_less(replanned, compiled_small_kimi, change):
    """Against all ways to cut the chain into runs and to give them to wafers."""
    found = replanned(**change)
    plan, model = found.after, compiled_small_kimi.model
    problem = measure(model, plan.machine, plan.workload)
    problem = Former(found.before, Fraction(0)).recalled(problem, model, plan.machine)
    first = plan.solver.scores[0]
    limit = first.bound * (1 + change.get("within", Fraction(1, 20)))
    assert first.value <= limit
    least, optimum = fewest_by_enumeration(problem, limit)
    assert least == found.difference.moved_bytes
    assert optimum == first.bound


def fewest_by_enumeration(problem: Problem, limit) -> tuple[int, int]:
    """The fewest bytes moved with at most ``limit`` on each wafer, and the least bytes of the fullest, run by run."""
    best: dict[tuple[int, frozenset[int]], set[tuple[int, int]]] = {(0, frozenset()): {(0, 0)}}
    total = len(problem.items)
    for start in range(total):
        for (place, used), values in [*best.items()]:
            if place != start:
                continue
            for end, wafer in product(range(start + 1, total + 1), range(len(problem.wafers))):
                run = range(start, end)
                size = sum(problem.items[i].bytes for i in run)
                tiles = sum(problem.items[i].tiles for i in run)
                if wafer in used or tiles > problem.wafers[wafer].tiles:
                    continue
                moved = sum(problem.items[i].weight_bytes for i in run if problem.previous[i] != wafer)
                reached = best.setdefault((end, used | {wafer}), set())
                reached |= {(before + moved, max(fullest, size)) for before, fullest in values}
    ends = [value for (place, _), values in best.items() if place == total for value in values]
    return min(moved for moved, fullest in ends if fullest <= limit), min(fullest for _, fullest in ends)


ASKED = {
    "latency": {"objectives": (Objective.LATENCY, Objective.BALANCE)},
    "traffic": {"objectives": (Objective.TRAFFIC,)},
    "bottleneck": {"objectives": (Objective.BOTTLENECK, Objective.TRAFFIC)},
    "machines": {"objectives": (Objective.MACHINES, Objective.BALANCE)},
    "room": {"objectives": (Objective.ROOM,)},
    "pins": {"rules": as_rules(["pin embedding=2", "pin head=0"])},
    "apart": {"rules": as_rules(["apart layers.1.experts,layers.2.experts"])},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("change", [{"lost": (1,)}, {"lost": (1,), "added": 1}], ids=["lost", "replaced"])
def test_every_objective_and_rule_is_kept_to(compiled_small_kimi, asked, change):
    """Against every way to deal runs of the chain to wafers."""
    model, speed = compiled_small_kimi.model, load_wafers("mini", None, None).speed
    first = compile_model(
        Case(model, compiled_small_kimi.plan.machine, compiled_small_kimi.plan.workload, speed=speed, **asked)
    ).plan
    found = replan(first, model, Change(**change), speed, ExpertLayout.AUTO)
    plan = found.after
    assert plan.rules == first.rules
    problem = Case(model, plan.machine, plan.workload, rules=plan.rules, speed=speed).problem
    problem = Former(first, Fraction(0)).recalled(problem, model, plan.machine)
    objective = first.solver.scores[0].objective
    every = [
        (score(problem, each, objective), score(problem, each, Objective.MOVES))
        for each in deals(len(problem.items), plan.machine.in_service)
        if not faults(problem, each)
    ]
    sign = -1 if objective.is_maximum else 1
    optimum = min(sign * value for value, _ in every) * sign
    limit = optimum * (1 + sign * Fraction(1, 20))
    assert plan.solver.scores[0].bound == optimum or not plan.solver.scores[0].proof
    near = [moved for value, moved in every if sign * value <= sign * limit]
    assert found.difference.moved_bytes == min(near)
    told = next(each for each in plan.solver.scores if each.objective is Objective.MOVES)
    assert (told.value, bool(told.proof)) == (min(near), True)


def deals(items: int, wafers):
    """Every assignment in which each wafer in use has one run of items."""
    for runs in range(1, min(items, len(wafers)) + 1):
        for cuts in combinations(range(1, items), runs - 1):
            lengths = [end - start for start, end in pairwise([0, *cuts, items])]
            for chosen in permutations(wafers, runs):
                yield tuple(w for w, length in zip(chosen, lengths, strict=True) for _ in range(length))


def test_a_lost_wafer_holds_nothing_and_keeps_its_number(replanned):
    after = replanned(lost=(1,)).after
    assert after.machine.systems == 4
    assert after.machine.in_service == (0, 2, 3)
    assert 1 not in after.wafers_used
    assert all(expert.wafer == block.wafer != 1 for block in after.blocks for expert in block.experts)


def test_a_new_wafer_takes_over_and_nothing_else_moves(replanned):
    found = replanned(lost=(0,), added=1)
    assert {(move.source, move.target) for move in found.difference.moves} == {(0, 4)}
    assert found.after.wafers_used == (4, 1, 2, 3)
    assert found.difference.reshaped == ()
    before = {block.name: block for block in found.before.blocks}
    for block in found.after.blocks:
        assert block.region == before[block.name].region
        if block.wafer != 4:
            assert block == before[block.name]


def test_wafers_with_the_same_contents_keep_their_floor_plan(replanned):
    found = replanned(lost=(1,))
    held = [{wafer: plan.on_wafer(wafer) for wafer in plan.wafers_used} for plan in (found.before, found.after)]
    names = [{wafer: {block.name for block in own} for wafer, own in each.items()} for each in held]
    same = [wafer for wafer in names[1] if names[0].get(wafer) == names[1][wafer]]
    assert same
    assert all(held[0][wafer] == held[1][wafer] for wafer in same)


def test_other_users_change_caches_and_so_floor_plans(replanned):
    found = replanned(users=40)
    assert found.after.workload.users == 40
    assert all(
        now.cache_bytes == 40 * was.cache_bytes
        for was, now in zip(found.before.blocks, found.after.blocks, strict=True)
    )
    assert found.after.solver.seed == found.before.solver.seed


def test_a_plan_of_a_plan(replanned, compiled_small_kimi):
    """What came back into service counts as new: its blocks may return, and nothing else has to move."""
    once = replanned(lost=(0,), added=1)
    twice = replan(once.after, compiled_small_kimi.model, Change(lost=(2,), added=1), None, ExpertLayout.AUTO)
    assert twice.after.machine.in_service == (1, 3, 4, 5)
    assert {(move.source, move.target) for move in twice.difference.moves} == {(2, 5)}
    objectives = [each.objective for each in twice.after.solver.scores]
    assert objectives == [Objective.BALANCE, Objective.MOVES, Objective.TRAFFIC]


def test_what_no_longer_fits_is_explained(compiled_small_kimi):
    plan, model = compiled_small_kimi.plan, compiled_small_kimi.model
    with pytest.raises(InfeasibleError) as caught:
        replan(plan, model, Change(users=3000), None, ExpertLayout.AUTO)
    (fault,) = caught.value.diagnostics
    assert fault.code in ("W0411", "W0412")
    assert any("--users" in text for text in fault.help)
    assert not any("--systems" in text for text in fault.help)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_new_folder_is_a_plan_that_runs_with_the_same_tokens(waferc, stored_plan, tmp_path):
    folder = tmp_path / "new"
    told = waferc("replan", stored_plan, "--lost", "wafer:1", "--added", 1, "-o", folder, "--json")
    assert told.code == 0
    assert told.record["moved_bytes_proof"] == moves.PROOF
    assert told.record["pipeline"] == [0, 4, 2, 3]
    assert waferc("check", folder, "--json").record["ok"] is True
    prompt = ("--prompt-ids", "1,5,9,2", "--tokens", 4, "--json")
    assert waferc("run", folder, *prompt).record["tokens"] == waferc("run", stored_plan, *prompt).record["tokens"]

    different = waferc("diff", stored_plan, folder, "--json").record
    assert different["moved"] == told.record["moved"]
    assert {name: told.record[name] for name in different if name not in ("before", "after")} == {
        name: value for name, value in different.items() if name not in ("before", "after")
    }
    kept = [(folder / name).read_bytes() == (stored_plan / name).read_bytes() for name in ("model.ir", "model.json")]
    assert kept == [True, True]

    again = tmp_path / "again"
    waferc("replan", stored_plan, "--lost", "wafer:1", "--added", 1, "-o", again)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in again.iterdir()
    }


def test_people_read_what_moves(waferc, stored_plan):
    done = waferc("replan", stored_plan, "--lost", "wafer:1", "--within", "2.5%")
    assert done.code == 0
    assert "moved" in done.out
    assert "out of service" in done.out
    assert "2.50% allowed" in done.out
    assert "no plan this close to the bound moves fewer bytes" in done.out


def test_nothing_moves_if_nothing_changes(waferc, stored_plan, tmp_path):
    folder = tmp_path / "same"
    done = waferc("replan", stored_plan, "--users", 1, "-o", folder)
    assert done.code == 0
    assert done.out.startswith("nothing moves: neither the machine nor the workload changes")
    assert waferc("diff", stored_plan, folder, "--json").record["same"] is True
    record = waferc("replan", stored_plan, "--json").record
    assert (record["changed"], record["moved"], record["moved_bytes"]) == (False, [], 0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--lost", "wafer:99"), "W0119"),
        (("--lost", "7x"), "W0104"),
        (("--lost", "wafer:-1"), "W0104"),
        (("--lost", "wafer:0,wafer:1,wafer:2,wafer:3"), "W0119"),
        (("--added", "-1"), "W0103"),
        (("--added", "10000"), "W0103"),
        (("--users", "0"), "W0103"),
        (("--context", "0"), "W0103"),
        (("--context", "5000"), "W0107"),
        (("--prefill-chunk", "0"), "W0103"),
        (("--within", "much"), "W0104"),
        (("--within", "5"), "W0104"),
        (("--within=-1%",), "W0104"),
        (("--within", "99999%"), "W0103"),
        (("--experts", "somewhere"), "W0104"),
        (("--target", "/no/such.toml"), "W0110"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_bad_input_is_refused(waferc, stored_plan, arguments, code):
    done = waferc("replan", stored_plan, *arguments, "--json")
    assert (done.code, done.codes) == (2, [code])


def test_bad_folders_are_refused(waferc, stored_plan, plan_folder, tmp_path, monkeypatch):
    assert waferc("replan", tmp_path / "none", "--json").codes == ["W0106"]
    over_itself = waferc("replan", plan_folder, "--added", 1, "-o", plan_folder, "--json")
    assert (over_itself.code, over_itself.codes) == (2, ["W0105"])
    (tmp_path / "note.txt").write_text("mine")
    assert waferc("replan", stored_plan, "--added", 1, "-o", tmp_path, "--json").codes == ["W0105"]

    manifest = json.loads((plan_folder / "manifest.json").read_text())
    manifest["blocks"][0]["wafer"] = 2
    (plan_folder / "manifest.json").write_text(json.dumps(manifest))
    assert waferc("replan", plan_folder, "--added", 1, "--json").code == 6

    import partitioner.cli.diff as command

    monkeypatch.setattr(command, "is_device_plan", lambda folder: True)
    assert waferc("replan", stored_plan, "--added", 1, "--json").codes == ["W0113"]


def test_wafers_may_be_lost_once(compiled_small_kimi):
    machine = compiled_small_kimi.plan.machine
    with pytest.raises(UsageError) as caught:
        Change(lost=(1,)).machine(Change(lost=(1,)).machine(machine))
    assert "out of service already" in caught.value.diagnostics[0].message
