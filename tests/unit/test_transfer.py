"""One call: what is written for it, in which order, and what becomes of a failure."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import StoreError
from archiver.core.model import Call
from archiver.manifest import canonical
from archiver.manifest.record import FAILED_REASONS, Record
from archiver.observability.metrics import REGISTRY
from archiver.pipeline.call import FailedTry
from archiver.store.bucket import Bucket
from tests.fakes.audio import MULAW, chunk, fmt, noise, riff, wav
from tests.fakes.calls import BytesRecording
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, call_of, voice
from tests.fakes.rig import HOUR, WINDOW, Rig

DIR = "recordings/dt=2024-01-15/vc_1/"
DAYS = timedelta(days=30)


@pytest.fixture
def platform(served: Platform) -> Platform:
    return served


@pytest.fixture
def bucket(open_bucket: Callable[..., Bucket]) -> Bucket:
    return open_bucket()


def archived(made: Rig, call_id: str = "vc_1", *, settled: bool = True, **options: Any) -> Record:
    """The call's record; fails where it has none."""
    found = made.transfer.archive(
        Call(call_id, {"id": call_id}), WINDOW, settled=settled, **options
    )
    assert isinstance(found, Record), found
    return found


def unarchived(made: Rig, call_id: str = "vc_1", *, settled: bool = True) -> FailedTry:
    found = made.transfer.archive(Call(call_id, {"id": call_id}), WINDOW, settled=settled)
    assert isinstance(found, FailedTry), found
    return found


def test_the_whole_of_a_call(platform, rig, bucket):
    survey = {"state": "Completed", "responses": [{"score": 5}]}
    call = a_call(seconds=2, epa=survey, unknown={"ü": [1, None]})
    platform.add(call)
    found = archived(rig())
    files = {file["kind"]: file for file in found.document["files"]}
    assert list(files) == ["recording", "transcript", "epa"]
    assert bucket.read(DIR + "recording.wav") == voice(seconds=2)
    transcript = {k: v for k, v in call.detail().items() if k != "epaResults"}
    assert bucket.read(DIR + "transcript.json") == canonical.dump(transcript)
    assert bucket.read(DIR + "epa.json") == canonical.dump(survey)
    for file in files.values():
        data = bucket.read(file["key"], file["version_id"])
        assert data is not None
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert bucket.read(found.key) == found.data
    document = found.document
    assert (document["outcome"], document["reason"], document["revision"]) == ("archived", None, 1)
    assert document["findings"] == []
    assert document["audio"]["duration_seconds"] == 2.0
    source = document["source"]
    assert source["api"] == platform.api_url
    assert source["recording_host"] == platform.blob_host
    assert source["content_md5"]
    assert source["request_id"].startswith("req_")


def test_again_is_the_same_record_and_no_new_version(platform, rig, bucket):
    platform.add(a_call(epa={"a": 1}))
    first, again = archived(rig()), archived(rig())
    assert again.data == first.data
    versions = list(bucket.versions(""))
    assert len(versions) == len({version.key for version in versions}) == 4


def test_files_without_a_record_are_adopted_or_written_beside(platform, rig, bucket):
    """A crash left files; since then the transcript has changed."""
    platform.add(a_call())
    kept = bucket.put_once(DIR + "recording.wav", voice())
    bucket.put_once(DIR + "transcript.json", b"{}\n")
    files = {file["kind"]: file for file in archived(rig()).document["files"]}
    assert files["recording"]["key"] == DIR + "recording.wav"
    assert files["recording"]["version_id"] == kept.version_id
    tag = files["transcript"]["sha256"][:16]
    assert files["transcript"]["key"] == f"{DIR}transcript-{tag}.json"
    assert bucket.read(DIR + "transcript.json") == b"{}\n"


