"""Machine files: every figure has a source, ranges hold, contradictions are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ir.diagnostics import UsageError
from ir.target import DeviceCluster, LayerRegions, Trust, Wafers
from targets.machines import at, catalog, load_target, load_wafers, summary
from targets.schema import DEVICES, WAFERS, Need

FOR_TESTS = {"mini"}
"""Machines that exist nowhere, whose figures nobody could source."""


def codes(error: pytest.ExceptionInfo[UsageError]) -> set[str]:
    return {fault.code for fault in error.value.diagnostics}


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_the_catalogue_has_the_machines_that_people_compare():
    assert {"cs3", "cs2", "gb200_nvl72", "h100", "groq_lpu_v1", "mini"} <= set(catalog())


@pytest.mark.parametrize("name", sorted(set(catalog()) - FOR_TESTS))
def test_every_figure_names_its_source_and_how_far_to_trust_it(name):
    for figure, found in load_target(name).figures.items():
        assert found.source != "the machine file", figure
        assert len(found.source) > 5, figure
        if found.trust is Trust.ASSUMED:
            assert not found.certain, f"{figure} is assumed, so it needs a range"
        assert found.low <= found.value <= found.high


def test_unknown_figures_are_parameters_with_a_range():
    uncertain = {name for name, figure in load_target("cs3").figures.items() if not figure.certain}
    assert {"cluster.system_latency_s", "tile.clock_hz", "tile.unpack_cycles", "tile.reserve_bytes"} <= uncertain


@pytest.mark.parametrize("name", catalog())
def test_summaries_are_one_line(name):
    assert "\n" not in summary(load_target(name))


def test_kinds_make_their_clusters():
    assert isinstance(load_target("cs3").cluster, Wafers)
    assert isinstance(load_target("h100").cluster, DeviceCluster)
    assert load_target("h100").cluster.devices == 8
    assert load_wafers("cs3", systems=7).machine.systems == 7
    with pytest.raises(UsageError) as error:
        load_wafers("h100")
    assert codes(error) == {"W0113"}


def test_a_file_may_state_only_what_differs(tmp_path):
    text = 'extends = "cs2"\nname = "small"\ndescription = "part of a WSE-2"\n[mesh]\ncolumns = 420\nrows = 420\n'
    found, whole = load_target(written(tmp_path, text)), load_target("cs2")
    assert found.cluster.machine.tiles == 420 * 420
    assert found.cluster.speed == whole.cluster.speed
    assert found.cluster.speed.layers is LayerRegions.WHOLE_MESH
    assert "stated.sram_bytes" in whole.figures
    assert "stated.sram_bytes" not in found.figures


def test_a_file_without_speeds_can_be_placed_on(tmp_path):
    text = (
        'name = "bare"\ndescription = "no speeds"\n[mesh]\ncolumns = 8\nrows = 4\n'
        "[tile]\nsram_bytes = 4096\nreserve_bytes = 512\n[cluster]\nsystems = 2\n"
    )
    found = load_target(written(tmp_path, text))
    assert found.cluster.speed is None
    assert found.cluster.machine.wafer_bytes == 32 * 3584
    with pytest.raises(UsageError) as error:  # speeds are stated all, or not at all
        load_target(written(tmp_path, text.replace("reserve_bytes = 512", "reserve_bytes = 512\nclock_hz = 1e9")))
    assert codes(error) == {"W0111"}


def test_other_values_leave_the_ranges():
    target = load_target("cs3")
    moved = at(target, {"tile.clock_hz": 1.1e9})
    assert moved.cluster.speed.clock_hz == 1.1e9
    assert moved.figures["tile.clock_hz"].low == target.figures["tile.clock_hz"].low
    with pytest.raises(UsageError):
        at(target, {"tile.clock_hz": 5e9})


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("cs3", "columns = { value = 750", "columns = { value = 0"),
        ("cs3", "columns = { value = 750", "columns = { value = 750.5"),
        ("cs3", "columns = { value = 750", "columns = { value = 7500"),  # more memory than the wafer has
        ("cs3", "low = 0.85e9", "low = 0.99e9"),
        ("cs3", "clock_hz = { value = 0.97e9", "clock_hz = { value = nan"),
        ("cs3", "clock_hz = { value = 0.97e9", 'clock_hz = { value = "fast"'),
        ("cs3", 'trust = "fitted"', 'trust = "sure"'),
        ("cs3", "hop_cycles = ", "hops = "),
        ("cs3", "hop_cycles = { value = 1", "hop_cycles = { value = -1"),
        ("cs3", 'kind = "wafers"', 'kind = "boxes"'),
        ("cs3", 'layers = "own_tiles"', 'layers = "anywhere"'),
        ("cs3", "sram_bytes = { value = 48128", "sram_bytes = { value = 6144"),
        ("cs3", "peak_macs_per_cycle = { value = 8", "peak_macs_per_cycle = { value = 800"),
        ("h100", "reserve_bytes = { value = 8_000_000_000", "reserve_bytes = { value = 80_000_000_000"),
        ("h100", "memory_efficiency = { value = 0.85", "memory_efficiency = { value = 1.85"),
        ("h100", "[node]\ndevices", "[node]\ndevice"),
        ("h100", 'name = "h100"', 'name = "h100"\nextends = "no such"'),
    ],
)
def test_missing_absurd_and_contradictory_figures_are_refused(tmp_path, name, old, new):
    text = Path("targets/catalog", f"{name}.toml").read_text("utf-8")
    assert old in text
    with pytest.raises(UsageError) as error:
        load_target(written(tmp_path, text.replace(old, new)))
    assert codes(error) == {"W0111"}


@pytest.mark.parametrize("name", ["cs3", "h100"])
def test_no_figure_may_be_missing(tmp_path, name):
    text = Path("targets/catalog", f"{name}.toml").read_text("utf-8")
    rules = WAFERS if name == "cs3" else DEVICES
    for figure, rule in rules.items():
        if rule.need is Need.NEVER:
            continue
        without = re.sub(rf"(?m)^{figure.partition('.')[2]} = .*\n", "", text)
        assert without != text, figure
        with pytest.raises(UsageError) as error:
            load_target(written(tmp_path, without))
        assert codes(error) == {"W0111"}


def test_every_figure_is_documented():
    text = Path("docs/machines.md").read_text("utf-8")
    for figure in {**WAFERS, **DEVICES}:
        assert f"`{figure}`" in text, figure
