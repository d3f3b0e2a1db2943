"""Drafts change how many steps a text takes and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from families import CONTEXT, Mesh, compare, original_of, plan_over, prompts_of
from test_huggingface import Siblings

from ir.diagnostics import UsageError
from ir.workload import Workload
from partitioner.compile import build_model
from partitioner.frontends.original import Original
from targets.emulator import DraftModel, Emulator, Prompt, PromptLookup, generate, generate_together

NEW = 24
Made = Callable[..., tuple[Emulator, Original]]


class Oracle:
    """Knows each text beforehand, and says something else with the given chance."""

    vocabulary: int | None = None

    def __init__(self, texts: Sequence[Sequence[int]], chance_of_error: float) -> None:
        self.texts = texts
        self.chance = chance_of_error
        self.draw = random.Random(1)

    def propose(self, number: int, text: Sequence[int], count: int) -> list[int]:
        right = self.texts[number][len(text) : len(text) + count]
        return [(token + 1) % 97 if self.draw.random() < self.chance else token for token in right]


@pytest.fixture(scope="module")
def emulator_of(lowered_sibling: Siblings) -> Made:
    """A family on three wafers and its original; ``others`` are users, context and chunk."""
    made: dict[tuple[object, ...], tuple[Emulator, Original]] = {}

    def of(name: str, users: int = 1, context: int = CONTEXT, chunk: int = 8, seed: int = 0):
        key = (name, users, context, chunk, seed)
        if key not in made:
            lowered = lowered_sibling(name)
            model, original = build_model(lowered.graph), original_of(lowered, seed)
            plan = plan_over(model, Mesh(3), Workload(users, context, chunk))
            made[key] = Emulator(model, plan, original.weights), original
        return made[key]

    return of


# Plain attention, windows with sinks, windows of all layers, latent caches, and chunks.
@pytest.mark.parametrize("name", ["qwen2", "gpt_oss", "phi3", "deepseek_v3", "llama4_text"])
@pytest.mark.parametrize("chance_of_error", [0.0, 0.4, 1.0], ids=["good", "mixed", "bad"])
def test_the_text_is_the_same_whatever_is_guessed(name: str, chance_of_error: float, emulator_of: Made) -> None:
    emulator, original = emulator_of(name)
    (prompt,) = prompts_of((11,), NEW, seed=1)
    plain = generate(emulator, prompt.ids, NEW)
    draft = Oracle([[*prompt.ids, *plain.tokens]], chance_of_error)
    made = generate(emulator, prompt.ids, NEW, draft, draft_tokens=4)
    compare(original, prompt, made)
    assert made.tokens == plain.tokens
    assert emulator.tokens() == 0, "a user whose text is done leaves nothing behind"
    if chance_of_error == 0:
        assert made.accepted == made.proposed == NEW - len(made.counters)
        assert len(made.counters) == -(-NEW // 5)
    elif chance_of_error == 1:
        assert (made.accepted, len(made.counters)) == (0, NEW)
    else:
        assert 0 < made.accepted < made.proposed
        assert len(made.counters) == NEW - made.accepted < NEW


@pytest.mark.parametrize("chunk", [1, 3])
def test_guesses_beyond_the_chunk_wait_for_the_next_step(chunk: int, emulator_of: Made) -> None:
    emulator, _ = emulator_of("qwen2", chunk=chunk)
    (prompt,) = prompts_of((4,), NEW, seed=1)
    plain = generate(emulator, prompt.ids, NEW)
    good = Oracle([[*prompt.ids, *plain.tokens]], 0.0)
    made = generate(emulator, prompt.ids, NEW, good, draft_tokens=8)
    assert made.tokens == plain.tokens
    assert len(made.counters) == -(-NEW // chunk)


def test_text_and_guesses_end_with_the_context(emulator_of: Made) -> None:
    emulator, _ = emulator_of("qwen2", context=12, chunk=16)
    (prompt,) = prompts_of((5,), 7, seed=2)
    plain = generate(emulator, prompt.ids, 7)
    made = generate(emulator, prompt.ids, 7, Oracle([[*prompt.ids, *plain.tokens, 1, 2, 3]], 0.0), draft_tokens=9)
    assert made.tokens == plain.tokens
    assert (made.accepted, len(made.counters)) == (6, 1)


@pytest.mark.parametrize("name", ["qwen2", pytest.param("gpt_oss", marks=pytest.mark.long)])
def test_a_model_drafts_for_several_users_at_once(name: str, emulator_of: Made) -> None:
    """The same weights guess all tokens, others hardly any; the draft has fewer places than there are texts."""
    emulator, _ = emulator_of(name, users=3, context=48)
    prompts = prompts_of((9, 2, 5, 1), 12, seed=3)
    plain, _ = generate_together(emulator, prompts)
    for seed, accepts in ((0, True), (9, False)):
        draft = DraftModel(emulator_of(name, users=2, context=48, seed=seed)[0])
        made, ticks = generate_together(emulator, prompts, draft, 4)
        assert [text.tokens for text in made] == [text.tokens for text in plain]
        proposed, accepted = sum(t.proposed for t in made), sum(t.accepted for t in made)
        assert (accepted == proposed) if accepts else (accepted < proposed / 2)
        assert all(len(text.counters) + text.accepted == 12 for text in made)
        assert max(map(len, ticks)) == 3


def test_a_draft_with_a_shorter_context_falls_silent(emulator_of: Made) -> None:
    emulator, _ = emulator_of("qwen2")
    draft = DraftModel(emulator_of("qwen2", context=12)[0])
    (prompt,) = prompts_of((5,), NEW, seed=4)
    made = generate(emulator, prompt.ids, NEW, draft)
    assert made.tokens == generate(emulator, prompt.ids, NEW).tokens
    assert 0 < made.accepted == made.proposed <= 9


def test_looking_up_the_prompt() -> None:
    look_up = PromptLookup(longest=2)
    assert look_up.propose(0, [1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert look_up.propose(0, [1, 2, 3, 2, 9, 7, 2], 4) == [9, 7, 2]
    assert look_up.propose(0, [5, 5], 4) == [5]
    assert look_up.propose(0, [1, 2, 3], 4) == []
    assert look_up.propose(0, [1], 4) == []


def test_what_was_said_before_is_guessed(emulator_of: Made) -> None:
    emulator, _ = emulator_of("qwen2")
    prompt = Prompt([7, 8, 9, 10] * 3, NEW)
    plain = generate(emulator, prompt.ids, NEW)
    made = generate(emulator, prompt.ids, NEW, PromptLookup())
    assert made.tokens == plain.tokens
    assert made.proposed > 0
    assert len(made.counters) == NEW - made.accepted


def test_a_draft_of_another_vocabulary_is_refused(emulator_of: Made) -> None:
    emulator, _ = emulator_of("qwen2")
    assert DraftModel(emulator).vocabulary == 97
    draft = Oracle([[]], 0.0)
    draft.vocabulary = 98
    with pytest.raises(UsageError, match="W0670"):
        generate(emulator, [1], 2, draft)
