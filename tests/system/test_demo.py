"""Done when 1, the command's half: the demo archives its calls and verifies every byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.command import Archiver


@pytest.mark.slow
def test_the_demo_ends_well(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    result = Archiver({}).run("demo", "--calls", "48", "--dir", str(directory), timeout=90)
    result.expect(0)
    assert result.seconds < 90
    assert "Traceback" not in result.stderr
    counts = [int(number) for number in re.findall(r"(\d+) archived", result.stdout)]
    assert counts, result.stdout
    assert max(counts) >= 40
    assert any(directory.iterdir()), "the archive stays on disk"
