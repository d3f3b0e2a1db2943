"""Every family runs on the emulator as the original does: several users at once, on one wafer, three and seven."""

from __future__ import annotations

import pytest
import torch
from families import CONTEXT, TOLERANCE, Mesh, compare, original_of, plan_over, prompts_of, write
from test_huggingface import ENCODERS, FAMILIES, Siblings

from ir.diagnostics import CheckError, UsageError
from ir.workload import Workload
from partitioner.compile import build_model
from partitioner.frontends.original import Original
from targets.emulator import Emulator, Prompt, generate, generate_together
from targets.emulator.pipeline import run_step

WAFERS = (1, 3, 7)


@pytest.mark.parametrize(("number", "name"), enumerate(FAMILIES), ids=list(FAMILIES))
def test_a_family_writes_what_the_original_does(number: int, name: str, lowered_sibling: Siblings) -> None:
    """Greedy tokens after a prompt in pieces, while another user is under way: 64 of every sixth family, fewer of the
    others, as ``make conformance`` takes 64 of all.
    """
    (first, *others) = prompts_of((19, 6), 4, seed=number)
    prompts = [Prompt(first.ids, 64 if number % 6 == 0 else 8), *others]
    write(lowered_sibling(name), Mesh(WAFERS[number % 3]), prompts, chunk=8, seed=number)


@pytest.mark.parametrize(("number", "name"), enumerate(ENCODERS), ids=list(ENCODERS))
def test_an_encoder_yields_what_the_original_does(number: int, name: str, lowered_sibling: Siblings) -> None:
    lowered = lowered_sibling(name)
    model, original = build_model(lowered.graph), original_of(lowered, seed=number)
    plan = plan_over(model, Mesh((3, 1, 5, 2)[number]), Workload(2, 64, 64))
    emulator = Emulator(model, plan, original.weights)
    for tokens in (1, 23):
        ids = torch.randint(3, 97, (2, tokens), generator=torch.Generator().manual_seed(tokens))
        given = {"input_ids": ids, "position_ids": torch.arange(tokens).expand(2, tokens)}
        inputs = {value.name: given[value.name] for value in model.graph.inputs}
        outputs = emulator.step(inputs)
        for ours, theirs in zip(outputs.values(), original.forward(inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def original(lowered_sibling: Siblings) -> Original:
    return original_of(lowered_sibling("llama"), 0)


@pytest.fixture(scope="module")
def llama(lowered_sibling: Siblings, original: Original) -> Emulator:
    """On seven wafers, for up to eight users."""
    model = build_model(lowered_sibling("llama").graph)
    return Emulator(model, plan_over(model, Mesh(7), Workload(8, 48, 4)), original.weights)


def test_at_full_load_every_wafer_works_on_another_users_token(llama: Emulator) -> None:
    prompts = prompts_of((9, 1, 4, 6, 2, 5, 3, 7), 9, seed=3)
    together, ticks = generate_together(llama, prompts)
    for tick in ticks:
        assert len(set(tick.values())) == len(tick), "a user's step is on one wafer at a time"
    full = [tick for tick in ticks if len(tick) == 7]
    assert len(full) > len(ticks) // 2
    steps = sum(len(text.counters) for text in together) + sum((len(p.ids) - 1) // 4 for p in prompts)
    assert sum(map(len, ticks)) == steps * len(llama.stages(0))
    for prompt, text in zip(prompts, together, strict=True):
        alone = generate(llama, prompt.ids, prompt.tokens)
        assert alone.tokens == text.tokens
        assert alone.counters == text.counters
        torch.testing.assert_close(torch.stack(alone.logits), torch.stack(text.logits), atol=0, rtol=0)


def test_prompts_and_single_tokens_interleave(llama: Emulator) -> None:
    """A long prompt enters in pieces between the tokens of a user who is writing already."""
    (long, short) = prompts_of((40, 2), 6, seed=4)
    _, ticks = generate_together(llama, [short, long])
    last = llama.stages(0)[-1].wafer
    assert [tick[last] for tick in ticks if last in tick][:8] == [0, 1] * 4


def test_who_finds_no_place_waits_and_finds_no_trace_of_others(llama: Emulator, original: Original) -> None:
    plan = plan_over(llama.model, Mesh(3), Workload(2, 32, 8))
    prompts = [*prompts_of((3, 12, 1, 8, 2), 5, seed=6), Prompt((4,), 0)]
    texts, ticks = generate_together(Emulator(llama.model, plan, original.weights), prompts)
    for prompt, text in zip(prompts[:-1], texts, strict=False):
        compare(original, prompt, text)
    assert texts[-1].tokens == ()
    assert all(len(set(tick.values())) <= 2 for tick in ticks)


def test_a_prompt_as_long_as_the_context(llama: Emulator, original: Original) -> None:
    ids = prompts_of((48,), 0, seed=2)[0].ids
    llama.reset()
    logits = torch.cat([run_step(llama, ids[start : start + 4]) for start in range(0, 48, 4)])
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(48)[None]}
    torch.testing.assert_close(logits, original.forward(inputs)[0][0], atol=TOLERANCE, rtol=0)
    with pytest.raises(CheckError, match="W0602"):
        run_step(llama, [1])


def test_any_wrong_prompt_is_refused_before_anything_runs(llama: Emulator) -> None:
    llama.reset()
    run_step(llama, [5], user=1)
    with pytest.raises(UsageError, match="W0605"):
        generate_together(llama, [Prompt((1, 2), 3), Prompt((1,), CONTEXT)])
    assert llama.tokens(1) == 1
