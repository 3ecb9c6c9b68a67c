"""`reconcile`: every class of call, on archives made with the formats alone; then the real store.

The source is the simulated platform, asked over HTTP by the real client and lister.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from archiver.audit.chain import SealedSegments
from archiver.audit.reconcile import (
    ASKED_ONE_BY_ONE,
    SHOWN,
    ArchiveLookup,
    Difference,
    ReconcileOptions,
    Result,
    as_json,
    as_text,
    reconcile,
)
from archiver.audit.safe_reader import ItemReader, Reader
from archiver.core.errors import FormatError, ListingError, SourceRefused, StoreError, UsageError
from archiver.core.model import Call, Window
from archiver.manifest import canonical, layout, record, seal
from archiver.manifest.signing import SigningKey
from archiver.source.api import Filter
from archiver.source.listing import Lister
from archiver.store.bucket import Bucket
from tests.audit.builder import COMPLETED, DAY, HOUR, Builder, hour
from tests.audit.damage import FIRST, SEGMENTS, seal_bytes
from tests.audit.foreign import newer
from tests.audit.store import MemoryStore
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, call_of
from tests.fakes.rig import api_client, wired

pytestmark = pytest.mark.usefixtures("any_order")

COMPLETED_ONLY = Filter(("Completed",))
TENTH = hour(10)
A, F, N = ("vc_a", "archived"), ("vc_f", "failed"), ("vc_n", "no_recording")
"""Calls and their outcomes."""


@pytest.fixture
def platform(clock: HandClock) -> Iterator[Platform]:
    with Platform(clock=clock.now) as served:
        yield served
        assert served.violations == []


class Run:
    """Reconciles a store's hour 10, or another range, with the platform."""

    def __init__(self, platform: Platform, clock: HandClock) -> None:
        self.platform = platform
        self.api = api_client(platform, clock)
        self._clock = clock

    def source_has(self, *ids: str, window: Window = TENTH, **fields: Any) -> None:
        """As the builder's calls are, unless `fields` tell otherwise."""
        at = window.start + timedelta(minutes=5)
        for call_id in ids:
            self.platform.add(a_call(call_id, at, **{"seconds": 312, "audio": None, **fields}))

    def lister(self, filters: Filter = COMPLETED_ONLY) -> Lister:
        return Lister(self.api, filters, self._clock, HOUR)

    def __call__(
        self,
        store: Reader,
        first: Window = TENTH,
        last: Window | None = None,
        filters: Filter = COMPLETED_ONLY,
    ) -> Result:
        options = ReconcileOptions(first.start, (last or first).end, HOUR, 2)
        return reconcile(self.lister(filters), store, options)


@pytest.fixture
def run(platform: Platform, clock: HandClock) -> Iterator[Run]:
    made = Run(platform, clock)
    yield made
    made.api.close()


def archive(
    *outcomes: tuple[str, str],
    pending: tuple[str, ...] = (),
    unsealed: Sequence[tuple[str, str]] = (),
) -> Builder:
    """An archive with hour 10 sealed, and records of it that are not."""
    builder = Builder().genesis()
    records = [builder.call(call_id, hour(10), outcome=outcome) for call_id, outcome in outcomes]
    builder.close(hour(10), records, pending=pending)
    for call_id, outcome in unsealed:
        builder.call(call_id, hour(10), outcome=outcome)
    return builder


def told(result: Result) -> dict[str, list[dict[str, Any]]]:
    """class → what is said of its calls, the window left out."""
    return {
        name: [{"id": one.call_id, **one.fields} for one in found]
        for name, found in result.differences.items()
    }


def counts(result: Result) -> dict[str, int]:
    return {name: count for name, count in result.total.items() if count}


def r1(call_id: str, day: str = "2024-01-15") -> str:
    return f"records/dt={day}/{call_id}/r1.json"


def gone(call_id: str, outcome: str | None = None, *, asked_for: bool = True) -> dict[str, Any]:
    key = r1(call_id) if outcome else None
    return {"id": call_id, "outcome": outcome, "record": key, "asked_for": asked_for}


# --- the classes


FAILED = {"reason": "not_wav", "record": r1("vc_f")}
CLASSES: dict[str, tuple[list[str], Builder, dict[str, Any], dict[str, int], int]] = {
    "all is well": (["vc_a", "vc_n"], archive(A, N), {}, {"archived": 1, "no_recording": 1}, 0),
    "missing": (
        ["vc_a", "vc_m"], archive(A), {"missing": [{"id": "vc_m", "window_sealed": True}]},
        {"archived": 1, "missing": 1}, 1,
    ),
    "missing, window not sealed": (
        ["vc_m"], Builder().genesis(), {"missing": [{"id": "vc_m", "window_sealed": False}]},
        {"missing": 1}, 1,
    ),
    "pending": (
        ["vc_a", "vc_p"], archive(A, pending=("vc_p", "vc_q")),
        {"pending": [{"id": "vc_p", "listed": True}, {"id": "vc_q", "listed": False}]},
        {"archived": 1, "pending": 2}, 1,
    ),
    "failed": (
        ["vc_f"], archive(F), {"failed": [{"id": "vc_f", "sealed": True, **FAILED}]},
        {"failed": 1}, 1,
    ),
    "failed, not sealed": (
        ["vc_f"], archive(unsealed=[F]), {"failed": [{"id": "vc_f", "sealed": False, **FAILED}]},
        {"failed": 1}, 1,
    ),
    "unsealed": (
        ["vc_a", "vc_n"], archive(unsealed=[A, N]),
        {"unsealed": [{"id": i, "outcome": outcome, "record": r1(i)} for i, outcome in (A, N)]},
        {"unsealed": 2}, 0,
    ),
    "pending, not listed, with a record": (
        [], archive(pending=("vc_a",), unsealed=[A]), {"gone": [gone(*A)]}, {"gone": 1}, 0,
    ),
    "gone": (
        [], archive(A, F, N), {"gone": [gone(*one) for one in (A, F, N)]}, {"gone": 3}, 0,
    ),
}  # fmt: skip
"""What the source lists, the archive, what is said of which calls, the counts, the exit code."""


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_of_calls(run: Run, name: str) -> None:
    listed, builder, said, counted, code = CLASSES[name]
    run.source_has(*listed)
    builder.store.requests.clear()

    result = run(builder.store)

    assert told(result) == said
    assert counts(result) == {**({"source": len(listed)} if listed else {}), **counted}
    assert (result.ok, result.exit_code) == (code == 0, code)
    assert result.archive == builder.seals[0].archive
    asked = [line for line in builder.store.requests if "records/" in line]
    if name == "all is well":
        assert asked == [], "what has its result is not looked for any further"
    if name == "failed":
        assert not any(line.startswith("read") for line in asked), "a sealed record is known"


