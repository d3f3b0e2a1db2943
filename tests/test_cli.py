"""The command line: exit codes, diagnostics, what stays on disk, and that the same input gives the same bytes."""

import json
import operator
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import partitioner.folder
from ir.diagnostics import UsageError
from partitioner.manifest import Manifest

ROOT = Path(__file__).parent.parent
SMALL = ("compile", "small-kimi", "--target", "mini", "--context", "256")
FILES = {"manifest.json", "tables.safetensors", "model.ir", "model.json", "diagnostics.jsonl", "report.html"}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
MACHINE = """
name = "own"
description = "A wafer of one's own"
[mesh]
columns = 48
rows = 32
[tile]
sram_bytes = 4096
reserve_bytes = 512
[cluster]
systems = 4
"""


def waferc_in_its_own_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "from partitioner.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def refused(waferc, code: str, *arguments: object, exit_code: int = 2):
    """The command is refused with ``code``: for people on stderr alone, for scripts as one object on stdout."""
    plain, told = waferc(*arguments), waferc(*arguments, "--json")
    assert plain.code == told.code == exit_code, plain.err
    assert plain.out == ""
    assert f"error[{code}]: " in plain.err
    assert told.err == ""
    assert told.record["status"] == "error"
    assert told.record["ok"] is False
    assert told.record["exit_code"] == exit_code
    assert code in told.codes
    for fault in told.record["diagnostics"]:
        assert set(fault) - {"explanation"} == {"code", "message", "where", "facts", "help"}
        assert fault["message"]
    return told.record["diagnostics"]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- usage ----------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_a_suggestion(waferc):
    (fault,) = refused(waferc, "W0101", "compile", "kimi-k2")
    assert "did you mean kimi-k2.6" in fault["help"][0]
    (fault,) = refused(waferc, "W0101", "compile", "/no/such/folder")
    assert "did you mean" not in fault["help"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile", "small-kimi", "--sytems", "4"),
        ("compile",),
        ("compile", "small-kimi", "extra"),
        ("compile", "small-kimi", "--systems"),
        ("compile", "small-kimi", "--systems", "four"),
        ("compile", "small-kimi", "--users", "9" * 5000),
        ("check",),
        ("run",),
        ("place", "small-kimi"),
        ("run", "plan", "--prompt-ids", "1", "--tokens", "many"),
    ],
)
def test_bad_usage_is_refused(waferc, arguments):
    refused(waferc, "W0100", *arguments)


@pytest.mark.parametrize("option", ["--users", "--systems", "--context", "--prefill-chunk"])
@pytest.mark.parametrize("value", [0, -1, 10**15])
def test_counts_out_of_range_are_refused(waferc, option, value):
    (fault,) = refused(waferc, "W0103", "compile", "small-kimi", "--target", "mini", option, value)
    assert fault["where"] == option


@pytest.mark.parametrize(("option", "value"), [("--time-limit", "0"), ("--time-limit", "nan"), ("--seed", "-1")])
def test_limits_out_of_range_are_refused(waferc, option, value):
    refused(waferc, "W0103", "compile", "small-kimi", "--target", "mini", option, value)


def test_a_context_beyond_the_models_is_refused(waferc, quick_load):
    (fault,) = refused(waferc, "W0107", *SMALL[:4], "--context", 4097)
    assert fault["facts"] == {"context": 4097, "model_limit": 4096}
    assert waferc(*SMALL[:4], "--context", 4096).code == 0


def test_help_and_lists_are_printed(waferc):
    for arguments in (["--help"], ["compile", "--help"], ["models"], ["targets"], []):
        done = waferc(*arguments)
        assert (done.code, done.err) == (0, "")
        assert done.out
    assert "small-kimi" in waferc("models", "--json").record["models"]
    assert set(waferc("targets", "--json").record["targets"]) >= {"cs2", "cs3", "mini"}


