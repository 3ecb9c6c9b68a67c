"""Done when 4: `/healthz` of the real process while it works slowly, and while its source is out.

The limit is short and so are the times, unless the environment says otherwise: `LIVENESS_CALLS`
(20,000 is what was asked for) and `LIVENESS_OUTAGE` (3600), in seconds.
"""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive
from tests.system.many_calls import START, ManyCalls
from tests.system.servers import Source, free_port
from tests.system.tcp_proxy import TcpProxy

CALLS = int(os.environ.get("LIVENESS_CALLS", "500"))
OUTAGE_SECONDS = int(os.environ.get("LIVENESS_OUTAGE", "15"))
LIMIT_SECONDS = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + CALLS // 10 + 2 * OUTAGE_SECONDS)]


@contextmanager
def probed(port: int) -> Iterator[list[int]]:
    """The answers of `/healthz`, asked for again and again from its first one on."""
    answers: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.2):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as told:
                    answers.append(told.status)
            except urllib.error.HTTPError as error:
                answers.append(error.code)
            except OSError:
                if answers:
                    answers.append(0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()


def having(archiver: Archiver, port: int, **settings: str) -> Archiver:
    return archiver.having(
        METRICS_PORT=str(port),
        LIVENESS_TIMEOUT=f"{LIMIT_SECONDS}s",
        POLL_INTERVAL="1s",
        **settings,
    )


def test_a_long_listing_under_a_low_rate(make_archive: MakeArchive, tmp_path: Path) -> None:
    port = free_port()
    with ManyCalls(tmp_path, CALLS) as source:
        archiver, _ = make_archive(source.settings())
        slow = having(archiver, port, API_RATE="1", START=START.isoformat())
        running = slow.start("run")
        with probed(port) as answers:
            running.wait_for(1, "call.archived", timeout=120 + CALLS / 20)
            seconds = len(answers) / 5
        running.send(signal.SIGTERM)
        running.wait().expect(0)
    assert seconds > CALLS / 100, "the listing was no long one"
    assert set(answers) == {200}


@pytest.mark.parametrize("how", ["silent", "refused"])
def test_a_source_that_is_out(make_archive: MakeArchive, tmp_path: Path, how: str) -> None:
    port, now = free_port(), datetime.now(UTC)
    times = ("--from", (now - timedelta(hours=3)).isoformat(), "--to", now.isoformat())
    with Source(tmp_path, "--calls", "6", "--short", *times) as source, TcpProxy() as proxy:
        settings = source.settings()
        scheme, _, rest = settings["API_BASE_URL"].partition("://")
        proxy.upstream, _, path = rest.partition("/")
        settings["API_BASE_URL"] = f"{scheme}://{proxy.address}/{path}"
        archiver, bucket = make_archive(settings)
        running = having(archiver, port, START=(now - timedelta(hours=4)).isoformat()).start("run")
        running.wait_for(1, "round.done")
        with probed(port) as answers:
            proxy.flows.clear()
            if how == "refused":
                proxy.__exit__()
            threading.Event().wait(OUTAGE_SECONDS)
            proxy.flows.set()
        running.send(signal.SIGTERM)
        running.wait().expect(0)
        check_archived(bucket)
    assert len(answers) > 5 * OUTAGE_SECONDS / 2
    assert set(answers) == {200}


def check_archived(bucket: Bucket) -> None:
    """It had been at work before the source went."""
    assert bucket.keys("records/")
