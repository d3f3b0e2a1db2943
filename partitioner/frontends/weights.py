"""Where the weights of a plan come from when it is run: nothing is read before it is needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ir.diagnostics import Diagnostic, Fact, UsageError
from ir.graph import Parameter
from partitioner.frontends.lowered import Origin
from targets.emulator.encodings import stacked
from targets.emulator.parts import rows_of
from targets.emulator.seeded import Seeded
from targets.emulator.weights import Plain, Stored, Tensors, WeightSource

_SHARE_OF_MEMORY = 0.75
"""Of the computer's memory, for the weights of a model that is built there whole."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A plan's weights, and where they are from, to be told to users."""

    source: WeightSource
    note: str


def open_weights(
    origin: Origin, parameters: tuple[Parameter, ...], seed: int = 0, *, trust_code: bool = False
) -> Weights:
    """The weights of a plan's ``parameters``: its checkpoint's or its file's; of a configuration without a checkpoint
    those that the library's own model gets at random from ``seed``, or, if it is too large to be built, made ones.

    Whatever can be told from headers is checked here; ``trust_code`` lets a file be opened that can run code.

    Raises:
        UsageError: W0610, random weights that do not fit in this computer's memory; W0611, configuration, checkpoint
            or file are not those of the plan any more; W0612, a model of this kind cannot be found again; W0202 or
            W0203 for ONNX files; W0220 to W0230 for checkpoints.
        UnsupportedModelError: W0225 to W0229 for checkpoints.
    """
    if origin.kind == "config":
        return _of_config(origin, parameters, seed)
    if origin.kind == "onnx":
        return _of_onnx(origin)
    if origin.kind == "exported":
        return _of_program(origin, trust_code=trust_code)
    help_ = ("plans of modules are run from Python: waferc.compile(module, inputs).run(inputs)",)
    raise UsageError(Diagnostic("W0612", f"a plan of kind {origin.kind!r} holds no weights", help=help_))


def fits_memory(needed: int) -> bool:
    """Whether so many bytes of weights fit in this computer's memory with room to spare."""
    return needed <= _allowed_bytes()


def require_memory(needed: int) -> None:
    """Raise W0610 unless so many bytes of weights fit in this computer's memory with room to spare."""
    if not fits_memory(needed):
        facts: dict[str, Fact] = {"bytes_needed": needed, "bytes_allowed": _allowed_bytes()}
        help_ = ("weights of a checkpoint folder are read as they are needed",)
        raise UsageError(Diagnostic("W0610", "the model is too large to be built here whole", facts=facts, help=help_))


def _allowed_bytes() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _SHARE_OF_MEMORY)


def made_weights(parameters: Iterable[Parameter], seed: int) -> Weights:
    """Weights that take no memory: they are made from ``seed`` and their names each time that they are used."""
    return Weights(Seeded({p.name: p for p in parameters}, seed, held=False), f"weights made from seed {seed}")


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    """All parameters and buffers of a module by all of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


# --- configurations of transformers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stacks:
    """Weights that a model keeps apart, one for each expert, under the name ``experts.:.up.weight`` of their stack."""

    apart: WeightSource

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See :class:`WeightSource`."""
        found = self.apart.shape(name)
        if found is not None or name.count(":") != 1:
            return found
        count = 0
        while (each := self.apart.shape(name.replace(":", str(count)))) is not None:
            found, count = (count + 1, *each), count + 1
        return found

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """See :class:`WeightSource`."""
        if self.apart.shape(name) is not None:
            return self.apart.read(name, expert, rows)
        if expert is not None:
            return self.apart.read(name.replace(":", str(expert)), None, rows)
        shape = self.shape(name)
        assert shape is not None, "only weights that have a shape are read"
        parts = [self.apart.read(name.replace(":", str(place))) for place in range(shape[0])]
        whole = stacked(parts) or Plain(torch.stack([part.unpack(torch.float32, "cpu") for part in parts]))
        return whole if rows is None else rows_of(whole, rows)