# --- machines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not toml [",
        "a = " + "[" * 100_000,
        "a = " + "9" * 5000,
        'a = "' + "x" * (1 << 21) + '"',
        MACHINE.replace("[mesh]", "mesh = 3\n[other]"),
        MACHINE.replace("columns = 48", ""),
        MACHINE.replace("columns = 48", 'columns = "48"'),
        MACHINE.replace("columns = 48", "columns = 48.5"),
        MACHINE.replace("columns = 48", "columns = true"),
        MACHINE.replace("columns = 48", "columns = 0"),
        MACHINE.replace("columns = 48", "columns = -48"),
        MACHINE.replace("columns = 48", f"columns = {10**30}"),
        MACHINE.replace("rows = 32", "rows = 0"),
        MACHINE.replace("systems = 4", "systems = 10001"),
        MACHINE.replace("sram_bytes = 4096", "sram_bytes = 512"),
        MACHINE.replace("reserve_bytes = 512", "reserve_bytes = -1"),
        MACHINE.replace("name =", "title ="),
        MACHINE.replace('"own"', "3"),
        MACHINE.replace('"own"', '""'),
        MACHINE + "speed = 3",
    ],
)
def test_a_malformed_machine_file_is_refused(waferc, tmp_path, content):
    refused(waferc, "W0111", "compile", "small-kimi", "--target", write(tmp_path / "own.toml", content))


def test_a_machine_that_cannot_be_read_is_refused(waferc, tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for target in ("cs4", tmp_path, tmp_path / "none.toml", tmp_path / "folder.toml"):
        refused(waferc, "W0110", "compile", "small-kimi", "--target", target)
    refused(waferc, "W0110", "compile", "small-kimi", "--target", write(tmp_path / "own.toml", b"\xff\xfe"))


@pytest.mark.parametrize(
    ("option", "value"), [("--systems", 10_001), ("--reserve-bytes", 4096), ("--reserve-bytes", -1)]
)
def test_options_that_make_a_machine_absurd_are_refused(waferc, option, value):
    refused(waferc, "W0111", "compile", "small-kimi", "--target", "mini", option, value)


def test_a_machine_of_ones_own_is_used(waferc, quick_load, tmp_path):
    own = write(tmp_path / "own.toml", MACHINE)
    done = waferc(*SMALL[:2], "--target", own, "--context", 256, "--reserve-bytes", 256, "--json")
    assert done.code == 0
    assert done.record["systems"] == 4
    assert done.record["wafer_bytes"] == 48 * 32 * (4096 - 256)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["no-such-model", None, 3, ["llama"], {}])
def test_an_unknown_model_type_is_refused(waferc, tmp_path, model_type):
    path = write(tmp_path / "config.json", json.dumps({**CONFIG, "model_type": model_type}))
    refused(waferc, "W0204", "compile", path, exit_code=3)
    refused(waferc, "W0204", "compile", tmp_path, exit_code=3)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": -1}, {"hidden_size": "many"}, {"num_attention_heads": 0}, {"dtype": "int8"}, {"dtype": 3}],
)
def test_a_config_that_contradicts_itself_is_refused(waferc, tmp_path, change):
    path = write(tmp_path / "config.json", json.dumps(CONFIG | change))
    refused(waferc, "W0205", "compile", path, exit_code=3)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00\xff\xfe" * 99, id="binary"),
        pytest.param(b'{"model_type": ', id="cut off"),
        pytest.param(b"[1, 2]", id="no object"),
        pytest.param(b"3", id="a number"),
        pytest.param(b'{"a":' * 100_000, id="deep"),
        pytest.param(b'{"hidden_size": ' + b"9" * 5000 + b"}", id="a huge number"),
        pytest.param(b" " * (17 << 20), id="huge"),
    ],
)
def test_a_config_that_is_no_json_is_refused(waferc, tmp_path, content):
    refused(waferc, "W0102", "compile", write(tmp_path / "config.json", content))


def test_a_folder_without_config_is_refused(waferc, tmp_path):
    (fault,) = refused(waferc, "W0102", "compile", tmp_path)
    assert "config.json" in fault["help"][0]


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x00" * 99, os.urandom(999)])
def test_a_file_that_is_not_onnx_is_refused(waferc, tmp_path, content):
    refused(waferc, "W0202", "compile", write(tmp_path / "model.onnx", content))
    refused(waferc, "W0202", "compile", write(tmp_path / "model.bin", content))


