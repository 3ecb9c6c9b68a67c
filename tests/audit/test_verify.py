"""What `verify` looks at: levels, ranges, samples, locks, strays, a writer at work."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.audit.chain import KnownHead
from archiver.audit.objects import Sample
from archiver.audit.verify import Options, read_public_key, verify
from archiver.audit.windows import CountedCalls
from archiver.core.errors import StoreError, UsageError
from archiver.manifest import layout, record
from archiver.manifest.record import File
from tests.audit.builder import DAY, Builder, hour, small_archive, unordered_archive
from tests.audit.damage import (
    FIRST,
    RECORD,
    SEGMENTS,
    UNTOLD,
    WAV,
    cut_tail,
    flip,
    lose_seal,
)
from tests.audit.store import MemoryStore


def audit(builder: Builder, **options):
    return verify(builder.store, Options(**options), pause=lambda _: None)


# --- levels and counts


def test_counts_say_what_is_there() -> None:
    report = audit(small_archive(), level="bytes")
    counts = report.counts

    assert (counts.seals, counts.segments, counts.windows, counts.records) == (5, 4, 3, 8)
    assert counts.document()["calls"] == {"archived": 5, "no_recording": 1, "failed": 1}
    assert (counts.files, counts.files_hashed) == (19, 19)
    assert counts.bytes == counts.bytes_hashed
    assert counts.pending == 0


def test_pending_counts_what_the_newest_revision_leaves_open() -> None:
    builder = Builder().genesis()
    builder.seal(builder.segment(hour(10), [], pending=["vc_p", "vc_q"]))
    found = builder.call("vc_p", hour(10))
    builder.seal(
        builder.segment(
            hour(10), [found], revision=2, outcomes={"vc_p": "archived"}, pending=["vc_q"]
        )
    )

    assert audit(builder).counts.pending == 1


def test_a_level_asks_for_no_more_than_it_says() -> None:
    builder = small_archive()
    audit(builder, level="manifest")
    assert [r for r in builder.store.requests if " record" in r] == ["list records/"]

    builder.store.requests.clear()
    audit(builder, level="objects")
    assert not [r for r in builder.store.requests if r.startswith("stream recordings/")]


SIDE = "recordings/dt=2024-01-15/vc_a/"


@pytest.mark.parametrize("name", ["transcript.bad", "epa.bad", "summary.md"])
def test_files_of_every_kind_are_hashed_known_or_not(name: str) -> None:
    """`summary` is a kind that this release does not know."""
    builder = Builder().genesis()
    kinds = ("recording", "transcript_malformed", "epa_malformed", "summary")
    builder.seal(builder.segment(hour(10), [builder.call("vc_a", hour(10), kinds=kinds)]))
    report = audit(builder, level="bytes")
    assert [found for found in report.findings if found.severity != "info"] == []
    assert report.counts.files_hashed == 4
    builder.store.rot(SIDE + name, flip)
    assert {found.code for found in audit(builder, level="bytes").findings} == {"file_hash"}


def test_works_without_versions_and_checksums() -> None:
    builder = small_archive(MemoryStore(versioned=False, checksums=False))

    report = audit(builder, level="bytes")

    assert report.totals == {}
    builder.store.put(WAV, flip(builder.store.data(WAV)))
    assert set(audit(builder, level="bytes").totals) == {"file_hash"}


def test_a_store_that_cannot_list_versions_is_noted() -> None:
    builder = small_archive()
    no = StoreError("no", reason="refused", status=501)
    builder.store.refuse_all["versions"] = no

    report = audit(builder)

    assert report.ok
    assert any("cannot list versions" in note for note in report.notes)


def test_a_missing_right_to_list_versions_ends_the_audit() -> None:
    builder = small_archive()
    denied = StoreError("give s3:ListBucketVersions", reason="denied")
    builder.store.refuse_all["versions"] = denied

    with pytest.raises(StoreError, match="s3:ListBucketVersions"):
        audit(builder)


def test_the_probe_of_the_store_is_no_evidence() -> None:
    builder = small_archive()
    builder.store.put(layout.PROBE, b"x")
    builder.store.put(layout.PROBE, b"x")

    assert audit(builder).totals == {}


# --- ranges


def test_a_range_restricts_what_is_looked_into_but_not_the_chain() -> None:
    builder = small_archive()
    builder.store.rot(WAV, flip)  # 12:00
    builder.store.lose(RECORD)
    builder.store.put(RECORD.replace("vc_d", "vc_c"), b"overwritten")
    early = {"level": "bytes", "start": hour(10).start, "end": hour(12).start}

    assert audit(builder, **early).counts.windows == 2
    assert audit(builder, **(early | {"end": hour(12).end})).totals["file_hash"] == 1
    lose_seal(builder, 3)
    assert "seal_missing" in audit(builder, **early).totals


def test_a_range_in_the_middle_of_a_window_takes_the_window() -> None:
    builder = small_archive()
    start = hour(10).start + timedelta(minutes=30)

    assert audit(builder, start=start, end=start).counts.windows == 1
    assert audit(builder, start=hour(13).start).counts.windows == 1  # it may reach into the range
    assert audit(builder, start=DAY + timedelta(days=1)).counts.windows == 0
    assert audit(builder, end=hour(10).start).counts.windows == 0


def test_a_gap_counts_in_its_range_only() -> None:
    builder = small_archive()
    builder.seal(builder.segment(hour(14), []))  # 13:00 is left out

    assert set(audit(builder).totals) == {"window_gap"}
    assert set(audit(builder, start=hour(13).start, end=hour(14).start).totals) == {"window_gap"}
    assert audit(builder, start=hour(14).start).totals == {}
    assert audit(builder, end=hour(13).start).totals == {}


@pytest.mark.parametrize(
    ("windows", "watermarks"),
    [((3, 20), (12, 12)), ((14, 13), (12, 14))],
    ids=["windows of a backfill", "windows of earlier seals"],
)
def test_windows_need_not_be_sealed_in_order(
    windows: tuple[int, ...], watermarks: tuple[int, ...]
) -> None:
    builder = small_archive()
    for window, watermark in zip(windows, watermarks, strict=True):
        builder.seal(builder.segment(hour(window), []), watermark=hour(watermark).end)

    assert audit(builder).totals == {}


def test_a_range_looks_for_versions_on_its_days() -> None:
    builder = small_archive()
    builder.store.put(WAV, builder.store.data(WAV))

    assert set(audit(builder, start=hour(12).start).totals) == {"overwritten"}
    assert audit(builder, start=hour(40).start).totals == {}


# --- samples


def test_a_sample_hashes_so_many_files() -> None:
    builder = small_archive()

    assert audit(builder, level="bytes", sample=3).counts.files_hashed == 3
    assert audit(builder, level="bytes", sample=0).counts.files_hashed == 0
    assert audit(builder, level="bytes", sample=1000).counts.files_hashed == 19
    assert audit(builder, level="objects", sample=3).counts.files_hashed == 0


def test_a_sample_finds_a_damage_sooner_or_later() -> None:
    builder = small_archive()
    builder.store.rot(WAV, flip)

    assert any("file_hash" in audit(builder, level="bytes", sample=3).totals for _ in range(200))


def test_a_sample_is_even() -> None:
    files = [File("recording", str(number), 0, "") for number in range(10)]
    chosen = dict.fromkeys(range(10), 0)
    for seed in range(3000):
        sample = Sample(3, random.Random(seed))
        for file in files:
            sample.offer(file)
        for file in sample.chosen:
            chosen[int(file.key)] += 1

    assert all(750 < count < 1050 for count in chosen.values())


# --- retention

SUFFIXES = ("jsonl", "sha256", "seal")
PROMISE = {"mode": "GOVERNANCE", "until": "2034-01-15T10:10:12Z"}
BEFORE = datetime(2034, 1, 15, tzinfo=UTC)


def locked() -> Builder:
    return small_archive(retention=PROMISE)


@pytest.mark.parametrize("key", [WAV, RECORD])
@pytest.mark.parametrize(
    ("mode", "until", "code"),
    [
        ("GOVERNANCE", "2034-01-15T10:10:12Z", None),
        ("COMPLIANCE", "2035-01-15T10:10:12Z", None),
        ("GOVERNANCE", "2034-01-15T10:10:11Z", "retention_weaker"),
        (None, None, "retention_missing"),
    ],
)
def test_a_lock_is_at_least_as_promised(key: str, mode, until, code) -> None:
    builder = locked()
    entry = builder.store.entry(key)
    entry.lock_mode = mode
    entry.lock_until = datetime.fromisoformat(until) if until else None

    report = verify(builder.store, Options(), now=BEFORE)

    assert [(f.code, f.key) for f in report.findings] == ([(code, key)] if code else [])
    assert report.exit_code == (1 if code else 0)


def test_a_retention_that_is_over_need_not_hold() -> None:
    builder = locked()
    builder.store.entry(WAV).lock_mode = None

    after = datetime(2034, 1, 16, tzinfo=UTC)
    assert verify(builder.store, Options(), now=after).totals == {}


LATER = {"mode": "GOVERNANCE", "until": "2035-01-15T10:10:12Z"}
STRICT = {"mode": "COMPLIANCE", "until": "2034-01-15T10:10:12Z"}
RECORDING = "recordings/dt=2024-01-15/vc_a/recording.wav"


def amended(first: dict[str, str], second: dict[str, str], *, at_once: bool = False) -> Builder:
    """A call whose recording the second record carries over, with a promise of its own; told in
    two revisions of the window, or in one."""
    builder = Builder(retention=first).genesis()
    told = [builder.call("vc_a", hour(10), kinds=("recording",))]
    if not at_once:
        builder.seal(builder.segment(hour(10), told))
    builder.retention = second
    again = builder.call("vc_a", hour(10), kinds=("recording",), revision=2)
    segment = builder.segment(
        hour(10), [*told, again] if at_once else [again], revision=1 if at_once else 2
    )
    builder.seal(segment)
    return builder


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("first", "second", "mode", "until", "codes"),
    [
        (PROMISE, LATER, "GOVERNANCE", LATER["until"], []),
        (PROMISE, LATER, "GOVERNANCE", PROMISE["until"], ["retention_weaker"]),
        (PROMISE, LATER, "GOVERNANCE", "2033-01-15T00:00:00Z", ["retention_weaker"]),
        (PROMISE, LATER, None, None, ["retention_missing"]),
        (LATER, PROMISE, "GOVERNANCE", PROMISE["until"], ["retention_weaker"]),
        (PROMISE, STRICT, "GOVERNANCE", PROMISE["until"], ["retention_weaker"]),
        (STRICT, LATER, "COMPLIANCE", LATER["until"], []),
        (STRICT, LATER, "COMPLIANCE", STRICT["until"], ["retention_weaker"]),
        (STRICT, LATER, "GOVERNANCE", LATER["until"], ["retention_weaker"]),
        (None, LATER, None, None, ["retention_missing"]),
        (None, LATER, "GOVERNANCE", LATER["until"], []),
        (LATER, None, "GOVERNANCE", PROMISE["until"], ["retention_weaker"]),
    ],
)
def test_a_file_that_is_carried_over_is_locked_as_all_its_records_promise(
    first, second, mode, until, codes, at_once: bool
) -> None:
    builder = amended(first, second, at_once=at_once)
    entry = builder.store.entry(RECORDING)
    entry.lock_mode = mode
    entry.lock_until = datetime.fromisoformat(until) if until else None

    report = verify(builder.store, Options(workers=1), now=BEFORE)

    assert [(f.code, f.key) for f in report.findings] == [(code, RECORDING) for code in codes]
    assert report.counts.files == 1


def test_a_promise_that_is_no_stronger_costs_no_further_question() -> None:
    builder = amended(LATER, PROMISE)

    verify(builder.store, Options(), now=BEFORE)

    assert builder.store.requests.count(f"head {RECORDING}") == 1


MANIFEST = [
    *(f"{stem}.{suffix}" for stem in (FIRST, SEGMENTS + "1000.r2") for suffix in SUFFIXES),
    *(make(seq) for seq in (1, 4) for make in (layout.seal_key, layout.signature_key)),
]
"""What covers the window from 10:00."""


@pytest.mark.parametrize("key", MANIFEST)
@pytest.mark.parametrize(
    ("mode", "until", "code"),
    [
        ("GOVERNANCE", "2034-01-15T10:10:12Z", None),
        ("GOVERNANCE", "2034-01-15T10:10:11Z", "retention_weaker"),
        (None, None, "retention_missing"),
    ],
)
def test_what_covers_records_is_locked_as_they_are(key: str, mode, until, code) -> None:
    builder = locked()
    entry = builder.store.entry(key)
    entry.lock_mode = mode
    entry.lock_until = datetime.fromisoformat(until) if until else None

    for options in (Options(), Options(start=hour(10).start, end=hour(11).start)):
        report = verify(builder.store, options, now=BEFORE)
        assert [(f.code, f.key) for f in report.findings] == ([(code, key)] if code else [])
    assert verify(builder.store, Options(level="manifest"), now=BEFORE).totals == {}


def test_the_last_promise_of_all_that_is_covered_counts() -> None:
    """Two windows in one seal: the segments keep their own records' date, the seal the later."""
    builder = Builder(retention=PROMISE).genesis()
    one = builder.segment(hour(10), [builder.call("vc_a", hour(10))])
    builder.retention = LATER
    other = builder.segment(hour(11), [builder.call("vc_b", hour(11))])
    builder.seal(one, other, builder.segment(hour(12), []))
    for key in builder.store.all_keys("manifest/se"):
        entry = builder.store.entry(key)
        entry.lock_mode, entry.lock_until = "GOVERNANCE", datetime.fromisoformat(PROMISE["until"])
    builder.store.entry(SEGMENTS + "1200.r1.jsonl").lock_mode = None  # it covers nothing

    report = verify(builder.store, Options(), now=BEFORE)

    late = [*(f"{SEGMENTS}1100.r1.{suffix}" for suffix in SUFFIXES)]
    late += [layout.seal_key(1), layout.signature_key(1)]
    assert [f.key for f in report.findings] == sorted(late)
    assert set(report.totals) == {"retention_weaker"}


