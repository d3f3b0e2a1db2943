"""``waferc run``: prompts, references, counters, traces, what it tells scripts, and what it refuses."""

import json
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from partitioner.cli.arguments import with_value

ROOT = Path(__file__).parent.parent
PROMPTS = "1,5,9,2,17,33;40,3,8"


@pytest.fixture(scope="module")
def ran(waferc, text_plan, tmp_path_factory):
    """One run of two prompts in flight, compared and traced: what it told, and the trace."""
    trace = tmp_path_factory.mktemp("trace") / "trace.json"
    arguments = ("--prompt-ids", PROMPTS, "--tokens", 5, "--compare", "--counters", "ops", "--trace", trace)
    done = waferc("run", text_plan, *arguments, "--json")
    assert done.code == 0, done.out
    return done.record, json.loads(trace.read_text())


# --- what is told ---------------------------------------------------------------------------------------------------


def test_prompts_in_flight_together_are_continued_as_the_original_does(ran):
    record, _ = ran
    assert record["tokens"] == record["reference_tokens"]
    assert [len(text) for text in record["tokens"]] == [5, 5]
    assert len({*record["tokens"][0], *record["tokens"][1]}) > 4, "texts that repeat themselves compare little"
    assert 0 < record["max_abs_logit_error"] <= record["tolerance"] == 1e-4
    assert (record["ok"], record["reference"], record["prompts"], record["wafers"]) == (True, "torch", 2, 2)


def test_the_keys_for_scripts_are_documented(ran, waferc, text_plan):
    text = (ROOT / "docs" / "emulator.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.]+)`", text, re.MULTILINE))
    record, _ = ran
    told = {*record, *(f"counters.{name}" for name in record["counters"])}
    verified = waferc("verify", text_plan, "--prompt-ids", "1,5", "--tokens", 1, "--json").record
    told |= {*verified, *(f"layers.{name}" for name in verified["layers"][0])}
    assert told <= documented, told - documented


def test_counters_add_up_and_are_as_predicted(ran):
    record, _ = ran
    counters = record["counters"]
    assert counters == record["predicted_counters"]
    assert counters["multiply_adds"] == sum(op["multiply_adds"] for op in counters["ops"]) > 0
    assert counters["links"] == {"0-1": 4 * 64 * (6 + 3 + 2 * 4)}, "float32 x hidden x tokens of both prompts"
    assert counters["transfer_bytes"] == counters["links"]["0-1"]
    for name, total in counters["mesh"].items():
        each = [op["mesh"][name] for op in counters["ops"] if name in op["mesh"]]
        assert total == {figure: sum(one[figure] for one in each) for figure in ("calls", "hops", "bytes")}


def test_counters_are_told_by_block(waferc, text_plan, ran):
    done = waferc("run", text_plan, "--prompt-ids", PROMPTS, "--tokens", 5, "--counters", "blocks", "--json")
    blocks = {block["block"]: block for block in done.record["counters"]["blocks"]}
    assert sum(block["multiply_adds"] for block in blocks.values()) == ran[0]["counters"]["multiply_adds"]
    assert [blocks[name]["wafer"] for name in ("embedding", "head")] == [0, 1]


def test_a_prompt_in_words(waferc, text_plan):
    record = waferc("run", text_plan, "--prompt", "hold every weight", "--tokens", 2, "--json").record
    assert (
        record["tokens"] == waferc("run", text_plan, "--prompt-ids", "1,2,3", "--tokens", 2, "--json").record["tokens"]
    )
    assert isinstance(record["text"], str)


def test_one_prompt_for_several_users(waferc, text_plan):
    record = waferc("run", text_plan, "--prompt-ids", "1,5", "--users", 3, "--tokens", 2, "--json").record
    assert len(record["tokens"]) == 3
    assert len({tuple(text) for text in record["tokens"]}) == 1


def test_guesses_change_steps_and_no_tokens(waferc, text_plan):
    arguments = ("run", text_plan, "--prompt-ids", "7,8,9,7,8,9,7,8", "--tokens", 8, "--json")
    plain, drafted = waferc(*arguments).record, waferc(*arguments, "--draft", 3).record
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["proposed"] > 0 <= drafted["accepted"] == plain["steps"] - drafted["steps"]
    assert drafted["counters"] == drafted["predicted_counters"] != plain["counters"]


def test_native_precision_stays_within_its_bound(waferc, text_plan):
    done = waferc("run", text_plan, "--prompt-ids", "1,5,9", "--precision", "native", "--compare", "torch", "--json")
    record = done.record
    assert done.code == 0
    assert (record["precision"], record["order"]) == ("native", "mesh")
    assert 1e-4 < record["max_abs_logit_error"] <= record["tolerance"]