def test_code_from_a_checkpoint_is_not_run(waferc, tmp_path):
    write(tmp_path / "m" / "evil.py", "raise SystemExit('run')\nopen('evil', 'w')")
    config = CONFIG | {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "dtype": "bfloat16"}
    write(tmp_path / "m" / "config.json", json.dumps(config))
    done = waferc("compile", tmp_path / "m", "--target", "mini", "-o", tmp_path / "plan")
    assert done.code == 0
    assert "auto_map is ignored" in done.err
    assert "auto_map is ignored" in (tmp_path / "plan" / "diagnostics.jsonl").read_text()
    assert waferc("check", tmp_path / "plan").code == 0


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_too_few_systems_are_refused_with_figures_and_a_lever(waferc, quick_load, tmp_path):
    (fault,) = refused(waferc, "W0411", *SMALL, "--systems", 1, "-o", tmp_path / "plan", exit_code=4)
    facts = fault["facts"]
    assert facts["tiles_short"] == facts["tiles_needed"] - facts["tiles_offered"] > 0
    assert facts["tiles_offered"] == 48 * 32
    assert facts["weight_bytes"] == 6_797_248
    assert facts["proof"].count(";") >= 1
    levers = [lever for text in fault["help"] for lever in re.findall(r"(--[a-z]+) (\d+) would fit", text)]
    assert "--systems" in dict(levers)
    for option, value in levers:
        arguments = dict(zip(SMALL[2::2], SMALL[3::2], strict=True)) | {"--systems": "1", option: value}
        assert waferc(*SMALL[:2], *(part for pair in arguments.items() for part in pair)).code == 0
    assert not (tmp_path / "plan").exists()


def test_too_many_users_are_refused_and_fewer_fit(waferc, quick_load):
    (fault,) = refused(waferc, "W0411", *SMALL, "--systems", 4, "--users", 90, exit_code=4)
    levers = dict(lever for text in fault["help"] for lever in re.findall(r"(--[a-z]+) (\d+) would fit", text))
    users = int(levers["--users"])
    assert 1 <= users < 90
    assert waferc(*SMALL, "--systems", 4, "--users", users).code == 0


def test_a_block_too_large_for_any_wafer_is_named(waferc, quick_load, tmp_path):
    tiny = MACHINE.replace("48", "8").replace("32", "8").replace("systems = 4", "systems = 100")
    own = write(tmp_path / "own.toml", tiny)
    (fault,) = refused(waferc, "W0412", *SMALL[:2], "--target", own, "--context", 256, exit_code=4)
    assert fault["message"].startswith("layers.1.experts ")
    assert fault["facts"]["tiles_of_a_wafer"] == 64
    assert fault["facts"]["tiles_short"] == fault["facts"]["tiles_needed"] - 64
    assert "would fit" not in "".join(fault["help"])


def test_a_cache_too_large_for_any_wafer_is_named(waferc, quick_load):
    (fault,) = refused(waferc, "W0412", *SMALL, "--users", 1 << 20, exit_code=4)
    assert fault["message"].startswith("layers.0.attention.core ")
    assert fault["facts"]["cache_bytes"] > fault["facts"]["weight_bytes"]


# --- output ---------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_refused(waferc, quick_load, tmp_path):
    write(tmp_path / "file", "mine")
    write(tmp_path / "folder" / "mine", "mine")
    write(tmp_path / "half" / "report.html", "mine")
    for output in (tmp_path / "file", tmp_path / "file" / "plan", "/proc/plan", tmp_path / "folder", tmp_path / "half"):
        refused(waferc, "W0105", *SMALL, "-o", output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "half"]
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine"] * 3


def test_an_output_that_holds_something_else_is_refused_before_any_work(waferc, tmp_path):
    write(tmp_path / "mine", "mine")
    refused(waferc, "W0105", "compile", "no-such-model", "-o", tmp_path)


