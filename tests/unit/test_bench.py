"""The parts of the speed comparison that would rot unseen: the null store, and the goals."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.core import checksums
from archiver.core.clock import SystemClock
from archiver.core.errors import KeyTaken
from archiver.core.retry import Retry
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from archiver.store.probe import RACERS, probe
from bench.arena import Run
from bench.report import Results, goals
from bench.servers import ROOT, Sink

AUDIO = b"RIFF" + bytes(200_000)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    if not shutil.which("gcc") or not Path("/usr/include/openssl/ssl.h").exists():
        pytest.skip("needs gcc and OpenSSL's headers")
    subprocess.run([ROOT / "bench" / "build.sh"], check=True)
    with Sink(tmp_path_factory.mktemp("sink"), None) as server:
        yield server


@pytest.fixture
def bucket(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    key, secret = sink.secrets
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    options = StoreOptions(sink.bucket, endpoint_url=sink.url, region="us-east-1", connections=40)
    clock = SystemClock()
    return Bucket(options, clock, Retry(clock))


def test_the_sink_proves_all_that_an_archive_without_locks_can_have(bucket):
    found = probe(bucket)

    assert found.checksums
    assert found.create_once
    assert (found.create_once_racers, found.create_once_race_winners) == (RACERS, 1)
    assert found.complete_create_once
    assert found.object_lock is False


def test_the_sink_counts_what_came_and_keeps_all_but_recordings(sink, bucket):
    before = sink.stats()
    stored = bucket.put_once("a/recording.wav", AUDIO, content_type="audio/wav")
    bucket.put_once("a/record.json", b"{}\n")

    after = sink.stats()
    assert after["objects"] - before["objects"] == 2
    assert after["bytes"] - before["bytes"] == len(AUDIO) + 3
    head = bucket.head("a/recording.wav")
    assert head is not None
    assert (head.size, head.sha256) == (len(AUDIO), stored.sha256)
    assert bucket.read("a/record.json") == b"{}\n"
    upload = bucket.begin("b/recording.wav", content_type="audio/wav", retain_until=None)
    upload.part(AUDIO)
    upload.part(b"the rest")
    upload.complete(checksums.sha256_hex(AUDIO + b"the rest"))
    keys = ["a/record.json", "a/recording.wav", "b/recording.wav"]
    assert [one.key for one in bucket.list("") if one.key in keys] == keys
    with pytest.raises(KeyTaken):
        bucket.put_once("a/record.json", b"[]\n")


def test_goals_say_which_side_of_them_was_reached():
    def run(cpu_s: float, wall_s: float) -> Run:
        return Run(wall_s, cpu_s, 0.0, 10**8, calls=200, bytes=10**9, store_requests=0)

    runs = {
        ("tls-5m", "archiver"): [run(2.0, 2.0), run(99.0, 99.0), run(1.0, 1.0)],
        ("tls-5m", "rclone"): [run(2.5, 1.8)],
    }
    cpu, speed, memory, _ = goals(Results({}, runs))

    assert cpu.reached == pytest.approx(0.8)
    assert cpu.holds
    assert speed.reached == pytest.approx(0.9)
    assert not speed.holds
    assert memory.reached == pytest.approx(100)