@pytest.mark.parametrize("reference", ["auto", "torch", "onnxruntime", "onnx"])
def test_an_onnx_model_is_compared_with_each_reference(waferc, onnx_plan, tmp_path, reference):
    np.savez(tmp_path / "x.npz", x0=np.random.default_rng(1).standard_normal((4, 32), dtype=np.float32))
    done = waferc("run", onnx_plan, "--inputs", tmp_path / "x.npz", "--compare", reference, "--json")
    assert done.code == 0, done.out
    assert done.record["reference"] == {"auto": "onnxruntime"}.get(reference, reference)
    assert done.record["max_abs_error"] <= 1e-4
    assert done.record["outputs"]["x3"]["shape"] == [4, 32]
    assert done.record["counters"]["links"] == {"0-1": 4 * 32 * 4, "1-2": 4 * 32 * 4}


def test_a_bare_compare_names_no_reference():
    assert with_value(["run", "--compare", "--json"], "--compare", "auto") == ["run", "--compare=auto", "--json"]
    assert with_value(["--compare", "torch"], "--compare", "auto") == ["--compare", "torch"]
    assert with_value(["p", "--compare"], "--compare", "auto") == ["p", "--compare=auto"]


def test_the_file_of_tests_passes(text_plan):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(text_plan / "test_plan.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "4 passed" in done.stdout


# --- traces ---------------------------------------------------------------------------------------------------------


def test_a_trace_is_in_chromes_format(ran):
    _, trace = ran
    kinds = defaultdict(list)
    for event in trace["traceEvents"]:
        assert {"ph", "ts", "pid", "tid", "name"} <= event.keys()
        assert event["ts"] >= 0
        kinds[event["ph"]].append(event)
    assert kinds.keys() == {"M", "X", "s", "f"}
    assert {event["args"]["name"] for event in kinds["M"] if event["name"] == "process_name"} == {"wafer 0", "wafer 1"}
    assert {event["id"]: event["pid"] for event in kinds["s"]}.keys() == {event["id"] for event in kinds["f"]}
    ends = {event["id"]: event for event in kinds["f"]}
    assert all(
        start["ts"] <= ends[start["id"]]["ts"] and start["pid"] != ends[start["id"]]["pid"] for start in kinds["s"]
    )
    assert {event["args"]["user"] for event in kinds["X"]} == {0, 1}
    assert "host time" in trace["otherData"]["time_axis"]


def test_events_of_a_trace_nest(ran):
    _, trace = ran
    threads = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    for events in threads.values():
        open_until: list[float] = []
        for event in events:
            begin, end = event["ts"], event["ts"] + event["dur"]
            while open_until and open_until[-1] <= begin + 1e-6:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-6, "an event ends after the one that it lies in"
            assert len(open_until) == (event["cat"] == "operator"), "operators lie in blocks"
            open_until.append(end)


def test_a_trace_has_the_counters(ran):
    record, trace = ran
    operators = [event for event in trace["traceEvents"] if event.get("cat") == "operator"]
    assert sum(event["args"]["multiply_adds"] for event in operators) == record["counters"]["multiply_adds"]
    sent = sum(event["args"]["bytes"] for event in trace["traceEvents"] if event["ph"] == "s")
    assert sent == record["counters"]["transfer_bytes"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--prompt-ids", "1,2;3,120"), "W0604"),
        (("--prompt-ids", "1;-1"), "W0604"),
        (("--prompt-ids", "1;"), "W0104"),
        (("--prompt-ids", "1;2,x"), "W0104"),
        (("--prompt-ids", "1", "--prompt-ids", ",".join(["1"] * 33)), "W0605"),
        (("--prompt-ids", "1,2", "--tokens", "31"), "W0605"),
        (("--prompt-ids", "1;2;3;4"), "W0660"),
        (("--prompt-ids", "1", "--users", "4"), "W0660"),
        (("--prompt-ids", "1;2", "--users", "1"), "W0104"),
        (("--prompt-ids", "1", "--users", "0"), "W0104"),
        (("--prompt-ids", "1", "--tokens", "-3"), "W0103"),
        (("--prompt-ids", "1", "--draft", "-1"), "W0103"),
        (("--prompt-ids", "1", "--prompt", "hold"), "W0104"),
        (("--prompt", ""), "W0604"),
        (("--prompt", "\udcff"), "W0604"),
        (("--prompt-ids", "1", "--users", 10**12), "W0660"),
        (("--prompt-ids", "1", "--precision", "int4"), "W0104"),
        (("--prompt-ids", "1", "--order", "random"), "W0104"),
        (("--prompt-ids", "1", "--host-memory", "0"), "W0103"),
        (("--prompt-ids", "1", "--counters", "all"), "W0104"),
        (("--prompt-ids", "1", "--compare", "tensorflow"), "W0661"),
        (("--prompt-ids", "1", "--compare", "onnxruntime"), "W0661"),
    ],
)
def test_what_does_not_fit_the_plan_is_refused(waferc, text_plan, arguments, code, monkeypatch):
    import partitioner.running.setup as setup

    def opened(*_, **__):
        raise AssertionError("weights were opened before the request was examined")

    monkeypatch.setattr(setup, "open_weights", opened)
    done = waferc(
        "run", text_plan, *(f"{a}={b}" for a, b in zip(arguments[::2], arguments[1::2], strict=True)), "--json"
    )
    assert (done.code, done.codes) == (2, [code]), done.out