def test_without_a_promise_nothing_is_asked_of_locks() -> None:
    builder = small_archive()
    verify(builder.store, Options())

    assert not [one for one in builder.store.requests if one.startswith("head manifest")]
    assert not [one for one in builder.store.requests if one.startswith("head records")]


# --- the verifier's own page


def test_an_archive_whose_seal_0_tells_nothing_of_the_page() -> None:
    assert audit(Builder().genesis(pages=None)).totals == {}


# --- strays, and a writer at work


def test_a_segment_without_a_seal_is_information() -> None:
    builder = small_archive()
    builder.segment(hour(13), [builder.call("vc_e", hour(13))])
    builder.hold("add", "vc_c", on=False)

    report = audit(builder)

    assert report.totals == {"unsealed_segment": 2, "untold_record": 1, "unnamed_object": 3}
    assert report.exit_code == 0


def test_a_cut_off_tail_leaves_traces_unless_they_go_too() -> None:
    builder = small_archive()
    lose_seal(builder, 4)
    assert set(audit(builder).totals) == {"pointer_dangling", *UNTOLD}

    cut = small_archive()
    cut_tail(cut)
    assert (set(audit(cut).totals), audit(cut).ok) == (UNTOLD, True)


def test_a_companion_without_its_segment_is_a_trace() -> None:
    builder = small_archive()
    built = builder.segment(hour(13), [])
    builder.store.lose(built.name.jsonl)

    assert set(audit(builder).totals) == {"segment_missing"}