@dataclass(frozen=True, slots=True)
class _Either:
    """Weights of ``first``, and of ``second`` those that it lacks."""

    first: WeightSource
    second: WeightSource

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See :class:`WeightSource`."""
        return self.first.shape(name) or self.second.shape(name)

    def read(self, name: str, expert: int | None = None, rows: range | None = None) -> Stored:
        """See :class:`WeightSource`."""
        source = self.second if self.first.shape(name) is None else self.first
        return source.read(name, expert, rows)


def _of_config(origin: Origin, parameters: tuple[Parameter, ...], seed: int) -> Weights:
    from partitioner.frontends.huggingface import build_model

    model = build_model(origin.config, torch.device("meta"))
    _require_same(parameters, _Stacks(Tensors(tensors_of(model))))
    stored = _of_checkpoint(origin, model, parameters) if origin.path else None
    if stored is not None and not (lacking := [p for p in parameters if stored.shape(p.name) is None]):
        return Weights(stored, f"weights from {origin.path}")
    if stored is None and not fits_memory(sum(tensor.nbytes for tensor in model.state_dict().values())):
        return made_weights(parameters, seed)
    random = _Stacks(Tensors(_random(origin, model, seed)))
    if stored is None:
        return Weights(random, f"random weights from seed {seed}")
    # The library's class says that these may be missing: it makes them as it makes random ones.
    return Weights(_Either(stored, random), f"weights from {origin.path}, but for {len(lacking)}")


def _random(origin: Origin, meta: Any, seed: int) -> Mapping[str, torch.Tensor]:
    """What the library's own model gets at random from ``seed``; it is built whole."""
    from partitioner.frontends.huggingface import build_model

    require_memory(sum(tensor.nbytes for tensor in meta.state_dict().values()))
    torch.manual_seed(seed)
    built = tensors_of(build_model(origin.config, torch.device("cpu")))
    return {name: tensor.detach() for name, tensor in built.items()}


def _require_same(parameters: Iterable[Parameter], built: WeightSource) -> None:
    """Refuse a configuration that builds another model than the plan's, before any memory is taken for it."""
    for parameter in parameters:
        shape = built.shape(parameter.name)
        if shape != parameter.shape:
            facts: dict[str, Fact] = {"planned": str(parameter.shape), "built": str(shape)}
            raise UsageError(Diagnostic("W0611", "the configuration is not that of the plan", parameter.name, facts))


def _of_checkpoint(origin: Origin, model: Any, parameters: tuple[Parameter, ...]) -> WeightSource | None:
    """The weights in the plan's folder; ``None`` where it holds none."""
    from partitioner.frontends.checkpoint import match_checkpoint, open_checkpoint, open_checkpoint_weights

    folder = Path(origin.path)
    if not folder.is_dir():
        raise UsageError(Diagnostic("W0611", "the checkpoint's folder is not there any more", str(folder)))
    checkpoint = open_checkpoint(folder)
    if checkpoint is None:
        if origin.stored:
            raise UsageError(Diagnostic("W0611", "the checkpoint's weights are not there any more", str(folder)))
        return None
    match = match_checkpoint(model, checkpoint)
    for parameter in parameters:
        stored = match.encodings.get(parameter.name.replace(":", "0"), parameter.encoding)
        if stored != parameter.encoding:
            facts: dict[str, Fact] = {"planned": parameter.encoding.name, "stored": stored.name}
            message = "the checkpoint has changed since it was compiled"
            raise UsageError(Diagnostic("W0611", message, parameter.name, facts))
    return _Stacks(open_checkpoint_weights(model, match))


# --- files ----------------------------------------------------------------------------------------------------------


def require_unchanged(origin: Origin, what: str) -> Path:
    """The file of ``origin``; W0611 unless it is what was compiled."""
    path = Path(origin.path)
    try:
        with path.open("rb") as file:
            changed = hashlib.file_digest(file, "sha256").hexdigest() != origin.sha256
    except OSError as error:
        raise UsageError(Diagnostic("W0611", f"the {what} cannot be read: {error.strerror}", origin.path)) from None
    if changed:
        raise UsageError(Diagnostic("W0611", f"the {what} has changed since it was compiled", origin.path))
    return path


def _of_program(origin: Origin, *, trust_code: bool) -> Weights:
    from partitioner.frontends.program import lower_program, open_program

    path = require_unchanged(origin, "program")
    program = open_program(path, trust_code=trust_code)
    return Weights(Tensors(lower_program(program, path.stem, origin).weights), f"weights from {origin.path}")


def _of_onnx(origin: Origin) -> Weights:
    from partitioner.frontends.onnx_file.weights import open_onnx_weights

    return Weights(open_onnx_weights(require_unchanged(origin, "ONNX file")), f"weights from {origin.path}")
