"""What one rank does of a block whose matrices ``tensor`` ranks share, and where the ranks must meet.

After Megatron-LM (Shoeybi et al., 2019): a product of a vector that every rank holds is split by its results, the next
one by its inputs, and the partial sums are then added over the ranks. Attention is split by heads. What a norm or a
choice needs whole, such as a compressed query or the router's scores, is computed by every rank, as vLLM and
TensorRT-LLM do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ir.model import BlockKind
from ir.profile import Attention, BlockProfile, Kernel, Product, Reduction

ACTIVATION_BYTES = 2
"""Of one element that devices exchange: 16 bits."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """A collective over the ranks that share a block: ``payload_bytes`` for each token; a sum, or else a gathering."""

    payload_bytes: int
    is_sum: bool


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """A block on one rank: the share of each kernel that it does, and in which collectives it takes part.

    ``weight_share`` and ``cache_share`` are of the block's bytes; of a mixture's, those of one expert.
    """

    shares: tuple[float, ...]
    meetings: tuple[Meeting, ...]
    weight_share: float
    cache_share: float


@lru_cache(maxsize=4096)
def split_block(block: BlockProfile, tensor: int, handed_on_bytes: int = 0) -> BlockSplit:
    """How ``tensor`` ranks share ``block``, which hands on ``handed_on_bytes`` for each token."""
    steps = tuple(_walk(block, tensor))
    shares = tuple(step.share for step in steps)
    meetings = tuple(step.meeting for step in steps if step.meeting)
    if not (steps[-1].is_whole if steps else not _is_table(block)):
        meetings += (_last_meeting(block, handed_on_bytes),)
    weight_share, cache_share = _weight_share(block, shares, tensor), _cache_share(block, tensor)
    return BlockSplit(shares, meetings if tensor > 1 else (), weight_share, cache_share)


def split_units(block: BlockProfile) -> int | None:
    """Equal parts into which a block's split weights fall: attention's heads; ``None`` where any number will do."""
    return max((kernel.heads for kernel in block.kernels if isinstance(kernel, Attention)), default=None)


def copied_bytes(block: BlockProfile, tensor: int) -> int:
    """Bytes of the weights that every rank holds whole (of all experts together)."""
    if tensor == 1:
        return 0
    shares = split_block(block, tensor).shares
    products = [(_bits(k), share) for k, share in zip(block.kernels, shares, strict=True) if isinstance(k, Product)]
    total = sum(bits for bits, _ in products)
    if total:
        return block.weight_bytes * sum(bits for bits, share in products if share == 1) // total
    return 0 if _is_table(block) else block.weight_bytes


@dataclass(frozen=True, slots=True)
class _Step:
    """One kernel: a rank's share, the collective behind it, and whether every rank then holds the whole result."""

    share: float
    is_whole: bool
    meeting: Meeting | None = None


def _walk(block: BlockProfile, tensor: int) -> Iterator[_Step]:
    is_whole = not _is_table(block)
    for index, kernel in enumerate(block.kernels):
        after = block.kernels[index + 1] if index + 1 < len(block.kernels) else None
        step = _step(block, kernel, after, tensor, is_whole=is_whole)
        is_whole = step.is_whole
        yield step


def _step(block: BlockProfile, kernel: Kernel, after: Kernel | None, tensor: int, *, is_whole: bool) -> _Step:
    units = split_units(block)
    if isinstance(kernel, Reduction):
        # A norm over what is spread needs one more sum, of a few numbers.
        has_sum = not is_whole and not _is_by_head(block, kernel)
        return _Step(1.0, is_whole, Meeting(kernel.results * ACTIVATION_BYTES, is_sum=True) if has_sum else None)
    if isinstance(kernel, Attention):
        return _Step(_part(kernel.heads, tensor), is_whole=False)
    if kernel.parts > 1:
        return _Step(_part(kernel.parts, tensor), is_whole=False)
    if not is_whole:
        # The shared expert's last sum is the routed experts' too.
        is_added_later = block.kind is BlockKind.SHARED_EXPERT and after is None
        meeting = None if is_added_later else Meeting(kernel.outputs * ACTIVATION_BYTES, is_sum=True)
        return _Step(_part(units or max(1, kernel.inputs // kernel.group), tensor), is_whole=True, meeting=meeting)
    if _is_kept_whole(block, after):
        return _Step(1.0, is_whole=True)
    return _Step(_part(units or kernel.outputs, tensor), is_whole=False)


def _is_kept_whole(block: BlockProfile, after: Kernel | None) -> bool:
    """Whether every rank computes all of a product, since ``after`` needs it whole."""
    if block.kind is BlockKind.HEAD:
        return False
    return block.kind is BlockKind.ROUTER or (isinstance(after, Reduction) and not _is_by_head(block, after))


def _is_by_head(block: BlockProfile, reduction: Reduction) -> bool:
    """Whether every head has a result of its own, so that no rank needs another's."""
    units = split_units(block)
    return units is not None and reduction.results >= units


def _is_table(block: BlockProfile) -> bool:
    """Whether the block looks its weights up, row by row."""
    return block.kind is BlockKind.EMBEDDING and bool(block.weight_bytes) and not any(_products(block))


def _last_meeting(block: BlockProfile, handed_on_bytes: int) -> Meeting:
    """Where a block's result is put together: looked-up rows are summed, anything else is gathered."""
    if _is_table(block):
        return Meeting(handed_on_bytes, is_sum=True)
    last = next((k for k in reversed(block.kernels) if isinstance(k, Product)), None)
    result = last.outputs * last.parts * ACTIVATION_BYTES if last else handed_on_bytes
    return Meeting(result, is_sum=False)


def _weight_share(block: BlockProfile, shares: tuple[float, ...], tensor: int) -> float:
    weighed = [(_bits(k), s) for k, s in zip(block.kernels, shares, strict=True) if isinstance(k, Product)]
    total = sum(bits for bits, _ in weighed)
    if total:
        return sum(bits * share for bits, share in weighed) / total
    return 1 / tensor if _is_table(block) else 1.0


def _cache_share(block: BlockProfile, tensor: int) -> float:
    """Ranks beyond the number of cached heads hold copies."""
    heads = min((k.cached_heads for k in block.kernels if isinstance(k, Attention)), default=1)
    return _part(heads, tensor)


def _part(units: int, ranks: int) -> float:
    """The largest share of ``units`` that one of ``ranks`` gets."""
    return -(-units // ranks) / units


def _products(block: BlockProfile) -> Iterator[Product]:
    return (kernel for kernel in block.kernels if isinstance(kernel, Product))


def _bits(product: Product) -> int:
    return product.weights * product.weight_bits