def test_saving_from_python_overwrites_plans_alone(compiled_small_kimi, tmp_path):
    mine = write(tmp_path / "folder" / "mine", "mine")
    with pytest.raises(UsageError) as caught:
        compiled_small_kimi.save(tmp_path / "folder")
    assert caught.value.diagnostics[0].code == "W0105"
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]
    mine.unlink()
    compiled_small_kimi.save(tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == FILES


def test_a_plan_is_written_whole(waferc, quick_load, tmp_path):
    output = tmp_path / "not" / "yet" / "there"
    done = waferc(*SMALL, "-o", output)
    assert done.code == 0
    assert str(output) in done.out
    assert {path.name for path in output.iterdir()} == FILES
    assert [path.name for path in output.parent.iterdir()] == ["there"]


def test_an_older_plan_is_replaced(waferc, quick_load, tmp_path):
    for systems in (4, 3):
        assert waferc(*SMALL, "--systems", systems, "-o", tmp_path / "plan").code == 0
    assert json.loads((tmp_path / "plan" / "manifest.json").read_text())["machine"]["systems"] == 3
    assert waferc("check", tmp_path / "plan").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize("older", [False, True])
def test_a_failure_while_writing_leaves_the_older_plan_or_nothing(waferc, quick_load, tmp_path, monkeypatch, older):
    output = tmp_path / "plan"
    if older:
        assert waferc(*SMALL, "-o", output).code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()} if older else {}
    write_bytes = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(partitioner.folder.Path, "write_bytes", full_disk)
    done = waferc(*SMALL, "--systems", 3, "-o", output)
    assert done.code == 2
    assert "error[W0105]: the output folder cannot be written: No space left on device" in done.err
    assert [path.name for path in tmp_path.iterdir()] == (["plan"] if older else [])
    assert ({path.name: path.read_bytes() for path in output.iterdir()} if older else {}) == before


def test_a_failure_while_exchanging_plans_brings_the_older_one_back(waferc, quick_load, tmp_path, monkeypatch):
    output = tmp_path / "plan"
    assert waferc(*SMALL, "-o", output).code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    rename = Path.rename

    def refuse_the_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(partitioner.folder.Path, "rename", refuse_the_new)
    assert waferc(*SMALL, "--systems", 3, "-o", output).code == 2
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_the_same_input_gives_the_same_bytes(waferc, quick_load, tmp_path):
    for name in ("first", "second"):
        assert waferc(*SMALL, "--systems", 4, "-o", tmp_path / name).code == 0
    done = waferc_in_its_own_process(*SMALL, "--systems", 4, "-o", tmp_path / "third", PYTHONHASHSEED="12345")
    assert done.returncode == 0, done.stderr
    for name in FILES:
        first, *others = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second", "third"))
        assert others == [first, first], name


# --- results --------------------------------------------------------------------------------------------------------


