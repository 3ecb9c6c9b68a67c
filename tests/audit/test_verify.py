"""What `verify` looks at: levels, ranges, samples, locks, strays, a writer at work."""

from __future__ import annotations

import random
from collections.abc import Callable
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
from tests.audit.damage import FIRST, RECORD, SEGMENTS, WAV, flip, lose_seal
from tests.audit.store import MemoryStore

# --- levels and counts


def test_counts_say_what_is_there() -> None:
    report = small_archive().audit(level="bytes")
    counts = report.counts

    assert (counts.seals, counts.segments, counts.windows, counts.records) == (5, 4, 3, 8)
    assert counts.document()["calls"] == {"archived": 5, "no_recording": 1, "failed": 1}
    assert (counts.files, counts.files_hashed) == (19, 19)
    assert counts.bytes == counts.bytes_hashed
    assert counts.pending == 0


def test_the_newest_record_is_the_one_with_the_highest_number() -> None:
    report = unordered_archive().audit(level="bytes")

    assert report.totals == {}
    assert report.counts.document()["calls"] == {"archived": 5, "no_recording": 0, "failed": 0}


def test_pending_counts_what_the_newest_revision_leaves_open() -> None:
    builder = Builder().genesis()
    builder.close(hour(10), pending=["vc_p", "vc_q"])
    known = {"vc_p": "archived"}
    found = builder.call("vc_p", hour(10))
    builder.close(hour(10), [found], revision=2, outcomes=known, pending=["vc_q"])

    assert builder.audit().counts.pending == 1


def test_a_level_asks_for_no_more_than_it_says() -> None:
    builder = small_archive()
    builder.audit(level="manifest")
    assert [r for r in builder.store.requests if " record" in r] == ["list records/"]

    builder.store.requests.clear()
    builder.audit(level="objects")
    assert not [r for r in builder.store.requests if r.startswith("stream recordings/")]


SIDE = "recordings/dt=2024-01-15/vc_a/"


@pytest.mark.parametrize("name", ["transcript.bad", "epa.bad", "diary.md"])
def test_files_of_every_kind_are_hashed_known_or_not(name: str) -> None:
    """`diary` is a kind that this release does not know."""
    builder = Builder().genesis()
    kinds = ("recording", "transcript_malformed", "epa_malformed", "diary")
    builder.close(hour(10), [builder.call("vc_a", hour(10), kinds=kinds)])
    report = builder.audit(level="bytes")
    assert [found for found in report.findings if found.severity != "info"] == []
    assert report.counts.files_hashed == 4
    builder.store.rot(SIDE + name, flip)
    assert {found.code for found in builder.audit(level="bytes").findings} == {"file_hash"}


def test_works_without_versions_and_checksums() -> None:
    builder = small_archive(MemoryStore(versioned=False, checksums=False))

    report = builder.audit(level="bytes")

    assert report.totals == {}
    builder.store.put(WAV, flip(builder.store.data(WAV)))
    assert set(builder.audit(level="bytes").totals) == {"file_hash"}


def test_a_store_that_cannot_list_versions_is_noted() -> None:
    builder = small_archive()
    no = StoreError("no", reason="refused", status=501)
    builder.store.refuse_all["versions"] = no

    report = builder.audit()

    assert report.ok
    assert any("cannot list versions" in note for note in report.notes)


# --- ranges


def test_a_range_restricts_what_is_looked_into_but_not_the_chain() -> None:
    builder = small_archive()
    builder.store.rot(WAV, flip)  # 12:00
    builder.store.lose(RECORD)
    builder.store.put(RECORD.replace("vc_d", "vc_c"), b"overwritten")
    early = {"level": "bytes", "start": hour(10).start, "end": hour(12).start}

    assert builder.audit(**early).counts.windows == 2
    assert builder.audit(**(early | {"end": hour(12).end})).totals["file_hash"] == 1
    lose_seal(builder, 3)
    assert "seal_missing" in builder.audit(**early).totals


def test_a_range_in_the_middle_of_a_window_takes_the_window() -> None:
    builder = small_archive()
    start = hour(10).start + timedelta(minutes=30)

    assert builder.audit(start=start, end=start).counts.windows == 1
    assert builder.audit(start=hour(13).start).counts.windows == 1  # it may reach into the range
    assert builder.audit(start=DAY + timedelta(days=1)).counts.windows == 0
    assert builder.audit(end=hour(10).start).counts.windows == 0


