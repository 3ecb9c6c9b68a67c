"""A recording whose first bytes are damaged on the way: its Content-MD5 knows better."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import pytest

from archiver import fixity
from archiver.demo.platform import Platform, Reply, Request
from archiver.manifest.record import Record
from archiver.model import Call
from tests.fakes.population import a_call, voice
from tests.fakes.rig import WINDOW, Rig


@pytest.mark.parametrize("at", [0, 11, 43], ids=["no RIFF", "no WAVE", "a longer data chunk"])
def test_it_is_fetched_again(platform: Platform, rig: Callable[..., Rig], at: int) -> None:
    """It looks like no WAV, or like one cut short: neither may be said of the source's blob."""
    data = bytearray(voice())
    announced = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    data[at] ^= 0x80
    damaged = [Reply(200, {"Content-MD5": announced}, bytes(data))]

    def damage_once(request: Request) -> Reply | None:
        return damaged.pop() if request.server == "blob" and damaged else None

    platform.add(a_call())
    platform.hooks.append(damage_once)
    found = rig().transfer.archive(Call("vc_1", {"id": "vc_1"}), WINDOW, settled=True)
    assert isinstance(found, Record), found
    assert found.document["files"][0]["sha256"] == fixity.sha256_hex(voice())
