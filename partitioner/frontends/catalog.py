"""The bundled models: descriptions of our own, in the terms of the transformers class that builds each."""

from __future__ import annotations

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any


def catalog() -> dict[str, str]:
    """Names of the bundled models, with a line on each."""
    return {name: str(_read(name)["description"]) for name in _names()}


def configuration(name: str) -> dict[str, Any] | None:
    """The configuration of the bundled model ``name``, or ``None`` if there is none of that name."""
    return dict(_read(name)["config"]) if name in _names() else None


def source(name: str) -> bytes | None:
    """The file that describes the bundled model ``name``, or ``None`` if there is none of that name."""
    return _folder().joinpath(f"{name}.toml").read_bytes() if name in _names() else None


def bundled_profile(name: str) -> bytes | None:
    """The bundled file of the profile of ``name`` (see :mod:`partitioner.profiles`), or ``None`` if there is none."""
    file = _folder().joinpath("profiles", f"{name}.json")
    return file.read_bytes() if name in _names() and file.is_file() else None


def _folder() -> Traversable:
    return resources.files("partitioner.frontends").joinpath("models")


def _names() -> list[str]:
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(_folder().joinpath(f"{name}.toml").read_text("utf-8"))
