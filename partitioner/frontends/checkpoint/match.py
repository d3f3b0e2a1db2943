"""Every stored tensor is matched to a parameter of the model, with the encoding that it is stored in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ir.encoding import Encoding
from ir.types import DType
from partitioner.frontends.checkpoint import faults
from partitioner.frontends.checkpoint.folder import Checkpoint
from partitioner.frontends.checkpoint.names import filled, templated
from partitioner.frontends.checkpoint.renaming import Renaming
from partitioner.frontends.checkpoint.schemes import Shape, StoredWeight, stored_weights
from partitioner.frontends.checkpoint.source import Numbered, Source, source_of

_FLOATS = frozenset(dtype.value for dtype in DType if dtype.is_float)
_PLAIN = frozenset(dtype.value for dtype in DType)
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Match:
    """Which stored weights make which parameters.

    Attributes:
        sources: each stored weight that the model uses, once.
        encodings: by name of the model's tensor; names that are tied to a stored one included.
        made: the source by name of the tensor that it makes.
        stored_as: for each name of the model's tensors, the first name of the same tensor that is stored.
        twice: names of tensors that are stored although another stored tensor is tied to them.
        ignored: stored weights that the library's class, or a configuration with further layers for prediction, says
            are no part of the model.
    """

    sources: tuple[Source, ...]
    encodings: Mapping[str, Encoding]
    made: Mapping[str, Source]
    stored_as: Mapping[str, str]
    twice: tuple[str, ...]
    ignored: tuple[StoredWeight, ...]


def match_checkpoint(model: Any, checkpoint: Checkpoint) -> Match:
    """Match a checkpoint to a model of transformers, which may be on the ``meta`` device.

    Raises:
        UnsupportedModelError: W0225 (tensors are left over or missing), W0226 (of another shape), W0227 (an encoding
            that is not known), W0229 (two tensors for one parameter).
    """
    where = str(checkpoint.folder)
    tensors = model.state_dict(keep_vars=True)
    sources = _sources(stored_weights(checkpoint.tensors), Renaming(model), where)
    used = tuple(source for source in sources if source.target in tensors)
    unused = tuple(source for source in sources if source.target not in tensors)
    gaps = {source.target: source.gaps for source in used if source.gaps}
    made = _made([source for source in used if source.target not in gaps], model, tensors, where)
    stored = _stored_names(tensors, {*made, *gaps})
    missing, unexpected = _without_exceptions(
        model, {name for name in tensors if not stored[name]}, {source.target for source in unused}
    )
    left_over = [weight.name for s in unused if s.target in unexpected for weight in s.every_weight()]
    lacking = [*(name for name in tensors if name in missing), *(name for found in gaps.values() for name in found)]
    if left_over or lacking:
        raise faults.not_matched(left_over, lacking, where)
    first = {name: names[0] for name, names in stored.items() if names}
    return Match(
        used,
        {name: _one_encoding(made[own], where) for name, own in first.items()},
        made,
        first,
        tuple(name for name, names in stored.items() if name in names[1:]),
        tuple(weight for source in unused for weight in source.every_weight()),
    )


def _made(sources: Iterable[Source], model: Any, tensors: Tensors, where: str) -> dict[str, Source]:
    """The source of each tensor that ``sources`` make, once it is sure that they make tensors of the model."""
    found: dict[str, Source] = {}
    shapes = _Shapes(model, tensors)
    for source in sources:
        encoding = _one_encoding(source, where)
        made = shapes.of(source, where)
        for name, shape in made.items():
            if name in found:
                raise faults.ambiguous(name, where)
            _require_fit(name, shape, tensors, encoding, where)
            found[name] = source
        _require_same_bytes(source, encoding, made.values(), where)
    return found


def _stored_names(tensors: Tensors, stored: Collection[str]) -> dict[str, list[str]]:
    """For each name of the model, the names of the same tensor (itself, and those tied to it) that are stored."""
    same: defaultdict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if name in stored:
            same[id(tensor)].append(name)
    return {name: same[id(tensor)] for name, tensor in tensors.items()}


def _without_exceptions(model: Any, missing: set[str], unexpected: set[str]) -> tuple[set[str], set[str]]:
    """What is missing and left over once the library's exceptions for the model's class are taken off, and layers
    behind the last one that the configuration counts as there for prediction alone.
    """
    from transformers.utils.loading_report import LoadStateDictInfo

    info = LoadStateDictInfo(
        missing_keys=missing,
        unexpected_keys=unexpected,
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(info)
    text = model.config.get_text_config()
    layers = int(getattr(text, "num_hidden_layers", 0) or 0)
    further = getattr(text, "num_nextn_predict_layers", 0) or 0
    numbers = {str(layers + index) for index in range(further)} if isinstance(further, int) and further < 100 else ()
    kept = {name for name in info.unexpected_keys if not any(f".layers.{n}." in f".{name}" for n in numbers)}
    return info.missing_keys, kept


def _sources(weights: Iterable[StoredWeight], renaming: Renaming, where: str) -> list[Source]:
    by_name = {weight.name: weight for weight in weights}
    found: defaultdict[tuple[str, int], defaultdict[str, list[Numbered]]]
    found = defaultdict(lambda: defaultdict(list))
    for stored, target, pattern, numbers in renaming.rename_all(by_name):
        converter = None if pattern is None else renaming.converter[pattern]
        found[target, id(converter)][pattern or ""].append((tuple(map(int, numbers)), by_name[stored]))
    sources = []
    for (target, _), by_pattern in found.items():
        converter = renaming.converter.get(next(iter(by_pattern)))
        if converter is None and len(by_pattern[""]) > 1:
            raise faults.ambiguous(target, where, [weight.name for _, weight in by_pattern[""]])
        sources.append(source_of(target, by_pattern, converter))
    return sources


def _one_encoding(source: Source, where: str) -> Encoding:
    found = {weight.encoding.name: weight for weight in source.every_weight()}
    if len(found) > 1:
        raise faults.encoding(source.target, f"its parts are stored as {' and '.join(sorted(found))}", where)
    return next(iter(found.values())).encoding


class _Shapes:
    """Shapes that the library's operations give, each kind worked out once on tensors without values."""

    def __init__(self, model: Any, tensors: Tensors) -> None:
        self._model = model
        self._tensors = tensors
        self._known: dict[object, list[tuple[str, Shape]]] = {}

    def of(self, source: Source, where: str) -> dict[str, Shape]:
        """By name of the parameters that ``source`` makes."""
        if source.converter is None:
            return {source.target: next(source.every_weight()).shape}
        target, numbers = templated(source.target)
        parts = tuple((pattern, tuple(w.shape for w in found)) for pattern, found in source.weights.items())
        key = (id(source.converter), target, parts, tuple(self._tensors[source.target].shape))
        if key not in self._known:
            made = [(templated(name), shape) for name, shape in self._made(source, where).items()]
            if any(name[1] != numbers for name, _ in made):
                return {filled(*name): shape for name, shape in made}
            self._known[key] = [(template, shape) for (template, _), shape in made]
        return {filled(template, numbers): shape for template, shape in self._known[key]}

    def _made(self, source: Source, where: str) -> dict[str, Shape]:
        empty: dict[Shape, torch.Tensor] = {}

        def read(weight: StoredWeight) -> torch.Tensor:
            if weight.shape not in empty:
                empty[weight.shape] = torch.empty(weight.shape, device="meta")
            return empty[weight.shape]

        try:
            made = source.values(self._model, read)
        except Exception as error:  # whatever torch or the library say of shapes that do not go together
            absent = [pattern for pattern in source.converter.source_patterns if pattern not in source.weights]
            raise faults.no_fit(source.target, where, str(error), absent) from None
        return {name: tuple(value.shape) for name, value in made.items()}


def _require_fit(name: str, shape: Shape, tensors: Tensors, encoding: Encoding, where: str) -> None:
    if name not in tensors or tuple(tensors[name].shape) != shape:
        wanted = tuple(tensors[name].shape) if name in tensors else None
        raise faults.shape(name, shape, wanted, where)
    if encoding.name in _PLAIN and (encoding.name in _FLOATS) != tensors[name].dtype.is_floating_point:
        raise faults.encoding(name, f"it is stored as {encoding.name}, without scales", where)


def _require_same_bytes(source: Source, encoding: Encoding, shapes: Iterable[Shape], where: str) -> None:
    """The parameters take the bytes that are stored: where parts of them share a scale, that could not be said."""
    if sum(encoding.bytes(shape) for shape in shapes) != source.bytes:
        raise faults.encoding(source.target, f"groups of {encoding.name} reach over the edges of its parts", where)
