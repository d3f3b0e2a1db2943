"""The page that a command writes where the user wants it, of a plan or of why there is none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ir.diagnostics import Diagnostic, InfeasibleError, TimeLimitError, UsageError
from partitioner.replaced import fault_of
from partitioner.viewer.failure import render_failure

_START = b"<!doctype html>"


@contextmanager
def page_of_failure(path: Path | None) -> Iterator[None]:
    """Write the page of a placement that turns out not to exist, or not to be found, to ``path``, if there is one.

    Raises:
        UsageError: W0105, it cannot be written, or is something else than a page; told before work begins.
    """
    if path is not None:
        _refuse_foreign(path)
    try:
        yield
    except (InfeasibleError, TimeLimitError) as error:
        if path is not None and error.diagnostics[0].explanation is not None:
            write_page(path, render_failure(error.diagnostics[0]))
        raise


def write_page(path: Path, page: str) -> None:
    """Write ``page`` whole or not at all; an older page is replaced.

    Raises:
        UsageError: W0105, it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as room:
            fresh = Path(room) / "page"
            fresh.write_text(page, encoding="utf-8")
            fresh.replace(path)
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from None


def _refuse_foreign(path: Path) -> None:
    if reason := fault_of(path, _START, "a page"):
        raise _unwritable(path, reason)


def _unwritable(path: Path, reason: str) -> UsageError:
    return UsageError(Diagnostic("W0105", f"the report cannot be written: {reason}", repr(str(path))))
