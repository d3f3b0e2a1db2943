"""The order in which processes run the parts of all steps: the same for all, known beforehand.

Users pass one after the other: while a process runs one user's step, the one before it in the pipeline runs the next
user's. Every process takes its own parts of one common order, and only sending never waits; so whichever part comes
first of those that are left can always run, and no process waits in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from targets.emulator.distributed.route import Route

Tensor = torch.Tensor
Round = tuple["Item", ...]
"""Steps that may be under way at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One step of one user, of so many tokens as ``inputs`` have.

    Attributes:
        index: its number among all.
        place: which of the user's new tokens it leads to; pieces of a prompt share it.
        remembered: tokens of the user that have passed before it.
        awaits: whether its token id is chosen by the user's step before it.
        chooses: whether the next token is chosen from its result.
        continues: whether a later step reads that token.
        gives: whether all that the graph yields is wanted.
    """

    index: int
    user: int
    place: int
    remembered: int
    inputs: Mapping[str, Tensor]
    bindings: Mapping[str, int]
    awaits: bool = False
    chooses: bool = False
    continues: bool = False
    gives: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What one user asks for: ``pieces`` of token ids that are known, one step each, and tokens in all to ``choose``,
    ``chosen`` of which are known already and stand in the pieces.
    """

    pieces: tuple[tuple[int, ...], ...]
    chosen: int
    choose: int


def in_pieces(
    prompt: Sequence[int], finished: Sequence[int], chunk: int, *, one_by_one: bool = False
) -> list[tuple[int, ...]]:
    """A prompt and what followed it, in pieces of at most ``chunk`` tokens; ``one_by_one``: what followed apart."""
    known = list(prompt) if one_by_one else [*prompt, *finished]
    pieces = [tuple(known[start : start + chunk]) for start in range(0, len(known), chunk)]
    return pieces + ([(token,) for token in finished] if one_by_one else [])


def plan_rounds(asked: Sequence[Asked], names: Sequence[str], routes: Sequence[Route]) -> tuple[Round, ...]:
    """All steps that users' wishes take, for graph inputs ``names`` (of token ids and positions).

    What is known passes in one round, and then each round has a new token of each user. Where a step comes back to a
    process, a user's pieces are rounds apart, as each must have passed before the next one enters.
    """
    drafts: list[list[tuple[int, int]]] = []
    apart = any(route.returns for route in routes)
    wanting = [user for user, wish in enumerate(asked) if wish.chosen < wish.choose]
    for piece in range(max((len(asked[user].pieces) for user in wanting), default=0)):
        of_piece = [(user, piece) for user in wanting if piece < len(asked[user].pieces)]
        if apart or not drafts:
            drafts.append(of_piece)
        else:
            drafts[0] += of_piece
    further = max((asked[user].choose - asked[user].chosen for user in wanting), default=0)
    for token in range(1, further):
        each = [user for user in wanting if asked[user].chosen + token < asked[user].choose]
        drafts.append([(user, len(asked[user].pieces) + token - 1) for user in each])
    numbers = iter(range(sum(map(len, drafts))))
    return tuple(tuple(_item(next(numbers), user, step, asked[user], names) for user, step in d) for d in drafts)


def _item(index: int, user: int, step: int, wish: Asked, names: Sequence[str]) -> Item:
    known = len(wish.pieces)
    awaits = step >= known
    ids = (0,) if awaits else wish.pieces[step]
    seen = sum(map(len, wish.pieces[:step])) + max(0, step - known)
    tensors = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(seen, seen + len(ids))[None]}
    place = wish.chosen + max(0, step - known + 1)
    inputs = {name: tensors[name] for name in names}
    chooses = step >= known - 1
    continues = chooses and place + 1 < wish.choose
    return Item(index, user, place, seen, inputs, {"users": 1, "tokens": len(ids)}, awaits, chooses, continues)


def in_order(rounds: Sequence[Round], routes: Sequence[Route]) -> Iterator[tuple[int, Item, int]]:
    """Each part of each step as round, step and segment, in the order in which processes run them."""
    for number, items in enumerate(rounds):
        parts = [
            (place + segment, place, segment)
            for place, item in enumerate(items)
            for segment in range(len(routes[item.user % len(routes)].segments))
        ]
        for _, place, segment in sorted(parts):
            yield number, items[place], segment
