"""The store in memory catches a writer that breaks the order of writes.

That it keeps the contract otherwise, `tests/contract/test_fakes.py` shows.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from archiver.core.errors import StoreError
from archiver.manifest import layout
from tests.fakes.clock import HandClock
from tests.fakes.memory_store import MemoryStore, Request
from tests.fakes.store_rules import Violation, sha256_hex

CALL = "recordings/dt=2024-01-15/vc_1/"
RECORD = "records/dt=2024-01-15/vc_1/r1.json"
SEGMENT = "manifest/segments/dt=2024-01-15/1000.r1.jsonl"
KEY_ID = "0123456789abcdef"


@pytest.fixture
def store(clock: HandClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def plain(clock: HandClock) -> MemoryStore:
    """Takes any key."""
    return MemoryStore(clock, rules=False)


def dump(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def a_record(store: MemoryStore, **fields: Any) -> dict[str, Any]:
    """A record of what lies in the store, as it is or as `fields` have it."""
    wav = store.put_once(CALL + "recording.wav", b"RIFF")
    file = {"kind": "recording", "key": wav.key, "bytes": wav.size, "sha256": wav.sha256}
    file["version_id"] = wav.version_id
    told = {"call_id": "vc_1", "record": RECORD, "revision": 1, "outcome": "archived"}
    return {**told, "files": [file], **fields}


def a_window(**fields: Any) -> dict[str, Any]:
    counts = {"archived": 1, "failed": 0, "no_recording": 0, "listed": 1, "pending": []}
    return {**counts, "revision": 1, "type": "window", **fields}


def a_segment(store: MemoryStore) -> bytes:
    """A window of one call, whose record it puts."""
    record = dump(a_record(store))
    store.put_once(RECORD, record)
    return record + dump(a_window())


def a_chain(store: MemoryStore) -> dict[str, Any]:
    """Seal 0, signed; what a seal after it would say of a segment that it puts."""
    store.put_once(layout.public_key_key(KEY_ID), b"PEM")
    first = {"seq": 0, "key_id": KEY_ID, "watermark": "2024-01-15T10:00:00Z", "segments": []}
    zero = store.put_once(layout.seal_key(0), dump(first))
    store.put_once(layout.signature_key(0), bytes(64))
    segment = store.put_once(SEGMENT, a_segment(store))
    entry = {"key": SEGMENT, "sha256": segment.sha256, "bytes": segment.size}
    return {**first, "seq": 1, "prev": zero.sha256, "segments": [entry]}


def checksum_list(store: MemoryStore) -> None:
    digest = store.object(SEGMENT).sha256
    store.put_once(SEGMENT.replace("jsonl", "sha256"), f"{digest}  {SEGMENT}\n".encode())


def refused(store: MemoryStore, key: str, data: bytes, words: str) -> None:
    with pytest.raises(Violation, match=words):
        store.put_once(key, data)
    assert key not in store.keys
    with pytest.raises(AssertionError):
        store.finish()


# --- the contract


def test_nothing_is_to_be_seen_of_an_upload_before_it_is_complete(store):
    key = CALL + "recording-0123456789abcdef.wav"
    upload = store.begin(key, content_type="audio/wav", retain_until=None)
    upload.part(b"ab")
    assert store.head(key) is None
    with pytest.raises(AssertionError, match="left open"):
        store.finish()
    stored = upload.complete(sha256_hex(b"ab"))
    head = store.head(key, stored.version_id)
    assert head is not None
    assert (head.size, head.sha256) == (2, None), "a composite checksum is no content hash"
    aborted = store.begin(key, content_type="audio/wav", retain_until=None)
    aborted.abort()
    aborted.abort()
    store.finish()
    with pytest.raises(Violation, match="after the upload"):
        upload.part(b"c")


@pytest.mark.parametrize("key", [CALL + "recording.wav", "other"])
def test_parts_go_to_a_key_of_their_own(store, key):
    with pytest.raises(Violation):
        store.begin(key, content_type="audio/wav", retain_until=None)


def test_hooks_may_fail_a_request_before_and_after_it_is_done(plain):
    def fail(moment: str) -> None:
        def hook(request: Request) -> None:
            if request.writes and request.moment == moment:
                raise StoreError("down")

        plain.hooks[:] = [hook]
        with pytest.raises(StoreError, match="down"):
            plain.put_once(moment, b"x")

    fail("before")
    fail("after")
    assert plain.keys == ["after"]
    plain.by("other").put_once("mine", b"x")


# --- the rules


@pytest.mark.parametrize(
    ("key", "data", "words"),
    [
        *(
            (key, b"x", "outside the layout")
            for key in (
                "else", "recordings/x.wav", CALL + "recording.exe", CALL + "note.json",
                "records/r1.json", "manifest/segments/dt=2024-01-15/1060.r1.jsonl",
                "manifest/seals/1.json", "manifest/x",
            )
        ),
        (CALL + "recording.wav", b"", "empty"),
    ],
)  # fmt: skip
def test_neither_a_key_outside_the_layout_nor_an_empty_object_is_stored(store, key, data, words):
    refused(store, key, data, words)


@pytest.mark.parametrize(
    ("fields", "of_file", "words"),
    [
        ({"revision": 2}, {}, "another revision"),
        ({"call_id": "vc_2"}, {}, "another call"),
        ({"record": RECORD.replace("r1", "r2")}, {}, "another key"),
        ({"outcome": "failed"}, {}, "reverse"),
        ({"files": []}, {}, "without a recording"),
        ({"outcome": "lost"}, {}, "unknown outcome"),
        ({}, {"key": CALL + "epa.json"}, "before its file"),
        ({}, {"key": CALL.replace("vc_1", "vc_2") + "recording.wav"}, "file of another call"),
        ({}, {"sha256": "0" * 64}, "told wrongly"),
        ({}, {"bytes": 5}, "told wrongly"),
        ({}, {"version_id": "v99"}, "told wrongly"),
    ],
)
def test_a_record_is_its_keys_and_names_what_is_there(store, fields, of_file, words):
    record = a_record(store, **fields)
    for file in record["files"]:
        file.update(of_file)
    refused(store, RECORD, dump(record), words)


def test_a_revision_amends_and_never_takes_back(store):
    second = RECORD.replace("r1", "r2")
    told = {"record": second, "revision": 2}
    refused(store, second, dump(a_record(store, **told)), "before the one that it amends")
    store.put_once(RECORD, dump(a_record(store)))
    less = a_record(store, **told, outcome="failed")
    refused(store, second, dump({**less, "files": []}), "something less")
    store.put_once(second, dump(a_record(store, **told)))


def test_a_segment_comes_after_its_records_and_balances(store):
    record = dump(a_record(store))
    refused(store, SEGMENT, record + dump(a_window()), "before its record")
    store.put_once(RECORD, record)
    other = dump({**a_record(store), "state": "Other"})
    refused(store, SEGMENT, other + dump(a_window()), "other bytes")
    refused(store, SEGMENT, record + dump(a_window(listed=2)), "balance")
    refused(store, SEGMENT, record + dump(a_window(revision=2)), "another revision")
    second = SEGMENT.replace("r1", "r2")
    refused(store, second, record + dump(a_window(revision=2)), "gap")
    store.put_once(SEGMENT, record + dump(a_window()))


def test_a_companion_is_right_about_its_segment(store):
    key = SEGMENT.replace("jsonl", "sha256")
    refused(store, key, b"x", "before its segment")
    store.put_once(SEGMENT, a_segment(store))
    refused(store, key, f"{'0' * 64}  {SEGMENT}\n".encode(), "wrong about")
    checksum_list(store)


def test_a_chain_begins_with_its_key(store):
    seal = {"seq": 0, "key_id": KEY_ID, "watermark": "2024-01-15T10:00:00Z", "segments": []}
    refused(store, layout.seal_key(0), dump(seal), "public key")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prev": "0" * 64}, "does not follow"),
        ({"seq": 2}, "another number"),
        ({"watermark": "2024-01-15T09:00:00Z"}, "goes back"),
    ],
)
def test_a_seal_follows(store, fields, words):
    seal = a_chain(store)
    refused(store, layout.seal_key(1), dump({**seal, **fields}), words)


def test_a_seal_its_signature_and_its_pointers_come_in_their_order(store):
    one, two, three = (layout.seal_key(number) for number in (1, 2, 3))
    pointer = SEGMENT.replace("jsonl", "seal")
    seal = a_chain(store)
    refused(store, one, dump(seal), "companion")
    checksum_list(store)
    refused(store, two, dump({**seal, "seq": 2}), "gap")
    refused(store, pointer, b"1\n", "before its seal")
    refused(store, layout.signature_key(1), bytes(64), "before its seal")
    first = store.put_once(one, dump(seal))
    refused(store, pointer, b"1\n", "before the signature")
    following = {**seal, "seq": 2, "prev": first.sha256}
    refused(store, two, dump(following), "no signature")
    store.put_once(layout.signature_key(1), bytes(64))
    refused(store, two, dump(following), "pointer")
    store.put_once(pointer, b"1\n")
    refused(store, two, dump(following), "second time")
    store.put_once(two, dump({**following, "segments": []}))
    assert three not in store.keys
