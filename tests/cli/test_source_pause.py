"""A pause that the source asks for, as those see it who run the commands."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request
from typing import Any

import pytest

from tests.fakes.command import Command
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import Platform


def throttle(platform: Platform, seconds: int, times: int = 10**9) -> None:
    left = iter(range(times))

    def hook(request: Request) -> Reply | None:
        is_refused = request.server == "api" and next(left, None) is not None
        return Reply(429, {"Retry-After": str(seconds)}) if is_refused else None

    platform.hooks.append(hook)


def events(text: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def read(port: int, path: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < deadline, f"{path} is not answered"
            time.sleep(0.05)


@pytest.mark.parametrize("name", ["backfill", "run"])
def test_a_pause_beyond_the_limit_is_exit_3(
    platform: Platform, command: Command, hour: list[str], name: str
) -> None:
    throttle(platform, 9000)
    arguments = [*hour] if name == "backfill" else ["--once"]
    done = command.run(name, *arguments, ARCHIVER_GIVE_UP="2h").expect(3)
    assert "the source asks for a pause of 900" in done.complaint
    assert "come back then" in done.complaint


def test_a_loop_in_a_pause_is_alive_and_ends_at_once(platform: Platform, command: Command) -> None:
    """A pause of 5 hours, under a limit of a day."""
    throttle(platform, 18_000)
    port = free_port()
    running = command.begin("run", ARCHIVER_METRICS_PORT=str(port), ARCHIVER_LIVENESS_TIMEOUT="10s")
    metric = "archiver_source_pause_seconds "
    deadline = time.monotonic() + 60
    while True:
        [line] = [one for one in read(port, "/metrics").splitlines() if one.startswith(metric)]
        if float(line.removeprefix(metric)) > 17_000:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(11)
    assert read(port, "/healthz") == "ok\n"
    assert not running.ended
    running.send(signal.SIGTERM)
    began = time.monotonic()
    done = running.wait().expect(0)
    assert time.monotonic() - began < 15, "not the 20 s after which requests are aborted"
    assert [line["seconds"] for line in events(done.err, "source.paused")] == [18_000]
    assert events(done.err, "source.resumed") == []


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_pause_shows_on_a_backfill_s_progress_line(
    platform: Platform, command: Command, processes: str
) -> None:
    platform.hooks.append(refuse_listings())
    span = ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T12:00:00Z"]
    done = command.run("backfill", *span, "--processes", processes).expect()
    assert "3 archived" in done.out
    paused = [
        line for line in events(done.err, "backfill.progress") if "source_pause_seconds" in line
    ]
    assert paused
    assert len(events(done.err, "source.paused")) >= 1


def refuse_listings() -> Any:
    """From the first listing of a window on, for a second, everything is refused."""
    since: list[float] = []

    def hook(request: Request) -> Reply | None:
        if "dateFrom" in request.query:
            since.append(time.monotonic())
        if not since or time.monotonic() - since[0] > 1:
            return None
        return Reply(429, {"Retry-After": "1"}) if request.server == "api" else None

    return hook
