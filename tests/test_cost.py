"""Cycles of collectives, kernels and blocks: against the papers' formulas, published measurements, and counting."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.validate import FITTED, Compared, fit, kernel_us, kernels, load_profiles, published, validate
from ir.model import BlockKind
from ir.profile import Attention, BlockProfile, Product, Reduction
from ir.target import LayerRegions, Wafers
from targets.cost.collectives import (
    Fabric,
    all_reduce_cycles,
    broadcast_cycles,
    chain_reduce_cycles,
    reduce_cycles,
    star_reduce_cycles,
    tree_reduce_cycles,
    two_phase_reduce_cycles,
)
from targets.cost.cycles import Region, local_inputs, shifted_cycles, stationary_cycles, vector_cycles
from targets.cost.wafer import Room, Stage, allocate, block_cycles, square
from targets.machines import load_target

FABRIC = Fabric(hop_cycles=1, ramp_cycles=2)
CS3 = load_target("cs3").cluster
assert isinstance(CS3, Wafers) and CS3.speed is not None
SPEED = CS3.speed


# --- collectives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tiles", "wavelets"), [(2, 1), (16, 4), (512, 1), (512, 256), (757, 4096)])
def test_the_chain_is_the_papers(tiles, wavelets):
    assert chain_reduce_cycles(tiles, wavelets, FABRIC) == wavelets + (2 * 2 + 2) * (tiles - 1)


@pytest.mark.parametrize("tiles", [4, 16, 64, 512])
def test_which_reduction_is_best_for_which_length(tiles):
    """Luczynski et al.: a star for one wavelet, a chain where B is much larger than T_R P, two phases in between."""
    long = 100 * 2 * tiles
    assert reduce_cycles(tiles, long, FABRIC) == chain_reduce_cycles(tiles, long, FABRIC)
    if tiles <= 16:
        assert star_reduce_cycles(tiles, 1, FABRIC) < chain_reduce_cycles(tiles, 1, FABRIC)
        assert reduce_cycles(tiles, 1, FABRIC) <= star_reduce_cycles(tiles, 1, FABRIC)
    if tiles >= 64:
        middle = 4 * math.sqrt(tiles)
        assert two_phase_reduce_cycles(tiles, middle, FABRIC) < chain_reduce_cycles(tiles, middle, FABRIC)
        assert two_phase_reduce_cycles(tiles, middle, FABRIC) < star_reduce_cycles(tiles, middle, FABRIC)


def test_reductions_by_hand():
    # Star of 4 with 3 wavelets: the root takes 9 in, then 2 T_R + 1.
    assert star_reduce_cycles(4, 3, FABRIC) == 9 + 5
    # Tree of 8 with one: 3 levels of 5 cycles, 7 hops, and 8 * 3 / 14 wavelets a link.
    assert tree_reduce_cycles(8, 1, FABRIC) == pytest.approx(8 * 3 / 14 + 7 + 15)
    # Two phases of 16: groups of 4, 3 + 3 stages, 15 hops, each wavelet twice.
    assert two_phase_reduce_cycles(16, 2, FABRIC) == 4 + 15 + 5 * 6
    assert broadcast_cycles(8, 3, FABRIC) == 3 + 7 + 4
    # Both halves of 8 in two phases of 2, 2 + 3 + 5 * 2, and back, 1 + 3 + 4.
    assert all_reduce_cycles(8, 1, FABRIC) == 15 + 8


@given(tiles=st.integers(1, 1200), wavelets=st.integers(1, 4096))
@settings(max_examples=200, deadline=None)
def test_no_reduction_beats_the_lower_bound(tiles, wavelets):
    """The far end is P - 1 hops away, and half of all wavelets cross the middle of what is left of them."""
    least = (tiles - 1) if tiles > 1 else 0
    assert reduce_cycles(tiles, wavelets, FABRIC) >= least
    assert all_reduce_cycles(tiles, wavelets, FABRIC) <= all_reduce_cycles(tiles + 2, wavelets, FABRIC)
    assert all_reduce_cycles(tiles, wavelets, FABRIC) <= all_reduce_cycles(tiles, wavelets + 1, FABRIC)


def test_published_gains_over_the_vendors_chain_are_within_reach():
    """Measured on 512 tiles: reductions up to 3.27 times as fast as the vendor's, all-reductions 2.56 times."""
    lengths = [2**power for power in range(13)]
    reduced = [chain_reduce_cycles(512, b, FABRIC) / reduce_cycles(512, b, FABRIC) for b in lengths]
    chained = [chain_reduce_cycles(512, b, FABRIC) + broadcast_cycles(512, b, FABRIC) for b in lengths]
    all_reduced = [chain / all_reduce_cycles(512, b, FABRIC) for chain, b in zip(chained, lengths, strict=True)]
    assert max(reduced) > 3.27 > min(reduced) >= 1
    assert max(all_reduced) > 2.56 > min(all_reduced)


