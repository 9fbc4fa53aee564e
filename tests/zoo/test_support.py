"""The page of what works with which pipeline is the zoo's, holds no fault, and is what its command gives."""

import re
from pathlib import Path

import pytest

from tests.zoo.pipelines import ZOO
from tests.zoo.support import COLUMNS, FAULTS, TABLES, row


PAGE = (Path(__file__).parents[2] / "docs" / "support.md").read_text(encoding="utf-8")


def cells():
    """Family -> column -> (word, reason), as they stand in the page."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", PAGE, re.MULTILINE))
    found = {}
    for title, columns in TABLES.items():
        table = PAGE.split(f"## {title}\n")[1].split("## ")[0]
        for line in table.strip().splitlines()[2:]:
            name, *words = [part.strip() for part in line.strip("|").split("|")]
            for column, word in zip(columns, words, strict=True):
                word, _, number = word.removesuffix(")").partition(" (")
                found.setdefault(name, {})[column] = (word, reasons.get(number, ""))
    return found


def test_the_page_has_every_family_of_the_zoo_and_every_spec():
    found = cells()
    assert list(found) == list(ZOO)
    assert all(list(row) == list(COLUMNS) for row in found.values())


def test_no_cell_is_a_fault_and_every_refusal_has_its_reason():
    words = [cell for row in cells().values() for cell in row.values()]
    assert {word for word, _ in words} <= {"SUPPORTED", "REFUSED", "–"}
    assert all(reason for word, reason in words if word == "REFUSED")
    refused = sum(word == "REFUSED" for word, _ in words)
    assert f"{refused} REFUSED, {', '.join(f'0 {fault}' for fault in FAULTS)};" in PAGE


@pytest.mark.parametrize("name", ZOO)
def test_the_page_says_what_the_command_gives(name):
    assert row(name) == cells()[name]
