"""A token that expires while a backfill is under way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.command import Command
from tests.fakes.http_server import Reply, Request
from tests.fakes.platform import AUDIO, READ, Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import Archive

Look = Callable[[], Archive]
CALLS, BEFORE = 40, 10


@pytest.fixture
def expiring(platform: Platform) -> threading.Event:
    """The platform voids its token once some recordings were fetched; set when it has."""
    platform.add(*(a_call(f"vc_{n:02}", TEN + timedelta(seconds=n)) for n in range(CALLS)))
    expired, left = threading.Event(), [BEFORE]

    def count(request: Request) -> Reply | None:
        if request.server == "blob":
            left[0] -= 1
            if left[0] == 0:
                platform.options.tokens.pop(platform.token)
                expired.set()
        return None

    platform.hooks.append(count)
    return expired


def test_it_is_one_error_and_no_failed_call(
    command: Command, archive: Look, hour: list[str], expiring: threading.Event
) -> None:
    done = command.run("backfill", *hour).expect(3)
    assert "401" in done.complaint
    assert "ARCHIVER_API_TOKEN" in done.complaint
    found = archive().records.values()
    assert 0 < len(found) < CALLS
    assert {record["outcome"] for record in found} == {"archived"}


def test_with_a_rotated_file_it_goes_on_by_itself(
    command: Command,
    platform: Platform,
    archive: Look,
    hour: list[str],
    expiring: threading.Event,
    tmp_path: Path,
) -> None:
    file = tmp_path / "token"
    file.write_text(platform.token)

    def rotate() -> None:
        assert expiring.wait(60)
        fresh = tmp_path / "fresh"
        fresh.write_text(platform.token_for(READ, AUDIO))
        fresh.replace(file)

    rotating = threading.Thread(target=rotate)
    rotating.start()
    settings = {"ARCHIVER_API_TOKEN": None, "ARCHIVER_API_TOKEN_FILE": str(file)}
    done = command.run("backfill", *hour, **settings)
    rotating.join()
    assert done.code == 0, done.err
    said = [json.loads(line)["event"] for line in done.err.splitlines() if line.startswith("{")]
    assert said.count("source.credentials_expired") <= 1
    found = archive().records.values()
    assert len(found) == CALLS + 3, "vc_1 to vc_3 are there too"
    assert {record["outcome"] for record in found} == {"archived"}