def test_damage_in_a_seal_is_not_told_again_of_its_segments() -> None:
    builder = small_archive()
    lose_seal(builder, 1)

    report = audit(builder)

    assert set(report.totals) == {"seal_missing"}
    assert any("gaps in time were not looked for" in note for note in report.notes)


class Growing(MemoryStore):
    """A writer seals a further window while the auditor lists the segments."""

    def __init__(self) -> None:
        super().__init__()
        self.then: list = []

    def list(self, prefix: str) -> Iterator:
        if prefix == layout.SEGMENTS and self.then:
            self.then.pop()()
        return super().list(prefix)


def test_a_seal_made_meanwhile_is_no_finding() -> None:
    store = Growing()
    builder = small_archive(store)
    store.then = [lambda: builder.seal(builder.segment(hour(13), []))]

    assert audit(builder).totals == {}


def test_a_seal_under_way_is_waited_for() -> None:
    """The newest seal stands; its signature and its pointer come a moment later."""
    builder = small_archive()
    late = {}
    for key in (layout.signature_key(4), SEGMENTS + "1000.r2.seal"):
        late[key] = builder.store.data(key)
        builder.store.lose(key)

    def pause(seconds: float) -> None:
        if late:
            builder.store.put(*late.popitem())

    assert verify(builder.store, Options(level="manifest", workers=1), pause=pause).totals == {}


