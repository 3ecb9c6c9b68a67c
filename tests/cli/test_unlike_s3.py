"""Stores that differ from S3: what the command says of each, and that one writer can use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes import unlike_s3
from tests.fakes.audio import wav
from tests.fakes.command import Command
from tests.fakes.platform import Platform
from tests.fakes.population import a_call
from tests.fakes.rig import Archive
from tests.fakes.unlike_s3 import Habits, Refusal, UnlikeS3
from tests.system.servers import DOMAIN

Look = Callable[[], Archive]
LARGE = wav(400)
"""Over 5 MiB: it goes up in parts."""


def refusal(query: str, status: int) -> Refusal:
    """The answer to a question about the bucket's settings."""
    return Refusal(rf"^GET [^ ]*[?&]{query}", status, "Whatever")


LOCKING = {"ARCHIVER_OBJECT_LOCK_MODE": "GOVERNANCE", "ARCHIVER_RETENTION_DAYS": "1"}


@pytest.fixture
def behind(command: Command, weed: Any) -> Iterator[Callable[[Habits], tuple[Command, UnlikeS3]]]:
    """The command, with a store of such habits between it and the real one."""
    opened = []

    def make(habits: Habits, bucket: str = "plain") -> tuple[Command, UnlikeS3]:
        store = UnlikeS3(weed.endpoint_url, habits, weed.environment)
        store.__enter__()
        opened.append(store)
        command.environment |= {
            "ARCHIVER_S3_ENDPOINT_URL": store.url, "ARCHIVER_S3_BUCKET": bucket
        }  # fmt: skip
        return command, store

    yield make
    for store in opened:
        store.__exit__()


@pytest.fixture
def platform() -> Iterator[Platform]:
    """A small call and a large one."""
    with Platform([a_call("vc_1", epa={"a": 1}), a_call("vc_2", audio=LARGE)]) as served:
        yield served
        assert served.violations == []


def checked(command: Command, code: int, **changes: str) -> dict[str, dict[str, Any]]:
    lines = json.loads(command.run("check", "--json", **changes).expect(code).out)
    return {line["name"]: line for line in lines}


def archives(command: Command, hour: list[str], *options: str, **changes: str) -> None:
    """Twice, and all is there and nothing else."""
    for _ in range(2):
        command.run("backfill", *hour, *options, **changes).expect()
    counts = json.loads(command.run("verify", "--level", "bytes", "--json").expect().out)["counts"]
    assert (counts["calls"]["archived"], counts["files"]) == (2, 5)


@pytest.mark.parametrize("habits", [unlike_s3.B2, unlike_s3.GCS], ids=["b2", "gcs"])
def test_a_store_without_conditional_writes_needs_one_writer(behind, hour, habits):
    command, _ = behind(habits)
    refused = "If-None-Match" if habits is unlike_s3.B2 else "overwrites"
    line = command.run("init").expect(4).complaint
    assert refused in line
    assert "--single-writer" in line
    assert "other bytes" not in line
    line = checked(command, 4)["create-once"]
    assert (line["verdict"], line["exit_code"]) == ("fail", 4)
    archives(command, hour, "--single-writer")


def test_a_condition_that_is_refused_is_not_sent_again(behind, hour):
    """A run that finds the archive begun knows it from seal 0."""
    command, store = behind(unlike_s3.B2)
    command.run("init", "--single-writer").expect()
    store.seen.clear()
    archives(command, hour, "--single-writer")
    assert [line for line in store.seen if "if-none-match" in line] == []


def test_an_upload_whose_end_takes_no_condition(behind, hour):
    """Only the probe sends it one; several writers may share such a store."""
    command, store = behind(unlike_s3.MINIO)
    command.run("init").expect()
    store.seen.clear()
    archives(command, hour)
    ends = [line for line in store.seen if line.startswith("POST") and "uploadId" in line]
    assert ends
    assert not any("if-none-match" in line for line in ends)
    assert any("if-none-match" in line for line in store.seen if line.startswith("PUT"))
    assert checked(command, 0)["multipart"]["verdict"] == "note"


def test_a_store_that_knows_neither_locks_nor_versions(behind, hour):
    command, _ = behind(Habits((refusal("object-lock", 400), refusal("versioning", 405))))
    lines = checked(command, 0)
    assert lines["object lock"]["detail"] == "the bucket lacks it"
    assert lines["versioning"]["detail"] == "off"
    archives(command, hour)


def test_with_a_lock_mode_such_a_store_is_refused(behind):
    command, store = behind(Habits((refusal("object-lock", 501),)))
    line = command.run("init", **LOCKING).expect(4).complaint
    assert "has no Object Lock" in line
    assert "ARCHIVER_OBJECT_LOCK_MODE" in line
    assert not any(line.startswith(("PUT", "POST")) for line in store.seen)


def test_lock_calls_carry_content_md5(behind, hour):
    command, store = behind(unlike_s3.MINIO, "locked")
    lines = checked(command, 0, **LOCKING)
    assert lines["object lock"]["verdict"] == "ok"
    assert lines["legal hold"]["detail"] == "can be set and taken off"
    archives(command, hour, **LOCKING)
    command.run("hold", "add", "vc_1", "--by", "x", "--reason", "y", **LOCKING).expect()
    calls = [line for line in store.seen if "retention" in line or "legal-hold" in line]
    assert any(line.startswith("PUT") for line in calls)


def test_a_head_without_a_length(behind, hour):
    command, store = behind(Habits(tells_length=False))
    archives(command, hour)
    assert any(line.startswith("HEAD") for line in store.seen)


@pytest.mark.parametrize("by", ["setting", "configuration"])
def test_a_store_that_wants_the_bucket_in_the_host_s_name(behind, hour, tmp_path, by):
    command, store = behind(unlike_s3.OSS)
    for name in ("HTTP_PROXY", "http_proxy"):
        command.environment[name] = store.url
    for name in ("NO_PROXY", "no_proxy"):
        command.environment[name] = "127.0.0.1"
    command.environment["ARCHIVER_S3_ENDPOINT_URL"] = f"http://{DOMAIN}"
    assert "SecondLevelDomainForbidden" in command.run("init").expect(4).complaint
    if by == "setting":
        command.environment["ARCHIVER_S3_ADDRESSING_STYLE"] = "virtual"
    else:
        config = tmp_path / "config"
        config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
        command.environment["AWS_CONFIG_FILE"] = str(config)
    archives(command, hour, "--single-writer")