def test_pending_until_the_newest_revision_says_otherwise(run: Run) -> None:
    run.source_has("vc_p")
    builder = archive(pending=("vc_p",))
    again = builder.segment(hour(10), [builder.call("vc_p", hour(10))], revision=2)
    assert counts(run(builder.store)) == {"source": 1, "unsealed": 1}, "not official as yet"

    builder.seal(again)

    result = run(builder.store)
    assert told(result) == {}
    assert counts(result) == {"source": 1, "archived": 1}


@pytest.mark.parametrize("sealed", [True, False])
def test_failed_until_a_newer_record_says_otherwise(run: Run, sealed: bool) -> None:
    run.source_has("vc_f")
    builder = archive(F)
    amended = builder.call("vc_f", hour(10), revision=2)
    if sealed:
        builder.close(hour(10), [amended], revision=2)

    result = run(builder.store)

    assert counts(result) == {"source": 1, "archived" if sealed else "unsealed": 1}
    assert result.exit_code == 0


def test_gone_without_ever_having_had_a_record(run: Run) -> None:
    builder = archive(pending=("vc_p",))
    builder.close(hour(10), revision=2, vanished=["vc_p"])

    assert told(run(builder.store)) == {"gone": [gone("vc_p")]}

    run.source_has("vc_p")
    assert counts(run(builder.store)) == {"source": 1, "missing": 1}


@pytest.mark.parametrize(
    ("fields", "differing"),
    [
        ({"durationSeconds": 318}, {"duration_seconds": {"archive": 312, "source": 318}}),
        ({"state": "completed"}, {"state": {"archive": "Completed", "source": "completed"}}),
        (
            {"durationSeconds": 0, "state": "COMPLETED"},
            {
                "duration_seconds": {"archive": 312, "source": 0},
                "state": {"archive": "Completed", "source": "COMPLETED"},
            },
        ),
        ({"durationSeconds": 312.0}, {}),
        ({"durationSeconds": None, "state": None}, {}),
        ({"durationSeconds": ..., "state": ...}, {}),
        ({"durationSeconds": "long", "state": 7}, {}),
        ({"outcome": "other", "campaignId": "camp_9"}, {}),
    ],
)
def test_differs(run: Run, fields: dict[str, Any], differing: dict[str, Any]) -> None:
    run.source_has("vc_d", **fields)
    run.platform.hooks.append(lambda request: _any_state(run.platform, request))

    result = run(archive(("vc_d", "archived")).store)

    expected = [{"id": "vc_d", "differences": differing, "record": r1("vc_d")}]
    assert told(result) == ({"differs": expected} if differing else {})
    assert counts(result) == {"source": 1, "archived": 1} | ({"differs": 1} if differing else {})
    assert result.exit_code == 0


def _any_state(platform: Platform, request: Request) -> Reply | None:
    """A source that ignores its state filter, so that it may answer another spelling."""
    pairs = [(name, value) for name, value in request.pairs if name != "state"]
    return platform.answer(_with(request, pairs)) if len(pairs) < len(request.pairs) else None


def _with(request: Request, pairs: list[tuple[str, str]]) -> Request:
    return dataclasses.replace(request, raw_query=urlencode(pairs))


def test_what_the_record_lacks_and_the_source_has_differs(run: Run) -> None:
    run.source_has("vc_d")
    builder = Builder().genesis()
    whole = builder.call("vc_d", hour(10))
    document = {**whole.document, "duration_seconds": None, "state": None}
    bare = record.parse(canonical.dump(document))
    builder.close(hour(10), [bare])

    [difference] = told(run(builder.store))["differs"]

    assert difference["differences"] == {
        "duration_seconds": {"archive": None, "source": 312},
        "state": {"archive": None, "source": "Completed"},
    }


# --- elsewhere


@pytest.mark.parametrize("other", [9, 11])
@pytest.mark.parametrize("outcome", ["archived", "failed", "pending"])
def test_a_call_that_the_source_lists_in_the_window_beside(
    run: Run, other: int, outcome: str
) -> None:
    """Hour 10 has it; the source says now that it began in another hour."""
    run.source_has("vc_a", window=hour(other))
    is_pending = outcome == "pending"
    builder = archive(pending=("vc_a",)) if is_pending else archive(("vc_a", outcome))

    assert counts(run(builder.store, hour(other))) == {"source": 1, outcome: 1}
    both = counts(run(builder.store, hour(9), hour(11)))
    assert both == {"source": 1, outcome: 1}, "and hour 10 does not call it gone"


def test_a_call_that_two_windows_tell_of_is_not_gone(run: Run) -> None:
    """It moved, and the archiver took note: gone from hour 10, and told in hour 9."""
    run.source_has("vc_a", window=hour(9))
    builder = archive(A)
    same = record.parse(builder.store.data(r1("vc_a")))
    builder.close(hour(9), [same])
    builder.close(hour(10), revision=2, outcomes={}, vanished=["vc_a"])

    assert counts(run(builder.store, hour(9), hour(10))) == {"source": 1, "archived": 1}
    assert counts(run(builder.store, hour(10))) == {"gone": 1}, "as far as was listed"


