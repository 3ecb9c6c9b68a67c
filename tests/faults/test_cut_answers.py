"""Answers that are cut short, and then the connection's end, as if that were all.

`http.client` takes the end of the connection for the end of the headers: what is missing was never
sent, and the last one may be half its value. At each place where a head may be cut, the request
must be made again, or the outcome be the same.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from archiver.core import checksums
from archiver.source.recordings import BlobInfo, ResumableDownload
from archiver.store.bucket import Bucket
from tests.fakes.audio import noise
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import a_call, voice
from tests.fakes.rig import api_client, blob_client
from tests.system.fault_proxy import Head
from tests.system.tcp_proxy import Proxy, reset

STEP = 5
"""Not each byte: a part of each line, and each line's end, for some of the lines."""


class Cutter(Proxy):
    """Cuts the next answer after `cut_at` bytes, by an orderly end or a `reset`, and then no more;
    each has a connection of its own. `head` and `length` are of the last one that was whole."""

    def __init__(self) -> None:
        super().__init__()
        self.cut_at: int | None = None
        self.reset = False
        self.head = b""
        self.length = 0

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            client.makefile("rb") as asked,
            self._connect() as server,
            server.makefile("rb") as answered,
        ):
            request = Head.read(asked)
            if "expect" in request.fields:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            server.sendall(request.without("expect") + asked.read(request.length))
            head = Head.read(answered)
            body = b"" if request.method == b"HEAD" else answered.read(head.length)
            at, self.cut_at = self.cut_at, None
            if at is None:
                self.head, self.length = bytes(head), len(bytes(head) + body)
            client.sendall((bytes(head) + body)[:at])
            if at is not None and self.reset:
                time.sleep(0.01)  # a reset takes back what has not been read
                reset(client)


@pytest.fixture
def cutter() -> Iterator[Cutter]:
    with Cutter() as made:
        yield made


@pytest.fixture
def bucket(cutter: Cutter, weed: Any, open_bucket: Callable[..., Bucket]) -> Bucket:
    """Goes through the cutter."""
    cutter.upstream = urlsplit(weed.endpoint_url).netloc
    return open_bucket(endpoint_url=f"http://{cutter.address}")


def places(cutter: Cutter) -> Iterator[int]:
    """Set the next cut to each place within the head of an answer like the last one."""
    for place in range(1, len(cutter.head), STEP):
        cutter.cut_at = place
        yield place


def body_places(cutter: Cutter) -> Iterator[int]:
    """The same within its body, and with a reset too."""
    for place in range(len(cutter.head), cutter.length, 4 * STEP):
        for resets in (False, True):
            cutter.cut_at, cutter.reset = place, resets
            yield place


def everywhere(cutter: Cutter) -> Iterator[int]:
    return itertools.chain(places(cutter), body_places(cutter))


QUESTIONS: dict[str, tuple[Callable[[Bucket], object], Callable[[Cutter], Iterator[int]]]] = {
    "a read": (lambda bucket: bucket.read("k"), places),
    # An answer with an error is read whole before anybody asked for its body.
    "a refusal": (lambda bucket: bucket.read("missing"), body_places),
    "a listing": (lambda bucket: list(bucket.list("")), everywhere),
    "a head": (lambda bucket: bucket.head("k"), places),
}
"""What the store is asked, and where its answer is cut."""


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question(
    bucket: Bucket, cutter: Cutter, open_bucket: Callable[..., Bucket], name: str
) -> None:
    ask, cuts = QUESTIONS[name]
    open_bucket().put_once("k", noise(3000))
    whole = ask(bucket)
    for _ in cuts(cutter):
        assert ask(bucket) == whole
        assert cutter.cut_at is None


def test_the_end_of_an_upload(
    bucket: Bucket, cutter: Cutter, open_bucket: Callable[..., Bucket]
) -> None:
    """It was put together, and the answer that says so is cut."""
    direct = open_bucket()
    for place in range(1, 500, 50):
        upload = bucket.begin(f"k{place}", content_type="audio/wav", retain_until=None)
        upload.part(b"data")
        cutter.cut_at = place
        stored = upload.complete(checksums.sha256_hex(b"data"))
        [version] = direct.versions(f"k{place}")
        assert stored.version_id == version.version_id


def test_a_put(bucket: Bucket, cutter: Cutter, open_bucket: Callable[..., Bucket]) -> None:
    """Above all, the version that a record will name is the one that is there."""
    direct = open_bucket()
    bucket.put_once("k", b"data")
    for place in places(cutter):
        key = f"k{place}"
        stored = bucket.put_once(key, b"data")
        [version] = direct.versions(key)
        assert stored.version_id == version.version_id


def test_an_answer_of_the_api(cutter: Cutter, clock: HandClock) -> None:
    with Platform([a_call()], clock=clock.now) as platform:
        cutter.upstream = platform.api_host
        url = platform.api_url.replace(platform.api_host, cutter.address)
        api = api_client(platform, clock, base_url=url)
        whole = api.call("vc_1")[0]
        for _ in everywhere(cutter):
            assert api.call("vc_1")[0] == whole
            assert cutter.cut_at is None
        assert platform.violations == []


def test_a_recording(cutter: Cutter, clock: HandClock) -> None:
    """What is told of the blob is true: its length, its ETag, its digest."""
    with Platform([a_call()], clock=clock.now) as platform:
        cutter.upstream, platform.blob_host = platform.blob_server, cutter.address
        api, blobs = api_client(platform, clock), blob_client(platform, clock)

        def read() -> tuple[BlobInfo, bytes]:
            with closing(
                ResumableDownload(blobs, lambda: api.recording_url("vc_1"), clock)
            ) as recording:
                data = bytearray(recording.info.length)
                recording.readinto(memoryview(data))
                return recording.info, bytes(data)

        whole = read()
        assert whole[1] == voice()
        for _ in places(cutter):
            assert read() == whole
