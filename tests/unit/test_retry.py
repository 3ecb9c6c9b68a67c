"""Trying again: how often, how long between, and for what."""

from __future__ import annotations

import pytest

from archiver.core.clock import Interrupted
from archiver.core.concurrency import ConcurrencyLimit
from archiver.core.errors import SourceError, StoreError
from archiver.core.retry import LONGEST_WAIT_SECONDS, Retry
from archiver.observability.metrics import REGISTRY


class Flaky:
    """Fails as told, then returns `done`."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def again(**fields: float) -> SourceError:
    return SourceError("again", retryable=True, reason="status_5xx", **fields)


def test_it_returns_at_once_what_works(clock):
    assert Retry(clock).call("list", Flaky()) == "done"
    assert clock.sleeps == []


def test_it_waits_longer_each_time(clock):
    flaky = Flaky(*[again() for _ in range(4)])
    assert Retry(clock).call("list", flaky) == "done"
    assert flaky.calls == 5
    for number, slept in enumerate(clock.sleeps):
        assert 0.5 * 2**number <= slept <= 0.5 * 2**number + 0.5


def test_it_gives_up_with_the_last_error(clock):
    last = StoreError("last", retryable=True)
    flaky = Flaky(*[again() for _ in range(4)], last)
    with pytest.raises(StoreError) as caught:
        Retry(clock).call("list", flaky)
    assert caught.value is last
    assert flaky.calls == 5


@pytest.mark.parametrize(
    "error", [SourceError("no"), ValueError("ours"), again(retry_after_seconds=61.0), Interrupted()]
)
def test_what_cannot_help_is_not_tried_again(clock, error):
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        Retry(clock).call("list", flaky)
    assert flaky.calls == 1
    assert clock.sleeps == []


def test_a_last_answer_that_throttles_lowers_the_limit(clock):
    limit = ConcurrencyLimit(8, clock)
    error = again(retry_after_seconds=61.0)
    error.status = 503
    with pytest.raises(SourceError):
        Retry(clock, concurrency_limit=limit).call("list", Flaky(error))
    assert limit.limit < 8


def test_retry_after_is_heard(clock):
    flaky = Flaky(again(retry_after_seconds=17.0), again(retry_after_seconds=0.0))
    assert Retry(clock).call("list", flaky) == "done"
    assert clock.sleeps[0] == 17.0
    assert clock.sleeps[1] < 2
    assert LONGEST_WAIT_SECONDS == 60.5


def test_a_request_to_end_is_heard_while_waiting(clock):
    def fail() -> None:
        clock.stop()
        raise again()

    with pytest.raises(Interrupted):
        Retry(clock).call("list", fail)


def test_each_retry_is_counted_by_stage_and_reason(clock):
    labels = {"stage": "sas", "reason": "status_5xx"}
    before = REGISTRY.get_sample_value("archiver_retries_total", labels) or 0
    Retry(clock).call("sas", Flaky(again(), again()))
    assert REGISTRY.get_sample_value("archiver_retries_total", labels) == before + 2
