"""Texts as token ids, by the tokenizer that lies beside a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from partitioner.frontends.lowered import Origin

_FILE = "tokenizer.json"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer that was read from its file, which is data and runs nothing."""

    tokenizer: Any

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of ``text``, with those that the tokenizer itself puts before or after it.

        Raises:
            UsageError: W0604, it is no text, as its bytes are not UTF-8.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(Diagnostic("W0604", "the prompt is no text: its bytes are not UTF-8", "--prompt"))
        return tuple(self.tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``."""
        return str(self.tokenizer.decode(list(ids)))


def open_words(origin: Origin) -> Words:
    """The tokenizer in the checkpoint's folder of a plan.

    Raises:
        UsageError: W0664, there is none, or it cannot be read.
    """
    path = Path(origin.path) / _FILE
    help_ = ("give the prompt as --prompt-ids",)
    if origin.kind != "config" or not origin.path or not path.is_file():
        raise UsageError(Diagnostic("W0664", f"the plan is of no folder with a {_FILE}", origin.path, help=help_))
    from tokenizers import Tokenizer

    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is larger than 256 MiB")
        return Words(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare exceptions
        reason = " ".join(str(error).split())[:200]
        raise UsageError(Diagnostic("W0664", f"{_FILE} cannot be read: {reason}", str(path), help=help_)) from None
