"""`hold`: what it asks for, what it prints, how it ends. It needs no setting of the source's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from archiver.demo.platform import Platform
from archiver.store.bucket import Bucket
from tests.fakes.command import Command
from tests.fakes.population import a_call
from tests.fakes.rig import Archive

DAY = timedelta(days=1)
YESTERDAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - DAY
WHO = ["--by", "J. Doe, Legal", "--reason", "Case 4711"]
READS = ("ARCHIVER_S3_", "AWS_")
HOLDS = (*READS, "ARCHIVER_SIGNING_KEY_FILE")


@pytest.fixture
def platform() -> Iterator[Platform]:
    """Calls of yesterday: whoever looks for a call's records asks for each day since."""
    calls = [a_call(f"vc_{n}", YESTERDAY + timedelta(hours=10)) for n in (1, 2)]
    with Platform(calls) as served:
        yield served


@pytest.fixture
def archived(command: Command) -> Command:
    """The command, with both calls archived."""
    hours = [(YESTERDAY + timedelta(hours=hour)).isoformat() for hour in (10, 11)]
    command.run("backfill", "--from", hours[0], "--to", hours[1])
    return command


def only(command: Command, prefixes: tuple[str, ...]) -> Command:
    """With settings of these beginnings alone."""
    kept = {name: v for name, v in command.environment.items() if name.startswith(prefixes)}
    return Command(command.directory, kept)


def test_from_the_first_act_to_the_last(archived: Command, bucket: Bucket) -> None:
    holder, reader = only(archived, HOLDS), only(archived, READS)
    assert reader.run("hold", "list").out == "no call is held\n"
    done = holder.run("hold", "add", "vc_1", *WHO)
    assert (done.code, done.out) == (0, "vc_1: held, 3 objects; seal 2\n")
    listed = reader.run("hold", "list")
    head, row = listed.out.splitlines()
    assert head.split() == ["call_id", "held", "since", "objects", "by", "reason"]
    assert row.split() == ["vc_1", row.split()[1], "3", "J.", "Doe,", "Legal", "Case", "4711"]
    shown = reader.run("manifest", "show", "vc_1").out
    assert "legal hold      held since" in shown
    assert shown.count(", legal hold\n") == 3
    told = json.loads(reader.run("manifest", "show", "vc_1", "--json").out)
    assert [one["held"] for one in told["revisions"][0]["objects"]] == [True] * 3
    assert told["hold"]["held"] is True

    assert holder.run("hold", "add", "vc_1", "--by", "M. Roe", "--reason", "Audit").code == 0
    ended = holder.run("hold", "remove", "vc_1", *WHO)
    assert (ended.code, ended.out) == (0, "vc_1: hold taken off, 3 objects; seal 4\n")
    assert "held by 2 acts" in ended.complaint
    assert "M. Roe (Audit, " in ended.complaint
    listed = reader.run("hold", "list", "vc_1", "vc_2")
    assert [line.split()[1] for line in listed.out.splitlines()] == [
        "not", "add", "add", "remove", "never"
    ]  # fmt: skip
    document = json.loads(reader.run("hold", "list", "vc_1", "vc_2", "--json").out)
    assert (document["type"], document["v"], document["unsealed"]) == ("holds", 1, [])
    first, second = document["calls"]
    assert [act["action"] for act in first["acts"]] == ["add", "add", "remove"]
    assert second == {"acts": [], "call_id": "vc_2", "held": False}
    assert reader.run("verify").code == 0
    heads = [bucket.head(one.key, one.version_id) for one in bucket.versions("rec")]
    assert [head.held for head in heads if head] == [False] * 6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "vc_1"], "--by"),
        (["add", "vc_1", "--by", "J. Doe"], "--reason"),
        (["add", *WHO], "CALL_ID"),
        (["remove", "vc_1", "--reason", "x"], "--by"),
        (["add", "vc_1", "--by", " ", "--reason", "x"], "--by"),
        (["add", "vc_1", "--by", "two\nlines", "--reason", "x"], "--by"),
        (["add", "vc_1", "--by", "x", "--reason", "\x1b[2J"], "--reason"),
        (["add", "vc_1", "--by", "x", "--reason", "x" * 501], "--reason"),
        (["list", "--by", "x"], "--by"),
        (["keep", "vc_1"], "keep"),
    ],
)
def test_a_bad_command_line(
    command: Command, archive: Callable[[], Archive], arguments: list[str], told: str
) -> None:
    done = command.run("hold", *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.complaint
    assert archive().keys == []


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"ARCHIVER_SIGNING_KEY_FILE": None}, 2, "ARCHIVER_SIGNING_KEY_FILE"),
        ({"ARCHIVER_S3_BUCKET": None}, 2, "ARCHIVER_S3_BUCKET"),
        ({"ARCHIVER_OBJECT_LOCK_MODE": "GOVERNANCE"}, 2, "ARCHIVER_RETENTION_DAYS"),
        ({"ARCHIVER_S3_PREFIX": "elsewhere"}, 2, "no archive"),
        ({"ARCHIVER_S3_BUCKET": "plain"}, 4, "Object Lock"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 4, "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_wrong_settings(
    command: Command, changes: dict[str, str | None], code: int, told: str
) -> None:
    done = only(command, HOLDS).run("hold", "add", "vc_1", *WHO, **changes)
    assert (done.code, done.out) == (code, "")
    assert told in done.complaint


def test_what_is_refused_leaves_everything_as_it_is(
    archived: Command, tmp_path: Path, bucket: Bucket
) -> None:
    def look() -> list[Any]:
        return sorted((v.key, v.version_id) for v in bucket.versions(""))

    before = look()
    for arguments, told in (
        (["add", "vc_1", "vc_9", *WHO], "vc_9"),
        (["remove", "vc_1", *WHO], "vc_1"),
    ):
        done = archived.run("hold", *arguments)
        assert (done.code, done.out) == (2, "")
        assert told in done.complaint
        assert "nothing was done" in done.complaint
    archived.run("keygen", "--out", "other.pem")
    done = archived.run(
        "hold", "add", "vc_1", *WHO, ARCHIVER_SIGNING_KEY_FILE=str(tmp_path / "other.pem")
    )
    assert (done.code, "signed with" in done.complaint) == (2, True)
    assert look() == before


def test_what_is_left_of_a_damaged_call_is_held(
    archived: Command, archive: Callable[[], Archive], bucket: Bucket, s3: Any
) -> None:
    """A recording that somebody has deleted must not keep the rest from being held."""
    [recording] = [f for f in archive().records["vc_1"]["files"] if f["kind"] == "recording"]
    at = bucket.requests.at(recording["key"], recording["version_id"])
    s3.delete_object(**at)
    done = archived.run("hold", "add", "vc_1", *WHO)
    assert (done.code, done.out) == (1, "vc_1: held, 2 objects; seal 2\n")
    assert recording["key"] in done.complaint
    assert "run archiver verify" in done.complaint
    shown = archived.run("manifest", "show", "vc_1").out
    assert "NOT THERE" in shown
    assert shown.count(", legal hold\n") == 2
