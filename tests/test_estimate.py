"""The commands that forecast: what they answer against the parts that they are made of, and what they refuse."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import waferc as programs
from ir.diagnostics import InfeasibleError, UsageError
from ir.forecast import Limit
from partitioner.cli.forecast_report import duration, figure, folded
from partitioner.comparison import most_in_all, most_in_time
from partitioner.estimate import Question, place_sketch, price
from partitioner.forecast import Answer, answer, estimate, simulated
from partitioner.options import LoadOptions
from partitioner.profiles import load_profile
from partitioner.questions import ask, machine, speculation
from partitioner.sizing import fewest_systems, size
from targets.batched import serve_batched
from targets.machines import load_target
from targets.parallel import choose_parallel
from targets.speculation import Speculation

ROOT = Path(__file__).parent.parent
NUMBERS = (
    *("tokens_per_s_per_user", "low", "high", "total_tokens_per_s", "time_to_first_token_s", "request_s"),
    *("prefill_tokens_per_s", "systems", "max_users", "users_at_full_speed", "power_w", "joules_per_token", "wall_s"),
    *("users", "context", "input_tokens", "output_tokens", "tokens_per_step", "kwh_per_million_tokens"),
)


@pytest.fixture(scope="module")
def small():
    return load_profile("small-kimi", LoadOptions())


@pytest.fixture(scope="module")
def plan(waferc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans") / "small"
    assert (
        waferc("compile", "small-kimi", "--target", "mini", "--context", "256", "--users", "2", "-o", folder).code == 0
    )
    return folder


def refused(waferc, code, *arguments, exit_code=2):
    done = waferc(*arguments, "--json")
    assert done.code == exit_code
    assert code in done.codes, done.out
    return next(fault for fault in done.record["diagnostics"] if fault["code"] == code)


# --- estimate -------------------------------------------------------------------------------------------------------


def test_the_record_has_every_field_and_adds_up(waferc):
    record = waferc("estimate", "kimi-k2.6", "--json").record
    assert all(isinstance(record[name], int | float) for name in NUMBERS)
    assert record["low"] < record["tokens_per_s_per_user"] < record["high"]
    assert record["systems"] == 20
    for name, range_ in record["ranges"].items():
        assert range_["value"] == record[name]
        assert range_["low"] <= range_["value"] <= range_["high"]
    assert len(record["limits"]) == 244
    for limit in record["limits"]:
        assert sum(limit["causes_s"].values()) == pytest.approx(limit["seconds"])
    assert sum(record["step_s"].values()) == pytest.approx(1 / record["tokens_per_s_per_user"], rel=1e-6)
    assert record["joules_per_token"] == pytest.approx(record["power_w"] / record["total_tokens_per_s"])
    assert any("validated" in note for note in record["notes"])


def test_a_bundled_model_is_forecast_without_the_large_libraries():
    program = (
        "import sys\nfrom partitioner.cli import main\n"
        "try:\n    main(['estimate', 'kimi-k2.6', '--json'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('HEAVY', [n for n in ('torch', 'transformers', 'ortools', 'onnx', 'networkx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout[-200:]


def test_devices_are_forecast_as_the_batch_serves(small):
    target = load_target("h100")
    question = Question(users=3, input_tokens=200, output_tokens=100)
    found = estimate(small, target, question)
    workload = replace(question.workload, chunk=2048)
    placement = choose_parallel(small, replace(target.cluster, nodes=1), workload).fastest.placement
    served = serve_batched(small, placement, 3, 200, 100)
    assert found.tokens_per_s_per_user.value == pytest.approx(served.tokens_per_s_per_user)
    assert found.request_s.value == pytest.approx(served.request_s)
    assert sum(found.step_s.values()) == pytest.approx(served.step.step_s)
    assert found.systems == 1
    assert found.power_w == 10200
    assert "tensor parallel" in found.layout
    assert found.tokens_per_s_per_user.low < found.tokens_per_s_per_user.value < found.tokens_per_s_per_user.high
    assert [limit.stage for limit in found.limits] == ["embedding to head"]


@pytest.mark.parametrize("target", ["cs3", "h100"])
def test_an_answer_is_a_forecast_without_ranges(small, target):
    question = Question(users=5, input_tokens=300, output_tokens=50, speculation=Speculation(3, 0.7))
    found, bare = estimate(small, load_target(target), question), answer(small, load_target(target), question)
    for name in ("tokens_per_s_per_user", "total_tokens_per_s", "time_to_first_token_s", "request_s"):
        assert getattr(bare, name) == getattr(found, name).value
    assert (bare.systems, bare.max_users, bare.power_w) == (found.systems, found.max_users, found.power_w)
    assert found.tokens_per_step == pytest.approx(1 + 0.7 + 0.49 + 0.343)
    assert found.step_s["draft"] > 0


def test_the_report_says_what_limits_and_fits_110_columns(waferc):
    out = waferc("estimate", "kimi-k2.6", "--simulate", "--set", "cluster.usd_per_system_hour=35").out
    lines = out.splitlines()
    assert all(len(line) <= 110 for line in lines)
    assert lines[0] == "kimi-k2.6 on Cerebras CS-3 (WSE-3): modelled, not measured"
    assert (
        lines[2] == "1 user, requests of 1,000 tokens in and 500 out, 1,500 tokens of context; prompts in chunks of 4"
    )
    assert lines[5].split()[:7] == ["tokens/s", "for", "each", "user", *lines[5].split()[4:7]]
    value, low, high = (int(number) for number in lines[5].split()[4:7])
    assert low < value < high
    assert any("layers.1-60.experts" in line and " 60 " in line for line in lines)
    assert any(line.startswith("launch") and line.rstrip().endswith("#") for line in lines)
    assert any(line.startswith("tile.clock_hz") and "derived" in line for line in lines)
    assert "USD for a million" in out
    assert "simulated" in out


def test_equal_stages_are_one_row():
    def limit(stage, seconds):
        return Limit(
            stage=stage, system=0, tiles=4, seconds=seconds, limited_by="launch", critical=True, causes_s={"launch": 1}
        )

    names = [fold.name for fold in folded([limit("a.0.x", 1), limit("a.1.x", 1), limit("head", 2), limit("a.2.x", 3)])]
    assert names == ["a.0-1.x", "head", "a.2.x"]


@pytest.mark.parametrize(("value", "told"), [(0, "0"), (1234.5, "1,234"), (0.0314159, "0.0314"), (23.7, "23.7")])
def test_figures_have_three_digits(value, told):
    assert figure(value) == told


def test_durations_have_the_unit_that_fits():
    assert [duration(s) for s in (2.5, 0.0428, 667e-6, 5e-9)] == ["2.5 s", "42.8 ms", "667 us", "5 ns"]


def test_the_mesh_and_any_figure_can_be_changed(waferc):
    plain = waferc("estimate", "small-kimi", "--json").record
    slow = waferc("estimate", "small-kimi", "--set", "tile.clock_hz=0.485e9", "--json").record
    assert slow["tokens_per_s_per_user"] < plain["tokens_per_s_per_user"]
    assert "tile.clock_hz" not in {each["figure"] for each in slow["sensitivities"]}
    narrow = waferc("estimate", "small-kimi", "--mesh", "60x40", "--json").record
    assert max(limit["tiles"] for limit in narrow["limits"]) <= 2400


def test_a_simulation_is_near_the_formula(small):
    question = Question(users=2, input_tokens=100, output_tokens=100)
    target = load_target("mini")
    events = simulated(small, target, question)
    formula = estimate(small, target, question).total_tokens_per_s.value
    assert events.service.total_tokens_per_s == pytest.approx(formula, rel=0.2)


def test_what_is_not_said_of_a_request_is_taken_from_the_context():
    assert (ask(None).input_tokens, ask(None).output_tokens) == (1000, 500)
    for most in (3, 10, 256, 1499):
        assert ask(most).tokens <= most
    asked = ask(4096, context=300, input_tokens=290)
    assert (asked.input_tokens, asked.output_tokens, asked.tokens) == (290, 10, 300)


def test_programs_can_ask(small):
    found = programs.estimate("small-kimi", target="mini", users=2, context=128, changes={"tile.clock_hz": 2e9})
    target = machine("mini", None, {"tile.clock_hz": 2e9})
    assert found == estimate(small, target, ask(small.max_context, users=2, context=128))
    with pytest.raises(UsageError):
        programs.estimate("small-kimi", user=2)


# --- plans ----------------------------------------------------------------------------------------------------------


def test_a_plan_is_forecast_as_it_lies(waferc, plan):
    record = waferc("estimate", plan, "--json").record
    manifest = json.loads((plan / "manifest.json").read_text())
    tiles = {block["name"]: block["region"]["columns"] * block["region"]["rows"] for block in manifest["blocks"]}
    assert {limit["stage"]: limit["tiles"] for limit in record["limits"]} == tiles
    assert (record["users"], record["context"], record["max_users"]) == (2, 256, 2)
    assert record["systems"] == len({block["wafer"] for block in manifest["blocks"]})


def test_a_plan_refuses_what_it_was_not_made_for(waferc, plan):
    fault = refused(waferc, "W0707", "estimate", plan, "--users", "3")
    assert fault["facts"] == {"asked": 3, "plan": 2}
    refused(waferc, "W0107", "estimate", plan, "--context", "300", "--input-tokens", "400")
    refused(waferc, "W0707", "estimate", plan, "--speculative", "3:0.7")
    refused(waferc, "W0706", "estimate", plan, "--target", "cs3")
    refused(waferc, "W0706", "estimate", plan, "--target", "h100")


def test_a_damaged_plan_is_refused(waferc, plan, tmp_path):
    for file in plan.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tables.safetensors").write_bytes(b"nothing")
    assert waferc("estimate", tmp_path, "--json").code == 6
    (tmp_path / "manifest.json").write_text("{}")
    refused(waferc, "W0512", "estimate", tmp_path, exit_code=6)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("W0101", ("estimate", "no-such-model")),
        ("W0110", ("estimate", "small-kimi", "--target", "cs9")),
        ("W0103", ("estimate", "small-kimi", "--users", "-1")),
        ("W0103", ("estimate", "small-kimi", "--context", "-5")),
        ("W0107", ("estimate", "small-kimi", "--context", "999999")),
        ("W0104", ("estimate", "small-kimi", "--mesh", "420")),
        ("W0705", ("estimate", "small-kimi", "--mesh", "9999x10")),
        ("W0705", ("estimate", "small-kimi", "--target", "h100", "--mesh", "10x10")),
        ("W0111", ("estimate", "small-kimi", "--set", "tile.clock=1e9")),
        ("W0111", ("estimate", "small-kimi", "--set", "tile.clock_hz=-1")),
        ("W0104", ("estimate", "small-kimi", "--set", "tile.clock_hz=nan")),
        ("W0104", ("estimate", "small-kimi", "--draft-tokens", "3")),
        ("W0104", ("estimate", "small-kimi", "--speculative", "three")),
        ("W0704", ("estimate", "small-kimi", "--speculative", "3:1.5")),
        ("W0708", ("estimate", "small-kimi", "--target", "h100", "--simulate")),
        ("W0103", ("size", "small-kimi", "--min-tokens-per-s", "-1")),
        ("W0104", ("compare", "small-kimi", "--workload", "chess")),
        ("W0104", ("compare", "small-kimi", "--prices", "cs9=3")),
        ("W0110", ("compare", "small-kimi", "--targets", "cs9")),
        ("W0103", ("compare", "small-kimi", "--users", "0")),
    ],
)
def test_bad_input_is_told(waferc, code, arguments):
    refused(waferc, code, *arguments)


def test_an_encoder_has_no_tokens_per_second(waferc):
    refused(waferc, "W0702", "estimate", "bert-large", exit_code=3)
    refused(waferc, "W0702", "estimate", "bert-large", "--target", "h100", exit_code=3)


def test_a_figure_that_is_nearly_right_is_suggested(waferc):
    fault = refused(waferc, "W0111", "estimate", "small-kimi", "--set", "tile.clock=1e9")
    assert "tile.clock_hz" in fault["help"][0]


def test_speculation_is_said_in_one_way(small):
    assert speculation("", None, None, None, lambda _: small) is None
    assert speculation("3:0.7", None, None, None, lambda _: small) == Speculation(3, 0.7)
    assert speculation("", 2, 0.5, "other", lambda _: small) == Speculation(2, 0.5, small)
    with pytest.raises(UsageError):
        speculation("3:0.7", 3, None, None, lambda _: small)


# --- size -----------------------------------------------------------------------------------------------------------


def given(speed):
    return Answer(1, 1, 1.0, speed, 1.0, 1.0, 1.0)


def brute(ask_, numbers, users, speed):
    fits = [
        number * copies
        for number in numbers
        for copies in range(1, users + 1)
        if (one := ask_(number, -(-users // copies))) and one.tokens_per_s_per_user >= speed
    ]
    return min(fits, default=None)


@pytest.mark.parametrize("speed", [1, 5, 9, 12, 20])
@pytest.mark.parametrize("users", [1, 4, 13])
def test_the_fewest_systems_are_found_where_more_make_it_slower(speed, users):
    def ask_(number, served):
        bumpy = 10 + 5 * math.cos(number * 2.1)
        return None if served > 3 * number else given(bumpy * number / (number + served))

    found = fewest_systems(ask_, range(1, 20), users, speed)
    assert (found and found[0] * found[1]) == brute(ask_, range(1, 20), users, speed)


def test_sizing_agrees_with_every_number_of_wafers(small):
    target = load_target("mini")
    question = Question(users=6, input_tokens=64, output_tokens=32)

    def ask_(number, served):
        try:
            return answer(small, target, replace(question, systems=number, users=served))
        except InfeasibleError:
            return None

    for speed in (2000, 12000, 14500):
        found = size(small, target, question, speed)
        assert found.option.systems == brute(ask_, range(1, len(small.items) + 1), 6, speed)
        assert found.option.tokens_per_s_per_user >= speed
        assert found.option in found.curve


def test_a_speed_that_cannot_be_had_is_explained(waferc):
    fault = refused(waferc, "W0709", "size", "small-kimi", "--min-tokens-per-s", "1e6", exit_code=4)
    best = fault["facts"]["tokens_per_s_reachable"]
    assert f"--min-tokens-per-s {int(best)} can be had" in fault["help"]
    assert waferc("size", "small-kimi", "--min-tokens-per-s", int(best), "--json").code == 0


def test_size_prints_the_curve(waferc):
    out = waferc("size", "llama-3.1-8b", "--users", "100", "--min-tokens-per-s", "500").out
    assert out.count("<- the fewest") == 1
    assert "too slow" in out
    assert all(len(line) <= 110 for line in out.splitlines())


# --- compare --------------------------------------------------------------------------------------------------------


def test_the_most_users_in_time_are_found_to_a_tenth():
    for most in (1, 2, 7, 100, 5000):
        assert most * 0.9 - 1 <= most_in_time(lambda users, most=most: users <= most) <= most
    assert most_in_time(lambda _: False) == 1


def test_the_best_number_of_users_is_found():
    assert most_in_all(lambda users: users, 700) == 700
    assert most_in_all(lambda users: -abs(users - 32), 700) in (16, 32, 64)
    assert most_in_all(lambda _: 1.0, 700) == 1


def test_compare_has_a_row_for_each_machine_and_says_why_one_has_no_figures(waferc):
    options = ("--targets", "cs3,h100,mini", "--workload", "support", "--prices", "cs3=35")
    record = waferc("compare", "llama-3.1-8b", *options, "--json").record
    rows = {row["target"]: row for row in record["rows"]}
    assert set(rows) == {"cs3", "h100", "mini"}
    assert not rows["mini"]["fits"]
    assert "larger than a wafer" in rows["mini"]["reason"]
    assert rows["cs3"]["in_time"] is (rows["cs3"]["request_s"] <= 4)
    paid = 35 * rows["cs3"]["systems"] / 3600 / rows["cs3"]["total_tokens_per_s"] * 1e6
    assert rows["cs3"]["usd_per_million_tokens"] == pytest.approx(paid)
    assert rows["h100"]["usd_per_million_tokens"] is None
    assert rows["h100"]["devices"] == 8 * rows["h100"]["systems"]
    lines = waferc("compare", "llama-3.1-8b", *options).out.splitlines()
    assert lines[0].rstrip() == "llama-3.1-8b: support agent, 2,000 in + 400 out, in 4 s"
    assert any(line.startswith("mini: does not serve this") for line in lines)
    assert all(len(line) <= 110 for line in lines)


def test_a_sketch_is_what_a_forecast_without_a_plan_takes(small):
    target = load_target("mini")
    question = Question(input_tokens=64, output_tokens=32)
    placed = place_sketch(small, target.cluster, question)
    assert estimate(small, target, question, placed) == estimate(small, target, question)


def test_a_price_counts_every_system():
    """Twenty systems at 36 dollars an hour are 20 cents a second; at 1,000 tokens a second, 200 dollars a million."""
    target = load_target("cs3", {"cluster.usd_per_system_hour": 36})
    assert price(target, 20, 1000.0) == pytest.approx(200)
    assert price(load_target("cs3"), 20, 1000.0) is None
