"""What several test files share: a small model, lowered once, its plan, and the command line."""

import fcntl
import io
import json
import os
import pickle
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ["WAFERC_CACHE"] = ""
"""Tests neither read nor write what the user's own forecasts left."""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def codes(self) -> list[str]:
        return [fault["code"] for fault in self.record["diagnostics"]]


@pytest.fixture(scope="session")
def waferc():
    """Runs a command in this process, which spares the seconds that imports take; no command may break down."""
    from partitioner.cli import main

    def run(*arguments: object) -> Done:
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as end:
                code = end.code or 0
        printed = out.getvalue() + err.getvalue()
        assert "Traceback" not in printed
        assert "W0000" not in printed, printed
        return Done(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def once(shared):
    """Works something out in one worker, for all of them to read."""

    def of(name: str, make) -> Any:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stored = shared / f"{name}.pickle"
            if not stored.exists():
                stored.write_bytes(pickle.dumps(make()))
            return pickle.loads(stored.read_bytes())

    return of


@pytest.fixture(scope="session")
def lowered_small_kimi(once):
    """The bundled model ``small-kimi``, lowered."""

    def lower():
        from partitioner.frontends.load import load

        return load("small-kimi")

    return once("small-kimi", lower)


@pytest.fixture(scope="session")
def lowered_sibling(once):
    """Lowers the small sibling of a family, or an encoder, by name. Nobody may change it."""

    def of(name: str):
        from test_huggingface import configuration_of

        from partitioner.frontends.huggingface import lower_config

        return once(f"sibling-{name}", lambda: lower_config(configuration_of(name), name))

    return of


@pytest.fixture(scope="session")
def compiled_small_kimi(lowered_small_kimi):
    """``small-kimi`` on four wafers of the target ``mini``: its model and a sound plan. Nobody may change it."""
    from partitioner.api import Request, compile_lowered

    return compile_lowered(lowered_small_kimi, Request(target="mini", systems=4, context=256))


@pytest.fixture(scope="session")
def stored_plan(shared, once, compiled_small_kimi) -> Path:
    """The folder of that plan. Nobody may change it."""
    folder = shared / "small-kimi-plan"

    def write() -> bool:
        compiled_small_kimi.save(folder)
        return True

    once("small-kimi-plan", write)
    return folder


@pytest.fixture
def plan_folder(stored_plan, tmp_path) -> Path:
    """A copy of the plan's folder, to be changed at will."""
    return Path(shutil.copytree(stored_plan, tmp_path / "plan"))


@pytest.fixture
def quick_load(lowered_small_kimi, monkeypatch) -> None:
    """``waferc compile small-kimi`` without lowering it again."""
    import partitioner.api as command

    load = command.load
    monkeypatch.setattr(
        command,
        "load",
        lambda model, **options: lowered_small_kimi if model == "small-kimi" else load(model, **options),
    )


@pytest.fixture(scope="session")
def text_plan(waferc, once, shared) -> Path:
    """The folder of a plan of a small language model; nobody may change it."""
    from plans import compile_llama

    return once("small-llama-plan", lambda: compile_llama(waferc, shared))


@pytest.fixture(scope="session")
def onnx_plan(waferc, once, shared) -> Path:
    """The folder of a plan of an ONNX file; nobody may change it."""
    from plans import compile_mlp

    return once("mlp-plan", lambda: compile_mlp(waferc, shared))
