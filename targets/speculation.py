"""Speculative decoding: a draft proposes tokens, one pass of the model checks them all.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (ICML 2023), with the acceptance of each
drafted token independent of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ir.diagnostics import Diagnostic, UsageError
from ir.model import BlockKind
from ir.profile import BlockProfile, FlowProfile, Kernel, Product, Profile

EAGLE3: Literal["eagle3"] = "eagle3"
MOST_DRAFT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Speculation:
    """How tokens are drafted.

    Attributes:
        draft_tokens: drafted for each pass of the model, one after the other.
        acceptance: probability that a drafted token is accepted if those before it are.
        draft: ``eagle3``, a head of one decoder layer (Li et al., 2025), or the profile of a smaller model.

    Raises:
        UsageError: W0704, a figure is outside of its limits.
    """

    draft_tokens: int
    acceptance: float
    draft: Literal["eagle3"] | Profile = EAGLE3

    def __post_init__(self) -> None:
        faults = []
        if not 1 <= self.draft_tokens <= MOST_DRAFT_TOKENS:
            message = f"drafted tokens must be from 1 to {MOST_DRAFT_TOKENS}, not {self.draft_tokens}"
            faults.append(Diagnostic("W0704", message))
        if not 0 <= self.acceptance <= 1:  # also where it is no number
            faults.append(Diagnostic("W0704", f"the acceptance must be from 0 to 1, not {self.acceptance:g}"))
        if faults:
            raise UsageError(*faults)

    @property
    def tokens_per_step(self) -> float:
        """Expected tokens that one pass of the model yields."""
        return expected_tokens(self.draft_tokens, self.acceptance)

    @property
    def verified_tokens(self) -> int:
        """Tokens that the model's pass takes for each user."""
        return self.draft_tokens + 1


def expected_tokens(draft_tokens: int, acceptance: float) -> float:
    """Accepted tokens of ``draft_tokens``, and the one that the model adds: (1 - a^(d+1)) / (1 - a)."""
    return sum(acceptance**accepted for accepted in range(draft_tokens + 1))


def acceptance_for(draft_tokens: int, tokens_per_step: float) -> float | None:
    """The acceptance at which ``draft_tokens`` yield ``tokens_per_step``; ``None`` where none does."""
    if not 1 <= tokens_per_step <= draft_tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_tokens(draft_tokens, middle) < tokens_per_step else (low, middle)
    return (low + high) / 2


def draft_profile(profile: Profile, speculation: Speculation) -> Profile:
    """The draft as a model of its own."""
    return eagle3_profile(profile) if speculation.draft == EAGLE3 else speculation.draft


def eagle3_profile(profile: Profile) -> Profile:
    """EAGLE-3's head for ``profile``: a product that joins the features of three layers, one dense decoder layer of
    the model's own width, and the model's head (Li et al., 2025).

    The layer is the model's first that is dense. Where all are mixtures it is the first, with the experts that serve a
    token side by side as a dense MLP, and without a router.

    Raises:
        UsageError: W0704, the model has no repeated layers, or no head.
    """
    by_layer: dict[int, list[BlockProfile]] = {}
    for block in profile.blocks:
        if block.layer is not None and block.takes_tokens and block.kind is not BlockKind.ROUTER:
            by_layer.setdefault(block.layer, []).append(block)
    heads = [index for index, block in enumerate(profile.blocks) if block.kind is BlockKind.HEAD]
    if not by_layer or not heads:
        message = "an eagle3 draft needs a model with repeated layers and a head"
        raise UsageError(Diagnostic("W0704", message, profile.name))
    dense = [layer for layer, own in by_layer.items() if not any(block.experts for block in own)]
    layer = [_dense(block) for block in by_layer[min(dense or by_layer)]]
    blocks = (_with_features(layer[0]), *layer[1:], profile.blocks[heads[-1]])
    width_bytes = max((flow.bytes_per_token for flow in profile.flows if flow.target == heads[-1]), default=0)
    flows = tuple(FlowProfile(i, i + 1, width_bytes) for i in range(len(blocks) - 1))
    items = tuple((i,) for i in range(len(blocks)))
    return Profile(f"{profile.name} eagle3", profile.max_context, _weights(blocks), blocks, flows, items)


def _with_features(block: BlockProfile) -> BlockProfile:
    """``block`` behind a product that joins three vectors of its input's width to one."""
    first = next((kernel for kernel in block.kernels if isinstance(kernel, Product)), None)
    if first is None:
        return block
    joined = Product(3 * first.inputs, first.inputs, first.weight_bits)
    weight_bytes = block.weight_bytes + joined.weights * joined.weight_bits // 8
    return replace(block, kernels=(joined, *block.kernels), weight_bytes=weight_bytes)


def _dense(block: BlockProfile) -> BlockProfile:
    """``block`` with the experts that serve a token side by side: wider after the first product, narrower before it."""
    if not block.experts:
        return block
    kernels: list[Kernel] = []
    for kernel in block.kernels:
        if isinstance(kernel, Product) and kernel.experts:
            is_first = not any(isinstance(before, Product) for before in kernels)
            widened = {"outputs": kernel.outputs} if is_first else {"inputs": kernel.inputs}
            sizes = {name: size * kernel.active for name, size in widened.items()}
            kernel = replace(kernel, experts=0, active=0, **sizes)
        kernels.append(kernel)
    weight_bytes = -(-block.weight_bytes * block.active_experts // block.experts)
    return replace(
        block,
        kind=BlockKind.DENSE_MLP,
        weight_bytes=weight_bytes,
        experts=0,
        active_experts=0,
        kernels=tuple(kernels),
    )


def _weights(blocks: tuple[BlockProfile, ...]) -> int:
    return sum(kernel.weights for block in blocks for kernel in block.kernels if isinstance(kernel, Product))
