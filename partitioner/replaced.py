"""Files that a command writes where the user wants them: an older one of the same kind is replaced, nothing else is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def fault_of(path: Path, start: bytes, kind: str) -> str | None:
    """Why a file of ``kind``, which begins with ``start`` in any case, cannot be put at ``path``, if so."""
    try:
        if not path.parent.is_dir():
            return f"{path.parent} is no folder"
        if path.exists() and (not path.is_file() or not _begins(path, start)):
            return f"something else than {kind} stands there"
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return str(error)
    return None


def _begins(path: Path, start: bytes) -> bool:
    """Whether a file begins so, or is empty."""
    with path.open("rb") as file:
        return file.read(len(start)).lower() in (b"", start.lower())


def replace_file(path: Path, data: bytes) -> None:
    """Write beside ``path`` and rename, so that a reader never sees a part.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
