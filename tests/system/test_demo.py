"""The demo archives its calls and verifies every byte: into a store of its own, or a given one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.servers import Weed


@pytest.mark.slow
def test_the_demo_ends_well(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    result = Archiver({}).run("demo", "--calls", "48", "--dir", str(directory), timeout=90)
    result.expect(0)
    assert result.seconds < 90
    assert "Traceback" not in result.stderr
    counts = [int(number) for number in re.findall(r"(\d+) archived", result.stdout)]
    assert counts, result.stdout
    assert max(counts) >= 40
    assert any(directory.iterdir()), "the archive stays on disk"


def test_the_demo_takes_a_given_bucket(tmp_path: Path, weed: Weed) -> None:
    bucket = Bucket.make(weed.client, "for-the-demo")
    store = {"S3_ENDPOINT_URL": weed.endpoint_url, "S3_PREFIX": "demo", "S3_BUCKET": "not-this-one"}
    archiver = Archiver(store, weed.environment)
    arguments = ("demo", "--calls", "3", "--dir", str(tmp_path / "demo"), "--bucket", bucket.name)
    result = archiver.run(*arguments).expect(0)
    assert "3 calls archived" in result.stdout
    assert "Object Lock" not in result.stdout
    wavs = [key for key in bucket.keys("demo/recordings/") if key.endswith(".wav")]
    assert len(wavs) == 3
    assert weed.environment["AWS_SECRET_ACCESS_KEY"] not in (tmp_path / "demo/demo.env").read_text()
