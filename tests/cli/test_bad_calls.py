"""What is wrong with single calls is their own matter: the others go on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from archiver.manifest.signing import SigningKey
from tests.fakes.audio import wav
from tests.fakes.command import Command
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import SECRET_WORDS, a_call, call_of
from tests.fakes.rig import Archive

Look = Callable[[], Archive]


@pytest.mark.parametrize("bad", ["missing", "cut"])
def test_a_bad_blob_is_its_call_s_matter(
    command: Command, platform: Platform, hour: list[str], archive: Look, bad: str, key: SigningKey
) -> None:
    platform.add(a_call("bad", audio=wav(1)), a_call("none", audio=None))
    call_of(platform, "bad").blob_missing = bad == "missing"
    if bad == "cut":
        cut = Reply(200, {}, wav(1), close_after=99)
        platform.hooks.append(lambda r: cut if r.server == "blob" and "bad" in r.path else None)
    done = command.run("backfill", *hour).expect(1)
    assert "3 archived, 1 no recording, 1 failed" in done.out
    look = archive()
    look.check(key)
    outcomes = {one: found["outcome"] for one, found in look.records.items()}
    assert outcomes == {
        **dict.fromkeys(("vc_1", "vc_2", "vc_3"), "archived"),
        "bad": "failed",
        "none": "no_recording",
    }
    reason = "recording_missing" if bad == "missing" else "truncated"
    assert look.records["bad"]["reason"] == reason


def test_a_document_that_is_no_json_is_kept_and_shown(
    command: Command, platform: Platform, hour: list[str], archive: Look, key: SigningKey
) -> None:
    """For ever, and then not any more: a backfill asks for it again."""
    bad = b'{"id":"vc_1","x":NaN,"text":"' + SECRET_WORDS.encode() + b'"}'
    paths = ("/voice-calls/vc_1", "/voice-calls/vc_2/epa-results")
    platform.hooks.append(lambda r: Reply(200, {}, bad) if r.path.endswith(paths) else None)
    done = command.run("backfill", *hour, ARCHIVER_LOG_LEVEL="debug").expect(1)
    assert SECRET_WORDS not in done.err + done.out
    look = archive()
    look.check(key)
    assert {found["outcome"] for found in look.records.values()} == {"archived"}
    assert look.read("recordings/dt=2024-01-15/vc_1/transcript.bad") == bad
    shown = command.run("manifest", "show", "vc_1").expect()
    assert "recordings/dt=2024-01-15/vc_1/transcript.bad" in shown.out
    assert "document_malformed transcript_unavailable" in shown.out
    command.run("verify", "--level", "bytes").expect()
    platform.hooks.clear()
    command.run("backfill", *hour).expect()
    found = archive().records
    assert [found[one]["revision"] for one in ("vc_1", "vc_2", "vc_3")] == [2, 2, 1]
    assert {tuple(one["findings"]) for one in found.values()} == {()}
    command.run("verify", "--level", "bytes").expect()


FIRST = "vc_1"
"""The call that the plain listing names first, the three being of one time."""


def url_of_first(reply: Reply, request: Request) -> Reply | None:
    return reply if request.path.endswith(f"/{FIRST}/recording-url") else None


def odd_url(platform: Platform) -> Reply:
    url = platform.recording_url(FIRST).replace(".wav", " .wav")
    return Reply(200, {}, json.dumps({"recordingUrl": url}).encode())


def with_null(platform: Platform, request: Request) -> Reply | None:
    """The plain listing, with an entry before all others that is no call."""
    if not request.path.endswith("/voice-calls") or "dateFrom" in request.query:
        return None
    document = json.loads(platform.answer(request).body)
    return Reply(200, {}, json.dumps({**document, "data": [None, *document["data"]]}).encode())


@pytest.mark.parametrize("harm", ["401", "403", "422 for one", "odd url", "null", "400 at first"])
def test_the_preflight_takes_one_bad_call_for_one_bad_call(
    command: Command, platform: Platform, hour: list[str], harm: str
) -> None:
    """It ends no command before it begins, wherever it stands."""
    hooks = {
        "401": lambda r: url_of_first(Reply(401), r),
        "403": lambda r: url_of_first(Reply(403), r),
        "422 for one": lambda r: url_of_first(Reply(422, {}, b"{}"), r),
        "odd url": lambda r: url_of_first(odd_url(platform), r),
        "null": lambda r: with_null(platform, r),
        "400 at first": lambda r: (
            Reply(400) if r.path.endswith("/voice-calls") and "dateFrom" not in r.query else None
        ),
    }
    platform.hooks.append(hooks[harm])
    done = command.run("backfill", *hour)
    whole = harm in ("null", "400 at first")
    assert done.code == (0 if whole else 1), done.err
    listed = command.run("manifest", "list", *hour, "--format", "jsonl").out.splitlines()
    archived = {row["call_id"] for row in map(json.loads, listed) if row["outcome"] == "archived"}
    assert archived == {"vc_1", "vc_2", "vc_3"} - (set() if whole else {FIRST})
    command.run("check").expect()
