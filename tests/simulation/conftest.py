"""What the simulations share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.fakes.log_lines import quiet
from tests.simulation.story import LINES


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No log lines are printed: there would be a million. All are looked at for secrets."""
    before = structlog.get_config()
    structlog.configure(**quiet(LINES))
    yield
    structlog.configure(**before)
