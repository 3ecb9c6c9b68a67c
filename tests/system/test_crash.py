"""What a crash leaves is completed by the next run; a request to end is heard."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system import audit, checker
from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive
from tests.system.servers import Source, Weed
from tests.system.tcp_proxy import TcpProxy

START, END = datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC)
DATES = ("--from", "2024-03-01", "--to", "2024-03-02")
CALLS = 60


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """With recordings of full length: some take several parts."""
    directory = tmp_path_factory.mktemp("crash")
    with Source(directory, "--calls", str(CALLS), *DATES) as running:
        yield running


def complete(source: Source, archiver: Archiver, bucket: Bucket, copy: Path) -> None:
    """The archive is what it would be without any fault."""
    expected = source.expected(START, END, leftovers=True)
    checker.check(bucket.download(copy), expected)
    bucket.assert_written_once()
    audit.assert_clean(archiver)


def test_killed_again_and_again(source: Source, make_archive: MakeArchive, tmp_path: Path) -> None:
    """Invariant 4: SIGKILL at many moments, among them right after seals and records."""
    archiver, bucket = make_archive(source.settings(), versioned=True)
    archiver = archiver.having(WORKERS="4")
    moments = [
        (1, "call.archived"),
        (1, "seal.appended"),
        (7, "call.archived"),
        (2, "seal.appended"),
        (3, "seal.appended"),
        (11, "call.archived"),
    ]
    killed = 0
    for count, event in moments:
        running = archiver.start("backfill", *DATES)
        running.wait_for(count, event)
        running.send(signal.SIGKILL)
        killed += running.wait().code == -signal.SIGKILL
    assert killed >= 4, "it was done before most of the crashes"
    archiver.run("backfill", *DATES).expect(0)
    complete(source, archiver, bucket, tmp_path / "copy")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_the_midst_of_an_upload(
    number: signal.Signals, make_archive: MakeArchive, tmp_path: Path
) -> None:
    """A backfill ends at once, with 130 and one line; its uploads are aborted, and all is made
    good by the next one."""
    huge = ("--calls", "4", "--short", "--huge", "3", "--huge-bytes", "60000000")
    with Source(tmp_path, *huge, *DATES) as source:
        archiver, bucket = make_archive(source.settings(), versioned=True)
        running = archiver.start("backfill", *DATES)
        running.wait_until(lambda: bool(bucket.open_uploads()))
        running.send(number)
        result = running.wait(30).expect(130)
        assert result.complaints == ["archiver: interrupted"]
        assert bucket.open_uploads() == []
        archiver.run("backfill", *DATES).expect(0)
        complete(source, archiver, bucket, tmp_path / "copy")


def test_run_ends_on_sigterm(make_archive: MakeArchive, tmp_path: Path) -> None:
    """SPEC section 4: stop claiming, finish or abort what is in flight, exit 0; within 30 s."""
    now = datetime.now(UTC)
    start = (now - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    dates = ("--from", f"{start:%Y-%m-%dT%H:%M:%S}", "--to", f"{now:%Y-%m-%dT%H:%M:%S}")
    with Source(tmp_path, "--calls", "60", *dates) as source:
        archiver, bucket = make_archive(source.settings(), versioned=True)
        archiver = archiver.having(START=f"{start:%Y-%m-%d}", POLL_INTERVAL="1s")
        busy = archiver.start("run")
        busy.wait_for(5, "call.archived")
        busy.send(signal.SIGTERM)
        result = busy.wait(30).expect(0)
        assert not result.events("round.done"), "it was done before it was told to end"
        assert not result.complaints
        assert bucket.open_uploads() == []

        idle = archiver.start("run")
        idle.wait_for(2, "round.done")
        idle.send(signal.SIGTERM)
        idle.wait(15).expect(0)
        archived = {one for one in source.truth if source.truth[one]["recording"]}
        completed = {
            one for one in source.truth if source.truth[one]["document"]["state"] == "Completed"
        }
        records = {key.split("/")[2] for key in bucket.keys("records/")}
        assert archived & completed <= records
        audit.assert_clean(archiver)


def test_a_store_that_falls_silent_does_not_keep_it(
    make_archive: MakeArchive, weed: Weed, tmp_path: Path
) -> None:
    """A socket may be silent for longer than a pod has to end."""
    with Source(tmp_path, "--calls", "40", *DATES) as source, TcpProxy() as proxy:
        archiver, bucket = make_archive(source.settings(), versioned=True)
        proxy.upstream = urlsplit(weed.endpoint_url).netloc
        through = archiver.having(S3_ENDPOINT_URL=f"http://{proxy.address}")
        running = through.start("backfill", *DATES)
        running.wait_for(3, "call.archived")
        proxy.flows.clear()
        began = time.monotonic()
        running.send(signal.SIGTERM)
        result = running.wait(40).expect(130)
        proxy.flows.set()
        assert time.monotonic() - began < 30
        assert len(result.complaints) == 1
        archiver.run("backfill", *DATES).expect(0)
        complete(source, archiver, bucket, tmp_path / "copy")


def test_nothing_is_left_in_the_file_system(
    source: Source, make_archive: MakeArchive, tmp_path: Path
) -> None:
    """State lives in the bucket only: a read-only root, nowhere to write, is enough."""
    archiver, _ = make_archive(source.settings())
    running = archiver.within(TMPDIR="/nonexistent").start("backfill", *DATES)
    running.wait_for(20, "call.archived")
    files = [
        str(entry.readlink())
        for entry in Path(f"/proc/{running.pid}/fd").iterdir()
        if entry.is_symlink()
    ]
    running.wait().expect(0)
    assert [name for name in files if name.startswith("/") and not name.startswith("/dev")] == []
