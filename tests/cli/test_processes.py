"""`backfill --processes`: what several processes do together, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from archiver.cli.backfill import share_environment
from archiver.settings import Settings
from tests.fakes.command import Done
from tests.fakes.http_server import Request
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call, voice
from tests.fakes.rig import Archive

Look = Callable[[], Archive]
SPAN = ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T14:00:00Z"]
WINDOWS, CALLS = 4, 40


@pytest.fixture
def slow(platform: Platform) -> Platform:
    """Forty more calls in four windows, and recordings that take their time."""
    for number in range(CALLS):
        platform.add(a_call(f"c{number}", TEN + timedelta(hours=number % WINDOWS)))

    def wait(request: Request) -> None:
        if request.server == "blob":
            time.sleep(0.2)

    platform.hooks.append(wait)
    return platform


def children(process: subprocess.Popen[str]) -> list[int]:
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in file.read_text().split()]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for never came"
        time.sleep(0.02)


def at_work(platform: Platform, count: int = 4) -> Callable[[], bool]:
    return lambda: len(platform.served("blob", status=200)) >= count


def finish(process: subprocess.Popen[str]) -> Done:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Done(process.returncode, out, err)


def test_together_they_do_what_one_does(command, slow, archive, key):
    process = command.start("backfill", *SPAN, "--processes", "8", ARCHIVER_METRICS_PORT="1")
    wait_for(at_work(slow))
    assert len(children(process)) == WINDOWS, "no more than there are windows"
    for pid in children(process):
        shown = Path(f"/proc/{pid}/cmdline").read_text()
        assert slow.token not in shown
    done = finish(process)
    assert done.code == 0, done.err
    assert done.out.startswith("4 windows, 4 closed: 43 archived, 0 no recording, 0 failed, 0 pend")
    assert len(done.out.splitlines()) == 1
    events = [json.loads(line) for line in done.err.splitlines()]
    progress = [e["windows"] for e in events if e["event"] == "backfill.progress"]
    assert progress[-1] == "4/4"
    assert progress.count("4/4") == 1  # a slow machine has lines in between, one in half a minute
    assert "metrics.unavailable" not in done.err, "they do not fight for the port"
    look = archive()
    look.check(key)
    assert len(look.seals) > 1, "begun, and sealed"
    assert len(look.segments) == WINDOWS
    assert len(look.records) == CALLS + 3
    for call, record in look.records.items():
        [audio] = (one for one in record["files"] if one["key"].endswith("recording.wav"))
        assert look.read(audio["key"]) == voice(call)
    slow.hooks.clear()
    alone = command.run("backfill", *SPAN)
    assert alone.out.startswith("4 windows, 4 closed: 0 archived")
    assert archive().keys == look.keys, "one process finds nothing left to do"


def test_a_share_of_a_share(command, platform, archive):
    """As a pod of an Indexed Job: its own windows only, by two processes."""
    platform.add(*[a_call(f"h{n}", TEN + timedelta(hours=n)) for n in range(4)])
    done = command.run("backfill", *SPAN, "--shard", "0/2", "--processes", "2").expect()
    assert done.out.startswith("2 windows, 2 closed")
    assert [key[-13:-9] for key in sorted(archive().segments)] == ["1000", "1200"]


def test_one_that_is_killed_leaves_the_others_going(command, slow, archive, key):
    process = command.start("backfill", *SPAN, "--processes", "2")
    wait_for(at_work(slow))
    os.kill(children(process)[0], signal.SIGKILL)
    done = finish(process)
    assert done.code == 130, done.err
    assert "SIGKILL" in done.complaint
    assert "run it again (1 of 2 processes ended early)" in done.complaint
    assert done.out == ""
    look = archive()
    assert len(look.segments) == WINDOWS / 2
    assert len(look.records) < CALLS + 3
    slow.hooks.clear()
    command.run("backfill", *SPAN).expect()
    look = archive()
    look.check(key)
    assert len(look.records) == len(look.below("records/")) == CALLS + 3


def test_a_signal_ends_all_of_them(command, slow, archive):
    process = command.start("backfill", *SPAN, "--processes", "2")
    wait_for(at_work(slow))
    shares = children(process)
    process.terminate()
    done = finish(process)
    assert done.code == 130, done.err
    assert done.complaint == "archiver: interrupted"
    assert len(shares) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in shares)
    assert len(archive().segments) < WINDOWS


def test_none_outlives_the_parent(command, slow):
    process = command.start("backfill", *SPAN, "--processes", "2")
    wait_for(at_work(slow))
    shares = children(process)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(is_running(pid) for pid in shares), seconds=20)


def is_running(pid: int) -> bool:
    """A zombie whom the container's first process does not reap is not."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_what_several_complain_of_is_told_once_and_the_worst_counts(command, slow):
    process = command.start("backfill", *SPAN, "--processes", "3")
    wait_for(at_work(slow))
    os.kill(children(process)[0], signal.SIGKILL)
    slow.options.tokens.pop(slow.token)
    done = finish(process)
    assert done.code == 3, done.err
    assert "ARCHIVER_API_TOKEN" in done.complaint
    assert "(3 of 3 processes ended early)" in done.complaint
    events = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    failed = [one["exit_code"] for one in events if one["event"] == "share.failed"]
    assert sorted(failed) == [3, 3, 130]


@pytest.mark.parametrize(
    "options",
    [["--processes", "0"], ["--processes", "two"], ["--processes", "2", "--single-writer"]],
)
def test_what_cannot_be(command, archive, options):
    done = command.run("backfill", *SPAN, *options).expect(2)
    assert "--processes" in done.complaint
    assert archive().keys == []


def test_the_limit_of_requests_holds_for_all_together(command, monkeypatch):
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    assert "ARCHIVER_API_RATE" not in share_environment(Settings(), 4)
    monkeypatch.setenv("ARCHIVER_API_RATE", "10")
    assert share_environment(Settings(), 4)["ARCHIVER_API_RATE"] == "2.5"
