"""What is wrong with single calls is their own matter: the others go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from archiver.manifest.signing import SigningKey
from tests.fakes.audio import wav
from tests.fakes.calls import BytesRecording
from tests.fakes.command import Command
from tests.fakes.http_server import Reply
from tests.fakes.platform import Platform
from tests.fakes.population import SECRET_WORDS, a_call, call_of
from tests.fakes.rig import Archive

Look = Callable[[], Archive]


@pytest.mark.parametrize("bad", ["missing", "empty", "no wav", "cut", "short"])
def test_a_bad_blob_is_its_call_s_matter(
    command: Command, platform: Platform, hour: list[str], archive: Look, bad: str, key: SigningKey
) -> None:
    data = {"empty": b"", "no wav": b"<html>" * 9, "short": wav(1)[:-9]}.get(bad, wav(1))
    platform.add(a_call("bad", audio=data or None))
    call = call_of(platform, "bad")
    call.blob_missing = bad == "missing"
    if bad == "empty":
        call.recording = BytesRecording(b"")
    if bad == "cut":
        cut = Reply(200, {}, wav(1), close_after=99)
        platform.hooks.append(lambda r: cut if r.server == "blob" and "bad" in r.path else None)
    done = command.run("backfill", *hour)
    assert done.code == 1, done.err
    look = archive()
    look.check(key)
    assert look.records["bad"]["outcome"] == "failed"
    assert {one for one, found in look.records.items() if found["outcome"] == "archived"} == {
        "vc_1", "vc_2", "vc_3",
    }  # fmt: skip
    reasons = {"missing": "recording_missing", "empty": "recording_empty", "no wav": "not_wav"}
    assert look.records["bad"]["reason"] == reasons.get(bad, "truncated")
    assert "1 failed" in done.out


def test_a_document_that_is_no_json_is_kept_and_shown(
    command: Command, platform: Platform, hour: list[str], archive: Look, key: SigningKey
) -> None:
    """For ever, and then not any more: a backfill asks for it again."""
    bad = b'{"id":"vc_1","x":NaN,"text":"' + SECRET_WORDS.encode() + b'"}'
    paths = ("/voice-calls/vc_1", "/voice-calls/vc_2/epa-results")
    platform.hooks.append(lambda r: Reply(200, {}, bad) if r.path.endswith(paths) else None)
    done = command.run("backfill", *hour, ARCHIVER_LOG_LEVEL="debug")
    assert done.code == 1, "two documents were left behind"
    assert SECRET_WORDS not in done.err + done.out
    look = archive()
    look.check(key)
    assert {found["outcome"] for found in look.records.values()} == {"archived"}
    assert look.read("recordings/dt=2024-01-15/vc_1/transcript.bad") == bad
    shown = command.run("manifest", "show", "vc_1")
    assert shown.code == 0, shown.err
    assert "recordings/dt=2024-01-15/vc_1/transcript.bad" in shown.out
    assert "document_malformed transcript_unavailable" in shown.out
    checked = command.run("verify", "--level", "bytes")
    assert checked.code == 0, checked.out
    platform.hooks.clear()
    assert command.run("backfill", *hour).code == 0
    found = archive().records
    assert [found[one]["revision"] for one in ("vc_1", "vc_2", "vc_3")] == [2, 2, 1]
    assert {tuple(one["findings"]) for one in found.values()} == {()}
    assert command.run("verify", "--level", "bytes").code == 0


def test_no_recording_is_a_result(
    command: Command, platform: Platform, hour: list[str], archive: Look
) -> None:
    platform.add(a_call("none", audio=None))
    done = command.run("backfill", *hour)
    assert done.code == 0, done.err
    assert archive().records["none"]["outcome"] == "no_recording"
