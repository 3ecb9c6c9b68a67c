"""How many examples of the properties are tried, which, and how cores share them.

`PROPERTIES_EXAMPLES` examples (50 unless set; of the slower properties a part of that), each
property in `PARTS` parts with seeds of their own: the same in each run. `PROPERTIES_SEED` makes
others. A failure prints the steps that lead to it, as a program, and a line that tries just them
again: above the machine's class, or above the inner test. Under one PYTHONHASHSEED (`make
properties` sets it) all is the same to the last step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

EXAMPLES = int(os.environ.get("PROPERTIES_EXAMPLES", "50"))
SEED = int(os.environ.get("PROPERTIES_SEED", "1"))
PARTS = 4


def examples(share: float = 1.0) -> settings:
    """The settings of one part of a property that is tried on a share of `EXAMPLES`."""
    return settings(
        max_examples=max(1, round(EXAMPLES * share / PARTS)),
        stateful_step_count=25,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


def seed_of(part: int) -> int:
    return SEED * 1000 + part


def in_parts(test: Callable[..., None]) -> Any:
    """A test that is run once for each part; as long as it takes."""
    return pytest.mark.timeout(6 * 3600)(pytest.mark.parametrize("part", range(PARTS))(test))