def test_events_of_an_unknown_kind_are_passed_by() -> None:
    builder = small_archive()
    notes = [{"type": "note", "at": f"2024-01-16T00:00:0{n}Z"} for n in range(3)]
    builder.seal(events=[builder.event("101112-0123abcd", *notes)])

    report = audit(builder)
    assert (report.totals, report.counts.events) == ({}, 3)
    assert audit(builder, end=DAY - timedelta(days=1)).counts.events == 3, "whatever the range"


# --- calls that two windows tell of


def moved(**again: Any) -> Builder:
    """A call of the window from 10:00 that the one from 12:00 has, too. `again`: what a later
    revision of the first one says."""
    builder = Builder().genesis()
    found = builder.call("vc_a", hour(10))
    builder.seal(builder.segment(hour(10), [found]))
    builder.seal(builder.segment(hour(11), [builder.call("vc_b", hour(11))]))
    builder.seal(builder.segment(hour(12), [found]))
    if again:
        builder.seal(builder.segment(hour(10), [], revision=2, **again), watermark=hour(12).end)
    return builder


def test_a_call_that_two_windows_count_is_a_warning() -> None:
    report = audit(moved())

    [finding] = report.findings
    assert (finding.code, finding.severity) == ("call_in_two_windows", "warning")
    assert finding.key == SEGMENTS + "1200.r1.jsonl"
    assert finding.detail == f"1 call, which {FIRST}.jsonl counts too"
    assert report.exit_code == 1
    assert audit(moved(), start=hour(11).start).totals == {}, "as far as was looked"


