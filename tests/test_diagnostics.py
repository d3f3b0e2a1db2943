"""The page of codes has every code that is raised, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = re.compile(r"W0\d{3}")


def raised() -> set[str]:
    sources = [path for folder in ("ir", "targets", "partitioner") for path in (ROOT / folder).rglob("*.py")]
    constants = (node for path in sources for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    texts = {node.value for node in constants if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if CODE.fullmatch(text)}


def test_every_code_is_explained():
    explained = set(CODE.findall((ROOT / "docs" / "diagnostics.md").read_text("utf-8")))
    assert raised() == explained
    assert len(explained) > 60
