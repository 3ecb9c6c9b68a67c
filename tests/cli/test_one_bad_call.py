"""One bad call or entry at the source ends no command before it begins, wherever it stands."""

from __future__ import annotations

import json

import pytest

from tests.fakes.command import Command
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform

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
def test_a_backfill_goes_on_to_the_others(
    command: Command, platform: Platform, hour: list[str], harm: str
) -> None:
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
    assert command.run("check").code == 0