def test_a_gap_counts_in_its_range_only() -> None:
    builder = small_archive()
    builder.close(hour(14))  # 13:00 is left out

    assert set(builder.audit().totals) == {"window_gap"}
    assert set(builder.audit(start=hour(13).start, end=hour(14).start).totals) == {"window_gap"}
    assert builder.audit(start=hour(14).start).totals == {}
    assert builder.audit(end=hour(13).start).totals == {}


def test_a_range_looks_for_versions_on_its_days() -> None:
    builder = small_archive()
    builder.store.put(WAV, builder.store.data(WAV))

    assert set(builder.audit(start=hour(12).start).totals) == {"overwritten"}
    assert builder.audit(start=hour(40).start).totals == {}


# --- samples


def test_a_sample_hashes_so_many_files() -> None:
    builder = small_archive()

    assert builder.audit(level="bytes", sample=3).counts.files_hashed == 3
    assert builder.audit(level="bytes", sample=0).counts.files_hashed == 0
    assert builder.audit(level="bytes", sample=1000).counts.files_hashed == 19
    assert builder.audit(level="objects", sample=3).counts.files_hashed == 0


def test_a_sample_finds_a_damage_sooner_or_later() -> None:
    builder = small_archive()
    builder.store.rot(WAV, flip)

    assert any("file_hash" in builder.audit(level="bytes", sample=3).totals for _ in range(200))


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
    builder = small_archive(retention=PROMISE)
    builder.lock(key, mode, until)

    assert builder.found(now=BEFORE) == ([(code, key)] if code else [])
    assert builder.audit(now=BEFORE).exit_code == (1 if code else 0)


def test_a_retention_that_is_over_need_not_hold() -> None:
    builder = small_archive(retention=PROMISE)
    builder.store.entry(WAV).lock_mode = None

    assert builder.found(now=datetime(2034, 1, 16, tzinfo=UTC)) == []


LATER = {"mode": "GOVERNANCE", "until": "2035-01-15T10:10:12Z"}
STRICT = {"mode": "COMPLIANCE", "until": "2034-01-15T10:10:12Z"}
RECORDING = "recordings/dt=2024-01-15/vc_a/recording.wav"


def amended(first: dict[str, str], second: dict[str, str], *, at_once: bool = False) -> Builder:
    """A call whose recording the second record carries over, with a promise of its own; told in
    two revisions of the window, or in one."""
    builder = Builder(retention=first).genesis()
    told = [builder.call("vc_a", hour(10), kinds=("recording",))]
    if not at_once:
        builder.close(hour(10), told)
    builder.retention = second
    again = builder.call("vc_a", hour(10), kinds=("recording",), revision=2)
    if at_once:
        builder.close(hour(10), [*told, again])
    else:
        builder.close(hour(10), [again], revision=2)
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
    builder.lock(RECORDING, mode, until)

    assert builder.found(workers=1, now=BEFORE) == [(code, RECORDING) for code in codes]
    assert builder.audit(now=BEFORE).counts.files == 1


def test_a_promise_that_is_no_stronger_costs_no_further_question() -> None:
    builder = amended(LATER, PROMISE)

    builder.audit(now=BEFORE)

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
    builder = small_archive(retention=PROMISE)
    builder.lock(key, mode, until)

    for span in ({}, {"start": hour(10).start, "end": hour(11).start}):
        assert builder.found(now=BEFORE, **span) == ([(code, key)] if code else [])
    assert builder.found(now=BEFORE, level="manifest") == []


def test_the_last_promise_of_all_that_is_covered_counts() -> None:
    """Two windows in one seal: the segments keep their own records' date, the seal the later."""
    builder = Builder(retention=PROMISE).genesis()
    one = builder.segment(hour(10), [builder.call("vc_a", hour(10))])
    builder.retention = LATER
    other = builder.segment(hour(11), [builder.call("vc_b", hour(11))])
    builder.seal(one, other, builder.segment(hour(12), []))
    for key in builder.store.all_keys("manifest/se"):
        builder.lock(key, "GOVERNANCE", PROMISE["until"])
    builder.store.entry(SEGMENTS + "1200.r1.jsonl").lock_mode = None  # it covers nothing

    report = builder.audit(now=BEFORE)

    late = [*(f"{SEGMENTS}1100.r1.{suffix}" for suffix in SUFFIXES)]
    late += [layout.seal_key(1), layout.signature_key(1)]
    assert [f.key for f in report.findings] == sorted(late)
    assert set(report.totals) == {"retention_weaker"}


