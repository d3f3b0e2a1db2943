"""Why nothing fits: the smallest conflict is as brute force finds it, and every lever is as far as it must be."""

import itertools
import random
from dataclasses import replace

import pytest

from ir.diagnostics import Diagnostic, InfeasibleError, TimeLimitError
from ir.encoding import ENCODINGS
from ir.explanation import Amount, Conflict, Explanation, Lever, Terms, Whole
from ir.objective import Objective
from ir.rules import Rule, RuleKind
from ir.workload import Workload
from partitioner.case import Case
from partitioner.compile import build_model, fits
from partitioner.conflict import MOST_RULES, smallest_conflict
from partitioner.levers import Trial, levers, quantised
from partitioner.problem import ExpertLayout
from partitioner.rules import as_rules
from partitioner.solver.cpsat import Limits
from partitioner.solver.place import place
from partitioner.solver.problem import Flow, Item, Problem, Restriction, Wafer
from partitioner.solver.score import faults
from partitioner.viewer.failure import render_failure
from targets.machines import load_wafers

# --- the smallest set of rules in conflict ----------------------------------------------------------------------------


def in_conflict(rules, cores) -> bool:
    return any(core <= set(rules) for core in cores)


@pytest.mark.parametrize("seed", range(60))
def test_the_conflict_is_a_smallest_one(seed):
    chance = random.Random(seed)
    count = chance.randint(1, 9)
    cores = [set(chance.sample(range(count), chance.randint(1, min(count, 5)))) for _ in range(chance.randint(1, 5))]
    decided = []

    def decide(rules):
        decided.append(tuple(rules))
        return not in_conflict(rules, cores)

    found, smallest = smallest_conflict(count, decide)
    assert smallest
    assert in_conflict(found, cores)
    assert len(found) == min(map(len, cores))
    assert len(set(decided)) == len(decided)  # nothing is solved twice


def test_many_rules_give_a_conflict_with_none_to_spare():
    count, core = 4 * MOST_RULES, {3, 17, 40, 41}
    decided = []

    def decide(rules):
        decided.append(rules)
        return not core <= set(rules)

    assert smallest_conflict(count, decide) == (tuple(sorted(core)), False)
    assert len(decided) < count


def test_without_verdicts_a_conflict_is_still_proven_but_not_called_smallest():
    cores = [{0, 1}, {2, 3, 4}]

    def decide(rules):
        return None if {0, 1} <= set(rules) and len(rules) < 5 else not in_conflict(rules, cores)

    found, smallest = smallest_conflict(5, decide)
    assert found == (2, 3, 4)
    assert not smallest


def tiny(chance: random.Random) -> tuple[Problem, list[Restriction]]:
    """A few items on a few wafers, and rules of every kind that needs no copies."""
    count, wafers = chance.randint(3, 5), chance.randint(2, 3)
    items = tuple(Item((n,), bytes=1, tiles=chance.randint(1, 4), alike=n) for n in range(count))
    flows = tuple(Flow(n, (n + 1,), 1) for n in range(count - 1) if chance.random() < 0.8)
    rules = []
    for _ in range(chance.randint(2, 5)):
        kind = chance.choice([k for k in RuleKind if k not in (RuleKind.REPLICATE, RuleKind.FREE)])
        groups = tuple((n,) for n in chance.sample(range(count), 2))
        wafer = (chance.randrange(wafers),) if kind in (RuleKind.PIN, RuleKind.FORBID) else ()
        rules.append(Restriction(kind, groups, wafer, 1 if kind is RuleKind.AT_MOST else 0, kind))
    return Problem(items, flows, (Wafer(sum(i.tiles for i in items) * 3 // 4),) * wafers), rules


def test_conflicts_of_tiny_problems_are_those_of_brute_force():
    chance, met = random.Random(11), 0

    def possible(problem: Problem) -> bool:
        spread = itertools.product(range(len(problem.wafers)), repeat=len(problem.items))
        return any(not faults(problem, assignment) for assignment in spread)

    def solved(problem: Problem):
        try:
            place(problem, (Objective.BALANCE,), Limits())
        except InfeasibleError:
            return False
        except TimeLimitError:
            return None
        return True

    while met < 8:
        problem, rules = tiny(chance)
        subsets = [s for size in range(len(rules) + 1) for s in itertools.combinations(range(len(rules)), size)]

        def ruled(numbers, problem=problem, rules=rules):
            return replace(problem, restrictions=tuple(rules[n] for n in numbers))

        if possible(ruled(subsets[-1])) or not possible(problem):
            continue
        met += 1
        least = next(len(numbers) for numbers in subsets if not possible(ruled(numbers)))
        found, smallest = smallest_conflict(len(rules), lambda numbers: solved(ruled(numbers)))
        assert smallest
        assert len(found) == least
        assert not possible(ruled(found))


# --- levers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(lowered_small_kimi):
    return build_model(lowered_small_kimi.graph)


def case_of(model, **changes) -> Case:
    asked = {"systems": 4, "users": 1, "context": 256, "chunk": 64, "experts": "auto"} | changes
    machine = load_wafers("mini", asked["systems"], None).machine
    workload = Workload(asked["users"], asked["context"], asked["chunk"])
    return Case(model, machine, workload, ExpertLayout(asked["experts"]), as_rules(asked.get("rules", ())))


FIELDS = {"systems": "systems", "users": "users", "context": "context", "prefill-chunk": "chunk"}


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"systems": 1}, {"systems", "encoding"}),
        ({"users": 90}, {"systems", "users", "context"}),
        ({"users": 3, "context": 5000}, {"systems", "users", "context", "prefill-chunk", "encoding"}),
        ({"chunk": 400, "users": 10}, {"systems", "prefill-chunk"}),
    ],
)
def test_a_lever_fits_and_one_step_less_does_not(model, asked, options):
    case = case_of(model, **asked)
    assert not fits(case)
    found = {lever.option: lever for lever in levers(case, (), None, Trial(fits, lambda _step: None))}
    assert set(found) >= options
    for option in FIELDS.keys() & found.keys():
        lever = found[option]
        assert lever.verified
        assert lever.was == getattr(case.machine if option == "systems" else case.workload, FIELDS[option])
        assert fits(case_of(model, **asked | {FIELDS[option]: lever.to}))
        back = lever.to + (-lever.step if option == "systems" else lever.step)
        assert not fits(case_of(model, **asked | {FIELDS[option]: back}))


