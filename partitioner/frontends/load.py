"""What the user calls MODEL: a name of the catalogue, a transformers folder or configuration, or a file."""

from __future__ import annotations

import difflib
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ir.diagnostics import Diagnostic, UsageError
from partitioner.frontends.catalog import catalog, configuration
from partitioner.frontends.lowered import Lowered

_MOST_CONFIG_BYTES = 16 << 20


TEXT_ALONE = ("text",)


def load(
    model: str,
    *,
    trust_code: bool = False,
    parts: Sequence[str] = TEXT_ALONE,
    fix: Mapping[str, int] | None = None,
) -> Lowered:
    """Lower the model that the user names; ``trust_code`` lets a file be opened that can run code, ``parts`` says
    whether the vision tower of a transformers model is placed too, and ``fix`` has numbers for sizes of a model that
    cannot be read without (see ``Lowered.fixed``).

    Raises:
        UsageError: W0101 (nothing of that name), W0102 (a configuration that is not JSON), W0112 (a file has no parts
            to choose from), W0202 (not ONNX), W0242 (a program that may run code), W0243 (a program that cannot be
            read).
        UnsupportedModelError: what the frontends raise.
    """
    config = configuration(model)
    if config is not None:
        return _from_config(config, model, parts=parts, fix=fix)
    path = Path(model)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # a name too long, or a folder that may not be looked into
        raise _unknown(model) from None
    if is_folder:
        config = _read_config(path / "config.json")
        return _from_config(config, path.resolve().name, str(path.resolve()), parts=parts, fix=fix)
    if path.suffix == ".json" and is_file:
        name = path.parent.resolve().name if path.name == "config.json" else path.stem
        return _from_config(_read_config(path), name, parts=parts, fix=fix)
    if is_file and tuple(parts) != TEXT_ALONE:
        fault = Diagnostic(
            "W0112", "parts can be chosen of transformers models alone; a file is placed whole", "--parts"
        )
        raise UsageError(fault)
    if path.suffix == ".pt2" and is_file:
        from partitioner.frontends.program import load_program

        return load_program(path, trust_code=trust_code).lowered
    if is_file:
        from partitioner.frontends.onnx_file import load_onnx

        return load_onnx(path)
    raise _unknown(model)


def _from_config(
    config: dict[str, Any],
    name: str,
    checkpoint: str = "",
    *,
    parts: Sequence[str],
    fix: Mapping[str, int] | None,
) -> Lowered:
    with _uncollected():
        from partitioner.frontends.huggingface import lower_config

        return lower_config(config, name, checkpoint, parts=parts, fix=fix)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's search for garbage in cycles: importing and tracing make millions of objects that stay, and
    looking through them again and again takes a tenth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(Diagnostic("W0102", "the configuration is no regular file", str(path)))
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise UsageError(Diagnostic("W0102", "the configuration is larger than 16 MiB", str(path)))
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        help_ = ("a model folder holds a config.json",)
        fault = Diagnostic("W0102", f"the configuration cannot be read: {error.strerror}", str(path), help=help_)
        raise UsageError(fault) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(Diagnostic("W0102", f"the configuration is not JSON: {error}", str(path))) from None
    if not isinstance(config, dict):
        raise UsageError(Diagnostic("W0102", "the configuration is not a JSON object", str(path)))
    return config


def _unknown(model: str) -> UsageError:
    close = difflib.get_close_matches(model.lower(), catalog(), n=3)
    help_ = [f"did you mean {' or '.join(close)}?"] if close else []
    help_.append(
        "MODEL is a name listed by `waferc models`, a folder or config.json of transformers, an ONNX file, or a .pt2"
    )
    return UsageError(Diagnostic("W0101", f"there is no model {model!r}", help=tuple(help_)))