def test_a_call_that_moved_far_is_found_by_its_record(run: Run) -> None:
    run.source_has("vc_a", "vc_f", window=hour(20))
    builder = archive(A, F)

    assert counts(run(builder.store, hour(20))) == {"source": 2, "archived": 1, "failed": 1}


@pytest.mark.parametrize(
    "times",
    [
        {"startTime": "2024-01-15T10:05:00Z", "createdAt": None},
        {"createdAt": "2024-01-15T10:05:00Z"},
        {"startTime": None, "createdAt": "2024-01-15T10:05:00Z"},
    ],
)
def test_a_call_is_looked_for_in_the_windows_of_its_own_times(
    run: Run, times: dict[str, Any]
) -> None:
    """A source whose filter reads the end of a call; its own window does not list it."""
    run.platform.options.filter_field = "endTime"
    run.source_has("vc_a", "vc_p", window=hour(20), **times)
    builder = archive(A, pending=("vc_p",))

    assert counts(run(builder.store, hour(20))) == {"source": 2, "archived": 1, "pending": 1}


def test_a_time_at_the_calendar_s_end_is_in_no_window() -> None:
    builder = archive()
    items = ItemReader(builder.store)
    options = ReconcileOptions(TENTH.start, TENTH.end, HOUR, 1)
    lookup = ArchiveLookup(items, SealedSegments(items), options)
    last = Call("vc_z", {"startTime": "9999-12-31T23:59:59Z"})

    assert lookup.look_up(hour(10), {"vc_z": last}).records == {}
    lookup.close()


@pytest.mark.parametrize("outcome", ["missing", "archived"])
def test_calls_of_other_windows_are_left_to_them(run: Run, outcome: str) -> None:
    """A filter of whole days lists every call of the day in each window."""
    run.platform.options.whole_days = True
    run.source_has("vc_b", window=hour(14))
    builder = archive(("vc_b", outcome)) if outcome == "archived" else archive()

    assert counts(run(builder.store)) == {}, "and it is not gone"
    assert counts(run(builder.store, hour(10), hour(14))) == {"source": 1, outcome: 1}


def test_a_newer_record_in_another_window_counts(run: Run) -> None:
    run.source_has("vc_f", window=hour(11))
    builder = archive(F)
    builder.close(hour(11), [builder.call("vc_f", hour(10), revision=2)])

    assert counts(run(builder.store, hour(11))) == {"source": 1, "archived": 1}
    run.source_has("vc_f")
    assert counts(run(builder.store)) == {"source": 1, "archived": 1}


@pytest.mark.parametrize("revision", [1, 2])
@pytest.mark.parametrize(("good", "bad"), [(9, 11), (11, 9)])
def test_of_two_records_the_newer_counts_and_of_two_as_new_the_one_with_a_result(
    run: Run, good: int, bad: int, revision: int
) -> None:
    """Below two days, because the source changed the call's start."""
    run.source_has("vc_a")
    builder = Builder().genesis()
    day_before = Window(hour(10).start - 24 * HOUR, hour(10).end - 24 * HOUR)
    records = {
        good: builder.call("vc_a", hour(10), revision=revision),
        bad: builder.call("vc_a", day_before, outcome="failed"),
    }
    for number in (9, 11):
        builder.close(hour(number), [records[number]])

    assert counts(run(builder.store)) == {"source": 1, "archived": 1}


def test_each_segment_is_read_once(run: Run) -> None:
    """Though each window has a call that is looked for in the windows beside it."""
    builder = Builder().genesis()
    for number in range(5, 12):
        run.source_has(f"vc_{number}", window=hour(number))
        builder.close(hour(number), pending=[f"vc_{number}"])

    assert counts(run(builder.store, hour(5), hour(11))) == {"source": 7, "pending": 7}

    read = [line for line in builder.store.requests if line.startswith("stream manifest/segments")]
    assert len(read) == len(set(read)) == 7
    assert len([line for line in builder.store.requests if line.startswith("list manifest")]) == 1


@pytest.mark.parametrize(
    ("fields", "day"),
    [
        ({"startTime": "2024-01-13T09:00:00Z"}, "2024-01-13"),
        ({"startTime": None, "createdAt": "2024-01-12T09:00:00Z"}, "2024-01-12"),
        ({"startTime": "2024-01-13T09:00:00Z", "createdAt": "2024-01-12T00:00:00Z"}, "2024-01-12"),
        ({"startTime": None, "createdAt": None}, "2024-01-15"),
        ({"startTime": "2024-01-13T09:00:00Z"}, "2024-01-15"),
    ],
)
def test_a_record_is_looked_for_below_each_day_it_may_lie(
    run: Run, fields: dict[str, Any], day: str
) -> None:
    run.platform.options.filter_field = "endTime"
    run.source_has("vc_u", **fields)
    builder = archive()
    at = datetime.fromisoformat(day).replace(tzinfo=UTC) + 10 * HOUR
    builder.call("vc_u", Window(at, at + HOUR))

    result = run(builder.store)

    assert [one["record"] for one in told(result)["unsealed"]] == [r1("vc_u", day)]


def test_an_odd_id_has_its_record_under_its_digest(run: Run) -> None:
    odd = "../önd\n=1"
    run.source_has(odd)
    builder = archive()
    assert counts(run(builder.store)) == {"source": 1, "missing": 1}

    found = builder.call(odd, hour(10))

    assert [one["record"] for one in told(run(builder.store))["unsealed"]] == [found.key]


@pytest.mark.parametrize("count", [ASKED_ONE_BY_ONE, ASKED_ONE_BY_ONE + 1])
def test_many_calls_are_looked_for_with_one_listing(run: Run, count: int) -> None:
    ids = [f"vc_{number}" for number in range(count)]
    run.source_has(*ids)
    builder = archive()
    for call_id in ids[1:]:
        builder.call(call_id, hour(10))
    builder.call("vc_other", hour(10))

    result = run(builder.store)

    assert counts(result) == {"source": count, "unsealed": count - 1, "missing": 1}
    listed = [line for line in builder.store.requests if line.startswith("list records/")]
    assert len(listed) == (count if count == ASKED_ONE_BY_ONE else 1)