def test_compile_reports_what_it_did(waferc, quick_load, tmp_path):
    done = waferc(*SMALL, "--systems", 4, "--users", 2, "-o", tmp_path / "plan", "--json")
    record = done.record
    assert done.code == 0
    (note,) = done.err.splitlines()
    assert note.startswith("note: left out")
    assert record["status"] == "optimal"
    assert record["objective_value"] == record["best_bound"] == record["largest_wafer_bytes"]
    assert record["gap"] == 0
    assert record["systems"] == 4
    assert 1 <= record["systems_used"] <= 4
    assert record["parameters"] == 1_699_312
    assert record["weight_bytes"] == 4 * 1_699_312
    assert record["kv_bytes"] == 2 * 256 * 4 * (32 + 16) * 4, "users x context x layers x (latent + rope) x float32"
    assert record["largest_wafer_bytes"] < record["wafer_bytes"]
    assert (record["moe_layers"], record["experts_per_layer"], record["split_expert_groups"]) == (3, 16, 0)
    assert 0 < record["solve_s"] <= record["wall_s"]
    assert record["peak_rss_bytes"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert record["output"] == str(tmp_path / "plan")
    manifest = json.loads((tmp_path / "plan" / "manifest.json").read_text())
    assert [score["value"] for score in manifest["solver"]["scores"]] == [score["value"] for score in record["scores"]]
    assert [score["objective"] for score in record["scores"]] == ["balance", "traffic"]
    assert record["scores"][0]["value"] == record["objective_value"]
    assert manifest["model"]["parameters"] == record["parameters"]
    assert manifest["workload"] == {"users": 2, "context": 256, "chunk": 64}


@pytest.mark.parametrize(("way", "sliced"), [("auto", 3), ("sliced", 3), ("apart", 0)])
def test_experts_lie_as_asked_for(waferc, quick_load, tmp_path, way, sliced):
    folder = tmp_path / "plan"
    done = waferc(*SMALL, "--experts", way, "-o", folder, "--json")
    assert done.record["sliced_expert_groups"] == sliced
    assert waferc("check", folder).code == 0
    same = waferc("run", folder, "--prompt-ids", "1,5,9", "--tokens", 3, "--compare", "--json")
    assert same.code == 0


def test_experts_lie_in_no_other_way(waferc, quick_load):
    done = waferc(*SMALL, "--experts", "diced", "--json")
    assert (done.code, done.codes) == (2, ["W0104"])


def test_compile_prints_a_table(waferc, quick_load):
    done = waferc(*SMALL)
    assert done.code == 0
    for text in (
        "small-kimi on 4 x",
        "embedding, 0-1",
        "optimal",
        "gap 0.00%, proven by exact parametric search",
        "3 x 16 experts",
        "sliced over its region",
    ):
        assert text in done.out


@pytest.mark.parametrize("objectives", ["trafic", "balance,balance", "", "moves", "balance,"])
def test_objectives_that_make_no_sense_are_told(waferc, quick_load, objectives):
    done = waferc(*SMALL, "--objective", objectives, "--json")
    assert (done.code, {*done.codes}) == (2, {"W0104"})


def test_objectives_are_kept_in_order(waferc, quick_load):
    scores = waferc(*SMALL, "--objective", "machines,room", "--json").record["scores"]
    assert [score["objective"] for score in scores] == ["machines", "room"]
    assert [score["unit"] for score in scores] == ["wafers", "users"]
    assert all(score["proof"] and score["gap"] == 0 for score in scores)


def test_compile_without_output_writes_nothing(waferc, quick_load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert waferc(*SMALL, "--json").record["output"] is None
    assert list(tmp_path.iterdir()) == []


def test_view_shows_each_wafer(waferc, stored_plan):
    done = waferc("view", stored_plan, "--json")
    manifest = json.loads((stored_plan / "manifest.json").read_text())
    assert done.code == 0
    assert done.record["page"] == str(stored_plan / "report.html")
    assert [wafer["wafer"] for wafer in done.record["wafers"]] == [0, 1, 2, 3]
    assert sum(wafer["weight_bytes"] for wafer in done.record["wafers"]) == manifest["model"]["weight_bytes"]
    shown = {name: wafer["wafer"] for wafer in done.record["wafers"] for name in wafer["blocks"]}
    assert shown == {block["name"]: block["wafer"] for block in manifest["blocks"]}
    assert str(stored_plan / "report.html") in waferc("view", stored_plan).out


# --- run ------------------------------------------------------------------------------------------------------------


def test_a_run_gives_the_tokens_of_the_original(waferc, stored_plan):
    done = waferc("run", stored_plan, "--prompt-ids", "1,5,9,2", "--tokens", 32, "--compare", "--json")
    assert done.code == 0, done.out + done.err
    record = done.record
    assert len(record["tokens"]) == 32
    assert len(set(record["tokens"])) > 8, "a run that repeats itself compares little"
    assert record["tokens"] == record["reference_tokens"]
    assert 0 < record["max_abs_logit_error"] <= 1e-4
    assert record["ok"] is True
    assert record["counters"]["transfer_bytes"] > 0
    assert record["counters"]["mesh_bytes"] > 0


def test_seeds_decide_the_weights_of_a_run(waferc, stored_plan):
    runs = [waferc("run", stored_plan, "--prompt-ids", "1", "--tokens", 4, "--seed", s, "--json") for s in (0, 0, 1)]
    tokens = [done.record["tokens"] for done in runs]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "W0104"),
        ("a,b", "W0104"),
        ("1,,2", "W0104"),
        ("1.5", "W0104"),
        ("9" * 5000, "W0104"),
        ("512", "W0604"),
        ("3,-1", "W0604"),
        (",".join(["1"] * 257), "W0605"),
        (",".join(["1"] * 250), "W0605"),
    ],
)
def test_a_bad_prompt_is_refused(waferc, stored_plan, prompt, code):
    refused(waferc, code, "run", stored_plan, f"--prompt-ids={prompt}", "--tokens", 10)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--prompt-ids", "1", "--tokens", 0), "W0103"),
        (("--prompt-ids", "1", "--seed", -1), "W0103"),
        (("--prompt-ids", "1", "--seed", 1 << 70), "W0103"),
        ((), "W0104"),
        (("--prompt-ids", "1", "--inputs", "x.npz"), "W0104"),
        (("--inputs", "no-such-file.npz"), "W0614"),
    ],
)
def test_a_bad_run_is_refused(waferc, stored_plan, arguments, code):
    refused(waferc, code, "run", stored_plan, *arguments)


