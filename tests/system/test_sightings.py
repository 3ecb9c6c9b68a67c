"""A process that is killed between listing and archiving leaves no call that nobody knows of, also
where the source lists it no more: the real command on a real store."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta

from tests.system import audit
from tests.system.azure_api import AzureApi, AzureCall, call_document
from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive

START = datetime(2024, 1, 15, 10, tzinfo=UTC)
RANGE = ("--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T12:00:00Z")


def a_call(call_id: str, at: datetime) -> AzureCall:
    """It has no recording, so no blob store is needed."""
    return AzureCall(call_document(call_id, at, 30))


def killed_before_it_archives(api: AzureApi, archiver: Archiver, *command: str) -> None:
    """SIGKILL, once the first call is asked for; of none there is an answer."""
    api.stall()
    running = archiver.start(*command)
    running.wait_until(lambda: bool(api.asked))
    running.send(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    api.go_on()


def told(bucket: Bucket) -> tuple[set[str], set[str]]:
    """The ids that have a record in a segment, and those that a newest line calls pending."""
    records: set[str] = set()
    pending: dict[str, set[str]] = {}
    for key in bucket.keys("manifest/segments/"):
        if key.endswith(".jsonl"):
            *lines, last = map(json.loads, bucket.get(key).splitlines())
            records |= {line["call_id"] for line in lines}
            pending[last["from"]] = set(last["pending"])
    return records, set().union(*pending.values())


def test_a_backfill_that_is_killed_between_listing_and_archiving(make_archive: MakeArchive) -> None:
    calls = [a_call(f"vc_{n:02d}", START + n * timedelta(minutes=5)) for n in range(24)]
    ids = [call.document["id"] for call in calls]
    with AzureApi(calls) as api:
        archiver, bucket = make_archive(api.settings())
        archiver = archiver.having(GIVE_UP="9000d")
        killed_before_it_archives(api, archiver, "backfill", *RANGE)
        seen = {
            call_id
            for key in bucket.keys("manifest/sightings/")
            for call_id in json.loads(bucket.get(key))["ids"]
        }
        assert not bucket.keys("records/")
        assert len(seen) >= 12, "a window at least was listed"
        hidden, lost = sorted(seen)[::2], sorted(seen)[1::2]
        api.hide(*hidden)
        api.forget(*lost)
        archiver.run("backfill", *RANGE).expect(1)
        records, pending = told(bucket)
        assert records == set(ids) - set(lost)
        assert pending == set(lost)
        audit.assert_clean(archiver)


def test_a_loop_that_is_killed_between_listing_and_archiving(make_archive: MakeArchive) -> None:
    """The window is open: who comes later asks for what it lists no more."""
    now = datetime.now(UTC)
    calls = [a_call(f"vc_{n:02d}", now - timedelta(seconds=n)) for n in range(3)]
    begun = f"{now - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    with AzureApi(calls) as api:
        archiver = make_archive(api.settings())[0].having(START=begun)
        killed_before_it_archives(api, archiver, "run")
        hidden = [call.document["id"] for call in calls]
        api.hide(*hidden)
        api.asked.clear()
        archiver.run("run", "--once")
        assert set(api.asked) == set(hidden)
        audit.assert_clean(archiver)
