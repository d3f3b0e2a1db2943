"""What changed between two plans: moves, bytes of each wafer, figures; against plain comparisons of the manifests."""

import json
from dataclasses import replace

import pytest

from ir.machine import OddLink, OddWafer
from partitioner.cli.difference_table import folded
from partitioner.difference import Move, difference

BLOCKS_OF_A_LAYER = 4


@pytest.fixture(scope="module")
def narrower(lowered_small_kimi, shared, once):
    """The folder of ``small-kimi`` on three wafers of ``mini``, for two users. Nobody may change it."""
    from partitioner.api import Request, compile_lowered

    folder = shared / "small-kimi-on-three"

    def write() -> bool:
        compile_lowered(lowered_small_kimi, Request(target="mini", systems=3, users=2, context=256)).save(folder)
        return True

    once("small-kimi-on-three", write)
    return folder


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_moves_are_those_of_the_manifests(waferc, stored_plan, narrower):
    done = waferc("diff", stored_plan, narrower, "--json")
    old, new = manifest(stored_plan), manifest(narrower)
    was = {block["name"]: block["wafer"] for block in old["blocks"]}
    moved = [
        {
            "block": block["name"],
            "weight_bytes": block["weight_bytes"],
            "from": was[block["name"]],
            "to": block["wafer"],
        }
        for block in new["blocks"]
        if block["wafer"] != was[block["name"]]
    ]
    assert done.code == 0
    assert moved
    assert done.record["moved"] == moved
    assert done.record["moved_bytes"] == sum(move["weight_bytes"] for move in moved)
    assert done.record["same"] is False
    assert done.record["wafers_dropped"] == [3]
    assert done.record["wafers_added"] == []
    kept = {"weight_bytes", "cache_bytes", "activation_bytes"}
    for change in done.record["wafers"]:
        for side, plan in (("bytes_before", old), ("bytes_after", new)):
            held = [sum(b[name] for name in kept) for b in plan["blocks"] if b["wafer"] == change["wafer"]]
            assert change[side] == (sum(held) if held else None)
    figures = {change["figure"]: (change["before"], change["after"]) for change in done.record["changes"]}
    assert figures["machine.systems"] == (4, 3)
    assert figures["workload.users"] == (1, 2)
    assert "machine.columns" not in figures


def test_the_other_way_round_is_the_reverse(waferc, stored_plan, narrower):
    there = waferc("diff", stored_plan, narrower, "--json").record
    back = waferc("diff", narrower, stored_plan, "--json").record
    routes = {(move["block"], move["from"], move["to"]) for move in there["moved"]}
    assert routes == {(move["block"], move["to"], move["from"]) for move in back["moved"]}
    assert there["wafers_dropped"] == back["wafers_added"]
    assert there["transfers_added"] == back["transfers_removed"]
    assert [c["before"] for c in there["changes"]] == [c["after"] for c in back["changes"]]


def test_a_plan_and_itself_say_the_same(waferc, stored_plan):
    done = waferc("diff", stored_plan, stored_plan)
    assert done.code == 0
    assert done.out == "the plans say the same\n"
    record = waferc("diff", stored_plan, stored_plan, "--json").record
    assert record["same"] is True
    assert record["kept"] == len(manifest(stored_plan)["blocks"])
    assert not any(record[name] for name in ("changes", "moved", "added", "removed", "reshaped", "resized", "wafers"))


def test_people_read_folded_moves(waferc, stored_plan, narrower):
    done = waferc("diff", stored_plan, narrower)
    assert done.code == 0
    assert "layers.1.router to layers.1.experts" in done.out
    assert "dropped" in done.out
    assert "machine.systems" in done.out


def test_whole_layers_are_folded_into_runs():
    def layer(number, source, target, parts=BLOCKS_OF_A_LAYER):
        return [Move(f"layers.{number}.{part}", number, 10, source, target) for part in range(parts)]

    moves = [Move("embedding", None, 1, 3, 4), *layer(0, 3, 4), *layer(1, 3, 4), *layer(2, 3, 4, 2), *layer(9, 4, 5)]
    names = [name for name, _ in folded(moves, dict.fromkeys(range(10), BLOCKS_OF_A_LAYER))]
    assert names == ["embedding, layers 0-1, layers.2.0, layers.2.1", "layer 9"]


def test_gaps_between_layers_are_told():
    moves = [Move(f"layers.{number}", number, 10, 3, 4) for number in (1, 2, 5, 6)]
    assert [name for name, _ in folded(moves, dict.fromkeys(range(9), 1))] == ["layers 1-2, layers 5-6"]


def test_added_removed_resized_and_reshaped_blocks(compiled_small_kimi):
    plan = compiled_small_kimi.plan
    first, second, third, *rest = plan.blocks
    wider = replace(second, region=replace(second.region, columns=second.region.columns + 1))
    heavier = replace(third, weight_bytes=third.weight_bytes + 1)
    found = difference(plan, replace(plan, blocks=(replace(first, name="new"), wider, heavier, *rest)))
    assert [block.name for block in found.added] == ["new"]
    assert [block.name for block in found.removed] == [first.name]
    assert found.reshaped == (second.name,)
    assert found.resized == (third.name,)
    assert found.moves == ()
    assert not found.is_empty
    assert found.kept == len(rest)


def test_odd_wafers_and_links_are_told_by_number(compiled_small_kimi):
    plan = compiled_small_kimi.plan
    odd = replace(plan.machine, odd_wafers=(OddWafer(1, 0, 0),), odd_links=(OddLink(0, 1, 2), OddLink(0, 2, 3)))
    changes = {change.name: change.after for change in difference(plan, replace(plan, machine=odd)).changes}
    assert changes["machine.odd_wafers.1"] == "out of service"
    assert changes["machine.odd_links.0-2"] == "3 times"


def test_speed_is_forecast_on_demand(waferc, stored_plan, narrower):
    record = waferc("diff", stored_plan, narrower, "--speed", "--json").record
    for side, folder in (("before", stored_plan), ("after", narrower)):
        alone = waferc("estimate", folder, "--users", 1, "--context", 256, "--json").record
        assert record["tokens_per_s_per_user"][side]["value"] == alone["tokens_per_s_per_user"]
    assert "tokens_per_s_per_user" not in waferc("diff", stored_plan, narrower, "--json").record


def test_what_is_no_plan_is_refused(waferc, stored_plan, plan_folder, tmp_path):
    assert waferc("diff", stored_plan, tmp_path / "none", "--json").codes == ["W0106"]
    (plan_folder / "model.ir").write_text("graph nothing")
    damaged = waferc("diff", plan_folder, stored_plan, "--json")
    assert damaged.code == 6
    assert "W0511" in damaged.codes


def test_plans_for_devices_are_refused(waferc, stored_plan, monkeypatch):
    import partitioner.cli.diff as command

    monkeypatch.setattr(command, "is_device_plan", lambda folder: True)
    done = waferc("diff", stored_plan, stored_plan, "--json")
    assert (done.code, done.codes) == (2, ["W0113"])
