"""The import law: who may import whom, kept by reading every import of the tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("ir", "targets", "partitioner")
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
ONLY_IN = {
    "ortools": ("partitioner/solver/", "partitioner/floorplan/"),
    "onnx": ("partitioner/frontends/",),
    "transformers": ("partitioner/frontends/",),
    "torch": (
        *("partitioner/frontends/", "targets/emulator/", "ir/interpret.py", "partitioner/running/"),
        "partitioner/passes/probe.py",
        "partitioner/passes/rows.py",
        "partitioner/passes/routing.py",  # which runs pieces of a graph
        "partitioner/api.py",  # for its types alone: test_light_commands_load_nothing_heavy
    ),
}
NEVER = {
    "ir/": ("targets", "partitioner"),
    "targets/": ("partitioner",),
    "partitioner/check.py": ("partitioner.solver", "partitioner.floorplan"),
    "partitioner/check_rules.py": ("partitioner.solver", "partitioner.floorplan", "partitioner.rules"),
}


def imports(path):
    """Names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_what_it_may(path):
    place = str(path.relative_to(ROOT))
    found = set(imports(path))
    for library, places in ONLY_IN.items():
        if any(name.split(".")[0] == library for name in found):
            assert place.startswith(places), f"{place} imports {library}"
    for start, forbidden in NEVER.items():
        if place.startswith(start):
            broken = [name for name in found if name.startswith(forbidden)]
            assert not broken, f"{place} imports {broken}"


@pytest.mark.parametrize("command", [["--help"], ["models"], ["targets"], ["schema"]])
def test_light_commands_load_nothing_heavy(command):
    heavy = ("torch", "transformers", "ortools", "onnx")
    program = (
        "import sys\nfrom partitioner.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout[-200:] + done.stderr
