"""The bugs of `planted.py` still fit the code; that they are caught, `make mutants` shows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.planted import BUGS, Bug

ROOT = Path(__file__).parents[2]


def test_there_are_enough_of_them_and_each_is_another() -> None:
    assert len(BUGS) >= 25
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_can_be_planted(bug: Bug) -> None:
    text = (ROOT / "archiver" / bug.file).read_text()
    assert text.count(bug.old) == 1
    ast.parse(text.replace(bug.old, bug.new))
    assert all((ROOT / path).exists() for path in bug.tests.split())
