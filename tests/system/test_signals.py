"""A command that is stuck in a silent socket ends by itself, however often it is asked to."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command import Archiver
from tests.system.servers import REGION, Source

SECONDS = 5
"""What the 25 s of the last resort are shortened to."""
SLACK_SECONDS = 10
"""For a busy machine; the silent request itself would take a minute, and be tried again."""


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A store that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener


def stuck_at(silent: socket.socket, key: Path, **source: str) -> Archiver:
    settings = {
        "S3_BUCKET": "calls",
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        "S3_REGION": REGION,
        "SIGNING_KEY_FILE": str(key),
        "METRICS_PORT": "0",
        **source,
    }
    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    return Archiver(settings, {**credentials, "_ARCHIVER_ABORT_SECONDS": str(SECONDS)})


@pytest.mark.parametrize(
    ("verb", "number", "code"),
    [
        (("run",), signal.SIGTERM, 0),
        (("hold", "list"), signal.SIGTERM, 130),
        (("hold", "list"), signal.SIGINT, 130),
    ],
)
def test_a_signal_each_second_does_not_put_the_end_off(
    silent: socket.socket,
    signing_key: Path,
    tmp_path: Path,
    verb: tuple[str, ...],
    number: signal.Signals,
    code: int,
) -> None:
    with Source(tmp_path, "--calls", "1", "--short") as source:
        running = stuck_at(silent, signing_key, **source.settings()).start(*verb)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            began = time.monotonic()
            running.send(number)
            while not running.ended and time.monotonic() < began + SECONDS + SLACK_SECONDS:
                time.sleep(1)
                running.send(signal.SIGTERM)
            took = time.monotonic() - began
        running.wait(5).expect(code)
    assert SECONDS - 1 < took < SECONDS + SLACK_SECONDS
