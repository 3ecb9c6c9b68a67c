"""Several processes that begin an archive at one moment all probe the same one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.store.bucket import Bucket
from archiver.store.probe import probe
from archiver.store.types import ObjectHead, ObjectVersion
from tests.contract.conftest import STORES, MakeBucket
from tests.fakes.clock import HandClock

WEED = [name for name in STORES if name == "weed-locked"]


class Beset(Bucket):
    """Another process does something before the first listing of versions (`versions`), or at the
    first sight of a legal hold (`held`)."""

    def __init__(self, plain: Bucket, clock: HandClock, **others: Callable[[], object]) -> None:
        super().__init__(plain.options, clock, Retry(clock), client=plain.client.s3)
        self._others = others

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        self._others.pop("versions", lambda: None)()
        yield from super().versions(prefix)

    def head(self, key: str, version_id: str | None = None) -> ObjectHead | None:
        found = super().head(key, version_id)
        if found is not None and found.held and "held" in self._others:
            self._others.pop("held")()
            found = super().head(key, version_id)
        return found


@pytest.fixture(autouse=True)
def _real_time(clock: HandClock) -> None:
    """The real server judges lock dates by the real time."""
    clock.turn_to(datetime.now(UTC))


@pytest.mark.parametrize("store", WEED, indirect=True)
def test_anothers_trial_is_no_overwrite(open_bucket: MakeBucket, clock: HandClock) -> None:
    """It adds a version that was uploaded in parts: no sign of a store that overwrites."""
    plain = open_bucket(lock_mode="COMPLIANCE")
    found = probe(Beset(plain, clock, versions=lambda: probe(plain)))
    assert found.create_once
    assert found.create_once_race_winners == 1


@pytest.mark.parametrize("store", WEED, indirect=True)
def test_a_hold_that_another_takes_off(open_bucket: MakeBucket, clock: HandClock) -> None:
    """Each sets a hold, looks, and takes it off: the other's end is no sign that holds are lost."""
    plain = open_bucket(lock_mode="COMPLIANCE")

    def end_another() -> None:
        for version in plain.versions(layout.PROBE):
            at = plain.client.at(layout.PROBE, version.version_id)
            plain.client.s3.put_object_legal_hold(**at, LegalHold={"Status": "OFF"})

    found = probe(Beset(plain, clock, held=end_another))
    assert found.legal_hold is True
