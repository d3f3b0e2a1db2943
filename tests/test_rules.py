"""Rules of the user are read or refused with reason, kept by plans, and plans that break them are found."""

import itertools
import random
import string
from dataclasses import replace

import pytest

from ir.diagnostics import UsageError
from ir.machine import Machine
from ir.plan import PlacedBlock, Plan
from ir.rules import Rule, RuleKind, names
from ir.workload import Workload
from partitioner.api import Request, compile_lowered
from partitioner.check import check
from partitioner.check_rules import wholes_of
from partitioner.compile import build_model
from partitioner.folder import read_plan
from partitioner.problem import measure, shared_groups
from partitioner.rules import EXAMPLES, as_rules, parse_rule, read_rules
from partitioner.solver.problem import Curve

SMALL = Request(target="mini", systems=4, context=256)
MINI = Machine("mini", "", columns=48, rows=32, tile_sram_bytes=4096, reserve_bytes=512, systems=4)
USERS = Workload(users=3, context=256, chunk=64)


@pytest.fixture(scope="module")
def model(lowered_small_kimi):
    return build_model(lowered_small_kimi.graph)


def refused(code: str, call, *arguments, **options) -> str:
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    assert {fault.code for fault in caught.value.diagnostics} == {code}
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("pin layers.3.*=1, 2", Rule(RuleKind.PIN, ("layers.3.*",), (1, 2))),
        ("forbid embedding,head=4", Rule(RuleKind.FORBID, ("embedding", "head"), (4,))),
        ("apart embedding, head", Rule(RuleKind.APART, ("embedding", "head"))),
        ("together embedding,head", Rule(RuleKind.TOGETHER, ("embedding", "head"))),
        ("order layers.7.*,layers.3.*", Rule(RuleKind.ORDER, ("layers.7.*", "layers.3.*"))),
        ("at-most layers.*.experts=3", Rule(RuleKind.AT_MOST, ("layers.*.experts",), count=3)),
        ("at_most layers.*.experts=3", Rule(RuleKind.AT_MOST, ("layers.*.experts",), count=3)),
        ("replicate embedding=2", Rule(RuleKind.REPLICATE, ("embedding",), count=2)),
        ("free head", Rule(RuleKind.FREE, ("head",))),
        (" pin  a=b=0 ", Rule(RuleKind.PIN, ("a=b",), (0,))),
    ],
)
def test_a_rule_is_read(text, rule):
    assert parse_rule(text) == replace(rule, text=text.strip())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no rule ''"),
        ("pinn embedding=0", "did you mean pin?"),
        ("pin", "it needs `=`"),
        ("pin embedding", "it needs `=`"),
        ("pin embedding=", "it needs a wafer"),
        ("pin =0", "it names no block"),
        ("pin embedding,=0", "it names no block"),
        ("pin embedding=one", "no whole numbers"),
        ("pin embedding=1.5", "no whole numbers"),
        ("pin embedding=-1", "wafers are numbers from 0"),
        ("forbid embedding=0,", "no whole numbers"),
        ("at-most layers.*=0", "count must be from 1"),
        ("at-most layers.*=1,2", "one number"),
        ("replicate embedding=-2", "count must be from 1"),
        ("replicate embedding=99999999", "count must be from 1"),
        ("order embedding", "two patterns"),
        ("apart", "it names no block"),
        ("free ", "it names no block"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_its_text(text, reason):
    told = refused("W0114", parse_rule, text, "--pin")
    assert reason in told
    assert f"{text.strip()} (--pin)" in told


def test_programs_give_texts_or_rules_none_of_them_twice():
    given = ["pin head=3", Rule(RuleKind.AT_MOST, ("layers.*",), count=2), Rule(RuleKind.PIN, ("head",), (1, 3))]
    assert [rule.text for rule in as_rules(given)] == ["pin head=3", "at-most layers.*=2", "pin head=1,3"]
    assert "pin head=3" in refused("W0118", as_rules, ["pin head=3", "pin  head=3"])
    refused("W0114", as_rules, "pin head=3")
    refused("W0114", as_rules, [Rule(RuleKind.PIN, ("head",), (0,), count=2)])
    refused("W0114", as_rules, [Rule(RuleKind.FREE, ("head",), (0,))])
    refused("W0114", as_rules, [f"pin head={n}" for n in range(1001)])
    refused("W0114", Request, rules=["pin"])


def test_a_file_has_every_kind_with_its_line(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text("# ours\n" + "\n".join(f'{kind.replace("_", "-")} = ["{text}"]' for kind, text in EXAMPLES.items()))
    found = read_rules(path)
    assert [rule.kind for rule in found] == list(EXAMPLES)
    assert [rule.source for rule in found] == [f"rules.toml:{line}" for line in range(2, 2 + len(EXAMPLES))]
    assert [replace(rule, source="") for rule in found] == [
        parse_rule(f"{kind.replace('_', '-')} {text}") for kind, text in EXAMPLES.items()
    ]


def test_rules_over_several_lines_are_told_by_theirs(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('pin = [\n  "embedding=0",\n  "head=3",  # the last\n]\nfree = ["embedding=0"]\n')
    assert [rule.source for rule in read_rules(path)] == ["r.toml:2", "r.toml:3", "r.toml:5"]


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (b"pin = [", "W0116", "no TOML"),
        (b'pin = ["a=0"]\npin = ["b=0"]', "W0116", "no TOML"),
        (b"\xff\xfe", "W0116", "UTF-8"),
        (b'pim = ["a=0"]', "W0116", "did you mean pin?"),
        (b"[pin]\na = 0", "W0116", "must be a list of texts, not dict"),
        (b'pin = "a=0"', "W0116", "must be a list of texts"),
        (b"pin = [0]", "W0116", "must be a list of texts"),
        (b'pin = ["a"]', "W0114", "rules.toml:1"),
        (b"x" * (1 << 20) + b"y", "W0116", "megabyte"),
        (b"a = " + b"[" * 5000, "W0116", "no TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, code, reason):
    path = tmp_path / "rules.toml"
    path.write_bytes(content)
    assert reason in refused(code, read_rules, path)


def test_a_file_that_is_none_is_refused(tmp_path):
    assert "no such file" in refused("W0116", read_rules, tmp_path / "none.toml")
    assert "no file" in refused("W0116", read_rules, tmp_path)
    refused("W0116", read_rules, tmp_path / ("x" * 5000))


def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path):
    seed = random.Random(5)
    path = tmp_path / "rules.toml"
    sound = "\n".join(f'{kind.replace("_", "-")} = ["{text}"]' for kind, text in EXAMPLES.items())
    kept = 0
    for _ in range(300):
        letters = list(sound)
        for _ in range(seed.randint(1, 6)):
            letters[seed.randrange(len(letters))] = seed.choice(string.printable)
        path.write_text("".join(letters))
        try:
            kept += all(isinstance(rule, Rule) for rule in as_rules(read_rules(path)))
        except UsageError as error:
            assert {fault.code for fault in error.diagnostics} <= {"W0114", "W0116", "W0118"}
    assert 0 < kept < 300


@pytest.mark.parametrize(
    ("pattern", "block", "named"),
    [
        ("embedding", "embedding", True),
        ("layers.3", "layers.3.attention", True),
        ("layers.3", "layers.31.attention", False),
        ("layers.3.*", "layers.3.attention.o_proj", True),
        ("layers.*.experts", "layers.17.experts", True),
        ("layers.?.attention", "layers.3.attention.o_proj", True),
        ("attention", "layers.3.attention", False),
        ("Head", "head", False),
    ],
)
def test_patterns_name_blocks_and_what_they_are_part_of(pattern, block, named):
    assert names(pattern, block) is named


# --- resolving --------------------------------------------------------------------------------------------------------


def test_a_rule_on_a_block_is_one_on_its_item(model):
    problem = measure(model, MINI, USERS, rules=as_rules(["pin layers.1.router=2", "together embedding,layers.2"]))
    pin, together = problem.restrictions
    (item,) = pin.items
    assert {model.blocks[block].name for block in problem.items[item].blocks} == {
        "layers.1.router",
        "layers.1.shared_expert",
        "layers.1.experts",
    }
    assert (pin.kind, pin.wafers, pin.text) == (RuleKind.PIN, (2,), "pin layers.1.router=2")
    assert [len(group) for group in together.groups] == [1, 2]


def test_copies_are_items_that_share_users_and_tokens(model):
    plain = measure(model, MINI, USERS)
    problem = measure(model, MINI, USERS, rules=as_rules(["replicate layers.0.attention=2", "pin layers.0=0,1"]))
    block = next(i for i, block in enumerate(model.blocks) if block.name == "layers.0.attention")
    (whole,) = [item for item in plain.items if item.blocks == (block,)]
    copies = [number for number, item in enumerate(problem.items) if item.blocks == (block,)]
    first, second = (problem.items[number] for number in copies)
    assert (first.copy, second.copy) == (0, 1)
    user = model.blocks[block].cache_bytes(1, USERS.context)
    fixed = whole.bytes - 3 * user
    assert (first.bytes, second.bytes) == (fixed + 2 * user, fixed + user)  # users 0 and 2, and user 1
    assert first.state_bytes * 2 >= whole.state_bytes == user
    replicated, pinned = problem.restrictions
    assert replicated.groups == (tuple(copies),)
    assert set(copies) < set(pinned.items)
    before, after = copies[0] - 1, copies[-1] + 1
    assert [flow.targets for flow in problem.flows if flow.source == before] == [tuple(copies)]
    assert [flow.targets for flow in problem.flows if flow.source in copies] == [(after,), (after,)]


def test_copies_of_several_counts_exchange_values_by_the_users_they_share(model):
    rules = as_rules(["replicate embedding=2", "replicate layers.0.attention=4"])
    problem = measure(model, MINI, USERS, rules=rules)
    served = {(k, j): any(user % 2 == k and user % 4 == j for user in range(8)) for k in range(2) for j in range(4)}
    sent = {(flow.source, target - 2) for flow in problem.flows if flow.source < 2 for target in flow.targets}
    assert sent == {route for route, common in served.items() if common}


def test_shared_curves_add_up_to_the_mean(model):
    curve = Curve(1000, ((4, 100), (10, 7)))
    for copies, spare in itertools.product((1, 2, 3), range(20)):
        shared = curve.shared(copies)
        assert abs(shared.time(spare) * copies - curve.time(spare)) <= copies * (1 + spare)
        assert shared.time(99) >= 0


@pytest.mark.parametrize(
    ("rules", "code", "reason"),
    [
        (["pin embeding=0"], "W0117", "embedding"),
        (["pin nothing.like.it=0"], "W0117", "blocks are embedding, ..., head"),
        (["pin embedding=4"], "W0117", "wafers are 0 to 3"),
        (["replicate embedding=5"], "W0117", "fewer wafers than copies"),
        (["apart layers.1.router,layers.1.experts"], "W0118", "always share a wafer"),
        (["apart layers.*,layers.1.attention"], "W0118", "stands twice in a rule of apart"),
        (["together head"], "W0118", "always share a wafer, or are one"),
        (["order layers.1.router,layers.1.experts"], "W0118", "stands twice"),
        (["replicate layers.*=2", "replicate layers.1.router=3"], "W0118", "replicate the same block"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(model, rules, code, reason):
    told = refused(code, measure, model, MINI, USERS, rules=as_rules(rules))
    assert reason in told
    assert rules[-1] in told or "layers.1.router" in told


def test_patterns_are_kept_apart_from_each_other_and_not_in_themselves(model):
    problem = measure(model, MINI, USERS, rules=as_rules(["apart layers.1,head"]))
    groups = {
        name: next(n for n, item in enumerate(problem.items) if model.blocks[item.blocks[0]].name == name)
        for name in ("layers.1.attention", "layers.1.router", "head")
    }
    attention, mlp, head = groups.values()
    assert [rule.items for rule in problem.restrictions] == [(attention, head), (mlp, head)]
    (alone,) = measure(model, MINI, USERS, rules=as_rules(["apart layers.*.attention"])).restrictions
    assert len(alone.items) == 4


def test_the_checker_knows_what_shares_a_wafer_by_itself(model):
    wholes = wholes_of(model)
    groups = [{model.blocks[block].name for block in group} for group in shared_groups(model)]
    assert sorted(map(sorted, groups)) == sorted(
        sorted(name for name, own in wholes.items() if own == number) for number in set(wholes.values())
    )


# --- plans ------------------------------------------------------------------------------------------------------------


def wafers(plan: Plan, pattern: str) -> list[int]:
    return [block.wafer for block in plan.blocks if names(pattern, block.name)]


def wafer(plan: Plan, name: str) -> int:
    (found,) = {block.wafer for block in plan.blocks if block.name == name}
    return found


def copies(plan: Plan, name: str) -> list[PlacedBlock]:
    return [block for block in plan.blocks if block.name == name]


KEPT = {
    "pin embedding=2": lambda plan: wafer(plan, "embedding") == 2,
    "pin layers.1,layers.2=0,3": lambda plan: {*wafers(plan, "layers.1"), *wafers(plan, "layers.2")} <= {0, 3},
    "forbid layers.*.experts=0,1": lambda plan: not {0, 1} & set(wafers(plan, "layers.*.experts")),
    "apart layers.0.attention,layers.0.dense_mlp,head": lambda plan: (
        len({wafer(plan, name) for name in ("layers.0.attention", "layers.0.dense_mlp", "head")}) == 3
    ),
    "together layers.0.dense_mlp,layers.2.attention": lambda plan: (
        wafer(plan, "layers.0.dense_mlp") == wafer(plan, "layers.2.attention")
    ),
    "order layers.2.attention,layers.1.attention": lambda plan: (
        wafer(plan, "layers.2.attention") == wafer(plan, "layers.1.attention")
    ),
    "at-most layers.*.attention=1": lambda plan: len(set(wafers(plan, "layers.*.attention"))) == 4,
    "replicate embedding=2": lambda plan: len({block.wafer for block in copies(plan, "embedding")}) == 2,
    "free head": lambda plan: True,
}


@pytest.fixture(scope="module")
def plan(compiled_small_kimi):
    return compiled_small_kimi.plan


@pytest.mark.parametrize("text", KEPT)
def test_a_plan_keeps_a_rule_and_says_so(lowered_small_kimi, text, tmp_path):
    placed = compile_lowered(lowered_small_kimi, replace(SMALL, rules=[text]))
    assert KEPT[text](placed.plan)
    assert [rule.text for rule in placed.plan.rules] == [text]
    assert check(placed.plan, placed.model) == ()
    placed.save(tmp_path / "plan")
    assert read_plan(tmp_path / "plan").plan.rules == placed.plan.rules


BROKEN = [
    "pin embedding=3",
    "forbid embedding=0",
    "apart embedding,layers.0.attention",
    "together embedding,head",
    "order head,embedding",
    "at-most layers.*.attention=1",
    "replicate embedding=2",
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_plan_that_breaks_a_rule_is_found(compiled_small_kimi, plan, text):
    faults = check(replace(plan, rules=as_rules([text])), compiled_small_kimi.model)
    assert [(fault.code, fault.where) for fault in faults] == [("W0516", text)]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(RuleKind.PIN, ("nothing",), (0,)),
        Rule(RuleKind.PIN, (), (0,)),
        Rule(RuleKind.PIN, ("head",)),
        Rule(RuleKind.PIN, ("head",), (4,)),
        Rule(RuleKind.FREE, ("head",), (1,)),
        Rule(RuleKind.AT_MOST, ("head",)),
        Rule(RuleKind.REPLICATE, ("head",), count=-1),
        Rule(RuleKind.FREE, ("head",), count=1),
    ],
)
def test_a_rule_that_no_user_can_have_given_is_found(compiled_small_kimi, plan, rule):
    (fault,) = check(replace(plan, rules=(rule,)), compiled_small_kimi.model)
    assert fault.code == "W0516"
    assert "makes no sense" in fault.message


def test_a_plan_with_very_many_rules_is_refused_at_once(compiled_small_kimi, plan):
    (fault,) = check(replace(plan, rules=(Rule(RuleKind.FREE, ("head",)),) * 100_000), compiled_small_kimi.model)
    assert fault.code == "W0516"


def test_values_may_flow_back_to_what_is_free_and_to_nothing_else(compiled_small_kimi, plan):
    def with_attention_on_the_last_wafer(plan: Plan) -> Plan:
        moved = (replace(b, wafer=3) if b.name == "layers.0.attention" else b for b in plan.blocks)
        return replace(plan, blocks=tuple(moved))

    moved = with_attention_on_the_last_wafer(plan)
    bound = {fault.code for fault in check(moved, compiled_small_kimi.model)}
    free = replace(moved, rules=as_rules(["free layers.0.attention"]))
    assert "W0508" in bound
    assert "W0508" not in {fault.code for fault in check(free, compiled_small_kimi.model)}


# --- the command line -------------------------------------------------------------------------------------------------

COMPILE = ("compile", "small-kimi", "--target", "mini", "--systems", 4, "--context", 256, "--json")


def test_options_and_a_file_go_together(waferc, quick_load, tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text('pin = ["embedding=0"]\n')
    options = ("--pin", "head=3", "--pin", "layers.0=0,1", "--at-most", "layers.*.experts=2", "--rules", path)
    done = waferc(*COMPILE, *options, "-o", tmp_path / "plan")
    assert done.code == 0, done.out
    told = [str(rule) for rule in read_plan(tmp_path / "plan").plan.rules]
    assert told == [
        "pin embedding=0 (rules.toml:1)",
        "pin head=3 (--pin)",
        "pin layers.0=0,1 (--pin)",
        "at-most layers.*.experts=2 (--at-most)",
    ]
    assert waferc("check", tmp_path / "plan").code == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--pin", "embedding"), "W0114"),
        (("--rules", "none.toml"), "W0116"),
        (("--pin", "embeding=0"), "W0117"),
        (("--pin", "head=0", "--pin", "head=0"), "W0118"),
    ],
)
def test_bad_rules_end_with_a_diagnostic_and_leave_nothing(waferc, quick_load, tmp_path, options, code):
    done = waferc(*COMPILE, *options, "-o", tmp_path / "plan")
    assert (done.code, done.codes) == (2, [code])
    assert not (tmp_path / "plan").exists()


def test_rules_of_placement_are_for_wafers(waferc, quick_load):
    done = waferc("compile", "small-kimi", "--target", "h100", "--pin", "head=0", "--json")
    assert (done.code, done.codes) == (2, ["W0104"])
