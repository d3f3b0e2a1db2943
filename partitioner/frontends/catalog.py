"""The bundled models: descriptions of our own, in the terms of the transformers class that builds each."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any


def catalog() -> dict[str, str]:
    """Names of the bundled models, with a line on each."""
    return {name: str(_read(name)["description"]) for name in _names()}


def configuration(name: str) -> dict[str, Any] | None:
    """The configuration of the bundled model ``name``, or ``None`` if there is none of that name."""
    return dict(_read(name)["config"]) if name in _names() else None


def _names() -> list[str]:
    files = resources.files("partitioner.frontends").joinpath("models").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("partitioner.frontends").joinpath("models", f"{name}.toml").read_text("utf-8"))