def test_the_newest_of_a_call_s_records_is_read_and_no_other(run: Run) -> None:
    run.source_has("vc_u")
    builder = archive()
    for revision in range(1, 12):
        outcome = "archived" if revision == 11 else "failed"
        builder.call("vc_u", hour(10), revision=revision, outcome=outcome)

    [unsealed] = told(run(builder.store))["unsealed"]

    assert unsealed["record"].endswith("/r11.json")
    read = [line for line in builder.store.requests if line.startswith("read records/")]
    assert len(read) == 1


# --- the range


def test_a_row_for_each_day_and_the_range_in_whole_windows(run: Run) -> None:
    run.source_has("vc_a")
    run.source_has("vc_late", window=Window(DAY + 24 * HOUR, DAY + 25 * HOUR))
    run.source_has("vc_out", window=Window(DAY + 25 * HOUR, DAY + 26 * HOUR))
    builder = archive(A)
    half = timedelta(minutes=30)

    result = run(builder.store, Window(DAY + 10 * HOUR + half, DAY), Window(DAY, DAY + 24.5 * HOUR))

    assert str(result.span) == "2024-01-15T10:00:00Z/2024-01-16T01:00:00Z"
    assert {day: dict(row) for day, row in result.days.items()} == {
        "2024-01-15": {"source": 1, "archived": 1},
        "2024-01-16": {"source": 1, "missing": 1},
    }


def test_progress_is_told_of_each_window(run: Run) -> None:
    class Seen:
        def __init__(self) -> None:
            self.calls: list[tuple[int, int]] = []

        def windows(self, done: int, total: int) -> None:
            self.calls.append((done, total))

    seen = Seen()
    options = ReconcileOptions(DAY + 10.5 * HOUR, DAY + 12.5 * HOUR, HOUR)
    reconcile(run.lister(), archive().store, options, seen)

    assert seen.calls == [(1, 3), (2, 3), (3, 3)]


def test_the_first_window_of_the_calendar(run: Run) -> None:
    first = Window(datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 1, 1, tzinfo=UTC))
    run.source_has("vc_old", startTime="0001-01-01T00:05:00Z", createdAt=None)

    assert counts(run(archive().store, first)) == {"source": 1, "missing": 1}


def test_without_an_archive_everything_is_missing(run: Run) -> None:
    store = MemoryStore()
    nothing = run(store)
    assert (nothing.archive, nothing.exit_code) == (None, 1), "perhaps it is the wrong bucket"

    run.source_has("vc_a", "vc_b")
    result = run(store)

    assert counts(result) == {"source": 2, "missing": 2}
    text = as_text(result)
    assert "no archive here yet" in text
    assert "missing   2024-01-15T10:00:00Z  vc_a\n" in text
    assert "not sealed" not in text
    assert not [line for line in store.requests if "records/" in line], "nobody need look for them"


def test_a_chain_without_its_first_seal_is_no_empty_archive(run: Run) -> None:
    builder = archive()
    builder.store.lose(layout.seal_key(0))

    with pytest.raises(FormatError, match="run archiver verify"):
        run(builder.store)


def test_the_archive_s_own_windows_are_the_grid(run: Run) -> None:
    builder = Builder()
    proved = {"window_seconds": 900}
    data = seal.genesis(
        "6f1f7b0e-0000-4000-8000-000000000001", builder.key.public, proved,
        sealed_at=DAY, watermark=DAY,
    )  # fmt: skip
    builder.put_seal(data)

    with pytest.raises(UsageError, match="ARCHIVER_WINDOW=15m"):
        run(builder.store)


def test_a_window_of_another_length_is_refused(run: Run) -> None:
    builder = Builder().genesis()
    quarter = Window(hour(10).start, hour(10).start + timedelta(minutes=15))
    builder.close(quarter)

    with pytest.raises(UsageError, match="ARCHIVER_WINDOW"):
        run(builder.store)


# --- another filter

NOPE = Filter(("Completed",), campaign_id="nope")
WIDE = Filter(("Completed", "Busy"))


def listed_with(*filters: dict[str, Any], **fields: Any) -> Builder:
    """An archive with vc_a in hour 10, each revision of which was listed with another filter."""
    builder = Builder().genesis()
    found = builder.call("vc_a", hour(10), fields=fields)
    for revision, each in enumerate(filters, 1):
        records = [found] if revision == 1 else []
        builder.close(hour(10), records, revision=revision, outcomes=dict([A]), filters=each)
    return builder


def others(result: Result) -> list[dict[str, Any]]:
    return result.document()["other_filters"]


def test_the_same_filter_is_no_other_one(run: Run) -> None:
    run.source_has("vc_a")
    both = Filter(("Completed", "Busy"), "camp_456", "Outbound")
    told_so = {"direction": "Outbound", "state": ["Busy", "Completed"], "campaign_id": "camp_456"}

    result = run(listed_with(told_so).store, filters=both)

    assert (others(result), result.exit_code) == ([], 0)
    assert result.document()["filter"] == {**told_so, "state": ["Busy", "Completed"]}
    assert "note:" not in as_text(result)


def test_calls_that_were_not_asked_for_are_no_success(run: Run) -> None:
    """The settings name a campaign that the archive was not made with."""
    run.source_has("vc_a", "vc_b", "vc_new")
    builder = archive(A, ("vc_b", "archived"), F)
    builder.seal(builder.segment(hour(11), []), builder.segment(hour(12), []))

    result = run(builder.store, hour(10), hour(13), filters=NOPE)

    all_gone = [gone(*one, asked_for=False) for one in (A, ("vc_b", "archived"), F)]
    assert told(result) == {"gone": all_gone}
    assert others(result) == [{"filter": COMPLETED, "windows": 3}]
    assert (result.ok, result.exit_code) == (False, 1)
    lines = as_text(result).splitlines()
    assert "gone      2024-01-15T10:00:00Z  vc_f  (failed; perhaps not asked for)" in lines
    assert lines[-2] == (
        'note: 3 windows of the archive were listed with another filter: {"state":["Completed"]};'
        ' this listing had {"campaign_id":"nope","state":["Completed"]}'
    )
    assert lines[-1] == (
        "NOT OK: 3 calls of the archive were perhaps not asked for: set ARCHIVER_STATES, "
        "ARCHIVER_CAMPAIGN_ID and ARCHIVER_DIRECTION as they were then; 3 gone"
    )


