"""Profiles as files, and the ways to a model's profile, the fastest first: bundled, remembered, lowered.

A file holds what its profile was made from, a digest, and the profile in JSON. Layers repeat, so what several blocks
have in common is written once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from ir.model import BlockKind
from ir.profile import (
    Attention,
    BlockProfile,
    CacheProfile,
    FlowProfile,
    Kernel,
    Product,
    Profile,
    Reduction,
)
from partitioner import remembered
from partitioner.frontends.catalog import bundled_profile, source
from partitioner.frontends.load import TEXT_ALONE
from partitioner.options import LoadOptions


def load_profile(model: str, options: LoadOptions) -> Profile:
    """The profile of the model that the user names.

    Bundled models have bundled profiles, for the options that everybody starts with; what else was lowered once is
    remembered (see :mod:`partitioner.remembered`). In both cases neither torch nor transformers is imported.

    Raises:
        WafercError: what :func:`partitioner.api.lower` and :func:`partitioner.compile.build_model` raise.
    """
    if not options.fix and options.parts == TEXT_ALONE:
        profile = _bundled(model)
        if profile is not None:
            return profile
    key = remembered.key_of(model, options.fix, options.parts)
    found = remembered.read(key) if key else None
    profile = decode_profile(found, key) if found and key else None
    if profile is None:
        profile = lower_profile(model, options)
        if key:
            remembered.write(key, encode_profile(profile, key))
    return profile


def lower_profile(model: str, options: LoadOptions) -> Profile:
    """The profile of the model that the user names, made from its graph.

    Raises:
        WafercError: what :func:`partitioner.api.lower` and :func:`partitioner.compile.build_model` raise.
    """
    # Imported here, as most forecasts need none of it.
    from partitioner.api import lower
    from partitioner.compile import build_model
    from partitioner.passes.profile import profile_of

    lowered = lower(model, options)
    return profile_of(build_model(lowered.graph), lowered.max_context)


def bundle(model: str) -> bytes | None:
    """The file of a bundled model's profile, made anew; ``None`` if there is no bundled model of that name."""
    description = source(model)
    if description is None:
        return None
    return encode_profile(lower_profile(model, LoadOptions()), hashlib.sha256(description).hexdigest())


def _bundled(model: str) -> Profile | None:
    """The bundled profile, if there is one, made from the model's description as it is."""
    description, data = source(model), bundled_profile(model)
    if description is None or data is None:
        return None
    return decode_profile(data, hashlib.sha256(description).hexdigest())


# --- the file -------------------------------------------------------------------------------------------------------


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    made_from: str
    sha256: str
    profile: msgspec.Raw


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A block without its name and layer; ``order`` has a letter for each of its kernels."""

    kind: BlockKind
    weight_bytes: int
    experts: int
    active_experts: int
    caches: tuple[CacheProfile, ...]
    live_bytes_per_token: int
    takes_tokens: bool
    elementwise: int
    order: str
    products: tuple[Product, ...]
    attentions: tuple[Attention, ...]
    reductions: tuple[Reduction, ...]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A profile: blocks are a name, a layer and the index of a body, flows a source, a target and bytes."""

    name: str
    max_context: int | None
    parameters: int
    bodies: tuple[_Body, ...]
    blocks: tuple[tuple[str, int | None, int], ...]
    flows: tuple[tuple[int, int, int], ...]
    items: tuple[tuple[int, ...], ...]


def encode_profile(profile: Profile, made_from: str) -> bytes:
    """The file of ``profile``; ``made_from`` tells apart what it may be made from."""
    places: dict[_Body, int] = {}
    blocks = tuple((block.name, block.layer, places.setdefault(_body(block), len(places))) for block in profile.blocks)
    content = _Content(
        name=profile.name,
        max_context=profile.max_context,
        parameters=profile.parameters,
        bodies=tuple(places),
        blocks=blocks,
        flows=tuple((flow.source, flow.target, flow.bytes_per_token) for flow in profile.flows),
        items=profile.items,
    )
    data = msgspec.json.encode(content)
    return msgspec.json.encode(_File(made_from, hashlib.sha256(data).hexdigest(), msgspec.Raw(data))) + b"\n"


def decode_profile(data: bytes, made_from: str) -> Profile | None:
    """The inverse of :func:`encode_profile`; ``None`` where the file is damaged, of another form, or made from
    something else. A profile can always be made again, so none of this is an error.
    """
    try:
        file = msgspec.json.decode(data, type=_File)
        if file.made_from != made_from or hashlib.sha256(bytes(file.profile)).hexdigest() != file.sha256:
            return None
        return _profile(msgspec.json.decode(file.profile, type=_Content))
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, StopIteration):
        return None


def _profile(content: _Content) -> Profile:
    """The profile that a file holds.

    Raises:
        LookupError: a kernel, a body or a block is missing.
    """
    blocks = tuple(_block(name, layer, content.bodies[index]) for name, layer, index in content.blocks)
    named = {*range(len(blocks))}
    if {block for item in content.items for block in item} != named or any(
        {source, target} - named for source, target, _ in content.flows
    ):
        raise LookupError("items and flows name other blocks")
    return Profile(
        name=content.name,
        max_context=content.max_context,
        parameters=content.parameters,
        blocks=blocks,
        flows=tuple(FlowProfile(*flow) for flow in content.flows),
        items=content.items,
    )


_LETTERS: dict[type[Kernel], str] = {Product: "P", Attention: "A", Reduction: "R"}


def _body(block: BlockProfile) -> _Body:
    kernels = block.kernels
    return _Body(
        kind=block.kind,
        weight_bytes=block.weight_bytes,
        experts=block.experts,
        active_experts=block.active_experts,
        caches=block.caches,
        live_bytes_per_token=block.live_bytes_per_token,
        takes_tokens=block.takes_tokens,
        elementwise=block.elementwise,
        order="".join(_LETTERS[type(kernel)] for kernel in kernels),
        products=tuple(kernel for kernel in kernels if isinstance(kernel, Product)),
        attentions=tuple(kernel for kernel in kernels if isinstance(kernel, Attention)),
        reductions=tuple(kernel for kernel in kernels if isinstance(kernel, Reduction)),
    )


def _block(name: str, layer: int | None, body: _Body) -> BlockProfile:
    return BlockProfile(
        name=name,
        kind=body.kind,
        layer=layer,
        weight_bytes=body.weight_bytes,
        experts=body.experts,
        active_experts=body.active_experts,
        caches=body.caches,
        live_bytes_per_token=body.live_bytes_per_token,
        takes_tokens=body.takes_tokens,
        kernels=tuple(_kernels(body)),
        elementwise=body.elementwise,
    )


def _kernels(body: _Body) -> Iterator[Kernel]:
    rest: dict[str, Iterator[Kernel]] = {
        "P": iter(body.products),
        "A": iter(body.attentions),
        "R": iter(body.reductions),
    }
    for letter in body.order:
        kernel = next(rest[letter], None)
        if kernel is None:
            raise LookupError(letter)
        yield kernel