def test_sliced_experts_are_a_lever_where_they_help(model):
    case = case_of(model, systems=2, experts="apart")
    found = {lever.option: lever for lever in levers(case, (), None, Trial(fits, lambda _step: None))}
    assert (found["experts"].was, found["experts"].to) == ("apart", "sliced")
    assert not fits(case)
    assert fits(replace(case, experts=ExpertLayout.SLICED))


def test_smaller_blocks_are_a_lever_where_they_help(waferc, quick_load):
    done = waferc(*COMPILE, "--users", 48, "--granularity", "halves")
    assert (done.code, done.codes) == (5, ["W0403"])
    (lever,) = [lever for lever in levers_of(done) if lever["option"] == "granularity"]
    assert (lever["from"], lever["to"]) == ("halves", "ops")
    assert waferc(*COMPILE, "--users", 48, "--granularity", "ops").code == 0


def levers_of(done):
    return done.record["diagnostics"][0]["explanation"]["levers"]


def test_quantised_weights_are_counted_by_their_encoding(model):
    narrow = quantised(model, ENCODINGS["int4_g32"])
    was, now = model.graph.parameter, narrow.graph.parameter
    products = {n.inputs[1] for n in model.graph.nodes if n.op in ("linear", "grouped_linear")} & set(was)
    for name, parameter in was.items():
        if name in products:
            inputs, elements = parameter.shape[-1], parameter.elements
            groups = elements // inputs * -(-inputs // 32)
            assert now[name].stored_bytes == -(-elements // 2) + 2 * groups
        else:
            assert now[name] == parameter
    assert narrow.weight_bytes < model.weight_bytes / 5
    assert sum(block.weight_bytes for block in narrow.blocks) == narrow.weight_bytes + narrow.copied_bytes
    assert quantised(narrow, ENCODINGS["uint8_row_bf16"]) == narrow  # what is narrow stays so


# --- what a failing compile says --------------------------------------------------------------------------------------

COMPILE = ("compile", "small-kimi", "--target", "mini", "--context", 256, "--json")
AMOUNT = {"tiles", "bytes"}


def test_a_failing_compile_answers_with_data(waferc, quick_load, tmp_path):
    done = waferc(*COMPILE, "--systems", 1, "-o", tmp_path / "plan", "--report", tmp_path / "why.html")
    assert done.code == 4
    (fault,) = done.record["diagnostics"]
    found = fault["explanation"]
    assert set(found) == {"demand", "capacity", "gap", "terms", "largest", "proof", "conflict", "levers"}
    assert set(found["demand"]) == set(found["capacity"]) == set(found["gap"]) == AMOUNT
    assert found["gap"]["tiles"] == found["demand"]["tiles"] - found["capacity"]["tiles"] > 0
    terms = found["terms"]
    assert terms["weights"] + terms["cache"] + terms["activations"] == found["demand"]["bytes"]
    assert terms["reserve"] == 512 * found["demand"]["tiles"]
    assert found["capacity"] == {"tiles": 48 * 32, "bytes": 48 * 32 * (4096 - 512)}
    assert "layers.1.experts" in found["largest"]["blocks"]
    assert found["largest"]["gap"] == {"tiles": 0, "bytes": 0}
    assert len(found["proof"]) >= 2
    assert found["conflict"] is None
    assert [lever["text"] for lever in found["levers"]] == fault["help"]
    assert {"option", "from", "to", "step", "text", "verified", "solve_s"} == set(found["levers"][0])
    assert next((lever["option"], lever["from"], lever["to"]) for lever in found["levers"]) == ("systems", 1, 2)
    page = (tmp_path / "why.html").read_text()
    for text in (
        "small-kimi does not fit",
        f"{found['gap']['tiles']:,}",
        "--systems 2 would fit",
        *found["proof"],
    ):
        assert text in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["why.html"]


def test_without_a_report_nothing_is_written(waferc, quick_load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert waferc(*COMPILE, "--users", 1 << 20, "-o", "plan").code == 4
    assert [*tmp_path.iterdir()] == []


def test_a_report_of_a_plan_is_its_page(waferc, quick_load, tmp_path):
    done = waferc(*COMPILE, "--report", tmp_path / "page.html", "-o", tmp_path / "plan")
    assert done.code == 0
    assert (tmp_path / "page.html").read_text() == (tmp_path / "plan" / "report.html").read_text()


def test_a_report_replaces_nothing_but_a_page(waferc, quick_load, tmp_path):
    own = tmp_path / "own.html"
    own.write_text("mine")
    for path in (own, tmp_path, tmp_path / "none" / "page.html", own / "page.html"):
        done = waferc(*COMPILE, "--report", path)
        assert (done.code, done.codes) == (2, ["W0105"])
    assert own.read_text() == "mine"


def test_a_page_escapes_what_users_wrote():
    evil = "<script>alert('&')</script>"
    rule = Rule(RuleKind.PIN, (evil,), (0,), text=evil, source=evil)
    whole = Whole((evil,), Amount(1, 1), Amount(2, 2))
    lever = Lever("users", evil, 3, evil, 0.1)
    terms, conflict = Terms(1, 2, 3, 4), Conflict((rule,), smallest=True, whatever_size=None)
    found = Explanation(Amount(9, 9), Amount(4, 4), terms, whole, (evil,), (lever,), conflict)
    page = render_failure(Diagnostic("W0413", evil, evil, {}, (evil,), found), evil)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8


# --- rules that cannot all be kept ------------------------------------------------------------------------------------


def conflict_of(done):
    assert (done.code, done.codes) == (4, ["W0413"]), done.out
    return done.record["diagnostics"][0]


def test_rules_that_contradict_each_other_are_named(waferc, quick_load, tmp_path):
    path = tmp_path / "ours.toml"
    path.write_text('pin = ["head=0"]\nat-most = ["layers.*.experts=2"]\n')
    rules = ("--rules", path, "--forbid", "head=0", "--pin", "layers.0=0,1", "--apart", "embedding,layers.2.attention")
    fault = conflict_of(waferc(*COMPILE, *rules, "--report", tmp_path / "why.html"))
    assert fault["message"] == "2 rules together cannot be kept: they contradict each other"
    found = fault["explanation"]["conflict"]
    assert (found["smallest"], found["whatever_size"]) == (True, True)
    assert [(rule["text"], rule["source"]) for rule in found["rules"]] == [
        ("pin head=0", "ours.toml:1"),
        ("forbid head=0", "--forbid"),
    ]
    lifted = [lever for lever in fault["explanation"]["levers"] if lever["option"] == "rules"]
    assert [lever["from"] for lever in lifted] == ["pin head=0", "forbid head=0"]
    assert "pin head=0" in (tmp_path / "why.html").read_text()
    assert waferc(*COMPILE, *rules[2:]).code == 0
    assert waferc(*COMPILE, *rules[:2], *rules[4:]).code == 0


def test_rules_that_need_more_room_are_told_from_those_that_contradict(waferc, quick_load):
    fault = conflict_of(waferc(*COMPILE, "--together", "layers.1,layers.2,layers.3", "--pin", "embedding=0"))
    found = fault["explanation"]
    assert [rule["kind"] for rule in found["conflict"]["rules"]] == ["together"]
    assert found["conflict"]["whatever_size"] is False
    assert fault["message"] == ("a rule cannot be kept: there are placements that allow it, but none with enough room")


def test_what_does_not_fit_without_rules_is_not_laid_to_them(waferc, quick_load):
    done = waferc(*COMPILE, "--systems", 1, "--pin", "embedding=0")
    assert done.codes == ["W0411"]
    assert done.record["diagnostics"][0]["explanation"]["conflict"] is None
