"""Bad input: one line that names the setting or the scope, the right exit code, nothing written."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes.command import Command
from tests.fakes.http_server import Reply
from tests.fakes.platform import READ, Platform
from tests.fakes.proxy import FaultProxy
from tests.fakes.rig import Archive

Look = Callable[[], Archive]
DAY = ["--from", "2024-01-15", "--to", "2024-01-16"]
VERBS = [
    ["init"],
    ["run", "--once"],
    ["backfill", *DAY],
    ["backfill", *DAY, "--dry-run"],
    ["check"],
]


@pytest.fixture(autouse=True)
def _nothing_written(archive: Look) -> Iterator[None]:
    yield
    assert archive().keys == []


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0] + str(len(verb)))
def test_no_settings(command: Command, verb: list[str]) -> None:
    bare = Command(command.directory)
    done = bare.fresh(*verb).expect(2)
    for name in ("API_BASE_URL", "RECORDING_HOSTS", "S3_BUCKET", "SIGNING_KEY_FILE"):
        assert f"ARCHIVER_{name}" in done.complaint
    assert done.out == ""


@pytest.mark.parametrize("verb", VERBS[1:4], ids=lambda verb: verb[0] + str(len(verb)))
@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"ARCHIVER_API_TOKEN": "wrong"}, 3, "ARCHIVER_API_TOKEN"),
        ({"ARCHIVER_S3_BUCKET": "nowhere"}, 4, "ARCHIVER_S3_BUCKET"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, 4, "AWS_SECRET_ACCESS_KEY"),
        ({"ARCHIVER_SIGNING_KEY_FILE": "/nowhere.pem"}, 2, "ARCHIVER_SIGNING_KEY_FILE"),
    ],
    ids=["token", "bucket", "credentials", "key file"],
)
def test_wrong_settings(
    command: Command, verb: list[str], changes: dict[str, str], code: int, told: str
) -> None:
    done = command.run(*verb, **changes).expect(code)
    assert told in done.complaint
    assert done.out == ""


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": None, "AWS_ACCESS_KEY_ID": None}, 4, "AWS_ACCESS_KEY_ID"),
        ({"ARCHIVER_S3_BUCKET": "plain", "ARCHIVER_OBJECT_LOCK_MODE": "COMPLIANCE",
          "ARCHIVER_RETENTION_DAYS": "1"}, 4, "ARCHIVER_OBJECT_LOCK_MODE"),
        ({"ARCHIVER_WINDOW": "7h"}, 2, "ARCHIVER_WINDOW"),
        ({"ARCHIVER_LOG_LEVEL": "loud"}, 2, "ARCHIVER_LOG_LEVEL"),
        ({"ARCHIVER_API_TOKEN": "two\nlines"}, 2, "ARCHIVER_API_TOKEN"),
        ({"ARCHIVER_API_TOKEN": None, "ARCHIVER_API_TOKEN_FILE": "/nowhere/token"}, 2,
         "ARCHIVER_API_TOKEN_FILE"),
        ({"ARCHIVER_START": "2999-01-01"}, 2, "ARCHIVER_START"),
    ],
)  # fmt: skip
def test_more_wrong_settings(
    command: Command, hour: list[str], changes: dict[str, str | None], code: int, told: str
) -> None:
    done = command.run("backfill", *hour, **changes)
    assert (done.code, told in done.complaint) == (code, True), done.err


def test_an_address_that_nobody_answers_at_is_named(command: Command, hour: list[str]) -> None:
    """It is tried again for some seconds: by all at once."""
    addresses = {
        "ARCHIVER_S3_ENDPOINT_URL": ("http://127.0.0.1:1", 4),
        "ARCHIVER_API_BASE_URL": ("http://127.0.0.1:1/api/v1", 3),
    }
    begun = [
        (command.begin(verb, *hour, **{name: address}), code, name)
        for verb in ("backfill", "reconcile")
        for name, (address, code) in addresses.items()
    ]
    for running, code, name in begun:
        done = running.wait()
        assert (done.code, name in done.complaint, done.out) == (code, True, ""), done.err


def test_a_token_without_the_audio_scope(
    command: Command, platform: Platform, hour: list[str]
) -> None:
    token = platform.token_for(READ)
    done = command.run("backfill", *hour, ARCHIVER_API_TOKEN=token).expect(3)
    assert "audio:download" in done.complaint
    assert token not in done.err


def test_a_bucket_without_permission(command: Command, weed: Any, hour: list[str]) -> None:
    """An identity of this server's that may do nothing cannot be had at run time: the answer of
    one that lacks the permission is given in its place."""
    with FaultProxy(weed.endpoint_url) as proxy, proxy.harming("denied", "", 99):
        done = command.run("backfill", *hour, ARCHIVER_S3_ENDPOINT_URL=proxy.url).expect(4)
    assert "s3:ListBucket" in done.complaint


def test_a_source_that_answers_html(command: Command, platform: Platform, hour: list[str]) -> None:
    page = Reply(200, {"Content-Type": "text/html"}, b"<!doctype html><h1>Sign in</h1>")
    platform.hooks.append(lambda _: page)
    done = command.run("backfill", *hour).expect(3)
    assert "ARCHIVER_API_BASE_URL" in done.complaint
    assert "Sign in" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["backfill", "--from", "2024-01-16", "--to", "2024-01-15"],
        ["backfill", "--from", "2024-01-15", "--to", "2024-01-15"],
        ["backfill", "--from", "2124-01-15", "--to", "2124-01-16"],
        ["backfill", "--from", "yesterday", "--to", "2024-01-15"],
        ["backfill", "--from", "2024-01-15"],
        ["backfill"],
        ["backfill", *DAY, "--shard", "4/4"],
        ["backfill", *DAY, "--shard", "²/4"],
        ["backfill", *DAY, "--shard", "0/" + "9" * 5000],
        ["backfill", *DAY, "--shards", "1"],
        ["reconcile"],
        ["reconcile", "--from", "2024-01-15", "--to", "2024-01-15"],
        ["reconcile", "--from", "2999-01-15", "--to", "2999-01-16"],
        ["reconcile", *DAY, "--format", "json"],
    ],
)
def test_a_bad_range_or_option(command: Command, platform: Platform, arguments: list[str]) -> None:
    done = command.run(*arguments).expect(2)
    assert done.complaint
    assert done.out == ""
    assert platform.served() == []


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["run", "--twice"], ["keygen"]])
def test_a_bad_command_line(command: Command, arguments: list[str]) -> None:
    done = command.run(*arguments).expect(2)
    assert "--help" in done.complaint


@pytest.mark.parametrize(
    ("index", "count", "code"),
    [("4", "4", 2), ("x", "4", 2), ("0", "0", 2), ("3", None, 2), ("", "4", 0)],
)
def test_a_bad_shard_of_the_environment(
    command: Command, hour: list[str], index: str, count: str | None, code: int
) -> None:
    done = command.run(
        "backfill", *hour, "--dry-run", JOB_COMPLETION_INDEX=index, ARCHIVER_SHARDS=count
    ).expect(code)
    assert code == 0 or done.complaint


def test_run_needs_its_metrics_port(command: Command) -> None:
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command.run("run", "--once", ARCHIVER_METRICS_PORT=port)
    assert done.code == 2
    assert "ARCHIVER_METRICS_PORT" in done.complaint
