"""What a review found and the rest of the suite had not asked: each was seen to go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import KeyTaken, StoreError
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from archiver.store.bucket import Bucket
from tests.fakes.clock import HandClock
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import HOUR, WINDOW, Archive, Rig

MakeRig = Callable[..., Rig]
Look = Callable[[], Archive]
SETTLED = WINDOW.end + 2 * HOUR


def bend(platform: Platform, path_end: str, change: Callable[[Any], Any]) -> None:
    """Serve the normal answer of the API's paths that end so, changed."""

    def hook(request: Request) -> Reply | None:
        if request.server != "api" or not request.path.endswith(path_end):
            return None
        reply = platform.answer(request)
        if reply.status != 200 or not isinstance(reply.body, bytes):
            return reply
        document = change(json.loads(reply.body))
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    platform.hooks.append(hook)


def bodies(document: Any) -> list[Any]:
    items = document["data"] if isinstance(document, dict) else document
    assert isinstance(items, list)
    return items


def test_an_envelope_with_unknown_fields_is_an_envelope(
    platform: Platform, rig: MakeRig, clock: HandClock, archive: Look
) -> None:
    clock.turn_to(SETTLED)
    platform.add(a_call(epa={"score": 3}))
    for end in ("/voice-calls", "/vc_1", "/recording-url", "/epa-results"):
        bend(platform, end, lambda document: {
            "success": True, "version": 2, "requestId": "r",
            "data": document.get("data", document) if isinstance(document, dict) else document,
        })  # fmt: skip
    rig().backfill()
    record = archive().records["vc_1"]
    assert record["outcome"] == "archived"
    assert [file["kind"] for file in record["files"]] == ["recording", "transcript", "epa"]


def test_a_state_in_other_letters_is_the_same_state(
    platform: Platform, rig: MakeRig, clock: HandClock, archive: Look
) -> None:
    clock.turn_to(SETTLED)
    platform.add(a_call())

    def shout(document: Any) -> Any:
        return [{**item, "state": item["state"].upper()} for item in bodies(document)]

    bend(platform, "/voice-calls", shout)
    rig().backfill()
    assert archive().line()["archived"] == 1


def test_a_survey_that_is_a_list_is_kept(
    platform: Platform, rig: MakeRig, clock: HandClock, archive: Look
) -> None:
    clock.turn_to(SETTLED)
    platform.add(a_call(epaResults=[{"question": "q", "answer": "a"}]))
    rig().backfill()
    look = archive()
    epa = next(file for file in look.records["vc_1"]["files"] if file["kind"] == "epa")
    assert look.json(epa["key"]) == [{"question": "q", "answer": "a"}]


@pytest.mark.parametrize(
    ("inline", "kept"), [({}, False), ([], False), (None, False), ("n/a", True)]
)
def test_only_what_is_no_survey_stays_in_the_transcript(
    platform: Platform, rig: MakeRig, clock: HandClock, archive: Look, inline: Any, kept: bool
) -> None:
    clock.turn_to(SETTLED)
    platform.add(a_call(epaResults=inline))
    rig().backfill()
    look = archive()
    (transcript,) = [f for f in look.records["vc_1"]["files"] if f["kind"] != "recording"]
    assert ("epaResults" in look.json(transcript["key"])) is kept


def test_a_call_that_goes_while_its_window_is_open_is_told_when_it_closes(
    platform: Platform, rig: MakeRig, clock: HandClock, archive: Look, key: SigningKey
) -> None:
    made = rig()
    made.found()
    platform.add(a_call("stays"), a_call("goes"))
    clock.turn_to(WINDOW.end + HOUR)
    loop = made.loop()
    loop.round()
    platform.remove("goes")
    clock.turn_to(SETTLED)
    loop.round()
    look = archive()
    line = look.line()
    assert (line["listed"], line["vanished"]) == (1, ["goes"])
    told = [json.loads(row) for row in look.read(layout.SegmentName(TEN, 1).jsonl).splitlines()]
    assert {row["call_id"] for row in told[:-1]} == {"stays", "goes"}


def test_an_outage_after_a_long_downtime_is_mended_by_the_next_round(
    platform: Platform, rig: MakeRig, clock: HandClock, archive: Look, key: SigningKey
) -> None:
    made = rig(give_up=HOUR)
    made.found()
    platform.add(a_call(), a_call("newer", TEN + 8 * HOUR))
    clock.turn_to(WINDOW.end + 10 * HOUR)
    platform.hooks.append(lambda r: Reply(503, {}, b"") if r.server == "blob" else None)
    loop = made.loop()
    loop.round()
    assert archive().line()["pending"] == ["vc_1"]
    platform.hooks.clear()
    clock.forward(timedelta(minutes=1))
    loop.round()
    look = archive()
    look.check(key)
    assert {found["outcome"] for found in look.records.values()} == {"archived"}
    assert look.line(revision=2)["pending"] == []


def test_a_lost_seal_is_never_replaced(
    platform: Platform, rig: MakeRig, clock: HandClock, bucket: Bucket, archive: Look
) -> None:
    clock.turn_to(SETTLED + 6 * HOUR)
    made = rig()
    for hour in range(4):
        made.backfill(TEN + hour * HOUR)
    assert made.chain.head.seq == 4
    bucket.client.s3.delete_object(
        Bucket=bucket.options.bucket, Key=bucket.client.prefix + layout.seal_key(2)
    )
    platform.add(a_call("new", TEN + 5 * HOUR))
    with pytest.raises(StoreError, match="seal 2 is missing"):
        rig().backfill(TEN + 5 * HOUR)
    assert layout.seal_key(2) not in archive().keys


class Forgetful:
    """A store's client whose store does not know `If-None-Match`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **arguments: Any) -> Any:
        arguments.pop("IfNoneMatch", None)
        return self._client.put_object(**arguments)


def test_one_writer_on_a_store_that_overwrites_looks_before_it_writes(
    bucket: Bucket, clock: HandClock
) -> None:
    careless = Bucket(bucket.options, clock, Retry(clock), client=Forgetful(bucket.client.s3))
    careless.create_once = False
    first = careless.put_once("records/x", b"first")
    assert careless.put_once("records/x", b"first").adopted
    with pytest.raises(KeyTaken):
        careless.put_once("records/x", b"other")
    assert checksums.sha256_hex(bucket.read("records/x") or b"") == first.sha256
