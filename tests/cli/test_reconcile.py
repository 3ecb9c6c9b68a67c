"""`archiver reconcile`: what it prints, how it ends, what it needs and what it does not."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from archiver.manifest import layout
from archiver.store.bucket import Bucket
from tests.fakes.command import Command, Done
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import READ, Platform
from tests.fakes.population import TEN, a_call

Versions = list[tuple[str, str | None]]


@pytest.fixture
def lone(command: Command, platform: Platform) -> Command:
    """No signing key, no recording hosts, and a token that may not fetch recordings."""
    bare = dict(command.environment)
    for name in ("SIGNING_KEY_FILE", "RECORDING_HOSTS"):
        del bare[f"ARCHIVER_{name}"]
    bare["ARCHIVER_API_TOKEN"] = platform.token_for(READ)
    return Command(command.directory, bare)


def test_all_is_well(command: Command, lone: Command, hour: list[str]) -> None:
    command.run("backfill", *hour).expect()

    done = lone.run("reconcile", *hour)

    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[1].split() == ["2024-01-15", "3", "3", "0", "0", "0", "0", "0", "0", "0"]
    assert lines[-1] == "OK: the archive has a result for each of the 3 calls listed"


def test_another_filter_than_the_archive_s(
    command: Command, lone: Command, hour: list[str]
) -> None:
    """Nothing is listed, so nothing is missing: no success all the same."""
    command.run("backfill", *hour).expect()

    done = lone.run("reconcile", *hour, ARCHIVER_CAMPAIGN_ID="nope")

    assert (done.code, done.err) == (1, "")
    assert done.out.count("\ngone ") == 3
    note, verdict = done.out.splitlines()[-2:]
    assert note.startswith("note: 1 window of the archive was listed with another filter: ")
    assert verdict.startswith("NOT OK: 3 calls of the archive were perhaps not asked for")
    assert verdict.endswith("; 3 gone")

    done = lone.run("reconcile", *hour, "--json", ARCHIVER_CAMPAIGN_ID="nope")

    document = json.loads(done.out)
    assert (done.code, document["ok"], document["total"]["gone"]) == (1, False, 3)
    assert document["filter"] == {"campaign_id": "nope", "state": ["Completed"]}
    assert document["other_filters"] == [{"filter": {"state": ["Completed"]}, "windows": 1}]


def test_what_is_missing_and_nothing_is_written(
    command: Command, lone: Command, hour: list[str], platform: Platform,
    versions: Callable[[], Versions],
) -> None:  # fmt: skip
    command.run("backfill", *hour).expect()
    platform.add(a_call("vc_late", TEN + timedelta(minutes=30)))
    before = versions()
    platform.requests.clear()

    done = lone.run("reconcile", "--from", "2024-01-15", "--to", "2024-01-16", "--json")

    assert done.code == 1
    document = json.loads(done.out)
    assert document["missing"] == [
        {"call_id": "vc_late", "window": "2024-01-15T10:00:00Z", "window_sealed": True}
    ]
    assert (document["total"]["source"], document["total"]["archived"]) == (4, 3)
    assert versions() == before
    assert {(one.server, one.method, one.path) for one in platform.requests} == {
        ("api", "GET", "/api/v1/voice-calls")
    }


def test_the_chain_is_not_completed(
    command: Command, lone: Command, hour: list[str], bucket: Bucket, s3: object, prefix: str,
    versions: Callable[[], Versions],
) -> None:  # fmt: skip
    """A crash left the newest seal without its signature and pointer: that stays so."""
    command.run("backfill", *hour).expect()
    pointer = layout.SegmentName(TEN, 1).seal
    for key in (pointer, layout.signature_key(1)):
        s3.delete_object(Bucket="locked", Key=f"{prefix}/{key}")  # type: ignore[attr-defined]
    before = versions()

    done = lone.run("reconcile", *hour)

    assert (done.code, versions()) == (0, before), done.err
    assert bucket.read(pointer) is None


def test_what_cannot_be_read_is_left_out_and_named(
    command: Command, lone: Command, hour: list[str], bucket: Bucket, s3: object, prefix: str
) -> None:
    """Foreign bytes on top of a segment: one line each, exit code 1, and never 4."""
    command.run("backfill", *hour).expect()
    segment = layout.SegmentName(TEN, 1).jsonl
    s3.put_object(Bucket="locked", Key=f"{prefix}/{segment}", Body=b"x")  # type: ignore[attr-defined]

    done = lone.run("reconcile", *hour)
    assert (done.code, done.err) == (1, "")
    assert f"damaged   2024-01-15T10:00:00Z  {segment} is not as it was sealed" in done.out
    assert "1 object of the archive could not be read" in done.out.splitlines()[-1]

    listed = command.run("manifest", "list", *hour, "--format", "jsonl")
    assert (listed.code, listed.out, listed.err.count("\n")) == (1, "", 1)
    assert segment in listed.err

    shown = command.run("manifest", "show", "vc_1")
    assert (shown.code, shown.err.count("\n")) == (1, 1)
    assert shown.out.startswith("call vc_1\n")
    assert segment in shown.err


def test_a_range_that_reaches_into_the_future_ends_now(lone: Command, platform: Platform) -> None:
    now = datetime.now(UTC)
    platform.add(a_call("fresh", now - timedelta(minutes=1)))
    start = (now - timedelta(minutes=2)).isoformat()

    done = lone.run("reconcile", "--from", start, "--to", "2999-01-01", "--json")

    document = json.loads(done.out)
    assert [one["call_id"] for one in document["missing"]] == ["fresh"]
    assert datetime.fromisoformat(document["to"]) < now + timedelta(hours=2)
    assert len(document["days"]) <= 2


def test_no_settings(lone: Command, hour: list[str]) -> None:
    done = Command(lone.directory).fresh("reconcile", *hour)

    assert (done.code, done.out) == (2, "")
    for name in ("API_BASE_URL", "S3_BUCKET"):
        assert f"ARCHIVER_{name}" in done.complaint
    for name in ("SIGNING_KEY_FILE", "RECORDING_HOSTS"):
        assert f"ARCHIVER_{name}" not in done.complaint


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"ARCHIVER_API_TOKEN": "wrong"}, 3, "ARCHIVER_API_TOKEN"),
        ({"ARCHIVER_S3_BUCKET": "nowhere"}, 4, "ARCHIVER_S3_BUCKET"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 4, "AWS_SECRET_ACCESS_KEY"),
        ({"ARCHIVER_WINDOW": "7h"}, 2, "ARCHIVER_WINDOW"),
    ],
)  # fmt: skip
def test_wrong_settings(
    lone: Command, hour: list[str], changes: dict[str, str | None], code: int, told: str
) -> None:
    done = lone.run("reconcile", *hour, **changes)

    assert (done.code, told in done.complaint, done.out) == (code, True, ""), done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(lone: Command, platform: Platform, number: signal.Signals) -> None:
    def slow(_: Request) -> Reply | None:
        time.sleep(0.2)
        return None

    platform.hooks.append(slow)

    done: Done = lone.interrupt(
        lambda: len(platform.served("api")) >= 3, number,
        "reconcile", "--from", "2024-01-01", "--to", "2024-02-01",
    )  # fmt: skip

    assert (done.code, done.out) == (130, "")
    assert done.complaint == "archiver: interrupted"