def test_a_call_that_moved_is_counted_once_and_one_that_moved_back_twice() -> None:
    builder = moved(outcomes={}, vanished=["vc_a"])
    assert audit(builder).totals == {}

    known = {"vc_a": "archived"}
    builder.seal(builder.segment(hour(10), [], revision=3, outcomes=known), watermark=hour(12).end)
    assert set(audit(builder).totals) == {"call_in_two_windows"}


def break_line(number: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        lines[number] = b"[]\n"
        return b"".join(lines)

    return change


@pytest.mark.parametrize(
    "harm",
    [
        lambda store: store.lose(SEGMENTS + "1000.r2.jsonl"),
        lambda store: store.rot(SEGMENTS + "1000.r2.jsonl", break_line(-1)),
        lambda store: store.rot(SEGMENTS + "1000.r1.jsonl", break_line(0)),
    ],
)
def test_what_is_damaged_is_no_call_in_two_windows(harm: Callable[[MemoryStore], None]) -> None:
    """The newest revision might say of the call that it vanished."""
    builder = moved(outcomes={"vc_a": "archived"}, pending=["vc_p"])
    assert "call_in_two_windows" in audit(builder).totals
    harm(builder.store)

    assert "call_in_two_windows" not in audit(builder).totals


def test_a_call_is_counted_while_it_is_pending_and_in_any_revision() -> None:
    builder = Builder().genesis()
    builder.seal(builder.segment(hour(10), [builder.call("vc_a", hour(10))], pending=["vc_p"]))
    again = [builder.call("vc_a", hour(10), revision=2), builder.call("vc_p", hour(11))]
    builder.seal(builder.segment(hour(11), again))

    [finding] = audit(builder).findings
    assert finding.detail == f"2 calls, which {FIRST}.jsonl counts too"


def test_each_pair_of_windows_is_one_finding() -> None:
    builder = moved()
    found = record.parse(builder.store.data("records/dt=2024-01-15/vc_a/r1.json"))
    builder.seal(builder.segment(hour(13), [found]))

    assert sorted((f.key, f.detail) for f in audit(builder).findings) == [
        (SEGMENTS + "1200.r1.jsonl", f"1 call, which {FIRST}.jsonl counts too"),
        (SEGMENTS + "1300.r1.jsonl", f"1 call, which {SEGMENTS}1200.r1.jsonl counts too"),
    ]


def test_the_calls_of_many_windows_are_compared() -> None:
    counted = CountedCalls()
    for number in range(100):
        counted.add(f"window {number}", (hash(f"vc_{number}_{call}") for call in range(500)))
    counted.add("last", map(hash, ["vc_7_7", "vc_8_8", "vc_8_9", "vc_new"]))
    said: list[tuple[str, str, str]] = []

    counted.check(lambda *words: said.append(words))

    assert said == [
        ("call_in_two_windows", "last", "1 call, which window 7 counts too"),
        ("call_in_two_windows", "last", "2 calls, which window 8 counts too"),
    ]


# --- the newest record


def test_the_newest_record_is_the_one_with_the_highest_number() -> None:
    report = audit(unordered_archive(), level="bytes")

    assert report.totals == {}
    assert report.counts.document()["calls"] == {"archived": 5, "no_recording": 0, "failed": 0}


# --- what the auditor is given


@pytest.mark.parametrize("text", ["", "4", "4:", "x:" + "a" * 64, "4:" + "g" * 64, "²:" + "a" * 64])
def test_a_malformed_head_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--head"):
        KnownHead.parse(text)


def test_a_head_is_read_as_it_is_printed() -> None:
    assert KnownHead.parse(" 4:" + "A" * 64 + "\n") == KnownHead(4, "a" * 64)


def test_any_seal_may_be_the_known_head() -> None:
    builder = small_archive()
    sealed = builder.seals[2]

    assert audit(builder, head=KnownHead(2, sealed.sha256)).totals == {}
    assert audit(builder, head=KnownHead(2, "0" * 64)).totals == {"head_mismatch": 1}


def test_a_file_that_is_no_key_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--public-key"):
        read_public_key(b"no key")
    assert read_public_key(small_archive().key.public.pem).key_id


def test_progress_counts_windows_and_bytes() -> None:
    class Watch:
        done: list = []  # noqa: RUF012
        size = 0

        def windows(self, done: int, total: int) -> None:
            self.done.append((done, total))

        def hashed(self, size: int) -> None:
            self.size += size

    builder, watch = small_archive(), Watch()
    report = verify(builder.store, Options(level="bytes", workers=1), progress=watch)

    assert watch.done == [(1, 3), (2, 3), (3, 3)]
    assert watch.size == report.counts.bytes_hashed
