"""A folder of the user's that remembers what was derived from a model, by everything that decided the result.

The folder is ``$WAFERC_CACHE``, else ``waferc`` in ``$XDG_CACHE_HOME`` (XDG Base Directory Specification), else
``~/.cache/waferc``. With ``WAFERC_CACHE=`` nothing is remembered. A folder that cannot be read or written is as good as
none: what is remembered only saves time.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from partitioner.frontends.catalog import source
from partitioner.version import VERSION

_LIBRARIES = ("torch", "transformers", "onnx", "networkx")
"""That have a say in what a graph looks like and how it is cut."""
_OURS = ("ir", "partitioner")
_MOST_BYTES = 256 << 20
"""Of one file that is read whole; larger ones are not remembered."""
_MOST_ENTRIES = 10_000


class _NotKnownError(Exception):
    """What a model is made from cannot be told cheaply and completely."""


def key_of(model: str, fix: Mapping[str, int], parts: Sequence[str]) -> str | None:
    """A digest of all that decides what the model that the user names is lowered to: its files as far as they are read,
    the options, and the versions of waferc, its sources and the libraries that it calls.

    ``None`` for what cannot be known from a few files: weights outside of an ONNX file, indexes that point to other
    folders, ``.pt2`` programs, which are only opened with leave, and all that is not there.
    """
    digest = hashlib.sha256()
    try:
        for part in (*_tool(), repr(sorted(fix.items())).encode(), repr(tuple(parts)).encode(), *_model(model)):
            digest.update(struct.pack("<Q", len(part)))
            digest.update(part)
    except (_NotKnownError, OSError, PackageNotFoundError, ValueError):
        return None
    return digest.hexdigest()


def read(key: str) -> bytes | None:
    """What is remembered under ``key``."""
    folder = _folder()
    try:
        return folder.joinpath(f"{key}.json").read_bytes() if folder else None
    except OSError:
        return None


def write(key: str, data: bytes) -> None:
    """Remember ``data`` under ``key``: written beside and renamed, so that nobody reads half of it."""
    folder = _folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{key}-", delete=False) as file:
            fresh = Path(file.name)
            try:
                file.write(data)
                file.flush()
                fresh.replace(folder / f"{key}.json")
            except OSError:
                fresh.unlink(missing_ok=True)
    except OSError:
        return


def _folder() -> Path | None:
    named = os.environ.get("WAFERC_CACHE")
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification wants relative paths to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "waferc"
    except RuntimeError:  # the user has no home
        return None


# --- what decides the result ----------------------------------------------------------------------------------------


def _tool() -> Iterator[bytes]:
    yield VERSION.encode()
    for library in _LIBRARIES:
        yield version(library).encode()
    root = Path(__file__).parent.parent
    for package in _OURS:
        sources = sorted((root / package).rglob("*.py"))
        if not sources:
            raise _NotKnownError
        for path in sources:
            yield str(path.relative_to(root)).encode()
            yield path.read_bytes()


def _model(model: str) -> Iterator[bytes]:
    described = source(model)
    if described is not None:
        yield model.encode()
        yield described
        return
    path = Path(model)
    yield str(path.resolve()).encode()
    if path.is_dir():
        yield from _of_folder(path)
    elif path.suffix == ".json":
        yield _whole(path)
    elif path.suffix == ".pt2":
        raise _NotKnownError
    else:
        data = _whole(path)
        # A tensor of ONNX that lies in another file says where under this key (onnx.proto, TensorProto.external_data).
        if b"location" in data:
            raise _NotKnownError
        yield data


def _of_folder(folder: Path) -> Iterator[bytes]:
    """What is read of a checkpoint's folder: its configuration, the index of its files, and their headers."""
    entries = sorted(folder.iterdir())
    if len(entries) > _MOST_ENTRIES:
        raise _NotKnownError
    for path in entries:
        yield path.name.encode()
        if path.name == "config.json":
            yield _whole(path)
        elif path.name.endswith(".safetensors.index.json"):
            index = _whole(path)
            # Files in other folders, or names that are written in another way than they read.
            if b"/" in index or b"\\" in index:
                raise _NotKnownError
            yield index
        elif path.name.endswith(".safetensors"):
            yield from _header(path)


def _header(path: Path) -> Iterator[bytes]:
    """Size and header of a safetensors file: eight bytes for the header's length, then the header."""
    if not path.is_file():
        raise _NotKnownError
    yield str(path.stat().st_size).encode()
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if length > _MOST_BYTES:
            raise _NotKnownError
        yield file.read(length)


def _whole(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise _NotKnownError
    return path.read_bytes()
