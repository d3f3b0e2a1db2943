"""What a run has finished, kept beside it: enough to go on after a process was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ir.diagnostics import Diagnostic, UsageError
from partitioner.replaced import fault_of, replace_file

_MOST_BYTES = 64 << 20
_START = b'{"plan":'


class RunState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the tokens of a run, and those that are finished.

    Attributes:
        plan: SHA-256 of the plan's manifest, which names all its files by theirs.
        seed: of random weights.
        precision: what the run computes in.
        prompts: token ids of each user's prompt.
        tokens: those finished so far of each user.
    """

    plan: str
    seed: int
    precision: str
    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    version: int = 1

    def require_tokens_below(self, vocabulary: int, where: str) -> None:
        """Refuse a state with tokens that no model of so many tokens yields.

        Raises:
            UsageError: W0652, there is one.
        """
        if not all(0 <= token < vocabulary for user in self.tokens for token in user):
            raise _damaged(Path(where), f"a token is outside the vocabulary of {vocabulary}")

    def require_same_run(self, other: RunState, where: str) -> None:
        """Refuse to go on from this state with ``other``.

        Raises:
            UsageError: W0653, it is of another plan, seed, precision or prompt.
        """
        names = ("plan", "seed", "precision", "prompts")
        if different := [name for name in names if getattr(self, name) != getattr(other, name)]:
            message = f"the state is of another run: not of the same {' and '.join(different)}"
            help_ = ("run without --resume to begin anew",)
            raise UsageError(Diagnostic("W0653", message, where, help=help_))


def read_state(path: Path) -> RunState:
    """The state in a file.

    Raises:
        UsageError: W0652, there is none, or it is damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise _damaged(path, "it is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise _damaged(path, "it is larger than any state")
        state = msgspec.json.decode(path.read_bytes(), type=RunState)
    except FileNotFoundError:
        help_ = ("a state is kept while tokens are generated, and removed once all are there",)
        raise UsageError(Diagnostic("W0652", "there is no run to go on with", str(path), help=help_)) from None
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from None
    if state.version != 1 or len(state.tokens) != len(state.prompts):
        raise _damaged(path, "its version is unknown, or users are missing")
    return state


def _damaged(path: Path, reason: str) -> UsageError:
    return UsageError(Diagnostic("W0652", f"the state of the run cannot be read: {reason}", str(path)))


@dataclass(slots=True)
class Keeper:
    """Writes the state of a run to ``path`` after every token. What stands there is always whole.

    ``must`` says whether it is an error where that cannot be; without, nothing is kept then.
    """

    path: Path
    state: RunState
    must: bool
    _tokens: list[list[int]] = field(default_factory=list)

    def begin(self) -> None:
        """Write the state as it is.

        Raises:
            UsageError: W0654, it cannot be written and ``must`` be, or something else than a state stands there.
        """
        if self.must and (reason := fault_of(self.path, _START, "the state of a run")):
            raise self._unwritable(reason)
        self._tokens = [list(tokens) for tokens in self.state.tokens]
        self._write()

    def add(self, user: int, place: int, token: int) -> None:
        """A user's new token number ``place`` is finished; raises as :meth:`begin` does."""
        mine = self._tokens[user]
        if place == len(mine):
            mine.append(token)
            self._write()

    def end(self) -> None:
        """All is done: remove a state that nobody asked to keep."""
        if not self.must:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        state = msgspec.structs.replace(self.state, tokens=tuple(map(tuple, self._tokens)))
        try:
            replace_file(self.path, msgspec.json.encode(state))
        except OSError as error:
            if self.must:
                raise self._unwritable(str(error.strerror)) from None

    def _unwritable(self, reason: str) -> UsageError:
        return UsageError(Diagnostic("W0654", f"the state of the run cannot be written: {reason}", str(self.path)))


def finished_of(state: RunState, tokens: int) -> Sequence[Sequence[int]]:
    """The tokens that are finished of each user, ``tokens`` at most."""
    return [user[:tokens] for user in state.tokens]
