"""A checkpoint folder: which files hold the weights, and the tensors that their headers name.

Nothing outside of the folder is opened, nothing is unpickled, and no code is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ir.diagnostics import Diagnostic, Fact, UsageError
from partitioner.frontends.checkpoint.headers import StoredTensor, malformed, open_regular, read_header

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_INDEX_BYTES = 100_000_000
_MOST_FILES = 10_000
_MOST_TENSORS = 2_000_000


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder, in the order of its files and of their bytes."""

    folder: Path
    files: tuple[Path, ...]
    tensors: tuple[StoredTensor, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)


def open_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in ``folder``; ``None`` where the folder holds no weights in any form.

    The files are those that ``model.safetensors.index.json`` names; without it ``model.safetensors``; without that
    every ``*.safetensors``.

    Raises:
        UsageError: W0220 (weights are there as pickles alone), W0221 and W0222 (a file is not what its name says),
            W0223 (a file lies outside of the folder), W0224 (the index contradicts the files), W0228 (too large),
            W0229 (a tensor is stored twice).
    """
    index = folder / INDEX
    if index.exists() or index.is_symlink():
        located = _read_index(index)
        names = sorted(set(located.values()))
    else:
        located, names = {}, _without_index(folder)
    if not names:
        return None
    if len(names) > _MOST_FILES:
        raise _too_large("files", len(names), _MOST_FILES, folder)
    files = tuple(_inside(folder, name) for name in names)
    tensors = tuple(_all_tensors(files, folder))
    _require_located(located, tensors, index)
    return Checkpoint(folder, files, tensors)


def holds_weights(folder: Path) -> bool:
    """Whether there is a checkpoint in ``folder``; raises W0220 as :func:`open_checkpoint` does."""
    return (folder / INDEX).exists() or bool(_without_index(folder))


def _without_index(folder: Path) -> list[str]:
    single = folder / _SINGLE
    if single.exists() or single.is_symlink():
        return [_SINGLE]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and not names:
        help_ = ("convert the weights to safetensors: model.save_pretrained(folder) of transformers writes them",)
        facts: dict[str, Fact] = {"files": len(pickles), "first": pickles[0]}
        message = "the folder's weights are pickles, which run code when they are read: they are never opened"
        raise UsageError(Diagnostic("W0220", message, str(folder), facts, help_))
    return names


def _read_index(index: Path) -> Mapping[str, str]:
    """File by name of tensor."""
    _inside(index.parent, index.name)
    with open_regular(index) as file:
        text = file.read(_MOST_INDEX_BYTES + 1)
    if len(text) > _MOST_INDEX_BYTES:
        raise _too_large("bytes of an index", len(text), _MOST_INDEX_BYTES, index)
    try:
        located = msgspec.json.decode(text, type=_Index).weight_map
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise malformed(f"the index has no weight_map from tensors to files: {str(error)[:200]}", index) from None
    if not located:
        raise malformed("the index names no tensor", index)
    return located


def _inside(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``, which lies there in truth, or where the hub's cache keeps what it links to.

    Raises:
        UsageError: W0223 or W0224.
    """
    if Path(name).name != name or not name.isprintable():
        raise _outside(folder, name)
    try:
        true = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):
        message = f"the file {name} is missing"
        help_ = ("download the file again; without all of its files a checkpoint cannot be planned",)
        raise UsageError(Diagnostic("W0224", message, str(folder), help=help_)) from None
    if true.parent not in _homes(folder.resolve()):
        raise _outside(folder, name)
    return folder / name


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where a folder's files may lie. The hub's cache has ``models--NAME/snapshots/REVISION``, a folder of links to
    ``models--NAME/blobs`` (huggingface_hub, "Understand caching").
    """
    model = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and model.name.startswith("models--")
    return (folder, model / "blobs") if is_snapshot else (folder,)


def _all_tensors(files: tuple[Path, ...], folder: Path) -> Iterator[StoredTensor]:
    seen: set[str] = set()
    for file in files:
        tensors = read_header(file)
        for tensor in tensors:
            if tensor.name in seen:
                message = f"{tensor.name!r} is stored in several files"
                raise UsageError(Diagnostic("W0229", message, str(file)))
            seen.add(tensor.name)
        if len(seen) > _MOST_TENSORS:
            raise _too_large("tensors", len(seen), _MOST_TENSORS, folder)
        yield from tensors


def _require_located(located: Mapping[str, str], tensors: tuple[StoredTensor, ...], index: Path) -> None:
    """Refuse an index that names a tensor which its file does not hold; files may hold more than it names."""
    found = {tensor.name: tensor.file.name for tensor in tensors}
    wrong = [name for name, file in located.items() if found.get(name) != file]
    if wrong:
        facts: dict[str, Fact] = {"tensors": len(wrong), "first": wrong[0][:200], "file": located[wrong[0]]}
        raise UsageError(Diagnostic("W0224", "the index names tensors that its files do not hold", str(index), facts))


def _outside(folder: Path, name: str) -> UsageError:
    message = f"{name[:200]!r} leads outside of the checkpoint's folder, where nothing is read"
    help_ = ("copy the files themselves into one folder (cp -rL follows links)",)
    return UsageError(Diagnostic("W0223", message, str(folder), help=help_))


def _too_large(what: str, count: int, most: int, where: Path) -> UsageError:
    facts: dict[str, Fact] = {what.replace(" ", "_"): count, "most": most}
    return UsageError(Diagnostic("W0228", f"the checkpoint has too many {what}", str(where), facts))