def test_another_filter_is_only_told_and_what_it_finds_is_missing(run: Run) -> None:
    """A state was added over the years: nothing is gone."""
    run.source_has("vc_a")
    builder = listed_with(COMPLETED)

    result = run(builder.store, filters=WIDE)
    assert others(result) == [{"filter": COMPLETED, "windows": 1}]
    assert (told(result), result.ok, result.exit_code) == ({}, True, 0)
    assert as_text(result).splitlines()[-2].startswith("note: 1 window of the archive ")

    run.source_has("vc_m", state="Busy")
    result = run(builder.store, filters=WIDE)
    assert told(result) == {"missing": [{"id": "vc_m", "window_sealed": True}]}
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("filters", "fields", "asked_for"),
    [
        (WIDE, {}, True),
        (WIDE, {"state": "BUSY"}, True),
        (WIDE, {"state": "Failed"}, False),
        (WIDE, {"state": None}, False),
        (Filter(("Completed",), direction="outbound"), {}, True),
        (Filter(("Completed",), direction="Inbound"), {}, False),
        (Filter(("Completed",), direction="Inbound"), {"direction": None}, False),
        (Filter(("Completed",), "camp_456"), {}, True),
        (NOPE, {}, False),
        (NOPE, {"campaignId": 7}, False),
    ],
)
def test_a_call_that_was_asked_for_is_gone_whatever_filter_its_window_had(
    run: Run, filters: Filter, fields: dict[str, Any], asked_for: bool
) -> None:
    """The platform deletes after its retention: an archive of years must not fail for it."""
    builder = listed_with({"state": ["Completed", "Busy", "Failed"]}, **fields)

    result = run(builder.store, filters=filters)

    assert told(result) == {"gone": [gone(*A, asked_for=asked_for)]}
    assert result.exit_code == (0 if asked_for else 1)
    verdict = as_text(result).splitlines()[-1]
    assert verdict.endswith("; 1 gone")
    assert verdict.startswith("OK: " if asked_for else "NOT OK: ")


def test_a_revision_with_another_filter_is_told_of(run: Run) -> None:
    """The archive itself was made with the wrong filter for a while: what vanished then, and is
    not asked for now, is not gone for sure."""
    builder = listed_with(COMPLETED)
    builder.close(hour(10), revision=2, outcomes={}, vanished=["vc_a"], filters=NOPE.document())
    run.source_has("vc_a")

    wrong, right = run(builder.store, filters=NOPE), run(builder.store)

    assert told(wrong) == {"gone": [gone(*A, asked_for=False)]}
    assert (others(wrong), wrong.exit_code) == ([{"filter": COMPLETED, "windows": 1}], 1)
    assert told(right) == {}
    assert (others(right)[0]["filter"], right.exit_code) == (NOPE.document(), 0)


def test_each_other_filter_is_counted(run: Run) -> None:
    builder = listed_with(
        COMPLETED, {"state": ["Busy"]}, {"state": ["Busy", "Busy"]}, WIDE.document()
    )
    builder.close(hour(11), filters={"state": ["Busy"]})
    builder.close(hour(12), filters={})

    result = run(builder.store, hour(10), hour(12), filters=WIDE)

    assert others(result) == [
        {"filter": {"state": ["Busy"]}, "windows": 2},
        {"filter": COMPLETED, "windows": 1},
        {"filter": {}, "windows": 1},
    ]


def test_a_call_without_a_record_and_with_another_filter(run: Run) -> None:
    builder = archive(pending=("vc_p",))
    builder.close(hour(10), revision=2, vanished=["vc_p"])

    result = run(builder.store, filters=WIDE)

    assert told(result) == {"gone": [gone("vc_p", asked_for=False)]}
    assert "(it was never archived; perhaps not asked for)" in as_text(result)


@pytest.mark.parametrize(
    "odd", [None, [], "x", {"state": 7}, {"state": [7, None]}, {"x": "\u202e"}]
)
def test_an_odd_filter_in_the_archive_is_another_one(run: Run, odd: Any) -> None:
    builder = Builder().genesis()
    built = builder.segment(hour(10), [], write=False)
    document = {**canonical.load_object(built.data), "filter": odd}
    seal_bytes(builder, built.name.jsonl.removesuffix(".jsonl"), canonical.dump(document), DAY)

    result = run(builder.store)

    assert others(result) == [{"filter": odd, "windows": 1}]
    assert result.exit_code == 0
    assert all(c.isprintable() or c == "\n" for c in as_text(result))
    assert json.loads(as_json(result))["other_filters"] == others(result)


def test_a_long_filter_and_many_of_them_are_cut_in_the_text() -> None:
    many = Counter({f'{{"campaign_id":"{n:02}"}}': 1 for n in range(SHOWN + 1)})
    result = Result(hour(10), "archive", other_filters=many)
    notes = [line for line in as_text(result).splitlines() if line[:5] == "note:"]
    assert notes[-1] == "note: 1 more filters (--json lists all)"
    assert len(notes) == SHOWN + 1

    result.other_filters = Counter({json.dumps({"campaign_id": "x" * 9999}): 1})
    assert max(map(len, as_text(result).splitlines())) < 600


# --- sources and stores that misbehave


def test_a_listing_that_keeps_changing_is_said_and_is_no_success(run: Run) -> None:
    numbers = itertools.count()

    def one_more(_: Request) -> None:
        run.source_has(f"vc_{next(numbers)}")

    run.platform.hooks.append(one_more)
    builder = archive()
    for number in range(50):
        builder.call(f"vc_{number}", hour(10))

    result = run(builder.store)

    assert result.document()["unstable"] == ["2024-01-15T10:00:00Z"]
    text = as_text(result)
    assert "\nunstable  2024-01-15T10:00:00Z  its listing kept changing\n" in text
    assert text.endswith("NOT OK: the listing of 1 window kept changing\n")
    assert set(told(result)) == {"unsealed"}
    assert result.exit_code == 1


