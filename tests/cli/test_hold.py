"""`hold`: what it asks for, what it prints, how it ends. It needs no setting of the source's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from archiver.manifest import canonical, layout
from archiver.store.bucket import Bucket
from tests.fakes.command import Command
from tests.fakes.platform import Platform
from tests.fakes.population import YESTERDAY_TEN, a_call
from tests.fakes.rig import Archive

TEN = YESTERDAY_TEN
HOUR = ["--from", TEN.isoformat(), "--to", (TEN + timedelta(hours=1)).isoformat()]
WHO = ["--by", "J. Doe, Legal", "--reason", "Case 4711"]
READS = ("ARCHIVER_S3_", "AWS_")
HOLDS = (*READS, "ARCHIVER_SIGNING_KEY_FILE")


@pytest.fixture
def platform() -> Iterator[Platform]:
    calls = [a_call(f"vc_{n}", TEN) for n in (1, 2)]
    with Platform(calls) as served:
        yield served


@pytest.fixture
def archived(command: Command) -> Command:
    """The command, with both calls archived."""
    command.run("backfill", *HOUR)
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

    holder.run("hold", "add", "vc_1", "--by", "M. Roe", "--reason", "Audit").expect()
    refused = holder.run("hold", "remove", "vc_1", *WHO)
    assert (refused.code, refused.out) == (2, "")
    assert "--all" in refused.complaint
    assert "M. Roe (Audit, " in refused.complaint
    ended = holder.run("hold", "remove", "vc_1", *WHO, "--all")
    assert (ended.code, ended.out) == (0, "vc_1: hold taken off, 3 objects; seal 4\n")
    listed = reader.run("hold", "list", "vc_1", "vc_2")
    assert [line.split()[1] for line in listed.out.splitlines()] == [
        "not", "add", "add", "remove", "never"
    ]  # fmt: skip
    document = json.loads(reader.run("hold", "list", "vc_1", "vc_2", "--json").out)
    assert (document["type"], document["v"], document["unsealed"]) == ("holds", 1, [])
    first, second = document["calls"]
    assert [act["action"] for act in first["acts"]] == ["add", "add", "remove"]
    assert second == {"acts": [], "call_id": "vc_2", "held": False}
    reader.run("verify").expect()
    heads = [bucket.head(one.key, one.version_id) for one in bucket.versions("rec")]
    assert [head.held for head in heads if head] == [False] * 6


def test_an_act_is_told_to_programs_too(archived: Command) -> None:
    told = archived.run("hold", "add", "vc_1", "vc_2", *WHO, "--json")
    document = json.loads(told.out)
    assert (document["type"], document["v"]) == ("hold_done", 1)
    rows = [(one["call_id"], one["action"], one["seal"]) for one in document["calls"]]
    assert rows == [("vc_1", "add", 2), ("vc_2", "add", 2)]
    assert [(len(one["objects"]), one["gone"]) for one in document["calls"]] == [(3, []), (3, [])]


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
    archived: Command, tmp_path: Path, versions: Callable[[], list[Any]]
) -> None:
    before = versions()
    for arguments, told in (
        (["add", "vc_1", "vc_9", *WHO], "vc_9"),
        (["add", "", " vc_1", *WHO], "'', ' vc_1'"),
        (["remove", "vc_1", *WHO], "'vc_1'"),
        (["list", "vc_1", "vc_9"], "'vc_9'"),
    ):
        done = archived.run("hold", *arguments)
        assert (done.code, done.out) == (2, "")
        assert told in done.complaint
    archived.run("keygen", "--out", "other.pem")
    done = archived.run(
        "hold", "add", "vc_1", *WHO, ARCHIVER_SIGNING_KEY_FILE=str(tmp_path / "other.pem")
    )
    assert (done.code, "signed with" in done.complaint) == (2, True)
    assert versions() == before


def test_what_is_left_of_a_damaged_call_is_held(
    archived: Command, archive: Callable[[], Archive], bucket: Bucket, s3: Any
) -> None:
    """A recording that somebody has deleted must not keep the rest from being held."""
    [recording] = [f for f in archive().records["vc_1"]["files"] if f["kind"] == "recording"]
    at = bucket.client.at(recording["key"], recording["version_id"])
    s3.delete_object(**at)
    done = archived.run("hold", "add", "vc_1", *WHO)
    assert (done.code, done.out) == (1, "vc_1: held, 2 objects; seal 2\n")
    assert recording["key"] in done.complaint
    assert "run archiver verify" in done.complaint
    shown = archived.run("manifest", "show", "vc_1").out
    assert "NOT THERE" in shown
    assert shown.count(", legal hold\n") == 2


# --- somebody else was at the bucket


def states(bucket: Bucket, call_id: str) -> list[bool]:
    """Whether each version of each object of a call is held; delete markers left out."""
    versions = [
        one
        for one in bucket.versions("rec")
        if f"/{call_id}/" in one.key and not one.is_delete_marker
    ]
    return [bucket.head(one.key, one.version_id).held for one in versions]  # type: ignore[union-attr]


def test_what_lies_on_top_of_a_record_or_hides_it_keeps_nothing_from_being_held(
    archived: Command, archive: Callable[[], Archive], bucket: Bucket, s3: Any
) -> None:
    record = archive().records["vc_1"]
    at = bucket.client.at(record["record"])
    s3.put_object(**at, Body=canonical.dump({**record, "files": []}))
    odd = bucket.client.at(record["record"].replace("r1.json", "not ours.json"))
    s3.put_object(**odd, Body=b"x")
    [file, *_] = record["files"]
    done = archived.run("hold", "add", "vc_1", *WHO)
    assert (done.code, done.out) == (0, "vc_1: held, 4 objects; seal 2\n")
    assert states(bucket, "vc_1") == [True] * 5
    assert not any(states(bucket, "vc_2"))

    s3.delete_object(**at)
    s3.delete_object(**bucket.client.at(file["key"]))
    shown = archived.run("manifest", "show", "vc_1")
    assert (shown.code, "hidden" in shown.complaint) == (1, True)
    removed = archived.run("hold", "remove", "vc_1", *WHO)
    assert (removed.code, removed.out) == (1, "vc_1: hold taken off, 4 objects; seal 3\n")
    assert f"{file['key']} is missing, hidden or unreadable" in removed.err
    assert not any(states(bucket, "vc_1"))
    archived.run("hold", "add", "vc_1", *WHO).expect(1)
    assert states(bucket, "vc_1") == [True] * 5
    assert archived.run("hold", "list", "vc_1").out.startswith("vc_1: held since ")


def test_an_act_that_is_hidden_or_overwritten_still_counts(
    archived: Command, bucket: Bucket, s3: Any
) -> None:
    archived.run("hold", "add", "vc_1", *WHO)
    listed = archived.run("hold", "list").out
    [segment] = [one.key for one in bucket.list("manifest/events/") if one.key.endswith("jsonl")]
    [version] = [one.version_id for one in bucket.versions(segment)]
    pointer = segment.replace(".jsonl", ".seal")
    for key in (segment, pointer):
        s3.put_object(**bucket.client.at(key), Body=b"x")
        assert archived.run("hold", "list").out == listed
        s3.delete_object(**bucket.client.at(key))
        assert archived.run("hold", "list").out == listed
    s3.delete_object(**bucket.client.at(segment, version))
    gone = archived.run("hold", "list")
    told = "no call is held, as far as the acts can be read\n"
    assert (gone.code, gone.out, segment in gone.complaint) == (1, told, True)
    assert json.loads(archived.run("hold", "list", "--json").out)["damaged"]
    refused = archived.run("hold", "remove", "vc_1", *WHO)
    assert (refused.code, refused.out, segment in refused.complaint) == (4, "", True)
    done = archived.run("hold", "add", "vc_2", *WHO)
    assert (done.code, done.out) == (0, "vc_2: held, 3 objects; seal 3\n")
    assert segment in done.complaint
    assert all(states(bucket, "vc_1") + states(bucket, "vc_2"))


def test_an_act_is_locked_no_less_than_the_archive(
    command: Command, bucket: Bucket, archive: Callable[[], Archive]
) -> None:
    locked = {"ARCHIVER_OBJECT_LOCK_MODE": "COMPLIANCE", "ARCHIVER_RETENTION_DAYS": "30"}
    command.run("backfill", *HOUR, **locked)
    weaker = {**locked, "ARCHIVER_OBJECT_LOCK_MODE": "GOVERNANCE"}
    refused = command.run("hold", "add", "vc_1", *WHO, **weaker)
    assert (refused.code, "ARCHIVER_OBJECT_LOCK_MODE" in refused.complaint) == (2, True)
    assert not any(states(bucket, "vc_1"))
    shorter = {**locked, "ARCHIVER_RETENTION_DAYS": "2"}
    command.run("hold", "add", "vc_1", *WHO, **shorter).expect()
    least = bucket.head(layout.seal_key(1))
    assert least is not None
    new = [one.key for one in bucket.list("manifest/events/")]
    new += [layout.seal_key(2), layout.signature_key(2)]
    heads = [bucket.head(key) for key in new]
    assert len(heads) == 5
    for head in heads:
        assert head is not None
        assert head.lock_mode == "COMPLIANCE"
        assert (head.lock_until or TEN) >= (least.lock_until or TEN + timedelta(days=99))