@pytest.mark.parametrize("size", [5 << 20, (5 << 20) + 1, (10 << 20) + 44, 12 << 20])
def test_a_large_recording_goes_in_parts_under_a_key_of_its_own(platform, rig, bucket, size):
    data = riff(chunk(b"fmt ", fmt()), chunk(b"data", noise(size - 44)))[:size]
    platform.add(a_call(audio=data, durationSeconds=size // 16000))
    found = archived(rig(part_bytes=5 << 20))
    [recording, _] = found.document["files"]
    name = "recording.wav" if size == 5 << 20 else "recording-"
    assert recording["key"].startswith(DIR + name)
    assert (recording["bytes"], recording["sha256"]) == (size, checksums.sha256_hex(data))
    stored = b"".join(bucket.stream(recording["key"], recording["version_id"]) or ())
    assert stored == data


def test_a_multipart_upload_that_breaks_is_aborted(platform, rig, bucket):
    data = riff(chunk(b"fmt ", fmt()), chunk(b"data", noise(11 << 20)))
    platform.add(a_call(audio=data))
    cut = Reply(200, {}, data, close_after=8 << 20)
    platform.hooks.append(lambda request: cut if request.server == "blob" else None)
    assert unarchived(rig(part_bytes=5 << 20)).reason == "truncated"
    uploads = bucket.client.s3.list_multipart_uploads(Bucket="locked", Prefix=bucket.client.prefix)
    assert "Uploads" not in uploads
    assert list(bucket.list("")) == []


def test_an_upload_whose_call_has_no_record_yet_is_used_again(platform, rig, bucket):
    """The recording's stream is closed with its body unread, and the next try opens another."""
    data = riff(chunk(b"fmt ", fmt()), chunk(b"data", noise(7 << 20)))
    platform.add(a_call(audio=data, durationSeconds=len(data) // 16000))
    bucket.put_once("records/dt=2024-01-15/vc_1/r1.json", b"foreign bytes")
    made = rig(part_bytes=5 << 20)
    assert [unarchived(made).reason for _ in "12"] == ["record_unreadable"] * 2
    found = archived(made, taken=1)
    keys = [item.key for item in bucket.list(DIR + "recording")]
    assert keys == [found.document["files"][0]["key"]]
    assert found.document["files"][0]["sha256"] == checksums.sha256_hex(data)


# --- the signed URL


def test_a_refused_url_is_replaced_three_times_at_most(platform, rig):
    platform.add(a_call())
    refused = Reply(403, {}, b"<Error/>")
    platform.hooks.append(lambda request: refused if request.server == "blob" else None)
    before = REGISTRY.get_sample_value("archiver_sas_renewals_total") or 0
    found = unarchived(rig())
    assert (found.reason, found.status) == ("url_refused", 403)
    assert platform.sas_issued["vc_1"] == 4
    assert (REGISTRY.get_sample_value("archiver_sas_renewals_total") or 0) > before


def test_an_expired_url_is_replaced(platform, rig):
    platform.add(a_call())

    def expire_once(request: Request) -> None:
        if request.server == "blob" and platform.sas_issued["vc_1"] == 1:
            platform.void_recording_urls()

    platform.hooks.append(expire_once)
    archived(rig())
    assert platform.sas_issued["vc_1"] == 2


@pytest.mark.parametrize(
    "fault",
    [
        Reply(503, {}, b"busy"),
        Reply(200, {}, wav(1), close_after=100),
        Reply(200, {}, wav(1), close_after=-1),
        Reply(200, {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, wav(1)),
    ],
)
def test_a_fault_that_passes_is_overcome(platform, rig, fault):
    platform.add(a_call())
    # The same wrong bytes twice would be the blob's own.
    left = [fault, fault] if "Content-MD5" not in fault.headers else [fault]
    platform.hooks.append(lambda request: left.pop() if request.server == "blob" and left else None)
    assert archived(rig()).document["files"][0]["sha256"] == checksums.sha256_hex(voice())


# --- what cannot be archived

BAD: dict[str, object] = {
    "recording_missing": Reply(404, {}, b""),
    "recording_empty": Reply(200, {}, b""),
    "not_wav": Reply(200, {"Content-Type": "audio/wav"}, b"<!doctype html>" * 50),
    "truncated": Reply(200, {}, wav(1), close_after=5000),
    "too_large": Reply(200, {}, b"x", content_length=5 << 30),
    "url_refused": Reply(403, {}, b""),
    "digest_mismatch": [
        Reply(200, {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, wav(1, seed=n)) for n in range(4)
    ],
    "bad_response": Reply(206, {}, wav(1)),
    "source_unavailable": Reply(500, {}, b""),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_blob_is_pending_then_failed(platform, rig, clock, reason):
    platform.add(a_call(epa={"a": 1}))
    replies = itertools.cycle(BAD[reason] if isinstance(BAD[reason], list) else [BAD[reason]])
    platform.hooks.append(lambda request: next(replies) if request.server == "blob" else None)
    made = rig(give_up=2 * HOUR)
    assert unarchived(made, settled=False).reason == reason
    assert unarchived(made).attempts == 2
    clock.turn_to(WINDOW.end + 2 * HOUR)
    found = archived(made)
    document = found.document
    assert reason in FAILED_REASONS
    assert (document["outcome"], document["reason"], document["attempts"]) == ("failed", reason, 3)
    assert [file["kind"] for file in document["files"]] == ["transcript", "epa"], "what is known"
    assert document["audio"] is None


PAGES = [
    b"<!DOCTYPE html><title>Sign in</title>",
    b"\n\t <html lang=en>",
    b"<h1>502 Bad Gateway</h1>",
    b"<!-- proxy --><html>",
    b"<?xml version='1.0'?><Error/>",
    b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>",
    b"<Error><Code>AccessDenied</Code></Error>",
    "<!doctype html><p>Störung".encode("latin-1"),
    "\ufeff<!doctype html>".encode("utf-16"),
    b'{"error":{"code":"not_ready"}}',
    b"{}",
    b'[{"message":"gone"}]',
    b"[]",
    b" " * 3000 + b"<html>",
    b"<!doctype html>" + b"x" * (6 << 20),
]
"""What no recording begins with."""


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_no_recording(platform, rig, bucket, page):
    platform.add(a_call(audio=page))
    assert unarchived(rig(part_bytes=5 << 20)).reason == "not_wav"
    assert list(bucket.list("")) == []


@pytest.mark.parametrize(
    ("data", "name", "content_type", "findings"),
    [
        (wav(1)[:-100], "recording.wav", "audio/wav", ["header_length_mismatch"]),
        (wav(1)[:20], "recording.wav", "audio/wav", ["audio_unreadable", "header_length_mismatch"]),
        (b"ID3\4\0\0\0\0\0\0" + bytes(500), "recording.mp3", "audio/mpeg", ["not_wav"]),
        (b"OggS" + bytes(500), "recording.ogg", "audio/ogg", ["not_wav"]),
        (b"fLaC" + bytes(500), "recording.flac", "audio/flac", ["not_wav"]),
        (
            b"<\0 is no page" * 40,
            "recording.bin",
            "application/octet-stream",
            ["audio_unreadable", "not_wav"],
        ),
        (
            b"Come back later.",
            "recording.bin",
            "application/octet-stream",
            ["audio_unreadable", "not_wav"],
        ),
    ],
)
def test_whatever_else_is_whole_is_kept_as_what_it_is(
    platform, rig, bucket, data, name, content_type, findings
):
    platform.add(a_call(audio=data))
    document = archived(rig()).document
    [file, _] = document["files"]
    assert (file["key"], file["content_type"]) == (DIR + name, content_type)
    assert document["findings"] == findings
    assert bucket.read(file["key"], file["version_id"]) == data
    head = bucket.client.s3.head_object(Bucket="locked", Key=f"{bucket.client.prefix}{file['key']}")
    assert head["ContentType"] == content_type


def test_a_large_file_of_another_kind_goes_in_parts_under_its_own_extension(platform, rig, bucket):
    data = b"OggS" + noise(6 << 20)
    platform.add(a_call(audio=data))
    bucket.put_once("records/dt=2024-01-15/vc_1/r1.json", b"foreign bytes")
    made = rig(part_bytes=5 << 20)
    assert [unarchived(made).reason for _ in "12"] == ["record_unreadable"] * 2
    [recording, _] = archived(made, taken=1).document["files"]
    assert re.fullmatch(DIR + "recording-[0-9a-f]{16}\\.ogg", recording["key"])
    assert [item.key for item in bucket.list(DIR + "recording")] == [recording["key"]], "used again"
    assert recording["sha256"] == checksums.sha256_hex(data)


def test_what_was_refused_before_is_archived_by_the_next_try(platform, rig, clock):
    """An earlier release failed it: its record is amended."""
    platform.add(a_call())
    page = Reply(200, {}, PAGES[0])
    platform.hooks.append(lambda request: page if request.server == "blob" else None)
    clock.turn_to(WINDOW.end + DAYS)
    made = rig()
    failed = archived(made)
    assert (failed.outcome, failed.document["reason"]) == ("failed", "not_wav")
    platform.hooks.clear()
    call_of(platform, "vc_1").recording = BytesRecording(b"fLaC" + bytes(500))
    amended = archived(made, previous=failed)
    assert (amended.outcome, amended.revision) == ("archived", 2)
    assert amended.document["files"][0]["key"] == DIR + "recording.flac"


@pytest.mark.parametrize(("is_same", "reason"), [(False, "digest_mismatch"), (True, "not_wav")])
def test_a_page_that_is_damage_on_the_way_is_no_fault_of_the_blob(platform, rig, is_same, reason):
    """The announced digest tells, unless the same page comes again."""
    platform.add(a_call())
    times = itertools.count()

    def page(request: Request) -> Reply | None:
        body = b"<html>" * (50 if is_same else 50 + next(times))
        md5 = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        return Reply(200, md5, body) if request.server == "blob" else None

    platform.hooks.append(page)
    assert unarchived(rig()).reason == reason


def test_a_bad_url_is_never_asked(platform, rig, clock):
    platform.add(a_call())
    answer = Reply(200, {}, b'{"recordingUrl":"http://127.0.0.1:9/a.wav?sig=x"}')
    platform.hooks.append(
        lambda request: answer if request.path.endswith("/recording-url") else None
    )
    assert unarchived(rig()).reason == "url_not_allowed"
    assert platform.served("blob") == []


def test_failed_becomes_archived_as_the_next_revision(platform, rig, clock, archive):
    platform.add(a_call())
    platform.find("vc_1").blob_missing = True  # type: ignore[union-attr]
    clock.turn_to(WINDOW.end + DAYS)
    made = rig()
    failed = archived(made)
    assert archived(made, previous=failed) == failed, "the same again tells nothing new"
    platform.find("vc_1").blob_missing = False  # type: ignore[union-attr]
    amended = archived(made, previous=failed)
    assert (amended.outcome, amended.revision) == ("archived", 2)
    assert amended.key == "records/dt=2024-01-15/vc_1/r2.json"
    assert len(archive().below("records/")) == 2


def test_a_call_that_is_listed_but_not_found(platform, rig, clock):
    assert unarchived(rig()).reason == "call_missing"
    clock.turn_to(WINDOW.end + DAYS)
    document = archived(rig()).document
    assert (document["outcome"], document["reason"], document["status"]) == (
        "failed", "call_missing", 404,
    )  # fmt: skip
    assert document["files"] == []


def test_no_recording_is_a_result_only_when_the_window_has_settled(platform, rig):
    platform.add(a_call(audio=None, epa={"a": 1}))
    made = rig()
    assert unarchived(made, settled=False).status == 404
    document = archived(made).document
    assert (document["outcome"], document["reason"], document["status"]) == (
        "no_recording", "not_found", 404,
    )  # fmt: skip
    assert [file["kind"] for file in document["files"]] == ["transcript", "epa"]
    assert document["attempts"] == 2


# --- surveys, audio


def test_the_inline_survey_stands_where_the_endpoint_has_none(platform, rig, bucket):
    platform.add(a_call(epa={"state": "Completed", "inlineOnly": 1}))
    short = Reply(200, {}, json.dumps({"data": {"state": "Later"}}).encode())
    platform.hooks.append(lambda request: short if "epa-results" in request.path else None)
    archived(rig())
    assert bucket.read(DIR + "epa.json") == b'{"inlineOnly":1,"state":"Later"}\n'


def test_no_survey_is_no_file(platform, rig, bucket):
    platform.add(a_call(epaResults=None))
    assert len(archived(rig()).document["files"]) == 2
    assert bucket.head(DIR + "epa.json") is None
    assert b"epaResults" not in (bucket.read(DIR + "transcript.json") or b"")


@pytest.mark.parametrize(
    ("audio", "told", "findings"),
    [
        (wav(10), 10, []),
        (wav(10), 12, []),
        (wav(10), 13, ["duration_mismatch"]),
        (wav(200 / 16), 1, ["duration_mismatch"]),
        (wav(1), 10**400, []),
        (wav(1), "long", []),
        (wav(1) + b"tail", 1, ["trailing_bytes"]),
        (wav(10)[:-20], 10, ["header_length_mismatch"]),
        (wav(10)[:100_044], 10, ["duration_mismatch", "header_length_mismatch"]),
        (wav(10)[:28] + b"\0\x7d\0\0" + wav(10)[32:], 10, ["duration_uncertain"]),
        (wav(10)[:44], 10, ["audio_empty", "duration_mismatch", "header_length_mismatch"]),
        (b"fLaC" + bytes(500), 99, ["not_wav"]),
        (wav(1)[:40] + bytes(4) + noise(16000), 1, ["header_length_unknown"]),
        (riff(chunk(b"fmt ", fmt(MULAW, bits=8)), chunk(b"data", noise(8000))), 1, []),
    ],
)
def test_what_the_header_says_is_held_against_the_call(platform, rig, audio, told, findings):
    platform.add(a_call(audio=audio, durationSeconds=told))
    assert archived(rig()).document["findings"] == findings


def test_read_back_finds_other_bytes(platform, rig, bucket):
    platform.add(a_call())

    class Lying(Bucket):
        def stream(self, key: str, version_id: str | None = None) -> object:  # type: ignore[override]
            return iter([b"other"]) if key.endswith(".wav") else super().stream(key, version_id)

    lying = Lying(bucket.options, bucket.client.clock, bucket.client.retry, client=bucket.client.s3)
    lying.read_back = True
    with pytest.raises(StoreError, match="other bytes"):
        archived(rig(lying))
    assert not list(bucket.list("records/"))


def test_an_id_that_wants_to_be_a_path_is_archived_under_its_digest(platform, rig, archive):
    for call_id in ("../x", "👋\u202e", "a" * 300, "nul\0"):
        platform.add(a_call(call_id))
        found = archived(rig(), call_id)
        digest = hashlib.sha256(call_id.encode()).hexdigest()
        assert found.key == f"records/dt=2024-01-15/id.{digest}/r1.json"
        assert found.document["call_id"] == call_id
    assert all(".." not in key for key in archive().keys)
    assert len(archive().below("recordings/", "recording.wav")) == 4


@pytest.mark.parametrize("call_id", [".", ".."])
def test_an_id_that_no_url_can_name_is_never_asked_for(platform, rig, call_id):
    """Clients and proxies resolve both (RFC 3986, section 5.2.4): another URL would be asked."""
    found = unarchived(rig(), call_id)
    assert (found.reason, found.status) == ("bad_document", None)
    assert not platform.requests


@pytest.mark.parametrize(
    ("times", "day"),
    [
        ({"startTime": None, "endTime": None, "createdAt": ...}, "2024-01-15"),
        ({"startTime": "2024-01-15T23:59:59-05:00"}, "2024-01-16"),
    ],
)
def test_the_day_is_that_of_the_start_else_of_the_window(platform, rig, times, day):
    platform.add(a_call(at=TEN.replace(hour=23, minute=59, second=59), **times))
    assert archived(rig()).key == f"records/dt={day}/vc_1/r1.json"