@pytest.mark.parametrize("call_id", ["vc_a", "vc_m"])
def test_what_one_pass_alone_has_seen_was_listed(run: Run, call_id: str) -> None:
    """It is missing where the archive lacks it, and not gone where the archive has it."""
    run.source_has("vc_a", "vc_m")

    def hide(_: Request) -> None:
        if len(run.platform.requests) == 1:
            run.platform.remove(call_id)

    run.platform.hooks.append(hide)

    result = run(archive(A).store)

    assert result.unstable == []
    assert counts(result) == {"source": 2, "archived": 1, "missing": 1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b.store.rot(FIRST + ".jsonl", lambda d: d + b"x"),
        lambda b: b.store.rot(FIRST + ".jsonl", lambda d: d.replace(b"vc_a", b"vc_b")),
        lambda b: b.store.lose(FIRST + ".jsonl"),
        lambda b: b.store.rot(FIRST + ".seal", lambda _: b"0\n"),
        lambda b: b.store.lose(layout.seal_key(1)),
        lambda b: b.store.rot(r1("vc_u"), lambda _: b"{}"),
        lambda b: b.store.rot(r1("vc_u"), newer),
        lambda b: b.refuse(SEGMENTS + "1000.r2.jsonl"),
        lambda b: b.refuse(FIRST + ".seal"),
        lambda b: b.refuse(layout.seal_key(1)),
        lambda b: b.refuse(r1("vc_u")),
        lambda b: b.refuse("records/dt=2024-01-15/vc_u/"),
    ],
)
def test_damage_is_one_clear_line_and_the_other_windows_go_on(
    run: Run, damage: Callable[[Builder], None]
) -> None:
    run.source_has("vc_a", "vc_u")
    run.source_has("vc_n", window=hour(11))
    run.source_has("vc_m", window=hour(20))
    builder = archive(A)
    builder.call("vc_u", hour(10))
    builder.close(hour(10), revision=2, outcomes=dict([A]))
    builder.close(hour(11), [builder.call("vc_n", hour(11))])
    assert run(builder.store, hour(10), hour(20)).unreadable == {}
    damage(builder)

    result = run(builder.store, hour(10), hour(20))

    [problem] = result.unreadable
    assert "\n" not in problem
    assert (result.ok, result.exit_code) == (False, 1)
    assert result.total["source"] == 4
    lost = {one.call_id for one in result.differences["missing"]}
    assert lost <= {"vc_m", "vc_u"}
    assert "vc_m" in lost, "the others go on"
    assert result.total["archived"] >= 1
    assert result.document()["unreadable_objects"] == [
        {"problem": problem, "window": "2024-01-15T10:00:00Z"}
    ]
    text = as_text(result)
    assert f"damaged   2024-01-15T10:00:00Z  {problem}" in text
    assert "1 object of the archive could not be read: run archiver verify" in text


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[]\n"])
def test_a_sealed_segment_without_its_window_line(run: Run, content: bytes) -> None:
    builder = Builder().genesis()
    built = builder.segment(hour(10), [])
    entry = seal.SegmentEntry(
        built.name.jsonl, len(content), 0, "0" * 64, hashlib.sha256(content).hexdigest()
    )
    builder.put(built.name.jsonl, content)
    data = seal.next_seal(
        builder.seals[-1], [entry], key_id=builder.key.public.key_id,
        sealed_at=builder.now, watermark=DAY,
    )  # fmt: skip
    builder.put_seal(data)

    [problem] = run(builder.store).unreadable

    assert "run archiver verify" in problem


class _Bent:
    """A lister whose listing of one hour is bad."""

    def __init__(self, lister: Lister, bad: Callable[[Lister, Window], Any]) -> None:
        self._lister, self._bad = lister, bad

    def list(self, window: Window) -> Any:
        return self._bad(self._lister, window) if window == TENTH else self._lister.list(window)


@pytest.fixture
def bent(run: Run) -> Callable[..., Result]:
    """Reconciles hours 10 and 11 with a source that has something bad in hour 10."""
    run.source_has("vc_a")
    run.source_has("vc_m", window=hour(11))

    def now(bad: Callable[[Lister, Window], Any]) -> Result:
        store = archive(A, ("vc_b", "archived")).store
        options = ReconcileOptions(hour(10).start, hour(11).end, HOUR, 2)
        return reconcile(_Bent(run.lister(), bad), store, options)

    return now


def fail(_: Lister, window: Window) -> None:
    raise ListingError("the source answers 500", reason="status_5xx")


def cut(lister: Lister, window: Window) -> Any:
    """vc_b may stand on the page that is missing."""
    return dataclasses.replace(lister.list(window), error=ListingError("page 2 cannot be had"))


def odd(lister: Lister, window: Window) -> Any:
    listed = lister.list(window)
    return dataclasses.replace(listed, listing=dataclasses.replace(listed.listing, unreadable=2))


