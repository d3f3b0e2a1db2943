"""Clusters of devices: costs against figures worked out by hand, what must never get worse, and what does not fit."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.device_plan import Degrees
from ir.diagnostics import InfeasibleError, UsageError
from ir.model import BlockKind
from ir.profile import Attention, BlockProfile, CacheProfile, FlowProfile, Product, Profile, Reduction
from ir.target import DeviceCluster
from ir.workload import Workload
from targets.batched import serve_batched
from targets.cost.device_links import all_gather_s, all_reduce_s, all_to_all_s, send_s
from targets.cost.device_split import copied_bytes, split_block
from targets.cost.devices import Batch, block_seconds, busiest_group, device_pass, make_stages, outline
from targets.cost.routing import touched_share
from targets.machines import load_target
from targets.parallel import candidates, choose_parallel, decode_step, fewest_nodes, most_users, place_with
from targets.speculation import Speculation, acceptance_for, draft_profile, eagle3_profile, expected_tokens

WIDTH, INNER, VOCABULARY, HEADS = 1024, 4096, 32768, 16

CLUSTER = DeviceCluster(
    name="round",
    description="a machine of round figures",
    devices=8,
    nodes=2,
    memory_bytes=10**9,
    reserve_bytes=0,
    memory_bytes_per_s=1e12,
    memory_efficiency=1.0,
    flops_16=1e14,
    flops_8=2e14,
    flops_4=0,
    compute_efficiency=1.0,
    kernel_s=1e-6,
    link_bytes_per_s=1e11,
    link_latency_s=5e-6,
    network_bytes_per_s=1e10,
    network_latency_s=2e-5,
    sampling_s=1e-4,
    power_w=1000,
)


def block(name, kind, layer, kernels, weight_bytes=None, **others):
    stored = sum(k.weights * k.weight_bits // 8 for k in kernels if isinstance(k, Product))
    settled = {"experts": 0, "active_experts": 0, "caches": (), "live_bytes_per_token": 4 * WIDTH, "takes_tokens": True}
    sizes = {**settled, "elementwise": 0, **others}
    return BlockProfile(name, kind, layer, stored if weight_bytes is None else weight_bytes, kernels=kernels, **sizes)


def attention(layer):
    kernels = (
        Reduction(WIDTH, 1),
        Product(WIDTH, 2 * WIDTH, 16),
        Attention(HEADS, 8, 64, 64, 2048),
        Product(WIDTH, WIDTH, 16),
    )
    return block(f"layers.{layer}.attention", BlockKind.ATTENTION, layer, kernels, caches=(CacheProfile(2048, 0),))


def latent_attention(layer):
    """One latent for all heads: the compressed vector is normed before it is widened."""
    kernels = (
        Reduction(WIDTH, 1),
        Product(WIDTH, 512, 16),
        Reduction(512, 2),
        Product(384, HEADS * 96, 16),
        Product(64, 128, 16, parts=HEADS),
        Attention(HEADS, 1, 160, 128, 320),
        Product(128, 64, 16, parts=HEADS),
        Product(HEADS * 64, WIDTH, 16),
    )
    return block(f"layers.{layer}.attention", BlockKind.ATTENTION, layer, kernels, caches=(CacheProfile(320, 0),))


def mlp(layer):
    kernels = (Reduction(WIDTH, 1), Product(WIDTH, 2 * INNER, 16), Product(INNER, WIDTH, 16))
    return block(f"layers.{layer}.dense_mlp", BlockKind.DENSE_MLP, layer, kernels, elementwise=INNER)


def mixture(layer, experts=64, active=4, inner=512):
    router = (Reduction(WIDTH, 1), Product(WIDTH, experts, 16), Reduction(experts, active))
    shared = (Product(WIDTH, 2 * inner, 16), Product(inner, WIDTH, 16))
    routed = (
        Product(WIDTH, 2 * inner, 4, group=32, experts=experts, active=active),
        Product(inner, WIDTH, 4, group=32, experts=experts, active=active),
    )
    stored = sum(k.weights // 2 + k.weights // 32 * 2 for k in routed)  # 4 bits, and a scale of 16 for each 32
    return (
        block(f"layers.{layer}.router", BlockKind.ROUTER, layer, router),
        block(f"layers.{layer}.shared_expert", BlockKind.SHARED_EXPERT, layer, shared),
        block(
            f"layers.{layer}.experts",
            BlockKind.EXPERTS,
            layer,
            routed,
            stored,
            experts=experts,
            active_experts=active,
        ),
    )


def model(layers, name="small"):
    """A profile of ``layers``, each a tuple of items, behind an embedding and before a head."""
    table = block("embedding", BlockKind.EMBEDDING, None, (), VOCABULARY * WIDTH * 2)
    head = block("head", BlockKind.HEAD, None, (Reduction(WIDTH, 1), Product(WIDTH, VOCABULARY, 16)))
    groups = [(table,), *(item for layer in layers for item in layer), (head,)]
    blocks = [each for group in groups for each in group]
    starts = [sum(len(group) for group in groups[:i]) for i in range(len(groups))]
    items = tuple(tuple(range(start, start + len(group))) for start, group in zip(starts, groups, strict=True))
    ends = [item[-1] for item in items]
    flows = tuple(FlowProfile(ends[i], items[i + 1][0], 2 * WIDTH) for i in range(len(items) - 1))
    weights = sum(k.weights for b in blocks for k in b.kernels if isinstance(k, Product))
    return Profile(name, 1 << 17, weights, tuple(blocks), flows, items)


DENSE = model([((attention(i),), (mlp(i),)) for i in range(4)])
SPARSE = model([((latent_attention(i),), mixture(i)) for i in range(4)], "sparse")


# --- collectives ----------------------------------------------------------------------------------------------------


def test_collectives_by_hand():
    assert all_reduce_s(CLUSTER, 1, 1e6) == 0
    # Eight devices: 7/8 of a megabyte twice, at 100 GB/s.
    assert all_reduce_s(CLUSTER, 8, 1e6) == pytest.approx(5e-6 + 17.5e-6)
    assert all_gather_s(CLUSTER, 8, 1e6) == pytest.approx(5e-6 + 8.75e-6)
    # Two nodes: then each device sums its eighth with its partner's, 1/2 of it twice, at 10 GB/s.
    assert all_reduce_s(CLUSTER, 16, 1e6) == pytest.approx(22.5e-6 + 20e-6 + 12.5e-6)
    # Four groups of eight: all partners are on other nodes. Four of two: all on one.
    assert all_to_all_s(CLUSTER, 4, 8, 1e6) == pytest.approx(20e-6 + 100e-6)
    assert all_to_all_s(CLUSTER, 4, 2, 1e6) == pytest.approx(5e-6 + 10e-6)
    # Eight groups of two: three of seven partners are near.
    assert all_to_all_s(CLUSTER, 8, 2, 7e6) == pytest.approx(5e-6 + 30e-6 + 20e-6 + 400e-6)
    assert send_s(CLUSTER, 1e6, far=False) == pytest.approx(15e-6)
    assert send_s(CLUSTER, 1e6, far=True) == pytest.approx(120e-6)


# --- how blocks are split -------------------------------------------------------------------------------------------


def test_a_dense_layer_is_summed_twice():
    for each in (attention(0), mlp(0)):
        split = split_block(each, 4)
        assert [(m.payload_bytes, m.is_sum) for m in split.meetings] == [(2 * WIDTH, True)]
        assert split.weight_share == 1 / 4
        assert split_block(each, 1).meetings == ()
    assert split_block(attention(0), 4).cache_share == 1 / 4
    assert split_block(attention(0), 16).cache_share == 1 / 8  # eight cached heads


def test_what_a_norm_needs_whole_is_not_split():
    split = split_block(latent_attention(0), 4)
    assert split.shares == (1, 1, 1, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4)
    assert split.cache_share == 1
    assert copied_bytes(latent_attention(0), 4) == WIDTH * 512 * 2
    router, shared, experts = mixture(0)
    assert split_block(router, 4).shares == (1, 1, 1)
    assert split_block(router, 4).meetings == ()
    assert split_block(shared, 4).meetings == ()  # its sum is the routed experts'
    assert [m.is_sum for m in split_block(experts, 4).meetings] == [True]


def test_norms_of_heads_do_not_keep_attention_whole():
    plain = attention(0)
    normed = replace(plain, kernels=(*plain.kernels[:2], Reduction(WIDTH, HEADS + 8), *plain.kernels[2:]))
    assert split_block(normed, 4).weight_share == 1 / 4
    assert len(split_block(normed, 4).meetings) == 1


def test_scales_are_not_cut():
    _, _, experts = mixture(0, inner=512)
    # 512 inputs of the second product are 16 groups of 32: of 12 ranks, some have two.
    assert split_block(experts, 12).shares[1] == 2 / 16


def test_the_head_is_gathered_and_the_table_summed():
    head, table = DENSE.blocks[-1], DENSE.blocks[0]
    assert [(m.payload_bytes, m.is_sum) for m in split_block(head, 4).meetings] == [(2 * VOCABULARY, False)]
    assert [(m.payload_bytes, m.is_sum) for m in split_block(table, 4, 2 * WIDTH).meetings] == [(2 * WIDTH, True)]


# --- a pass ---------------------------------------------------------------------------------------------------------


def test_a_block_on_one_device_by_hand():
    seconds = block_seconds(mlp(0), CLUSTER, Degrees(1, 1, 1), Batch(1, 1, 100))
    assert seconds.memory == pytest.approx(3 * WIDTH * INNER * 2 / 1e12)
    assert seconds.launch == pytest.approx(4e-6)  # a norm, two products, the activation between them
    assert seconds.compute == seconds.communication == 0
    # 1000 tokens: 2 operations for each weight and token, at 100 TFLOP/s.
    many = block_seconds(mlp(0), CLUSTER, Degrees(1, 1, 1), Batch(10, 100, 0))
    assert many.compute == pytest.approx(2 * 3 * WIDTH * INNER * 1000 / 1e14)
    assert many.memory == 0


def test_attention_by_hand():
    seconds = block_seconds(attention(0), CLUSTER, Degrees(4, 1, 1), Batch(8, 1, 999))
    weights, caches = 3 * WIDTH * WIDTH * 2 / 4, 8 * 1000 * 2048 / 4
    assert seconds.memory == pytest.approx((weights + caches) / 1e12)
    assert seconds.communication == pytest.approx(all_reduce_s(CLUSTER, 4, 8 * 2 * WIDTH))


def test_eight_bit_weights_use_eight_bit_arithmetic():
    narrow = replace(mlp(0), kernels=(Product(WIDTH, WIDTH, 8),), weight_bytes=WIDTH * WIDTH, elementwise=0)
    seconds = block_seconds(narrow, CLUSTER, Degrees(1, 1, 1), Batch(1, 10_000, 0))
    assert seconds.compute == pytest.approx(2 * WIDTH * WIDTH * 10_000 / 2e14)
    assert CLUSTER.flops(4) == CLUSTER.flops(8) == 2e14  # no 4-bit arithmetic: widened to 8
    assert CLUSTER.flops(32) == CLUSTER.flops(16) == 1e14


def test_experts_that_are_touched_are_read():
    _, _, experts = mixture(0, experts=64, active=4)
    one = block_seconds(experts, CLUSTER, Degrees(1, 1, 1), Batch(1, 1, 0))
    assert one.memory == pytest.approx(experts.weight_bytes * 4 / 64 / 1e12)  # scales included
    some = block_seconds(experts, CLUSTER, Degrees(1, 1, 1), Batch(16, 1, 0))
    assert some.memory == pytest.approx(experts.weight_bytes * (1 - (60 / 64) ** 16) / 1e12)


def test_the_busiest_group_of_experts():
    assert busiest_group(8, 1, 0.25) == 2
    assert busiest_group(1, 4, 0.5) == pytest.approx(1 - 0.5**4)
    # Against counting every outcome: two groups of two experts.
    chance = [0.75**2, 2 * 0.25 * 0.75, 0.25**2]
    counted = sum(chance[a] * chance[b] * max(a, b) for a in range(3) for b in range(3))
    assert busiest_group(2, 2, 0.25) == pytest.approx(counted)
    assert touched_share(64, 4, 1) == 4 / 64
    # Of very many, the busiest group is hardly busier than the others.
    assert 2000 < busiest_group(4000, 2, 0.5) < 2040
    assert busiest_group(8, 4, 0.0) == 0
    assert busiest_group(8, 4, 1.0) == 8


def test_expert_groups_exchange_tokens():
    _, _, experts = mixture(0)
    seconds = block_seconds(experts, CLUSTER, Degrees(1, 8, 1), Batch(8, 1, 0))
    # One token a group, to four of eight groups, of which one is its own with probability 1/8; and back.
    sent = 4 * 7 / 8 * WIDTH * 2
    assert seconds.communication == pytest.approx(2 * all_to_all_s(CLUSTER, 8, 1, sent))
    plain = block_seconds(experts, CLUSTER, Degrees(1, 1, 1), Batch(8, 1, 0))
    assert plain.memory / 8 < seconds.memory < plain.memory


def test_stages_follow_each_other():
    plan = outline(DENSE)
    half = len(DENSE.blocks) // 2
    stages = make_stages(plan, (range(half), range(half, len(DENSE.blocks))))
    whole = make_stages(plan, (range(len(DENSE.blocks)),))
    degrees, batch = Degrees(8, 1, 2), Batch(2, 1, 100)
    split, alone = (device_pass(each, CLUSTER, degrees, batch) for each in (stages, whole))
    assert split.latency_s == pytest.approx(alone.latency_s + send_s(CLUSTER, 2 * 2 * WIDTH, far=True))
    assert split.seconds.memory == pytest.approx(alone.seconds.memory)
    small = replace(degrees, tensor=4)
    near = device_pass(stages, CLUSTER, small, batch)
    assert near.latency_s == pytest.approx(
        device_pass(whole, CLUSTER, small, batch).latency_s + send_s(CLUSTER, 2 * 2 * WIDTH, far=False)
    )


def test_a_step_waits_for_the_last_stage_or_the_busiest():
    placement = place_with(DENSE, CLUSTER, Workload(64, 512, 64), Degrees(1, 1, 4))
    one, many = (decode_step(placement, users, 500) for users in (1, 64))
    assert one.step_s == pytest.approx(one.cost.latency_s + CLUSTER.sampling_s)
    assert (many.microbatches, many.batch) == (4, 16)
    assert many.step_s == pytest.approx(max(many.cost.latency_s + CLUSTER.sampling_s, 4 * max(many.cost.busy_s)))


# --- what fits ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_what_would():
    tight = replace(CLUSTER, memory_bytes=16_000_000, nodes=1)
    with pytest.raises(InfeasibleError) as refused:
        choose_parallel(DENSE, tight, Workload(1, 128, 16))
    fault = refused.value.diagnostics[0]
    assert fault.code == "W0701"
    assert fault.facts["weight_bytes"] == DENSE.weight_bytes
    assert fault.facts["bytes_available"] == 8 * 16_000_000
    enough = fault.facts["nodes_needed"]
    assert choose_parallel(DENSE, replace(tight, nodes=enough), Workload(1, 128, 16)).candidates
    with pytest.raises(InfeasibleError):
        choose_parallel(DENSE, replace(tight, nodes=enough - 1), Workload(1, 128, 16))


def test_too_many_users_are_told_how_many_fit():
    most = most_users(DENSE, CLUSTER, Workload(1, 4096, 64))
    assert choose_parallel(DENSE, CLUSTER, Workload(most, 4096, 64)).candidates
    with pytest.raises(InfeasibleError) as refused:
        choose_parallel(DENSE, replace(CLUSTER, nodes=1), Workload(10 * most, 4096, 64))
    assert any("users" in text for text in refused.value.diagnostics[0].help)


def test_no_layout_fills_a_device_beyond_its_memory():
    for profile in (DENSE, SPARSE):
        tight = replace(CLUSTER, memory_bytes=60_000_000)
        found = list(candidates(profile, tight, Workload(24, 1024, 64)))
        assert found
        for each in found:
            degrees = each.placement.degrees
            users = math.ceil(24 / degrees.replicas / degrees.expert)
            assert max(room.bytes(users) for room in each.placement.rooms) <= tight.device_bytes
            assert each.placement.nodes <= tight.nodes
            assert sorted(i for stage in each.placement.members for i in stage) == [*range(len(profile.blocks))]


# --- what must never get worse --------------------------------------------------------------------------------------

FASTER = ("memory_bytes_per_s", "flops_16", "flops_8", "link_bytes_per_s", "network_bytes_per_s")
SLOWER = ("kernel_s", "link_latency_s", "network_latency_s", "sampling_s")
profiles = st.sampled_from((DENSE, SPARSE))


@settings(deadline=None, max_examples=25)
@given(profiles, st.sampled_from(FASTER + SLOWER), st.floats(1, 10), st.integers(1, 100), st.integers(1, 4000))
def test_a_better_machine_is_never_slower(profile, name, factor, users, context):
    better = getattr(CLUSTER, name) * (factor if name in FASTER else 1 / factor)
    workload = Workload(users, context, 64)
    plain, improved = (
        choose_parallel(profile, each, workload) for each in (CLUSTER, replace(CLUSTER, **{name: better}))
    )
    assert improved.fastest.tokens_per_s_per_user >= plain.fastest.tokens_per_s_per_user * (1 - 1e-9)
    assert improved.most.total_tokens_per_s >= plain.most.total_tokens_per_s * (1 - 1e-9)


@settings(deadline=None, max_examples=25)
@given(profiles, st.integers(1, 200), st.integers(1, 50), st.integers(1, 4000), st.integers(0, 500))
def test_more_users_or_context_are_never_faster(profile, users, more, context, longer):
    for tensor, expert, pipeline in ((1, 1, 1), (4, 1, 1), (2, 1, 3), (2, 4, 1)):
        degrees = Degrees(tensor, expert if profile is SPARSE else 1, pipeline)
        roomy = replace(CLUSTER, memory_bytes=10**13)
        placement = place_with(profile, replace(roomy, nodes=1), Workload(1, context, 64), degrees)
        fewer = decode_step(placement, users, context).step_s
        assert decode_step(placement, users + more, context + longer).step_s >= fewer * (1 - 1e-9)


@settings(deadline=None, max_examples=15)
@given(profiles, st.integers(1, 5), st.integers(1, 5), st.integers(20, 200))
def test_more_devices_never_hold_less(profile, nodes, more, megabytes):
    small = replace(CLUSTER, nodes=nodes, memory_bytes=megabytes * 10**6)
    workload = Workload(1, 2048, 64)
    held = most_users(profile, small, workload)
    assert most_users(profile, replace(small, nodes=nodes + more), workload) >= held
    needed = fewest_nodes(profile, small, workload)
    assert (needed is not None and needed <= nodes) == (held > 0)


# --- speculation and service ----------------------------------------------------------------------------------------


def test_expected_tokens_by_hand():
    assert expected_tokens(3, 0.5) == 1 + 0.5 + 0.25 + 0.125
    assert expected_tokens(3, 0) == 1
    assert expected_tokens(3, 1) == 4
    assert expected_tokens(5, 0.7) == pytest.approx((1 - 0.7**6) / (1 - 0.7))
    assert expected_tokens(4, acceptance_for(4, 2.9)) == pytest.approx(2.9)
    assert acceptance_for(3, 4.5) is None


def test_speculation_has_limits():
    for arguments in ((0, 0.5), (65, 0.5), (3, 1.5), (3, -0.1), (3, math.nan)):
        with pytest.raises(UsageError) as refused:
            Speculation(*arguments)
        assert refused.value.diagnostics[0].code == "W0704"
    with pytest.raises(UsageError):
        eagle3_profile(replace(DENSE, blocks=DENSE.blocks[:1]))


def test_an_eagle3_draft_is_a_layer_and_the_head():
    draft = eagle3_profile(DENSE)
    assert [each.kind for each in draft.blocks] == [BlockKind.ATTENTION, BlockKind.DENSE_MLP, BlockKind.HEAD]
    features = 3 * WIDTH * WIDTH * 2
    assert draft.weight_bytes == sum(DENSE.blocks[i].weight_bytes for i in (1, 2, -1)) + features
    sparse = eagle3_profile(SPARSE)
    widened = [k for k in sparse.blocks[2].kernels if isinstance(k, Product)]
    assert [(k.inputs, k.outputs, k.experts) for k in widened] == [(WIDTH, 4 * 1024, 0), (4 * 512, WIDTH, 0)]
    assert sparse.blocks[2].weight_bytes == SPARSE.blocks[4].weight_bytes * 4 // 64
    assert draft_profile(DENSE, Speculation(3, 0.5, SPARSE)) is SPARSE


def test_service_by_hand():
    placement = place_with(DENSE, CLUSTER, Workload(1, 2048, 64), Degrees(8, 1, 1))
    alone = serve_batched(DENSE, placement, 1, 1000, 100, chunk=400)
    chunks = [
        device_pass(placement.stages, CLUSTER, placement.degrees, Batch(1, tokens, start)).latency_s
        for start, tokens in ((0, 400), (400, 400), (800, 200))
    ]
    assert alone.time_to_first_token_s == pytest.approx(sum(chunks) + CLUSTER.sampling_s)
    step_s = decode_step(placement, 1, 1050).step_s
    assert alone.tokens_per_s_per_user == pytest.approx(1 / step_s)
    assert alone.request_s == pytest.approx(alone.time_to_first_token_s + 99 * step_s)
    # Eight users: each waits for seven others' prompts beside its own steps.
    eight = serve_batched(DENSE, placement, 8, 1000, 100, chunk=400)
    request_s = alone.time_to_first_token_s + 99 * decode_step(placement, 8, 1050).step_s + 7 * sum(chunks)
    assert eight.request_s == pytest.approx(request_s)
    assert eight.total_tokens_per_s == pytest.approx(800 / request_s)


def test_speculation_pays_when_drafts_are_accepted():
    placement = place_with(DENSE, CLUSTER, Workload(1, 2048, 64), Degrees(8, 1, 1))
    plain = serve_batched(DENSE, placement, 1, 100, 100)
    refused, accepted = (
        serve_batched(DENSE, placement, 1, 100, 100, speculation=Speculation(3, rate)) for rate in (0.0, 0.9)
    )
    assert refused.tokens_per_s_per_user < plain.tokens_per_s_per_user < accepted.tokens_per_s_per_user
    draft = device_pass(
        make_stages(outline(eagle3_profile(DENSE)), (range(3),)), CLUSTER, placement.degrees, Batch(1, 1, 150)
    )
    assert accepted.draft_s == pytest.approx(3 * draft.latency_s)


# --- the bundled machines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "devices"), [("h100", 8), ("gb200_nvl72", 72), ("groq_lpu_v1", 8)])
def test_bundled_clusters_say_where_figures_come_from(name, devices):
    target = load_target(name)
    assert isinstance(target.cluster, DeviceCluster)
    assert target.cluster.devices == devices
    for figure in target.figures.values():
        assert figure.source != "the machine file"
        assert figure.trust != "fitted"
    assert any(not figure.certain for figure in target.figures.values())