def test_without_a_promise_nothing_is_asked_of_locks() -> None:
    builder = small_archive()
    builder.audit()

    assert not [one for one in builder.store.requests if one.startswith("head manifest")]
    assert not [one for one in builder.store.requests if one.startswith("head records")]


# --- the verifier's own page


def test_an_archive_whose_seal_0_tells_nothing_of_the_page() -> None:
    assert Builder().genesis(pages=None).audit().totals == {}


# --- strays, and a writer at work


def test_a_segment_without_a_seal_is_information() -> None:
    builder = small_archive()
    builder.segment(hour(13), [builder.call("vc_e", hour(13))])
    builder.hold("add", "vc_c", on=False)

    report = builder.audit()

    assert report.totals == {"unsealed_segment": 2, "untold_record": 1, "unnamed_object": 3}
    assert report.exit_code == 0


def test_damage_in_a_seal_is_not_told_again_of_its_segments() -> None:
    builder = small_archive()
    lose_seal(builder, 1)

    report = builder.audit()

    assert set(report.totals) == {"seal_missing"}
    assert any("gaps in time were not looked for" in note for note in report.notes)


def test_a_seal_made_meanwhile_is_no_finding() -> None:
    """A writer seals a further window while the auditor lists the segments."""
    builder = small_archive()
    builder.store.meanwhile[f"list {layout.SEGMENTS}"] = lambda: builder.close(hour(13))

    assert builder.audit().totals == {}


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

    report = builder.audit()
    assert (report.totals, report.counts.events) == ({}, 3)
    assert builder.audit(end=DAY - timedelta(days=1)).counts.events == 3, "whatever the range"


# --- calls that two windows tell of


def moved(**again: Any) -> Builder:
    """A call of the window from 10:00 that the one from 12:00 has, too. `again`: what a later
    revision of the first one says."""
    builder = Builder().genesis()
    found = builder.call("vc_a", hour(10))
    builder.close(hour(10), [found])
    builder.close(hour(11), [builder.call("vc_b", hour(11))])
    builder.close(hour(12), [found])
    if again:
        builder.close(hour(10), revision=2, **again, watermark=hour(12).end)
    return builder


def test_a_call_that_two_windows_count_is_a_warning() -> None:
    report = moved().audit()

    [finding] = report.findings
    assert (finding.code, finding.severity) == ("call_in_two_windows", "warning")
    assert finding.key == SEGMENTS + "1200.r1.jsonl"
    assert finding.detail == f"1 call, which {FIRST}.jsonl counts too"
    assert report.exit_code == 1
    assert moved().audit(start=hour(11).start).totals == {}, "as far as was looked"


def test_a_call_that_moved_is_counted_once_and_one_that_moved_back_twice() -> None:
    builder = moved(outcomes={}, vanished=["vc_a"])
    assert builder.audit().totals == {}

    known = {"vc_a": "archived"}
    builder.close(hour(10), revision=3, outcomes=known, watermark=hour(12).end)
    assert set(builder.audit().totals) == {"call_in_two_windows"}


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
    assert "call_in_two_windows" in builder.audit().totals
    harm(builder.store)

    assert "call_in_two_windows" not in builder.audit().totals


def test_a_call_is_counted_while_it_is_pending_and_in_any_revision() -> None:
    builder = Builder().genesis()
    builder.close(hour(10), [builder.call("vc_a", hour(10))], pending=["vc_p"])
    again = [builder.call("vc_a", hour(10), revision=2), builder.call("vc_p", hour(11))]
    builder.close(hour(11), again)

    [finding] = builder.audit().findings
    assert finding.detail == f"2 calls, which {FIRST}.jsonl counts too"


def test_each_pair_of_windows_is_one_finding() -> None:
    builder = moved()
    found = record.parse(builder.store.data("records/dt=2024-01-15/vc_a/r1.json"))
    builder.close(hour(13), [found])

    assert sorted((f.key, f.detail) for f in builder.audit().findings) == [
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

    assert builder.audit(head=KnownHead(2, sealed.sha256)).totals == {}
    assert builder.audit(head=KnownHead(2, "0" * 64)).totals == {"head_mismatch": 1}


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
