"""Whatever lies in the bucket: every single flip is found, and nothing makes the auditor fall."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.audit.findings import Report
from archiver.core.errors import StoreError
from archiver.manifest import canonical, layout
from tests.audit.builder import Builder, hour, small_archive
from tests.audit.damage import RECORD, THIRD, WAV, seal_bytes
from tests.audit.store import MemoryStore

ARCHIVE = small_archive()
KEYS = ARCHIVE.store.all_keys()
OPERATIONS = ("read", "stream", "head", "list", "versions")
ODD_KEYS = [
    "manifest/seals/٠٠٠٠٠٠٠٠٠٠٠٧.json",
    "manifest/seals/7.json",
    "manifest/seals/000000000007.json/",
    "manifest/segments/dt=2024-01-15/9999.r1.jsonl",
    "manifest/segments/dt=9999-12-31/9999.r1.jsonl",
    "manifest/segments/dt=2024-99-99/1000.r1.seal",
    "manifest/segments/x",
    "manifest/segments/dt=2024-01-15/1000.r1.jsonl\n",
    "manifest/events/dt=2024-01-15/\u202e.jsonl",
    "manifest/keys/../../x.pem",
]


def audit(builder: Builder, level: str = "bytes") -> Report:
    return builder.audit(level=level, workers=2)


@settings(max_examples=400)
@given(st.sampled_from(KEYS), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_any_changed_byte_of_any_object_is_found(key: str, where: float, mask: int) -> None:
    builder = fresh()
    at = int(where * len(builder.store.data(key)))
    builder.store.rot(key, lambda d: d[:at] + bytes([d[at] ^ mask]) + d[at + 1 :])

    assert not audit(builder).ok


@settings(max_examples=150)
@given(st.sampled_from(KEYS), st.binary(max_size=200) | st.sampled_from([b"{}", b"[]\n", b"null"]))
def test_any_other_bytes_under_any_key_are_found(key: str, data: bytes) -> None:
    builder = fresh()
    if data == builder.store.data(key):
        return
    builder.store.rot(key, lambda _: data)

    assert not audit(builder).ok


def fresh() -> Builder:
    """The archive again, in a store of its own; the seals and the key are shared."""
    store = MemoryStore()
    store.replace(ARCHIVE.store)
    return Builder(store, ARCHIVE.key, seals=list(ARCHIVE.seals))


VALUES = [10**4000, -1, 0.5, 1e300, "", "\x00", "0001-01-01T00:00:00Z", "../x", "é" * 99]
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(VALUES) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def mutate(document: Any, path: list[int], value: Any) -> Any:
    """Put `value` somewhere into a document: `path` chooses the way down."""
    if isinstance(document, dict) and document and path:
        names = sorted(document)
        name = names[path[0] % len(names)]
        return {**document, name: mutate(document[name], path[1:], value)}
    if isinstance(document, list) and document and path:
        at = path[0] % len(document)
        return [*document[:at], mutate(document[at], path[1:], value), *document[at + 1 :]]
    return value


@settings(max_examples=300)
@given(st.integers(0, 4), st.lists(st.integers(0, 20), min_size=1, max_size=3), ODD)
def test_odd_values_in_a_well_signed_seal_are_no_crash(seq: int, path: list[int], odd: Any) -> None:
    builder = fresh()
    key = layout.seal_key(seq)
    data = canonical.dump(mutate(canonical.load(builder.store.data(key)), path, odd))
    if data == builder.store.data(key):
        return
    builder.store.rot(key, lambda _: data)
    builder.store.rot(layout.signature_key(seq), lambda _: builder.key.sign(data))

    audit(builder)


@settings(max_examples=300)
@given(st.integers(0, 2), st.lists(st.integers(0, 30), min_size=1, max_size=4), ODD)
def test_odd_values_in_a_well_sealed_segment_are_no_crash(
    line: int, path: list[int], odd: Any
) -> None:
    builder = fresh()
    calls = [builder.call(f"vc_{name}", hour(13)) for name in "ef"]
    lines = builder.segment(hour(13), calls, write=False).data.splitlines(keepends=True)
    lines[line] = canonical.dump(mutate(canonical.load(lines[line]), path, odd))
    try:
        seal_bytes(builder, THIRD.replace("12", "13"), b"".join(lines), hour(13).end)
    except (AttributeError, KeyError, TypeError, UnicodeEncodeError, ValueError):
        return  # so odd that the test cannot write the companion for it

    audit(builder)


@pytest.mark.parametrize(
    ("key", "data", "code"),
    [
        (layout.seal_key(10**12 - 1), b"{}", "seal_missing"),
        (layout.seal_key(1), b"[" * 100_000, "seal_invalid"),
    ],
    ids=["a seal far away", "a deep document"],
)
def test_odd_seals_are_one_finding_each(key: str, data: bytes, code: str) -> None:
    builder = fresh()
    builder.store.put(key, data)

    assert audit(builder).totals[code] == 1


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_told_and_no_crash(key: str) -> None:
    builder = fresh()
    builder.store.put(key, b"{}")

    report = audit(builder)

    assert [(finding.code, finding.key) for finding in report.findings] == [
        ("unexpected_object", key)
    ]
    assert report.ok


@pytest.mark.parametrize(
    ("key", "size"),
    [(layout.seal_key(2), 17 << 20), (layout.signature_key(2), 65), (RECORD, 2 << 20),
     (THIRD + ".seal", 1000)],
)  # fmt: skip
def test_an_object_too_large_is_not_read(key: str, size: int) -> None:
    builder = fresh()
    builder.store.rot(key, lambda _: b" " * size)

    assert "too_large" in audit(builder).totals


def test_a_huge_line_is_not_kept() -> None:
    builder = fresh()
    builder.store.rot(THIRD + ".jsonl", lambda data: b"[" * (17 << 20) + data)

    assert set(audit(builder).totals) == {"segment_mismatch", "segment_invalid"}


def test_a_file_that_never_ends_is_cut() -> None:
    builder = fresh()
    true_head = builder.store.head(WAV)
    builder.store.rot(WAV, lambda data: data + b"x")
    builder.store.head = lambda key, version_id=None: (  # type: ignore[method-assign]
        true_head if key == WAV else MemoryStore.head(builder.store, key, version_id)
    )

    assert set(audit(builder).totals) == {"file_hash"}


@pytest.mark.parametrize(
    "reason", ["unreachable", "credentials", "tls", "settings", "clock", "no_bucket"]
)
def test_a_store_that_is_gone_ends_the_audit(reason: str) -> None:
    builder = fresh()
    builder.store.refuse_all = dict.fromkeys(OPERATIONS, StoreError("gone", reason=reason))

    with pytest.raises(StoreError, match="gone"):
        audit(builder)


@pytest.mark.parametrize(
    "key", [layout.seal_key(0), layout.seal_key(2), RECORD, WAV, THIRD + ".jsonl"]
)
@pytest.mark.parametrize("reason", ["unreachable", "credentials", "denied", "status_5xx"])
def test_whatever_one_object_answers_is_its_own(key: str, reason: str) -> None:
    """While the store answers others, be it the first object that is asked for."""
    builder = fresh()
    is_retryable = reason == "status_5xx"
    builder.store.refuse[key] = StoreError("gone", reason=reason, retryable=is_retryable)

    report = audit(builder)

    assert ("unreadable", key) in [(f.code, f.key) for f in report.findings]
    assert report.exit_code == 1


def test_a_store_that_refuses_from_the_first_object_on_ends_the_audit() -> None:
    builder = Builder().genesis()
    denied = StoreError("give the credentials s3:GetObject", reason="denied")
    builder.store.refuse = dict.fromkeys(KEYS + builder.store.all_keys(), denied)

    with pytest.raises(StoreError, match="s3:GetObject"):
        audit(builder)


@pytest.mark.parametrize("operation", ["read", "head", "list", "versions"])
def test_a_store_that_denies_all_of_a_kind_ends_the_audit(operation: str) -> None:
    """A right that the credentials lack, such as the one to ask for versions."""
    builder = fresh()
    builder.store.refuse_all[operation] = StoreError("give s3:ThatRight", reason="denied")

    with pytest.raises(StoreError, match="s3:ThatRight"):
        audit(builder)


def test_a_store_that_denies_streams_alone_is_told_of() -> None:
    """The right to read is the same, and reading is answered."""
    builder = fresh()
    builder.store.refuse_all["stream"] = StoreError("give s3:GetObject", reason="denied")

    assert "unreadable" in audit(builder).totals


def test_a_store_that_denies_versions_ends_the_audit() -> None:
    builder = fresh()
    head = MemoryStore.head

    def deny(key: str, version_id: str | None = None):
        if version_id is not None:
            raise StoreError("give the credentials s3:GetObjectVersion", reason="denied")
        return head(builder.store, key)

    builder.store.head = deny  # type: ignore[method-assign]

    with pytest.raises(StoreError, match="s3:GetObjectVersion"):
        audit(builder)


def test_many_objects_that_cannot_be_read_are_so_many_findings() -> None:
    builder = Builder().genesis()
    builder.seal(*(builder.segment(hour(number), []) for number in range(10, 20)))
    odd = StoreError("odd", reason="status_5xx")
    keys = builder.store.all_keys("manifest/segments/")
    builder.store.refuse = dict.fromkeys(keys, odd)

    report = builder.audit(workers=1)

    assert report.totals["unreadable"] >= 20
    assert report.exit_code == 1


def test_a_store_that_stops_answering_ends_the_audit() -> None:
    builder = Builder().genesis()
    builder.seal(*(builder.segment(hour(number), []) for number in range(10, 20)))
    gone = StoreError("gone", reason="status_5xx")
    stream = MemoryStore.stream

    def stop(key: str, version_id: str | None = None):
        if "1300" in key:
            builder.store.refuse_all = dict.fromkeys(OPERATIONS, gone)
        return stream(builder.store, key, version_id)

    builder.store.stream = stop  # type: ignore[method-assign]

    with pytest.raises(StoreError, match="gone"):
        builder.audit(workers=1)


@pytest.mark.parametrize("level", ["manifest", "objects", "bytes"])
@pytest.mark.parametrize(
    "prefix", [layout.SEALS, layout.SEGMENTS, layout.EVENTS, layout.KEYS, layout.SIGHTINGS]
)
def test_a_prefix_that_cannot_be_listed_is_a_finding(prefix: str, level: str) -> None:
    builder = fresh()
    builder.store.refuse[prefix] = StoreError("odd", reason="status_5xx")
    builder.store.put("manifest/evil.json", b"x")

    report = audit(builder, level)

    assert report.totals == {"unlistable": 1, "foreign_object": 1}
    assert report.counts.records == 8, "the rest goes on"


@pytest.mark.parametrize("prefix", ["manifest/", "records/", "recordings/"])
def test_versions_that_cannot_be_listed_below_a_prefix_are_a_finding(prefix: str) -> None:
    builder = fresh()
    builder.refuse(prefix)
    builder.store.put(WAV, builder.store.data(WAV))

    totals = set(audit(builder).totals)

    assert totals == {"unlistable"} | ({"overwritten"} if prefix != "recordings/" else set())


def test_a_stream_that_breaks_is_begun_again() -> None:
    builder = fresh()
    breaks = {WAV: 2, THIRD + ".jsonl": 1}

    def stream(key: str, version_id: str | None = None):
        chunks = MemoryStore.stream(builder.store, key, version_id)
        if breaks.get(key, 0) > 0:
            breaks[key] -= 1
            return broken(chunks)
        return chunks

    def broken(chunks):
        yield next(chunks)
        raise StoreError("the store cut an object short", retryable=True, reason="truncated")

    builder.store.stream = stream  # type: ignore[method-assign]

    assert audit(builder).totals == {}


def test_findings_are_capped_and_counted() -> None:
    builder = fresh()
    for number in range(50):
        builder.store.put(f"manifest/segments/odd{number:02}", b"")

    report = builder.audit(level="manifest", max_findings=10)

    assert len(report.findings) == 10
    assert report.totals == {"unexpected_object": 50}
