"""Recording, transcript and survey stand by themselves: what is wrong with one of them takes
nothing from the others, for ever or for a while."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from archiver.core.errors import CallError
from archiver.core.model import DOCUMENTS, Call, Retention
from archiver.manifest.record import FAILED_REASONS, FILE_KINDS, FINDINGS, INCOMPLETE, Record
from archiver.pipeline.call import CallArchiver, FailedTry
from archiver.source.api import VoiceCallsClient
from tests.fakes.calls import APART, SimulatedCall
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.memory_source import MemoryPlatform, api_client, recording_client
from tests.fakes.memory_store import MemoryStore
from tests.fakes.population import SECRET_WORDS, a_call, call_of, voice
from tests.fakes.relisting import (
    FIRST,
    GIVE_UP,
    MINUTE,
    SECOND,
    SETTLED,
    WatchedPlatform,
    amend,
    another,
    files_of,
    lines_of,
)
from tests.fakes.rig import WINDOW, Rig

DIR = "recordings/dt=2024-01-15/vc_1/"
SURVEY = {"responses": [{"score": 5}], "state": "Completed"}
PATHS = {
    "transcript": "/voice-calls/vc_1",
    **{kind: f"/voice-calls/vc_1/{name}" for kind, name in APART.items()},
}
FINDING = {kind: row.unavailable for kind, row in DOCUMENTS.items()}
OTHERS = {kind: {"kind": kind} for kind in APART if kind != "epa"}

BAD = {
    "400": Reply(400, {}, b"{}"),
    "403": Reply(403, {}, b"{}"),
    "500": Reply(500, {}, b"{}"),
    "error": Reply(200, {}, b'{"error":{"code":"x"}}'),
    "text": Reply(200, {}, b'"text"'),
}
"""Answers of which nothing can be kept."""
MALFORMED = {
    "page": Reply(
        200, {"Content-Type": "text/html"}, b"<!doctype html><p>" + SECRET_WORDS.encode()
    ),
    "surrogate": Reply(200, {}, b'{"id":"vc_1","x":"\\ud800"}'),
    "nan": Reply(200, {}, b'{"id":"vc_1","x":NaN}'),
    "twice": Reply(200, {}, b'{"id":"vc_1","id":"vc_1"}'),
    "cut": Reply(200, {}, b'{"id":"vc_1","transcript":[{"text":"' + SECRET_WORDS.encode()),
    "deep": Reply(200, {}, b'{"id":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "gzip": Reply(200, {"Content-Encoding": "gzip"}, b"{}"),
    "huge": Reply(200, {}, b'"' + b"x" * (34 << 20) + b'"'),
}
"""Answers that cannot be read as JSON: their bytes are kept."""
ALL = {**BAD, **MALFORMED}
SMALL = [bad for bad in ALL if bad != "huge"]
"""34 MiB take their time: once."""
NONE = {
    "204": Reply(204, {}, b""),
    "404": Reply(404, {}, b"{}"),
    "empty": Reply(200, {}, b""),
    "null": Reply(200, {}, b"null"),
    "nothing": Reply(200, {}, b'{"data":null}'),
}
"""Answers that say that there is none."""


@pytest.fixture
def platform(platform: WatchedPlatform) -> WatchedPlatform:
    """`good` is a call that nothing is ever wrong with."""
    platform.add(a_call("good", epa=SURVEY, others=OTHERS))
    platform.add(apart("vc_1", epa=SURVEY, others=OTHERS))
    return platform


class Apart(SimulatedCall):
    """A call whose survey stands in no answer but its own."""

    def detail(self) -> dict[str, Any]:
        return self.document


def apart(*arguments: Any, **options: Any) -> Apart:
    made = a_call(*arguments, **options)
    return Apart(made.document, made.recording, made.epa, others=made.others)


def harm(platform: MemoryPlatform, harms: dict[str, Reply]) -> None:
    """From now on these documents of `vc_1` are answered so."""
    replies = {PATHS[kind]: reply for kind, reply in harms.items()}

    platform.hooks[:] = [lambda request: replies.get(request.path.removeprefix("/api/v1"))]


def archive(made: Rig, call_id: str = "vc_1", **options: Any) -> Record | FailedTry:
    listed = Call(call_id, {"id": call_id, "startTime": "2024-01-15T10:00:00Z", "state": "Listed"})
    return made.transfer.archive(listed, WINDOW, **{"settled": True, **options})


def archived(made: Rig, call_id: str = "vc_1", **options: Any) -> Record:
    found = archive(made, call_id, **options)
    assert isinstance(found, Record), found
    return found


def refresh(made: Rig, previous: Record) -> Record | FailedTry:
    call = Call("vc_1", {"id": "vc_1"})
    return made.transfer.archive(call, WINDOW, settled=True, previous=previous)


def refreshed(made: Rig, previous: Record) -> Record:
    found = refresh(made, previous)
    assert isinstance(found, Record), found
    return found


def amended(made: Rig, previous: Record) -> Record:
    """The next revision, though the source may not have answered for all of it."""
    found = refresh(made, previous)
    record = found.amended if isinstance(found, FailedTry) else found
    assert record is not None
    return record


WHICH = [*([kind] for kind in PATHS), list(PATHS)]
CASES = [*((kinds, bad) for kinds in WHICH for bad in SMALL), (["epa"], "huge")]


@pytest.mark.parametrize(("kinds", "bad"), CASES, ids=str)
def test_a_recording_is_archived_whatever_becomes_of_the_documents(
    platform, rig, bucket, kinds, bad
):
    made = rig()
    assert archived(made, "good").document["findings"] == []
    harm(platform, dict.fromkeys(kinds, ALL[bad]))
    document = archived(made).document
    assert (document["outcome"], document["reason"]) == ("archived", None)
    malformed = ["document_malformed"] if bad in MALFORMED else []
    assert document["findings"] == sorted([*malformed, *(FINDING[kind] for kind in kinds)])
    assert set(document["findings"]) <= FINDINGS.keys() & INCOMPLETE
    assert document["unavailable"].keys() == set(kinds)
    assert {why["reason"] for why in document["unavailable"].values()} <= FAILED_REASONS.keys()
    files = files_of(document)
    assert bucket.read(DIR + "recording.wav") == voice()
    assert list(files) == [kind for kind in FILE_KINDS if kind in files], "in their order"
    for kind in PATHS:
        assert (kind in files) == (kind not in kinds)
        kept = bucket.read(f"{DIR}{kind}.bad")
        if bad not in MALFORMED or kind not in kinds:
            assert kept is None
            continue
        file, body = files[f"{kind}_malformed"], MALFORMED[bad].body
        assert isinstance(body, bytes)
        assert kept == body
        assert file["key"] == f"{DIR}{kind}.bad"
        assert file["content_type"] == "application/octet-stream"
        assert (file["bytes"], file["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize(
    ("kind", "findings"), [("epa", []), ("transcript", ["transcript_unavailable"])]
)
@pytest.mark.parametrize("none", NONE)
def test_only_a_survey_may_be_missing_without_a_finding(platform, rig, none, kind, findings):
    harm(platform, {kind: NONE[none]})
    document = archived(rig()).document
    assert document["findings"] == findings
    assert list(files_of(document)) == ["recording", *(one for one in PATHS if one != kind)]
    assert ("unavailable" in document) == bool(findings)


def test_without_its_own_document_a_call_is_as_it_is_listed(platform, rig):
    harm(platform, {"transcript": ALL["500"]})
    document = archived(rig()).document
    assert (document["state"], document["started_at"]) == ("Listed", "2024-01-15T10:00:00Z")
    assert document["record"] == "records/dt=2024-01-15/vc_1/r1.json"
    assert document["unavailable"] == {
        "transcript": {"reason": "source_unavailable", "status": 500}
    }


def test_the_inline_survey_is_kept_and_the_survey_asked_for_again(platform, rig, bucket):
    amend(platform, "vc_1", epaResults={"score": 1})
    harm(platform, {"epa": ALL["500"]})
    made = rig()
    first = archived(made)
    assert first.document["findings"] == ["survey_unavailable"]
    assert bucket.read(DIR + "epa.json") == b'{"score":1}\n'
    assert refreshed(made, first) is first
    platform.hooks.clear()
    second = refreshed(made, first)
    assert second.document["findings"] == []
    data = bucket.read(files_of(dict(second.document))["epa"]["key"])
    assert data is not None
    assert b'"state":"Completed"' in data


@pytest.mark.parametrize("bad", SMALL)
@pytest.mark.parametrize("kind", PATHS)
def test_while_its_window_is_open_a_call_waits_for_its_documents(platform, rig, bucket, kind, bad):
    made = rig()
    archived(made, "good")
    harm(platform, {kind: ALL[bad]})
    for _ in range(3):
        found = archive(made, settled=False)
        assert isinstance(found, FailedTry)
        assert found.reason in FAILED_REASONS
    assert platform.asked(".wav") == 1, "of the good call: none is downloaded for nothing"
    assert [item.key for item in bucket.list("recordings/") if "/vc_1/" in item.key] == []
    assert archived(made).document["findings"], "and not beyond that"


# --- together with a recording that is not there


@pytest.mark.parametrize("bad", ["400", "nan"])
def test_no_recording_and_a_document_that_cannot_be_had(platform, rig, bad):
    platform.add(apart("vc_1", audio=None, epa=SURVEY))
    harm(platform, {"epa": ALL[bad]})
    document = archived(rig()).document
    assert (document["outcome"], document["reason"]) == ("no_recording", "not_found")
    assert "survey_unavailable" in document["findings"]


def test_a_call_that_is_not_known_and_has_no_recording_is_missing(platform, rig):
    platform.add(a_call("vc_1", audio=None))
    harm(platform, {"transcript": NONE["404"]})
    found = archive(rig())
    assert isinstance(found, FailedTry)
    assert found.reason == "call_missing"


def test_a_failed_call_keeps_what_is_known(platform, rig, clock, bucket):
    call_of(platform, "vc_1").blob_missing = True
    harm(platform, {"transcript": MALFORMED["nan"]})
    clock.turn_to(WINDOW.end + GIVE_UP)
    document = archived(rig(give_up=GIVE_UP)).document
    assert (document["outcome"], document["reason"]) == ("failed", "recording_missing")
    assert document["findings"] == ["document_malformed", "transcript_unavailable"]
    assert list(files_of(document)) == [*APART, "transcript_malformed"]


# --- a source that could not be judged


class OddSource(VoiceCallsClient):
    """Answers as it is told to, where it is told to."""

    def __init__(self, api: VoiceCallsClient, **odd: Callable[[], Any]) -> None:
        super().__init__(api._api)
        self._odd = odd

    def call(self, call_id: str) -> tuple[Call, str | None]:
        odd = self._odd.get("call")
        return odd() if odd else super().call(call_id)

    def recording_url(self, call_id: str) -> Any:
        odd = self._odd.get("recording_url")
        return odd() if odd else super().recording_url(call_id)


@pytest.fixture
def transfer(
    platform: WatchedPlatform, clock: HandClock, bucket: MemoryStore
) -> Callable[..., CallArchiver]:
    api, blobs = api_client(platform, clock), recording_client(platform, clock)

    def make(**odd: Callable[[], Any]) -> CallArchiver:
        source = OddSource(api, **odd)
        return CallArchiver(
            source,
            blobs,
            bucket,
            clock,
            retention=Retention(),
            give_up=GIVE_UP,  # type: ignore[arg-type]
        )

    return make


def test_what_may_be_an_outage_never_fails_a_call(transfer, clock):
    def undecided() -> Any:
        error = CallError("who knows", reason="call_refused", status=403)
        error.undecided = True  # type: ignore[attr-defined]
        raise error

    clock.turn_to(WINDOW.end + 2 * GIVE_UP)
    made = transfer(recording_url=undecided)
    for _ in range(3):
        found = made.archive(Call("vc_1", {}), WINDOW, settled=True, was_pending=True)
        assert isinstance(found, FailedTry)


def test_a_document_that_has_no_json_form_is_unavailable(transfer):
    half = Call("vc_1", {"id": "vc_1", "campaignId": "\ud800"})
    made = transfer(call=lambda: (half, None))
    found = made.archive(Call("vc_1", {"state": "Listed"}), WINDOW, settled=True)
    assert isinstance(found, Record)
    assert found.document["findings"] == ["transcript_unavailable"]
    assert found.document["state"] == "Listed"


# --- later


@pytest.mark.parametrize("bad", ["400", "500", "nan"])
@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.usefixtures("audited")
def test_what_could_not_be_had_is_fetched_at_an_age(platform, rig, clock, archive, kind, bad):
    loop = another(rig)
    harm(platform, {kind: ALL[bad]})
    assert loop.round_at(SETTLED).incomplete == 1
    first = archive().records["vc_1"]
    assert FINDING[kind] in first["findings"]
    loop.round_at(FIRST)
    look = archive()
    assert look.records["vc_1"] == first, "it still cannot be had: there is nothing new to say"
    assert len(lines_of(look)) == 2, "and nobody waits for it"
    platform.hooks.clear()
    loop.round_at(SECOND)
    second = archive().records["vc_1"]
    assert (second["revision"], second["findings"]) == (2, [])
    assert "unavailable" not in second
    assert list(files_of(second)) == ["recording", *PATHS]
    assert platform.asked(".wav") == 2, "recordings are not fetched again"


@pytest.mark.parametrize("bad", SMALL)
@pytest.mark.parametrize("kind", PATHS)
def test_a_document_that_is_there_is_never_lost(platform, rig, kind, bad):
    made = rig()
    first = archived(made)
    archived(made, "good")
    harm(platform, {kind: ALL[bad]})
    found = refresh(made, first)
    if isinstance(found, Record):
        assert found is first
    else:
        assert found.reason in ("source_unavailable", "call_refused"), "it is to be asked again"


@pytest.mark.parametrize("bad", ["404", *SMALL])
def test_one_document_changes_while_the_other_cannot_be_had(platform, rig, bad):
    amend(platform, "vc_1", epaResults={"inline only": 1})
    made = rig()
    first = archived(made)
    archived(made, "good")
    was = files_of(dict(first.document))
    reply = NONE["404"] if bad == "404" else ALL[bad]
    harm(platform, {"epa": reply})
    amend(platform, "vc_1", outcome="changed")
    second = amended(made, first)
    now = files_of(dict(second.document))
    assert (now["epa"], now["recording"]) == (was["epa"], was["recording"])
    assert now["transcript"]["sha256"] != was["transcript"]["sha256"]
    assert second.document["findings"] == []
    archived(made, "good")
    harm(platform, {"transcript": reply})
    call_of(platform, "vc_1").epa = {"state": "Later"}
    third = amended(made, second)
    assert files_of(dict(third.document))["transcript"] == now["transcript"]
    assert files_of(dict(third.document))["epa"]["sha256"] != was["epa"]["sha256"]
    assert third.document["started_at"] == second.document["started_at"]
    assert third.document["findings"] == []


def test_other_malformed_bytes_are_kept_beside(platform, rig, bucket):
    made = rig()
    harm(platform, {"epa": MALFORMED["nan"]})
    first = archived(made)
    harm(platform, {"epa": MALFORMED["twice"]})
    second = refreshed(made, first)
    assert second.revision == 2
    key = files_of(dict(second.document))["epa_malformed"]["key"]
    assert key.startswith(DIR + "epa-")
    assert key.endswith(".bad")
    assert bucket.read(key) == MALFORMED["twice"].body
    assert bucket.read(DIR + "epa.bad") == MALFORMED["nan"].body
    harm(platform, {"epa": ALL["400"]})
    third = refresh(made, second)
    assert isinstance(third, FailedTry), "another reason than before: it may pass"


def test_an_open_window_closes_with_the_finding(platform, rig, clock, archive):
    harm(platform, {"epa": ALL["500"]})
    loop = another(rig)
    clock.turn_to(SETTLED - 30 * MINUTE)
    for _ in range(3):
        loop.round()
        clock.forward(MINUTE)
    assert archive().records.keys() == {"good"}
    loop.round_at(max(clock.now(), SETTLED))
    assert archive().records["vc_1"]["findings"] == ["survey_unavailable"]
    assert lines_of(archive())[0]["archived"] == 2


@pytest.mark.usefixtures("audited")
@pytest.mark.parametrize("kind", PATHS)
def test_what_changes_while_the_other_document_is_out_for_a_while_is_all_found(
    platform, rig, clock, archive, kind
):
    """What is answered is written down at once, and the window waits for the rest."""
    loop = another(rig)
    loop.round_at(SETTLED)
    amend(platform, "vc_1", outcome="changed")
    call_of(platform, "vc_1").epa = {"state": "Later"}
    call_of(platform, "vc_1").others = {one: {"state": "Later"} for one in OTHERS}
    harm(platform, {kind: ALL["500"]})
    loop.round_at(FIRST)
    assert archive().records["vc_1"]["revision"] == 2
    assert len(lines_of(archive())) == 1
    platform.hooks.clear()
    loop.round_after(16 * MINUTE)
    found = archive().records["vc_1"]
    assert (found["revision"], found["findings"]) == (3, [])
    assert len(lines_of(archive())) == 2


# --- odd shapes


def test_an_envelope_with_unknown_fields_is_an_envelope(platform, rig):
    def enveloped(request: Request) -> Reply | None:
        if request.server != "api":
            return None
        body = platform.answer(request).body
        assert isinstance(body, bytes)
        document = json.loads(body)
        data = document.get("data", document) if isinstance(document, dict) else document
        more = {"success": True, "version": 2, "requestId": "r", "data": data}
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(more).encode())

    platform.hooks.append(enveloped)
    assert list(files_of(archived(rig()).document)) == ["recording", *PATHS]


@pytest.mark.parametrize(
    ("inline", "survey", "stays"),
    [
        ([{"question": "q", "answer": "a"}], b'[{"answer":"a","question":"q"}]\n', False),
        ({}, None, False),
        ([], None, False),
        (None, None, False),
        ("n/a", None, True),
    ],
)
def test_only_what_is_no_survey_stays_in_the_transcript(
    platform, rig, bucket, inline, survey, stays
):
    platform.add(a_call(epaResults=inline))
    archived(rig())
    assert bucket.read(DIR + "epa.json") == survey
    assert (b"epaResults" in (bucket.read(DIR + "transcript.json") or b"")) is stays
