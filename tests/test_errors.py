"""Errors speak one dialect: what was expected, what was given, what is available."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
FILES = sorted(file for name in ("diffusers_xai", "spaces", "training") for file in (ROOT / name).rglob("*.py"))
# How other dialects say that something given is wrong.
FOREIGN = (
    r"got|available|offered|must|may not|takes (no|none|one)|needs (a|an|at least)|has no|no such|unknown|invalid"
)


def foreign(source: str) -> list[str]:
    """The raised texts that speak of something given, and do not say what was expected."""
    raised = [node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    texts = [ast.get_source_segment(source, node) or "" for node in raised if isinstance(node, ast.Call)]
    wrong = re.compile(rf"\b({FOREIGN})\b", re.IGNORECASE)
    return [text for text in texts if wrong.search(text) and "expected" not in text.lower()]


@pytest.mark.parametrize("text", ["unknown name {x}", "{x} is not available", "x must be above 0", "X takes no judge"])
def test_other_dialects_are_known(text):
    assert foreign(f"raise ValueError(f'{text}')")
    assert not foreign(f"raise ValueError(f'expected a name, got {{x}}: {text}')")


def test_errors_about_what_was_given_say_what_was_expected():
    found = {str(file.relative_to(ROOT)): foreign(file.read_text(encoding="utf-8")) for file in FILES}
    assert not {file: texts for file, texts in found.items() if texts}
    assert len(found) > 200