def test_a_product_alone_takes_the_published_time():
    """MeshGEMV of WaferLLM: [1, 16K] x [16K, 16K] in 1.2 us, 32K in 2.03 us."""
    for kernel in kernels():
        assert kernel_us(kernel) == pytest.approx(kernel["us"], rel=0.1)


# --- kernels --------------------------------------------------------------------------------------------------------


def test_a_product_by_hand():
    speed = replace(SPEED, issue_cycles=6, launch_cycles=100, unpack_cycles=0.5)
    found = stationary_cycles(Product(100, 300, 4, group=32), Region(5, 10), 1, 0, speed)
    # Four groups of 32 inputs over 5 rows: 32 on the fullest; 30 outputs a column. Eight multiply-adds a cycle,
    # and four through the ports.
    assert found.arithmetic == pytest.approx(32 * (6 + 30 / 8))
    assert found.memory == pytest.approx(32 * (30 / 4 - 30 / 8))
    assert found.unpacking == 32 * 30 * 0.5
    assert found.launch == 100
    assert found.communication == all_reduce_cycles(5, 15, FABRIC)


def test_what_the_ports_allow():
    arithmetic, memory = vector_cycles(64, replace(SPEED, issue_cycles=0, peak_macs_per_cycle=8))
    assert (arithmetic, memory) == (8, 8)  # 16 bytes read and 8 written a cycle: four multiply-adds
    assert vector_cycles(64, replace(SPEED, issue_cycles=0, peak_macs_per_cycle=1))[1] == 0


@given(inputs=st.integers(1, 5000), over=st.integers(1, 500), active=st.integers(1, 16), group=st.sampled_from([1, 32]))
@settings(max_examples=100, deadline=None)
def test_inputs_on_the_fullest_tile_cover_all(inputs, over, active, group):
    share = local_inputs(Product(inputs, 8, 4, group, experts=64, active=active), over)
    assert share * over >= active * inputs
    assert share <= group * math.ceil(active * math.ceil(inputs / group) / over)


def test_tokens_share_a_launch_and_unpacking():
    product = Product(2048, 2048, 4)
    one, many = (stationary_cycles(product, Region(64, 64), tokens, 0, SPEED) for tokens in (1, 64))
    assert many.arithmetic == 64 * one.arithmetic
    assert (many.launch, many.unpacking) == (one.launch, one.unpacking)
    assert many.total < 64 * one.total


def test_attention_looks_at_its_window_alone():
    near = Attention(8, 2, 64, 64, 512, window=128)
    far = replace(near, window=0)
    region = Region(16, 16)
    assert stationary_cycles(near, region, 1, 128, SPEED) == stationary_cycles(near, region, 1, 10_000, SPEED)
    assert (
        stationary_cycles(far, region, 1, 10_000, SPEED).attention
        > 10 * stationary_cycles(near, region, 1, 10_000, SPEED).attention
    )


def test_a_prompt_by_shifts_counts_every_multiply_add():
    """Each of P steps multiplies tiles of [m, k] x [k, n]; issue apart, that is all multiply-adds over all tiles."""
    speed = replace(SPEED, issue_cycles=0, shift_cycles=0, launch_cycles=0, layers=LayerRegions.WHOLE_MESH)
    product, tokens = Product(512, 1024, 16), 256
    for rows, columns in ((16, 16), (16, 64), (64, 16)):
        found = shifted_cycles(product, Region(rows, columns), tokens, tokens, speed)
        assert found.arithmetic * speed.peak_macs_per_cycle * rows * columns == tokens * product.macs


def test_weights_of_touched_experts_are_widened_once():
    speed = replace(SPEED, unpack_cycles=1.0)
    product = Product(1024, 1024, 4, experts=64, active=4)
    one, many, all_ = (
        stationary_cycles(product, Region(8, 8), tokens, 0, speed).unpacking for tokens in (1, 16, 10_000)
    )
    assert one == 4 * 1024 * 1024 / 64
    assert one < many < 16 * one
    assert all_ == pytest.approx(64 / 4 * one)


def test_a_norm_is_one_reduction():
    found = stationary_cycles(Reduction(4096, 1), Region(100, 80), 1, 0, SPEED)
    assert found.communication == all_reduce_cycles(80, 0.5, FABRIC)
    assert found.arithmetic == 0


# --- blocks and their regions -----------------------------------------------------------------------------------------


