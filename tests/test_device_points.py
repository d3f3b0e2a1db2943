"""Published speeds of GPUs and LPUs beside the forecast: plausible, by a factor written down for each.

Nothing is fitted to these. Engines differ: TensorRT-LLM and gpt-fast run whole steps as CUDA graphs, vLLM of 2024 lets
the GPU wait for Python between steps. What a forecast cannot know (host time, how well a kernel is written) makes real
systems slower, so most deviations are upwards.
"""

from dataclasses import dataclass, replace

import pytest

from ir.device_plan import Degrees
from ir.model import BlockKind
from ir.profile import Product, Profile
from ir.workload import Workload
from partitioner.options import LoadOptions
from partitioner.profiles import load_profile
from targets.batched import serve_batched
from targets.machines import load_target
from targets.parallel import place_with

H200 = {"device.memory_bytes": 141e9, "device.memory_bytes_per_s": 4.8e12}
A100 = {
    "device.memory_bytes_per_s": 2.039e12,
    "device.flops_16": 312e12,
    "device.flops_8": 0.0,
    "node.link_bytes_per_s": 300e9,
}
B200 = {"device.memory_bytes": 180e9, "device.memory_bytes_per_s": 7.7e12}
ENCODING_BYTES = {8: 1.0, 4: 0.5625}  # NVFP4: a scale of 8 bits for 16 weights


@dataclass(frozen=True)
class Point:
    """A published speed in tokens a second of one user, and the deviation of the forecast from it."""

    name: str
    model: str
    bits: int
    target: str
    changes: dict[str, float]
    tensor: int
    users: int
    input_tokens: int
    output_tokens: int
    published: float
    deviation: float


NIM = "NVIDIA NIM 1.8, docs.nvidia.com/nim/benchmarking"
POINTS = (
    Point(f"{NIM}, 2 x H100, fp8", "llama-3.3-70b", 8, "h100", {}, 2, 1, 5000, 500, 1 / 18.58e-3, 0.16),
    Point(f"{NIM}, 2 x H100, fp8", "llama-3.3-70b", 8, "h100", {}, 2, 1, 500, 2000, 1 / 18.91e-3, 0.20),
    Point(f"{NIM}, 2 x H100, fp8, 5 users", "llama-3.3-70b", 8, "h100", {}, 2, 5, 5000, 500, 1 / 21.83e-3, 0.10),
    Point(f"{NIM}, 2 x H100, fp8, 25 users", "llama-3.3-70b", 8, "h100", {}, 2, 25, 5000, 500, 1 / 38.75e-3, 0.01),
    Point("TensorRT-LLM, H200, fp8, no draft", "llama-3.3-70b", 8, "h100", H200, 1, 1, 100, 500, 51.14, 0.01),
    Point("vLLM 0.6, 4 x H200, bf16, 8 users", "llama-3.3-70b", 16, "h100", H200, 4, 8, 32, 128, 61.6, 0.27),
    Point("vLLM 0.6, H200, bf16, 8 users", "llama-3.1-8b", 16, "h100", H200, 1, 8, 32, 128, 153.6, 0.29),
    Point("vLLM 0.6, 2 x H200, bf16, 8 users", "mixtral-8x7b", 16, "h100", H200, 2, 8, 32, 128, 66.8, 0.15),
    Point("gpt-fast, 2 x A100", "llama-3.3-70b", 16, "h100", A100, 2, 1, 5, 200, 21.32, 0.08),
    Point("gpt-fast, 4 x A100", "llama-3.3-70b", 16, "h100", A100, 4, 1, 5, 200, 38.01, 0.12),
    Point("gpt-fast, 8 x A100", "llama-3.3-70b", 16, "h100", A100, 8, 1, 5, 200, 62.50, 0.18),
    Point("gpt-fast, 2 x A100", "mixtral-8x7b", 16, "h100", A100, 2, 1, 5, 200, 96.67, 0.11),
    Point("gpt-fast, 4 x A100", "mixtral-8x7b", 16, "h100", A100, 4, 1, 5, 200, 155.35, 0.15),
    Point("gpt-fast, 8 x A100", "mixtral-8x7b", 16, "h100", A100, 8, 1, 5, 200, 227.82, 0.17),
    # Kernels of mixtures and latent attention on Blackwell were new; three months later the same had doubled.
    Point("TensorRT-LLM, 8 x B200, fp4 experts", "deepseek-v3", 4, "gb200_nvl72", B200, 8, 1, 1000, 2000, 111, 0.42),
)


def stored_in(profile: Profile, bits: int) -> Profile:
    """``profile`` with its weights stored in so many bits; of 4 bits the experts and MLPs alone, the rest 16."""
    narrow = (BlockKind.EXPERTS, BlockKind.DENSE_MLP)

    def bits_of(block) -> int:
        return 16 if bits == 4 and block.kind not in narrow else bits

    def stored(block):
        if bits == 16 or not any(isinstance(kernel, Product) for kernel in block.kernels):
            return block
        kernels = tuple(replace(k, weight_bits=bits_of(block)) if isinstance(k, Product) else k for k in block.kernels)
        weights = sum(kernel.weights for kernel in kernels if isinstance(kernel, Product))
        size = weights * ENCODING_BYTES.get(bits_of(block), 2.0)
        return replace(block, kernels=kernels, weight_bytes=int(size))

    return replace(profile, blocks=tuple(stored(block) for block in profile.blocks))


def forecast(point: Point) -> float:
    cluster = load_target(point.target, {**point.changes, "node.devices": point.tensor, "cluster.nodes": 1}).cluster
    profile = stored_in(load_profile(point.model, LoadOptions()), point.bits)
    workload = Workload(point.users, point.input_tokens + point.output_tokens, 64)
    # Benchmarks fill memories further than vLLM's default.
    placement = place_with(profile, replace(cluster, reserve_bytes=5 * 10**9), workload, Degrees(point.tensor, 1, 1))
    return serve_batched(profile, placement, point.users, point.input_tokens, point.output_tokens).tokens_per_s_per_user


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.model}, {point.name}, {point.input_tokens} in")
def test_published_speeds_are_plausible(point):
    found = forecast(point) / point.published - 1
    assert found == pytest.approx(point.deviation, abs=0.02)
    assert -0.2 <= found <= (0.25 if point.bits != 4 and "vLLM" not in point.name else 0.5)