def test_a_trace_that_cannot_be_written_is_refused_before_the_plan_is_opened(waferc, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    for path in (tmp_path / "no" / "t.json", tmp_path, tmp_path / "manifest.json"):
        done = waferc("run", tmp_path / "no plan", "--prompt-ids", "1", "--trace", path, "--json")
        assert (done.code, done.codes) == (2, ["W0105"])
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_options_of_prompts_are_not_for_inputs(waferc, onnx_plan):
    for option in (("--users", 2), ("--draft", 1), ("--resume",), ("--state", "s.json")):
        assert waferc("run", onnx_plan, "--inputs", "x.npz", *option, "--json").codes == ["W0104"]


def test_a_plan_without_tokenizer_takes_no_words(waferc, onnx_plan):
    done = waferc("run", onnx_plan, "--prompt", "hold", "--json")
    assert (done.code, done.codes) == (2, ["W0664"])


def _bomb(path: Path) -> None:
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000,), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x0.npy", header)
        archive.filelist[0].file_size = 8 << 30


def _encrypted(path: Path) -> None:
    np.savez(path, x0=np.zeros((4, 32), np.float32))
    data = bytearray(path.read_bytes())
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def _unparsable(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x0.npy", b"\x93NUMPY\x01\x00v\x00" + b"{'descr': ((".ljust(117) + b"\n")


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"x0": np.zeros((4, 31), np.float32)}, "W0609"),
        ({"x0": np.zeros((4, 32), np.float64)}, "W0609"),
        ({"x0": np.zeros((4, 32), np.int64)}, "W0609"),
        ({"y": np.zeros((4, 32), np.float32)}, "W0609"),
        ({"x0": np.zeros((4, 32), np.float32), "y": np.zeros(1)}, "W0609"),
        ({}, "W0609"),
        ({"x0": np.array([{}], object)}, "W0614"),
        ({"x0": np.array(["text"])}, "W0614"),
        (b"", "W0614"),
        (b"no archive" * 99, "W0614"),
        (_bomb, "W0614"),
        (_encrypted, "W0614"),
        (_unparsable, "W0614"),
    ],
)
def test_wrong_inputs_are_refused(waferc, onnx_plan, tmp_path, arrays, code):
    path = tmp_path / "x.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        arrays(path)
    done = waferc("run", onnx_plan, "--inputs", path, "--json")
    assert (done.code, done.codes) == (2, [code]), done.out


@pytest.mark.parametrize(
    ("ids", "code"),
    [([[1, 120]], "W0604"), ([[-1]], "W0604"), ([[1] * 33], "W0605"), ([[1]] * 4, "W0660"), ([[]], "W0609")],
)
@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_step_that_does_not_fit_the_plan_is_refused(waferc, text_plan, tmp_path, ids, code, command, monkeypatch):
    import partitioner.running.setup as setup

    monkeypatch.setattr(setup, "open_weights", None)
    given = np.array(ids, np.int64)
    np.savez(tmp_path / "x.npz", input_ids=given, position_ids=np.zeros_like(given) + np.arange(given.shape[1]))
    done = waferc(command, text_plan, "--inputs", tmp_path / "x.npz", "--json")
    assert (done.code, done.codes) == (2, [code]), done.out


def test_words_are_not_for_models_of_numbers(waferc, onnx_plan):
    done = waferc("run", onnx_plan, "--prompt-ids", "1", "--json")
    assert (done.code, done.codes) == (2, ["W0613"])