def block(name: str, kind: BlockKind, *kernels, experts: int = 0, active: int = 0) -> BlockProfile:
    weight_bytes = sum(k.weights * k.weight_bits // 8 for k in kernels if isinstance(k, Product))
    return BlockProfile(
        name, kind, 0, weight_bytes, experts, active, (), 1024, takes_tokens=True, kernels=kernels, elementwise=1024
    )


MLP = block("mlp", BlockKind.DENSE_MLP, Reduction(4096, 1), Product(4096, 28672, 16), Product(14336, 4096, 16))
SMALL = block("small", BlockKind.DENSE_MLP, Reduction(4096, 1), Product(4096, 1024, 16))
MOE = block(
    "experts",
    BlockKind.EXPERTS,
    Product(7168, 4096, 4, 32, experts=384, active=8),
    Product(2048, 7168, 4, 32, experts=384, active=8),
    experts=384,
    active=8,
)


def rooms(*blocks: BlockProfile) -> list[Room]:
    return [
        Room(i, math.ceil(b.weight_bytes / 40_000), math.ceil(b.weight_bytes / 40_000 / b.experts) if b.experts else 0)
        for i, b in enumerate(blocks)
    ]


def test_regions_fill_the_wafer_and_hold_what_they_must():
    blocks = [MLP, SMALL] * 8
    needs = rooms(*blocks)
    stages = allocate(blocks, needs, CS3, 2048)
    assert all(stage.tiles >= room.tiles for stage, room in zip(stages, needs, strict=True))
    assert 0.8 * CS3.machine.tiles < sum(stage.tiles for stage in stages) <= CS3.machine.tiles


def test_no_exchange_of_tiles_between_two_blocks_is_faster():
    """The sum of two blocks' cycles over every split of the tiles between them, against what the price found."""
    machine = replace(CS3.machine, columns=200, rows=200)
    wafers = replace(CS3, machine=machine)
    blocks = [MLP, SMALL]
    stages = allocate(blocks, [Room(0, 6000), Room(1, 250)], wafers, 2048)

    def cycles(index: int, tiles: int) -> float:
        return block_cycles(blocks[index], Stage(index, 0, *square(tiles, 200, 200)), 1, 2048, SPEED).total

    found = sum(block_cycles(blocks[s.block], s, 1, 2048, SPEED).total for s in stages)
    best = min(cycles(0, tiles) + cycles(1, 38_800 - tiles) for tiles in range(6000, 38_500, 250))
    assert found <= best * 1.02


def test_experts_are_sliced_where_that_is_faster():
    """One expert on about 600 tiles takes several times as long as eight of them sliced over 290,000."""
    both = [allocate([MOE], rooms(MOE), CS3, 2048, experts) for experts in ("apart", "sliced", "auto")]
    apart, sliced, auto = (block_cycles(MOE, stages[0], 1, 2048, SPEED).total for stages in both)
    assert both[0][0].expert_rows > 0
    assert both[1][0].expert_rows == 0
    assert apart > 3 * sliced
    assert auto == min(apart, sliced)


def test_experts_that_cannot_lie_apart_are_a_block_like_any_other():
    """A mixture whose block holds more than stacked weights has no experts to give tiles of their own."""
    whole = replace(MLP, kind=BlockKind.EXPERTS)
    for experts in ("apart", "sliced", "auto"):
        assert allocate([whole], rooms(whole), CS3, 2048, experts) == allocate([MLP], rooms(MLP), CS3, 2048)


def test_many_tokens_load_the_busiest_of_experts_apart():
    stage = allocate([MOE], rooms(MOE), CS3, 2048, "apart")[0]
    one, many = (block_cycles(MOE, stage, tokens, 2048, SPEED) for tokens in (1, 48))
    assert one.arithmetic < many.arithmetic < 48 * one.arithmetic


def test_more_tiles_can_make_decode_slower():
    """As measured: LLaMA3-8B decodes slower on 660 x 660 tiles than on 420 x 420 (WaferLLM)."""
    speed = load_target("cs2").cluster.speed
    small, large = (block_cycles(MLP, Stage(0, 0, side, side), 1, 4096, speed).total for side in (420, 660))
    assert large > small


# --- against what was published ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validation():
    return validate()


def test_fitted_rows_are_within_ten_percent_on_average(validation):
    assert validation.fit_error <= 0.10


def test_rows_that_were_not_fitted_are_within_twenty_percent(validation):
    assert validation.worst_error <= 0.20
    assert sum(each.row.use == "compare" for each in validation.compared) >= 20


def test_tokens_per_step_behind_speculative_rows_are_plausible(validation):
    """One method for all; of several speeds published for one service, the highest is the one with speculation."""
    highest: dict[str, Compared] = {}
    for each in sorted(validation.compared, key=lambda each: each.row.tokens_per_s):
        if each.steps:
            highest[each.row.name] = each
    assert len(highest) == 4
    for each in highest.values():
        assert all(1.5 <= needed <= 4 for _, needed in each.steps), each


def test_every_published_row_is_told(validation):
    assert len(validation.compared) + len(validation.told) == len(list(published()))


def test_the_machine_files_hold_the_fit():
    rows = list(published())
    found = fit(rows, load_profiles(rows))
    for name in ("cs2", "cs3"):
        figures = load_target(name).figures
        for constant in FITTED:
            assert figures[constant].value == pytest.approx(found[constant], rel=0.01)
            assert figures[constant].trust == "fitted"
    fitted = {
        name for machine in ("cs2", "cs3") for name, f in load_target(machine).figures.items() if f.trust == "fitted"
    }
    assert fitted == set(FITTED)
