"""Serving from devices: all users of a replica decode in one batch, and prompts come between their steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ir.profile import Profile
from targets.cost.devices import Batch, DevicePass, device_pass, make_stages, outline
from targets.parallel import Placement, Step, decode_step
from targets.speculation import Speculation, draft_profile

DEFAULT_CHUNK = 2048
"""Tokens of a prompt in one pass: vLLM's default budget of a step."""


@dataclass(frozen=True, slots=True)
class BatchedService:
    """What each of some users gets, and what all get together.

    Attributes:
        tokens_per_s_per_user: after the first token, other users' prompts in between.
        total_tokens_per_s: output of all users, their prompts included.
        time_to_first_token_s: of a request that meets no other prompt.
        request_s: from a request's start to its last token.
        prefill_tokens_per_s: of a prompt alone.
        step: one decode step of all users, as the model does it; ``draft_s`` more goes into drafting.
        users_at_full_speed: users who decode without waiting for each other: one for each stage. Those who share a
            batch share the reading of weights, but each one's cache takes time.
    """

    tokens_per_s_per_user: float
    total_tokens_per_s: float
    time_to_first_token_s: float
    request_s: float
    prefill_tokens_per_s: float
    step: Step
    draft_s: float
    users_at_full_speed: int


def serve_batched(
    profile: Profile,
    placement: Placement,
    users: int,
    input_tokens: int,
    output_tokens: int,
    *,
    history: int = 0,
    chunk: int = DEFAULT_CHUNK,
    speculation: Speculation | None = None,
) -> BatchedService:
    """``users`` users who each start the next request as soon as the last one has ended, each with ``history`` tokens
    of earlier turns in the cache.

    Prompts go first, in chunks, and decoding waits for them. Requests are staggered evenly, so that one user's request
    takes the time of its own prompt and steps, and that for which every other user's prompt holds the devices up:
    first + steps * step + (users - 1) * prompt.

    Raises:
        ValueError: for less than one user or output token.
    """
    if users < 1 or output_tokens < 1 or input_tokens < 0:
        raise ValueError("a service has at least one user and one token of output")
    here = -(-users // placement.degrees.replicas)
    context = history + input_tokens + output_tokens // 2
    step = decode_step(placement, here, context, speculation.verified_tokens if speculation else 1)
    draft_s = _draft_s(profile, placement, here, context, speculation)
    step_s = step.step_s + draft_s
    chunks = [*_prompt(placement, history, input_tokens, chunk)]
    sampling_s = placement.cluster.sampling_s
    held_s = sum(max(each.busy_s) for each in chunks)
    first_s = held_s + chunks[-1].latency_s - max(chunks[-1].busy_s) + sampling_s if chunks else step_s
    steps = (output_tokens - 1) / (speculation.tokens_per_step if speculation else 1.0)
    decode_s = steps * step_s + (here - 1) * held_s
    request_s = first_s + decode_s
    alone = (speculation.tokens_per_step if speculation else 1.0) / step_s
    return BatchedService(
        tokens_per_s_per_user=(output_tokens - 1) / decode_s if steps else alone,
        total_tokens_per_s=users * output_tokens / request_s,
        time_to_first_token_s=first_s,
        request_s=request_s,
        prefill_tokens_per_s=input_tokens / first_s,
        step=step,
        draft_s=draft_s,
        users_at_full_speed=len(placement.stages) * placement.degrees.replicas,
    )


def _prompt(placement: Placement, history: int, tokens: int, chunk: int) -> Iterator[DevicePass]:
    """The passes of one prompt; they follow each other through the stages."""
    for start in range(0, tokens, chunk):
        batch = Batch(1, min(chunk, tokens - start), history + start)
        yield device_pass(placement.stages, placement.cluster, placement.degrees, batch)


def _draft_s(
    profile: Profile, placement: Placement, users: int, context: int, speculation: Speculation | None
) -> float:
    """What drafting adds to a step: passes of the draft, one for each drafted token, on the ranks of one stage."""
    if speculation is None:
        return 0.0
    draft = draft_profile(profile, speculation)
    batch = -(-users // min(len(placement.stages), users))
    stages = make_stages(outline(draft), (range(len(draft.blocks)),))
    cost = device_pass(stages, placement.cluster, placement.degrees, Batch(batch, 1, context))
    return speculation.draft_tokens * cost.latency_s
