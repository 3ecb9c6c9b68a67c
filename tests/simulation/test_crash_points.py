"""Nothing is lost, doubled or half done, wherever a process is cut off: each point in turn; nor
where one thing is bad for ever meanwhile.

Here one or two of the mishaps, on the scenarios that differ most; `make crash-points` does all.
"""

from __future__ import annotations

import pytest

from tests.simulation.points import KINDS, LEAST, SCENARIOS, all_of, calmly

HERE = (
    ("init and backfill", "applied"),
    ("loop", "after"),
    ("loop", "applied"),
    ("listed again", "after"),
    ("hold", "applied"),
    ("loop, no URL for ever", "after"),
)


@pytest.mark.parametrize(("name", "kind"), HERE)
def test_whatever_happens_at_a_request_leaves_no_trace(name, kind):
    assert all_of(SCENARIOS[name], kind) > 0


def test_there_are_as_many_points_as_promised():
    """None is skipped: `point` fails where a run has no such request."""
    requests = [calmly(one).requests for one in SCENARIOS.values()]
    assert sum(requests) * len(KINDS) >= LEAST