def test_a_run_of_no_plan_is_refused(waferc, tmp_path):
    refused(waferc, "W0106", "run", tmp_path, "--prompt-ids", "1")


def test_a_run_of_an_unsound_plan_is_refused(waferc, plan_folder):
    manifest = json.loads((plan_folder / "manifest.json").read_text())
    manifest["blocks"][3]["region"]["columns"] = 2
    (plan_folder / "manifest.json").write_text(json.dumps(manifest))
    refused(waferc, "W0505", "run", plan_folder, "--prompt-ids", "1", exit_code=6)


# --- schema ---------------------------------------------------------------------------------------------------------

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
KNOWN = {"$ref", "$defs", "title", "description", "type", "properties", "required", "items", "default"}
BOUNDS = {"minimum": operator.ge, "exclusiveMinimum": operator.gt, "exclusiveMaximum": operator.lt}
KNOWN |= {"additionalProperties", *BOUNDS}


def satisfies(value, schema, definitions) -> bool:
    """Whether a JSON value satisfies the part of JSON Schema that ours uses."""
    assert set(schema) <= KNOWN | {"anyOf", "enum"}, schema
    if "$ref" in schema:
        return satisfies(value, definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in schema:
        return any(satisfies(value, option, definitions) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if not all(holds(value, schema[name]) for name, holds in BOUNDS.items() if name in schema):
        return False
    if isinstance(value, list):
        return all(satisfies(item, schema["items"], definitions) for item in value)
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        extra = value.keys() - properties.keys()
        return (
            set(schema.get("required", ())) <= value.keys()
            and all(
                satisfies(item, properties[name], definitions) for name, item in value.items() if name in properties
            )
            and (not extra if isinstance(others, bool) and not others else True)
            and (not isinstance(others, dict) or all(satisfies(value[name], others, definitions) for name in extra))
        )
    return True


def test_manifests_satisfy_the_schema(waferc, stored_plan):
    schema = waferc("schema").record
    data = (stored_plan / "manifest.json").read_bytes()
    manifest = json.loads(data)
    assert satisfies(manifest, schema, schema["$defs"])
    assert msgspec.json.decode(data, type=Manifest).schema_version == 2
    for wrong in ({**manifest, "blocks": 3}, {**manifest, "more": 3}, {**manifest, "workload": {"users": 1}}):
        assert not satisfies(wrong, schema, schema["$defs"])
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Manifest)


def test_manifests_are_stable_under_diff(stored_plan):
    text = (stored_plan / "manifest.json").read_text()
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert str(ROOT) not in text


# --- a process of its own -------------------------------------------------------------------------------------------


def test_a_process_ends_with_the_commands_exit_code(stored_plan, tmp_path):
    done = waferc_in_its_own_process("check", stored_plan)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sound: ")
    done = waferc_in_its_own_process("check", tmp_path, "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["diagnostics"][0]["code"] == "W0106"


def test_a_closed_pipe_is_no_fault():
    program = "from partitioner.cli import main; main()"
    command = f"{sys.executable} -c '{program}' schema | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_ends_with_130(waferc, monkeypatch):
    import partitioner.api as command

    def interrupted(model: str, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load", interrupted)
    assert waferc("compile", "small-kimi", "--target", "mini").code == 130
