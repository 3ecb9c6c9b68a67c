"""The command, a source and a place in the real store for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.manifest.signing import SigningKey
from archiver.store.bucket import Bucket
from tests.fakes.command import Command, command_for
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call


@pytest.fixture
def platform() -> Iterator[Platform]:
    """Three calls on a day long ago."""
    with Platform([a_call("vc_1", epa={"a": 1}), a_call("vc_2"), a_call("vc_3")]) as served:
        yield served
        assert served.violations == []


@pytest.fixture
def command(platform: Platform, weed: Any, prefix: str, tmp_path: Path, key: SigningKey) -> Command:
    """`python -m archiver` with settings that are complete and right."""
    return command_for(
        platform, key, tmp_path, weed.environment,
        S3_BUCKET="locked", S3_PREFIX=prefix, S3_ENDPOINT_URL=weed.endpoint_url, WORKERS="2",
    )  # fmt: skip


@pytest.fixture
def versions(bucket: Bucket) -> Callable[[], list[tuple[str, str | None]]]:
    """Every version that is in the bucket when it is called."""
    return lambda: sorted((v.key, v.version_id) for v in bucket.versions(""))


@pytest.fixture
def hour() -> list[str]:
    """The options for the window that the calls lie in."""
    assert TEN.isoformat() == "2024-01-15T10:00:00+00:00"
    return ["--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T11:00:00Z"]
