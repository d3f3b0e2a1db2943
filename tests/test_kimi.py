"""The model that the compiler is for: Kimi K2.6 on twenty CS-3, with published figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMAND = ("compile", "kimi-k2.6", "--target", "cs3", "--systems", 20, "--users", 8, "--context", 65536)
MIXTURE = ("router", "shared_expert", "experts")


def waferc(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "from partitioner.cli import main; main()"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "kimi-plan"


@pytest.fixture(scope="module")
def record(folder, once):
    def compile_kimi():
        done = waferc(*COMMAND, "-o", folder, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return once("kimi", compile_kimi)


@pytest.fixture(scope="module")
def manifest(folder, record):
    return json.loads((folder / "manifest.json").read_text())


def test_every_parameter_is_accounted_for(record):
    assert round(record["parameters"] / 1e9, 1) == 1026.4
    assert round(record["weight_bytes"] / 1e9, 1) == 594.2
    assert record["copied_bytes"] == 0


def test_every_expert_is_placed_with_its_layer(record, manifest):
    assert record["layers"] == 61
    assert record["moe_layers"] == 60
    assert record["experts_per_layer"] == 384
    assert record["split_expert_groups"] == 0
    assert record["sliced_expert_groups"] == 60, "one expert on a share of the tiles would be much slower"
    groups = [block for block in manifest["blocks"] if block["kind"] == "experts"]
    assert [block["layer"] for block in groups] == list(range(1, 61))
    assert {(block["experts"], block["active_experts"]) for block in groups} == {(384, 8)}


def test_the_placement_is_proven_optimal(record, manifest):
    assert record["status"] == "optimal"
    assert record["objective_value"] == record["best_bound"] == record["largest_wafer_bytes"]
    assert record["gap"] == 0
    assert record["proof"]
    assert record["largest_wafer_bytes"] <= record["wafer_bytes"]
    assert manifest["solver"]["scores"][0]["proof"] == record["proof"]


def test_each_wafer_holds_three_mixtures(record, manifest):
    wafers = [block["wafer"] for block in manifest["blocks"] if block["kind"] == "experts"]
    assert record["systems_used"] == 20
    assert {wafer: wafers.count(wafer) for wafer in wafers} == dict.fromkeys(range(20), 3)


def test_a_layer_has_the_bytes_of_the_checkpoint(manifest):
    layers = {}
    for block in manifest["blocks"]:
        if block["kind"] in (*MIXTURE, "attention") and block["layer"]:
            layers[block["layer"]] = layers.get(block["layer"], 0) + block["weight_bytes"]
    assert len(layers) == 60
    assert {round(size / 1e9, 3) for size in layers.values()} == {9.809}


def test_a_cached_token_takes_576_numbers_of_two_bytes_in_each_layer(record, manifest):
    assert record["kv_bytes"] == 8 * 65536 * 1152 * 61
    assert manifest["model"]["cache_bytes_per_token"] == 1152 * 61
    caches = {block["cache_bytes"] for block in manifest["blocks"] if block["kind"] == "attention"}
    assert caches == {8 * 65536 * 1152}


def test_a_trillion_parameters_are_placed_in_little_memory(record):
    assert record["peak_rss_bytes"] < 2 << 30


def test_the_plan_passes_the_check(folder, record):
    done = waferc("check", folder, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout) == {"ok": True, "diagnostics": [], "blocks": record["blocks"], "experts": 60 * 384}


def test_no_region_shares_a_tile_with_another(manifest, record):
    """Counted on each wafer by itself: the tiles of all regions are the tiles that at least one of them covers."""
    import numpy as np

    for wafer in range(20):
        covered = np.zeros((manifest["machine"]["rows"], manifest["machine"]["columns"]), dtype=bool)
        total = 0
        for r in (block["region"] for block in manifest["blocks"] if block["wafer"] == wafer):
            covered[r["row"] : r["row"] + r["rows"], r["column"] : r["column"] + r["columns"]] = True
            total += r["rows"] * r["columns"]
        assert covered.sum() == total