@pytest.mark.parametrize(
    ("bad", "member", "said", "row", "verdict", "classes"),
    [
        (
            fail, "unlisted", {"problem": "the source answers 500"},
            "unlisted  2024-01-15T10:00:00Z  the source answers 500\n",
            "the source does not list 1 window", {"missing"},
        ),
        (
            cut, "incomplete", {"problem": "page 2 cannot be had"},
            "partial   2024-01-15T10:00:00Z  page 2 cannot be had\n",
            "the source lists 1 window only in part", {"missing"},
        ),
        (
            odd, "unreadable_entries", {"entries": 2},
            "entries   2024-01-15T10:00:00Z  2 entries could not be read\n",
            "2 entries of the listing could not be read as calls", {"missing", "gone"},
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_listing_is_told_and_the_others_go_on(
    bent: Any, bad: Any, member: str, said: dict[str, Any], row: str, verdict: str, classes: Any
) -> None:
    result = bent(bad)

    assert result.document()[member] == [{**said, "window": "2024-01-15T10:00:00Z"}]
    text = as_text(result)
    assert row in text
    assert verdict in text
    assert set(told(result)) == classes
    assert told(result)["missing"] == [{"id": "vc_m", "window_sealed": False}]
    assert result.exit_code == 1


def test_an_older_record_counts_where_the_newest_cannot_be_read(run: Run) -> None:
    run.source_has("vc_u")
    builder = Builder().genesis()
    builder.call("vc_u", hour(10))
    builder.store.put("records/dt=2024-01-15/vc_u/r2.json", b"not ours")

    result = run(builder.store)

    assert [one.name for found in result.differences.values() for one in found] == ["unsealed"]
    [problem] = result.unreadable
    assert problem.startswith("records/dt=2024-01-15/vc_u/r2.json: ")


def test_a_day_of_segments_that_cannot_be_listed_is_told(run: Run) -> None:
    run.source_has("vc_a")
    builder = archive(A)
    builder.refuse("manifest/segments/dt=2024-01-15/")

    result = run(builder.store)

    assert list(result.unreadable) == ["manifest/segments/dt=2024-01-15/ cannot be listed (odd)"]
    assert result.exit_code == 1


def test_a_source_or_store_that_refuses_ends_it(run: Run) -> None:
    builder = archive()
    gone = StoreError("no", reason="unreachable")
    builder.store.refuse_all = dict.fromkeys(("read", "stream", "head", "list", "versions"), gone)
    with pytest.raises(StoreError):
        run(builder.store)

    run.platform.options.tokens.clear()
    with pytest.raises(SourceRefused):
        run(archive().store, hour(0), hour(23))


# --- what does not matter


def test_the_order_of_events_does_not_matter(run: Run) -> None:
    """The same calls, listed in any order by a source that sorts by nothing: the same words."""
    run.platform.options.sort = "given"
    builder = archive(A, F, ("vc_g", "archived"))
    builder.call("vc_u", hour(10))
    builder.call("vc_v", hour(11))
    calls = [*[(i, 10) for i in ("vc_a", "vc_f", "vc_m", "vc_u")], ("vc_v", 11), ("vc_l", 11)]
    seen = set()
    for number in range(5):
        random.Random(number).shuffle(calls)
        for call in run.platform.calls:
            run.platform.remove(call.id)
        for call_id, at in calls:
            run.source_has(call_id, window=hour(at))
        seen.add(as_json(run(builder.store, hour(9), hour(12))))

    [text] = seen
    assert json.loads(text)["total"] == {
        "source": 6, "archived": 1, "no_recording": 0, "failed": 1, "pending": 0, "missing": 2,
        "unsealed": 2, "gone": 1, "differs": 0,
    }  # fmt: skip


# --- how it reads


def everything(run: Run) -> Result:
    """One call of each class but two of missing, over two hours."""
    run.source_has("vc_a", "vc_f", "vc_p", "vc_z\x1b[2J\u202e")
    run.source_has("vc_d", durationSeconds=1)
    run.source_has("vc_u", "vc_m", window=hour(11))
    builder = archive(
        A, ("vc_d", "archived"), F, ("vc_g", "archived"),
        pending=("vc_p",),
    )  # fmt: skip
    builder.call("vc_u", hour(11))
    return run(builder.store, hour(10), hour(11))


def test_the_json_form_is_stable(run: Run) -> None:
    text = as_json(everything(run))
    document = json.loads(text)

    assert text.isascii()
    assert text.endswith("}\n")
    assert list(document) == sorted(document)
    counted = {
        "source": 7, "archived": 2, "no_recording": 0, "failed": 1, "pending": 1, "missing": 2,
        "unsealed": 1, "gone": 1, "differs": 1,
    }  # fmt: skip
    ten, eleven = "2024-01-15T10:00:00Z", "2024-01-15T11:00:00Z"
    assert document == {
        "type": "reconcile",
        "v": 1,
        "ok": False,
        "archive": "6f1f7b0e-0000-4000-8000-000000000001",
        "from": ten,
        "to": "2024-01-15T12:00:00Z",
        "days": [{"day": "2024-01-15", **counted}],
        "total": counted,
        "unstable": [],
        "filter": {"state": ["Completed"]},
        "other_filters": [],
        "missing": [
            {"call_id": "vc_z\x1b[2J\u202e", "window": ten, "window_sealed": True},
            {"call_id": "vc_m", "window": eleven, "window_sealed": False},
        ],
        "pending": [{"call_id": "vc_p", "window": ten, "listed": True}],
        "failed": [
            {"call_id": "vc_f", "window": ten, "reason": "not_wav", "record": r1("vc_f"),
             "sealed": True}
        ],
        "differs": [
            {"call_id": "vc_d", "window": ten, "record": r1("vc_d"),
             "differences": {"duration_seconds": {"archive": 312, "source": 1}}}
        ],
        "unlisted": [],
        "incomplete": [],
        "unreadable_entries": [],
        "unreadable_objects": [],
        "unsealed": [
            {"call_id": "vc_u", "window": eleven, "outcome": "archived", "record": r1("vc_u")}
        ],
        "gone": [
            {"call_id": "vc_g", "window": ten, "outcome": "archived", "record": r1("vc_g"),
             "asked_for": True}
        ],
    }  # fmt: skip
    total = document["total"]
    settled = ("archived", "no_recording", "failed", "pending", "missing", "unsealed")
    assert total["source"] == sum(total[name] for name in settled)


def test_the_text_form(run: Run) -> None:
    text = as_text(everything(run))

    assert all(c.isprintable() or c == "\n" for c in text)
    lines = text.splitlines()
    assert lines[0].split() == [
        "day", "source", "archived", "no", "recording", "failed", "pending", "missing",
        "unsealed", "gone", "differ",
    ]  # fmt: skip
    assert lines[1].split() == ["2024-01-15", "7", "2", "0", "1", "1", "2", "1", "1", "1"]
    assert lines[2].split()[0] == "total"
    assert lines[1].split()[1:] == lines[2].split()[1:]
    assert [len(line) for line in lines[:3]] == [len(lines[0])] * 3
    ten, eleven = "2024-01-15T10:00:00Z", "2024-01-15T11:00:00Z"
    assert [line for line in lines[3:-1] if line] == [
        f"missing   {ten}  vc_z\\x1b[2J\\u202e",
        f"missing   {eleven}  vc_m  (its window is not sealed)",
        f"pending   {ten}  vc_p",
        f"failed    {ten}  vc_f  (not_wav)",
        f"differs   {ten}  vc_d  (duration_seconds: 312 in the archive, 1 at the source)",
        f"unsealed  {eleven}  vc_u  (archived)",
        f"gone      {ten}  vc_g  (archived)",
    ]
    assert lines[-1] == (
        "NOT OK: the archive lacks the recordings of 4 calls (2 missing, 1 pending, 1 failed); "
        "1 gone, 1 differs"
    )


def test_a_good_end_says_so(run: Run) -> None:
    run.source_has("vc_a")
    builder = archive(A)
    text = as_text(run(builder.store))
    assert text.endswith("\nOK: the archive has a result for each of the 1 calls listed\n")

    run.source_has("vc_u")
    builder.call("vc_u", hour(10))
    text = as_text(run(builder.store))
    assert text.endswith("each of the 2 calls listed, 1 of them not sealed yet\n")

    run.source_has("vc_a", "vc_b", durationSeconds=1)
    for call_id in ("vc_b", "vc_g"):
        builder.close(hour(10), [builder.call(call_id, hour(10))], revision=len(builder.seals))
    text = as_text(run(builder.store))
    assert text.endswith("3 calls listed, 1 of them not sealed yet; 1 gone, 2 differ\n")


def test_many_calls_are_summed_up_in_the_text_and_not_in_json(run: Run) -> None:
    run.source_has(*[f"vc_{number:02}" for number in range(SHOWN + 3)])
    result = run(archive().store)

    text = as_text(result)
    assert text.count("\nmissing ") == SHOWN + 1
    assert "\nmissing   … and 3 more (--json lists all)\n" in text
    assert len(json.loads(as_json(result))["missing"]) == SHOWN + 3


@pytest.mark.parametrize(
    ("name", "fields", "shown"),
    [
        ("pending", {"listed": False}, "the source does not list it any more"),
        ("failed", {"reason": "\x1b", "record": "k", "sealed": False}, "\\x1b, not sealed"),
        (
            "gone",
            {"outcome": None, "record": None, "asked_for": True},
            "it was never archived",
        ),
        (
            "differs",
            {"differences": {"state": {"archive": None, "source": "\x1b\ud800"}}, "record": "k"},
            "state: nothing in the archive, \\x1b\\ud800 at the source",
        ),
    ],
)
def test_details(name: Any, fields: dict[str, Any], shown: str) -> None:
    result = Result(hour(10), "archive")
    result.add(Difference(name, "\ud800", hour(10), fields))

    assert f"  \\ud800  ({shown})\n" in as_text(result)
    assert json.loads(as_json(result))[name][0]["call_id"] == "\ud800"


# --- on the real store, after the real pipeline


def versions(bucket: Bucket) -> list[tuple[str, str | None, bool]]:
    return sorted((v.key, v.version_id, v.is_delete_marker) for v in bucket.versions(""))


@pytest.mark.weed
def test_the_archiver_s_own_archive_and_nothing_is_written(
    platform: Platform, bucket: Bucket, clock: HandClock, key: SigningKey, run: Run
) -> None:
    clock.turn_to(TEN + timedelta(days=3))
    platform.add(a_call("vc_1"), a_call("vc_2"), a_call("vc_n", audio=None), a_call("vc_bad"))
    platform.add(a_call("vc_next", TEN + HOUR))
    call_of(platform, "vc_bad").blob_missing = True
    with wired(platform, bucket, clock, key) as rig:
        rig.backfill(hours=2)
    platform.add(a_call("vc_late", TEN + timedelta(minutes=30)))
    platform.add(a_call("vc_2", seconds=2))
    platform.remove("vc_next")
    before = versions(bucket)
    platform.requests.clear()

    result = run(bucket, hour(10), hour(12))

    assert counts(result) == {
        "source": 5, "archived": 2, "no_recording": 1, "failed": 1, "missing": 1, "gone": 1,
        "differs": 1,
    }  # fmt: skip
    assert {name: [one["id"] for one in found] for name, found in told(result).items()} == {
        "missing": ["vc_late"], "failed": ["vc_bad"], "differs": ["vc_2"], "gone": ["vc_next"],
    }  # fmt: skip
    assert result.exit_code == 1
    assert versions(bucket) == before
    assert {(one.method, one.path) for one in platform.requests} == {("GET", "/api/v1/voice-calls")}


@pytest.mark.weed
def test_an_empty_bucket_stays_empty(platform: Platform, bucket: Bucket, run: Run) -> None:
    run.source_has("vc_a")

    assert counts(run(bucket)) == {"source": 1, "missing": 1}
    assert versions(bucket) == []


@pytest.mark.weed
def test_a_window_that_has_not_settled(
    platform: Platform, bucket: Bucket, clock: HandClock, key: SigningKey, run: Run
) -> None:
    """Archived at once, official later; a backfill of what is missing makes it well."""
    platform.add(a_call("vc_1"), a_call("vc_2"))
    with wired(platform, bucket, clock, key) as rig:
        clock.turn_to(max(clock.now(), TEN + HOUR))
        rig.backfill()
        platform.add(a_call("vc_3"))
        assert counts(run(bucket)) == {"source": 3, "unsealed": 2, "missing": 1}
        clock.forward(timedelta(days=1))
        rig.backfill()
        assert counts(run(bucket)) == {"source": 3, "archived": 3}
