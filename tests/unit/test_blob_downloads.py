"""Recordings as blob stores really send them: what is taken, with which finding, what is refused.

Each test archives a call through a real blob store on a socket, over either HTTP client.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from email.utils import format_datetime
from itertools import count, product
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

import pytest

from archiver.core.http import Transport, make_client
from archiver.core.model import Call
from archiver.manifest.record import FINDINGS, Record
from archiver.manifest.signing import SigningKey
from archiver.observability.metrics import REGISTRY
from archiver.pipeline.call import FailedTry
from archiver.source.content_encoding import Decoder
from archiver.source.recordings import RecordingClient
from tests.fakes.audio import chunk, fmt, noise, riff, wav
from tests.fakes.calls import BytesRecording
from tests.fakes.clock import HandClock
from tests.fakes.http_server import BendableServer, Reply, Request
from tests.fakes.memory_store import MemoryStore
from tests.fakes.platform import Platform
from tests.fakes.population import a_call
from tests.fakes.rig import WINDOW, wired

AUDIO = wav(1)
EMPTY_OPEN = AUDIO[:4] + bytes([36, 0, 0, 0]) + AUDIO[8:40] + bytes(4)
"""What a streaming writer has written before the first sample."""
CUT_CHUNK = AUDIO[:4] + bytes(4) + AUDIO[8:] + b"LIST" + bytes([16, 0, 0, 0]) + bytes(12)
"""Its RIFF size is left open, and its last chunk lacks four bytes."""
OPEN = AUDIO[:4] + b"\xff" * 4 + AUDIO[8:40] + b"\xff" * 4 + AUDIO[44:]
"""Its header leaves both lengths open, as streaming writers do."""
LARGE = riff(chunk(b"fmt ", fmt()), chunk(b"data", noise((6 << 20) + 1)))
PART = riff(chunk(b"fmt ", fmt()), chunk(b"data", noise((5 << 20) - 44)))
"""Exactly one part of an upload."""


def md5(data: bytes) -> dict[str, str]:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Content-MD5": base64.b64encode(digest).decode()}


def packed(data: bytes) -> bytes:
    """As gzip, the same bytes each time."""
    return gzip.compress(data, mtime=0)


WRONG_MD5 = md5(b"other bytes")


class Archiver:
    """An archiver of one call, `vc_1`, whose blob store answers as `answer` says."""

    def __init__(
        self, platform: Platform, bucket: MemoryStore, clock: HandClock, transfer: Any
    ) -> None:
        self.platform = platform
        self.bucket = bucket
        self.clock = clock
        self._transfer = transfer
        self.blob_requests: list[Request] = []
        self.settled = True

    def serve(self, answer: Callable[[Request], Reply | None] | Reply | list[Reply]) -> None:
        """Have the blob store answer so; of a list, the last reply again and again."""
        replies = iter(answer) if isinstance(answer, list) else None
        last = [Reply(500)]

        def hook(request: Request) -> Reply | None:
            if request.server != "blob":
                return None
            self.blob_requests.append(request)
            if replies is not None:
                last[0] = next(replies, last[0])
                return last[0]
            return answer(request) if callable(answer) else answer  # type: ignore[return-value]

        self.platform.hooks.append(hook)

    def run(self) -> Record | FailedTry:
        found: Record | FailedTry = self._transfer.archive(
            Call("vc_1", {"id": "vc_1"}), WINDOW, settled=self.settled
        )
        return found

    def archived(self) -> tuple[bytes, set[str], dict[str, Any]]:
        """The stored recording, the findings about how it came, and the record's `source`."""
        found = self.run()
        assert isinstance(found, Record), found
        assert found.outcome == "archived"
        file = found.document["files"][0]
        stored = self.bucket.read(file["key"], file["version_id"])
        assert stored is not None
        assert file["sha256"] == hashlib.sha256(stored).hexdigest()
        assert file["bytes"] == len(stored)
        findings = set(found.document["findings"])
        assert findings <= set(FINDINGS)
        mine = findings & {"length_unconfirmed", "md5_mismatch", "undecodable"}
        return stored, mine, found.document["source"]

    def refused(self) -> str:
        """Why the call could not be archived."""
        found = self.run()
        assert isinstance(found, FailedTry), found
        assert not any("/recording" in item.key for item in self.bucket.list(""))
        return found.reason


@pytest.fixture
def made(
    served: Platform,
    bucket: MemoryStore,
    clock: HandClock,
    key: SigningKey,
    transport: Transport,
) -> Iterator[Callable[..., Archiver]]:
    with ExitStack() as stack:

        def make(*more_hosts: str, audio: bytes = AUDIO, **options: Any) -> Archiver:
            served.add(a_call(audio=audio))
            roots: Path | None = options.pop("roots", None)
            blobs = RecordingClient(
                [served.blob_host, *more_hosts],
                clock,
                make_client(transport, roots=roots),
                **{"allow_http": True, **options},
            )
            rig = stack.enter_context(wired(served, bucket, clock, key, recordings=blobs))
            return Archiver(served, bucket, clock, rig.transfer)

        yield make


@pytest.fixture
def archiver(made: Callable[..., Archiver]) -> Archiver:
    return made()


def retries(reason: str) -> float:
    labels = {"stage": "transfer", "reason": reason}
    return REGISTRY.get_sample_value("archiver_retries_total", labels) or 0.0


# --- a signed URL that is not valid yet

Style = Literal["azure", "aws", "google", "opaque"]


class SignedBlobs:
    """A source that signs URLs, and a blob store that judges them by its own clock, `behind` the
    source's."""

    def __init__(
        self,
        archiver: Archiver,
        style: Style,
        behind: float,
        *,
        begins: float = 0.0,
        lives: float = 900.0,
    ) -> None:
        """Each URL is valid from `begins` seconds after it is signed, for `lives` seconds."""
        self.issued: list[tuple[datetime, datetime]] = []
        self.used: list[int] = []
        self._archiver = archiver
        self._style = style
        self._behind = timedelta(seconds=behind)
        self._begins, self._lives = timedelta(seconds=begins), timedelta(seconds=lives)
        archiver.platform.hooks.append(self._serve)

    def _serve(self, request: Request) -> Reply | None:
        now = self._archiver.clock.now()
        if request.path.endswith("/recording-url"):
            start = now + self._begins
            self.issued.append((start, start + self._lives))
            query = {**self._times(start), "n": str(len(self.issued) - 1), "sig": "abc"}
            url = f"http://{self._archiver.platform.blob_host}/b.wav?{urlencode(query)}"
            return Reply(200, {}, json.dumps({"data": {"recordingUrl": url}}).encode())
        if request.server != "blob":
            return None
        number = int(request.query["n"])
        self.used.append(number)
        start, end = self.issued[number]
        if not start <= now - self._behind < end:
            return Reply(403, {}, b"<Error><Code>AuthenticationFailed</Code></Error>")
        return Reply(200, {}, AUDIO)

    def _times(self, start: datetime) -> dict[str, str]:
        if self._style == "opaque":
            return {}
        if self._style == "azure":
            end = start + self._lives
            return {"st": f"{start:%Y-%m-%dT%H:%M:%SZ}", "se": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
        name = "X-Amz" if self._style == "aws" else "X-Goog"
        lives = str(int(self._lives.total_seconds()))
        return {f"{name}-Date": f"{start:%Y%m%dT%H%M%SZ}", f"{name}-Expires": lives}


@pytest.mark.parametrize("style", ["azure", "aws", "google", "opaque"])
@pytest.mark.parametrize("behind", [0.3, 3.0, 6.5])
def test_a_young_url_is_used_again(archiver: Archiver, style: Style, behind: float) -> None:
    blobs = SignedBlobs(archiver, style, behind)
    before = retries("url_refused")
    assert archiver.archived()[:2] == (AUDIO, set())
    assert len(blobs.issued) == 1, "the URL at hand did"
    pauses = {0.3: [1.0], 3.0: [1.0, 2.0], 6.5: [1.0, 2.0, 4.0]}[behind]
    assert archiver.clock.sleeps == pauses
    assert retries("url_refused") - before == len(pauses)


@pytest.mark.parametrize(
    ("begins", "lives", "style"),
    [
        (-300.0, 200.0, "azure"),
        (-1000.0, 900.0, "aws"),
        (-300.0, 200.0, "google"),
        (-2.0, 1.0, "azure"),
    ],
)
def test_an_expired_url_is_not_waited_for(
    archiver: Archiver, begins: float, lives: float, style: Style
) -> None:
    blobs = SignedBlobs(archiver, style, 0.0, begins=begins, lives=lives)
    assert archiver.refused() == "url_refused"
    assert blobs.used == [0, 1, 2, 3], "each once"


def test_a_url_that_began_long_ago_is_replaced_at_once(archiver: Archiver) -> None:
    """Another reason than its start must make the blob store refuse it."""
    blobs = SignedBlobs(archiver, "azure", 1000.0, begins=-300.0)
    assert archiver.refused() == "url_refused"
    assert blobs.used == [0, 1, 2, 3]


def test_a_store_that_refuses_every_url_does_not_keep_a_worker_long(archiver: Archiver) -> None:
    blobs = SignedBlobs(archiver, "opaque", 10_000.0)
    assert archiver.refused() == "url_refused"
    assert len(blobs.issued) == 4, "as many URLs as ever"
    assert blobs.used == [0] * 4 + [1] * 4 + [2, 3]
    assert sum(archiver.clock.sleeps) < 20


def test_a_url_that_was_accepted_once_is_not_waited_for(made: Callable[..., Archiver]) -> None:
    """It is refused in the middle of a download: it has been revoked."""
    archiver = made(audio=LARGE)

    def cut(request: Request) -> Reply | None:
        if archiver.platform.sas_issued["vc_1"] > 1:
            return None
        if "Range" in request.headers:
            return Reply(403)
        reply = archiver.platform.answer(request)
        reply.close_after = 1 << 20
        return reply

    archiver.serve(cut)
    assert archiver.archived()[0] == LARGE
    assert archiver.platform.sas_issued["vc_1"] == 2
    assert not {1.0, 2.0, 4.0} & set(archiver.clock.sleeps)


# --- labels that encode nothing, and real encodings

NO_CODINGS = [
    "", "identity", "Identity", "identity, identity", "utf-8", "UTF-8", "none", "binary", "8bit",
    "aws-chunked", "audio/wav", "null", "identity,,utf-8",
]  # fmt: skip


@pytest.mark.parametrize("label", NO_CODINGS)
def test_a_label_that_encodes_nothing(archiver: Archiver, label: str) -> None:
    archiver.serve(Reply(200, {"Content-Encoding": label, **md5(AUDIO)}, AUDIO))
    stored, findings, source = archiver.archived()
    assert (stored, findings) == (AUDIO, set())
    assert "encoded" not in source


@pytest.mark.parametrize("label", NO_CODINGS)
def test_such_a_label_on_json(archiver: Archiver, label: str) -> None:
    def relabel(request: Request) -> Reply | None:
        if request.server != "api":
            return None
        reply = archiver.platform.answer(request)
        reply.headers = {**reply.headers, "Content-Encoding": label}
        return reply

    archiver.platform.hooks.append(relabel)
    assert archiver.archived()[0] == AUDIO


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "gzip": ("gzip", packed, "gzip"),
    "x-gzip": ("X-Gzip", packed, "gzip"),
    "beside a label that encodes nothing": ("identity, gzip", packed, "gzip"),
    "two members": (
        "gzip",
        lambda data: packed(data[:999]) + packed(data[999:]),
        "gzip",
    ),
    "padded": ("gzip", lambda data: packed(data) + bytes(100), "gzip"),
    "followed by a byte": ("gzip", lambda data: packed(data) + b"\n", "gzip"),
    "followed by others": ("gzip", lambda data: packed(data) + b"more" * 50_000, "gzip"),
    "deflate, followed by others": ("deflate", lambda data: zlib.compress(data) + b"x", "deflate"),
    "deflate": ("deflate", zlib.compress, "deflate"),
    "bare deflate": ("deflate", raw_deflate, "deflate"),
}


@pytest.mark.parametrize(
    ("name", "framing", "audio"),
    [
        *((name, "length", AUDIO) for name in CODINGS),
        *(("gzip", framing, AUDIO) for framing in ("chunks", "close")),
        *(("gzip", framing, LARGE) for framing in ("length", "chunks")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value) >> 20} MiB",
)
def test_what_is_encoded_is_decoded(
    archiver: Archiver, name: str, framing: str, audio: bytes
) -> None:
    """The file can be played; the record says what came."""
    label, encode, coding = CODINGS[name]
    came = encode(audio)
    body = came if framing == "length" else [came[:100], came[100:]]
    headers = {"Content-Encoding": label, **md5(came)}
    archiver.serve(Reply(200, headers, body, chunked=framing == "chunks"))
    stored, findings, source = archiver.archived()
    assert stored == audio
    assert findings == set()
    assert source["content_md5"] == md5(came)["Content-MD5"]
    assert source["encoded"] == {
        "bytes": len(came),
        "content_encoding": coding,
        "sha256": hashlib.sha256(came).hexdigest(),
    }


def test_an_encoded_download_that_breaks_goes_on(made: Callable[..., Archiver]) -> None:
    came = packed(LARGE)
    archiver = made()
    archiver.platform.add(a_call(audio=came))
    archiver.platform.find("vc_1").recording = BytesRecording(came)  # type: ignore[union-attr]

    def cut(request: Request) -> Reply:
        reply = archiver.platform.answer(request)
        reply.headers = {**reply.headers, "Content-Encoding": "gzip"}
        reply.close_after = 3 << 20
        return reply

    archiver.serve(cut)
    assert archiver.archived()[0] == LARGE
    ranges = [request.headers.get("Range") for request in archiver.blob_requests]
    assert ranges == [None, f"bytes={3 << 20}-", f"bytes={6 << 20}-"][: len(ranges)]
    assert len(ranges) > 1


@pytest.mark.parametrize("label", ["gzip", "deflate"])
def test_a_label_on_plain_audio_encodes_nothing(archiver: Archiver, label: str) -> None:
    archiver.serve(Reply(200, {"Content-Encoding": label, **md5(AUDIO)}, AUDIO))
    stored, findings, source = archiver.archived()
    assert (stored, findings) == (AUDIO, set())
    assert "encoded" not in source


GZIPPED = packed(AUDIO)
BOMB = riff(chunk(b"fmt ", fmt()), chunk(b"data", bytes(9 << 20)))
"""It goes through the network as a few kilobytes."""


@pytest.mark.parametrize(
    ("label", "came", "reason"),
    [
        ("gzip", packed(b""), "recording_empty"),
        ("gzip", packed(BOMB), "too_large"),
        ("deflate", zlib.compress(BOMB), "too_large"),
        ("gzip", packed(b"<html>no</html>"), "not_wav"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)  # fmt: skip
def test_what_is_decoded_is_judged_as_any_other(
    made: Callable[..., Archiver], label: str, came: bytes, reason: str
) -> None:
    archiver = made(max_bytes=8 << 20)
    archiver.serve(Reply(200, {"Content-Encoding": label}, came))
    assert archiver.refused() == reason


@pytest.mark.parametrize(
    ("label", "came", "downloads"),
    [
        ("gzip", GZIPPED[:-1], 3),
        ("gzip", GZIPPED[:5000], 3),
        ("deflate", zlib.compress(AUDIO)[:-1], 3),
        ("gzip", GZIPPED[:-8] + b"12345678", 3),
        ("gzip", packed(LARGE)[:-8] + b"12345678", 3),
        ("deflate", b"?" * 9000, 3),
        ("gzip, gzip", packed(GZIPPED), 1),
        ("br", GZIPPED, 1),
        ("zstd", GZIPPED, 1),
        ("compress", GZIPPED, 1),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:5],
)  # fmt: skip
@pytest.mark.parametrize("digest", [True, False])
def test_what_cannot_be_decoded_is_kept_as_it_came(
    archiver: Archiver, label: str, came: bytes, downloads: int, digest: bool
) -> None:
    """The bytes are whole. What cannot be decoded once may have been damaged on the way."""
    headers = {"Content-Encoding": label, **(md5(came) if digest else {})}
    archiver.serve(Reply(200, headers, came))
    stored, findings, source = archiver.archived()
    assert (stored, findings) == (came, {"undecodable"})
    assert "encoded" not in source
    assert len(archiver.blob_requests) == downloads


def test_plain_audio_with_the_label_of_another_coding(archiver: Archiver) -> None:
    archiver.serve(Reply(200, {"Content-Encoding": "br"}, AUDIO))
    assert archiver.archived()[:2] == (AUDIO, {"undecodable"})


@pytest.mark.parametrize("label", ["gzip", "br"])
def test_damage_of_what_is_encoded_that_passes(archiver: Archiver, label: str) -> None:
    damaged = GZIPPED[:-8] + b"12345678"
    headers = {"Content-Encoding": label, **md5(GZIPPED)}
    archiver.serve([Reply(200, headers, damaged), Reply(200, headers, GZIPPED)])
    stored, findings, _ = archiver.archived()
    assert findings == (set() if label == "gzip" else {"undecodable"})
    assert stored == (AUDIO if label == "gzip" else GZIPPED)


@pytest.mark.parametrize(
    ("came", "reason"),
    [(packed(AUDIO[:8000]), "bad_response"), (GZIPPED[:-9], "bad_response"), (b"", "bad_response")],
    ids=["a member", "cut", "nothing"],
)
def test_an_encoded_body_that_the_connection_ends(
    archiver: Archiver, came: bytes, reason: str
) -> None:
    """The second member of a gzip file may be missing, or all of it."""
    archiver.serve(Reply(200, {"Content-Encoding": "gzip"}, [came]))
    assert archiver.refused() == reason
    assert len(archiver.blob_requests) == 4, "it is asked for again"


def test_memory_for_a_bomb_is_bounded() -> None:
    rest = memoryview(packed(bytes(64 << 20)))

    def read(view: memoryview) -> int:
        nonlocal rest
        piece, rest = rest[: len(view)], rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)

    decoder, buffer, total = Decoder("gzip", read, 64 << 20), memoryview(bytearray(1 << 18)), 0
    tracemalloc.start()
    try:
        while got := decoder.readinto(buffer):
            total += got
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert total == 64 << 20


# --- bodies without a length


def pieces(data: bytes, size: int = 1 << 18) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize(
    ("audio", "confirmed", "chunked"),
    [
        *((AUDIO, *how) for how in product(("header", "md5"), (True, False))),
        (LARGE, "header", True),
        (LARGE, "md5", False),
        (PART, "header", True),
    ],
    ids=lambda value: value if isinstance(value, str | bool) else f"{len(value) >> 20} MiB",
)
def test_a_body_without_a_length_whose_end_is_confirmed(
    archiver: Archiver, audio: bytes, confirmed: str, chunked: bool
) -> None:
    headers = {}
    if confirmed == "md5":
        audio = audio[:4] + b"\xff" * 4 + audio[8:40] + b"\xff" * 4 + audio[44:]
        headers = md5(audio)
    archiver.serve(Reply(200, headers, pieces(audio), chunked=chunked))
    assert archiver.archived()[:2] == (audio, set())
    assert len(archiver.blob_requests) == 1


@pytest.mark.parametrize("audio", [OPEN, OPEN[:40] + bytes(4) + OPEN[44:]], ids=["ffffffff", "0"])
def test_chunks_whose_end_nothing_confirms_are_a_finding(archiver: Archiver, audio: bytes) -> None:
    archiver.serve(Reply(200, {}, pieces(audio), chunked=True))
    assert archiver.archived()[:2] == (audio, {"length_unconfirmed"})
    assert len(archiver.blob_requests) == 1


@pytest.mark.parametrize("audio", [AUDIO, LARGE], ids=["short", "large"])
def test_chunks_that_are_less_than_the_header_says_must_come_twice(
    archiver: Archiver, audio: bytes
) -> None:
    """Somebody on the way may have made whole chunks of half an answer."""
    half = audio[: len(audio) - 1000]
    archiver.serve([Reply(200, {}, pieces(half), chunked=True) for _ in range(2)])
    assert archiver.archived()[:2] == (half, {"length_unconfirmed"})
    assert len(archiver.blob_requests) == 2


def test_a_wrong_md5_of_chunks_is_no_worse_than_none(archiver: Archiver) -> None:
    archiver.serve(Reply(200, WRONG_MD5, [OPEN], chunked=True))
    assert archiver.archived()[:2] == (OPEN, {"length_unconfirmed", "md5_mismatch"})
    assert len(archiver.blob_requests) == 2


def test_half_in_chunks_and_then_the_whole(archiver: Archiver) -> None:
    half, rest = AUDIO[:9000], AUDIO
    archiver.serve([Reply(200, {}, [data], chunked=True) for data in (half, rest)])
    assert archiver.archived()[:2] == (AUDIO, set())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(200, {}, [OPEN]), "bad_response"),
        (Reply(200, {}, [AUDIO[:-500]]), "bad_response"),
        (Reply(200, {}, [b""]), "bad_response"),
        (Reply(200, WRONG_MD5, [OPEN]), "bad_response"),
        (Reply(200, {}, [b""], chunked=True), "recording_empty"),
        (Reply(200, {}, [AUDIO], chunked=True, close_after=5000), "truncated"),
        (Reply(200, md5(AUDIO), [AUDIO], chunked=True, close_after=5000), "truncated"),
        (Reply(200, md5(b""), [b""]), "recording_empty"),
        (Reply(200, md5(b""), [b""], chunked=True), "recording_empty"),
        (Reply(200, {}, [EMPTY_OPEN]), "bad_response"),
        (Reply(200, {}, [CUT_CHUNK]), "bad_response"),
        (Reply(200, {}, [LARGE, LARGE], chunked=True), "too_large"),
        (Reply(200, {}, [LARGE, LARGE]), "too_large"),
        (Reply(200, {"Content-Length": "16044"}, [AUDIO], chunked=True), "bad_response"),
        (Reply(200, {"Content-Length": "16044, 9"}, [AUDIO]), "bad_response"),
    ],
)
def test_a_body_without_a_certain_end_is_refused(
    made: Callable[..., Archiver], reply: Reply, reason: str
) -> None:
    archiver = made(max_bytes=8 << 20)
    archiver.serve(reply)
    assert archiver.refused() == reason


# --- redirects


@pytest.fixture
def other() -> Iterator[BendableServer]:
    """Another blob host, with the recording at `/there` and nothing else."""

    def respond(request: Request) -> Reply:
        assert "Authorization" not in request.headers
        if (request.path, request.raw_query) == ("/there", "sig=z"):
            return Reply(200, md5(AUDIO), AUDIO)
        return Reply(404)

    server = BendableServer("blob", ("127.0.0.1", 0), respond)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_allowed_host_is_followed(
    made: Callable[..., Archiver], other: BendableServer, status: int
) -> None:
    host = f"127.0.0.1:{other.server_port}"
    archiver = made(host)
    archiver.serve(Reply(status, {"Location": f"http://{host}/there?sig=z"}))
    stored, findings, source = archiver.archived()
    assert (stored, findings) == (AUDIO, set())
    assert source["recording_host"] == host


def test_a_redirect_within_the_host_may_be_relative(archiver: Archiver) -> None:
    def move(request: Request) -> Reply:
        if request.path == "/moved":
            return Reply(200, {}, AUDIO)
        return Reply(307, {"Location": "../moved?sig=q"})

    archiver.serve(move)
    assert archiver.archived()[0] == AUDIO


def test_a_download_that_breaks_goes_on_behind_a_redirect(made: Callable[..., Archiver]) -> None:
    archiver = made(audio=LARGE)

    def move(request: Request) -> Reply:
        if not request.raw_query.endswith("&moved"):
            url = f"http://{archiver.platform.blob_host}{request.path}?{request.raw_query}&moved"
            return Reply(302, {"Location": url})
        reply = archiver.platform.answer(
            Request("blob", "GET", request.path, request.raw_query[:-6], request.headers, b"")
        )
        reply.close_after = 2 << 20
        return reply

    archiver.serve(move)
    assert archiver.archived()[0] == LARGE


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/there?sig=z",
        "http://user@{host}/there",
        "ftp://{host}/there",
        "//127.0.0.1:{port}/there?sig=z",
        "http://{host}\\@127.0.0.1:{port}/there?sig=z",
        "http://{host}/there#fragment",
        "http://[::1",
        "",
        None,
    ],
)
def test_a_redirect_elsewhere_is_refused(
    archiver: Archiver, other: BendableServer, location: str | None
) -> None:
    headers = {}
    if location is not None:
        host = archiver.platform.blob_host
        headers = {"Location": location.format(port=other.server_port, host=host)}
    archiver.serve(Reply(302, headers))
    found = archiver.run()
    assert isinstance(found, FailedTry)
    is_refused_by_httpx = location == "http://[::1" and found.reason == "bad_response"
    assert found.reason == "url_not_allowed" or is_refused_by_httpx
    assert len(archiver.blob_requests) == 1


def test_a_second_redirect_is_refused(archiver: Archiver) -> None:
    archiver.serve(lambda request: Reply(302, {"Location": f"/again{request.path}"}))
    assert archiver.refused() == "bad_response"
    assert len(archiver.blob_requests) == 2


@pytest.mark.parametrize("allow_http", [True, False])
def test_a_redirect_to_plain_http_needs_the_setting(
    made: Callable[..., Archiver],
    other: BendableServer,
    tls: Any,
    root: Path,
    allow_http: bool,
) -> None:
    host = f"127.0.0.1:{other.server_port}"
    secure = BendableServer(
        "blob",
        ("127.0.0.1", 0),
        lambda request: Reply(302, {"Location": f"http://{host}/there?sig=z"}),
        tls=tls[0],
    )
    secure.start()
    try:
        archiver = made(host, f"127.0.0.1:{secure.server_port}", roots=root, allow_http=allow_http)
        url = f"https://127.0.0.1:{secure.server_port}/a.wav"
        answer = Reply(200, {}, json.dumps({"data": {"recordingUrl": url}}).encode())
        archiver.platform.hooks.append(
            lambda request: answer if request.path.endswith("/recording-url") else None
        )
        if allow_http:
            assert archiver.archived()[0] == AUDIO
        else:
            assert archiver.refused() == "url_not_allowed"
    finally:
        secure.stop()


def test_a_redirect_over_https_is_followed(
    made: Callable[..., Archiver], tls: Any, root: Path
) -> None:
    def respond(request: Request) -> Reply:
        if request.path == "/there":
            return Reply(200, {}, AUDIO)
        return Reply(307, {"Location": f"https://localhost:{ports[1]}/there"})

    servers = [BendableServer("blob", ("127.0.0.1", 0), respond, tls=tls[0]) for _ in "12"]
    ports = [server.server_port for server in servers]
    hosts = [f"127.0.0.1:{ports[0]}", f"localhost:{ports[1]}"]
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        archiver = made(*hosts, roots=root, allow_http=False)
        url = f"https://{hosts[0]}/a.wav"
        answer = Reply(200, {}, json.dumps({"data": {"recordingUrl": url}}).encode())
        archiver.platform.hooks.append(
            lambda request: answer if request.path.endswith("/recording-url") else None
        )
        stored, _, source = archiver.archived()
        assert stored == AUDIO
        assert source["recording_host"] == hosts[1]


# --- what may not be finished yet


@pytest.mark.parametrize(
    "unfinished",
    [AUDIO[:9000], EMPTY_OPEN, b"The recording is being prepared.", LARGE[: 6 << 20]],
    ids=["less than its header says", "no audio", "no recording", "a long one"],
)
@pytest.mark.parametrize("chunked", [True, False])
def test_what_may_not_be_finished_waits_for_its_window(
    archiver: Archiver, unfinished: bytes, chunked: bool
) -> None:
    """Until the window has settled it is downloaded again; then it is kept as it is."""
    body = pieces(unfinished) if chunked else unfinished
    archiver.serve(Reply(200, {} if chunked else md5(unfinished), body, chunked=chunked))
    archiver.settled = False
    assert archiver.refused() == "truncated"
    archiver.settled = True
    assert archiver.archived()[0] == unfinished


@pytest.mark.parametrize("audio", [OPEN, AUDIO + b"more"], ids=["left open", "trailing bytes"])
def test_what_is_odd_otherwise_waits_for_nothing(archiver: Archiver, audio: bytes) -> None:
    archiver.serve(Reply(200, {}, audio))
    archiver.settled = False
    assert archiver.archived()[0] == audio


# --- a wrong Content-MD5


@pytest.mark.parametrize("audio", [AUDIO, LARGE], ids=["short", "large"])
def test_a_wrong_md5_of_the_same_bytes_twice_is_a_finding(archiver: Archiver, audio: bytes) -> None:
    archiver.serve(Reply(200, WRONG_MD5, audio))
    stored, findings, source = archiver.archived()
    assert (stored, findings) == (audio, {"md5_mismatch"})
    assert source["content_md5"] == WRONG_MD5["Content-MD5"]
    assert len(archiver.blob_requests) == 2


def test_a_wrong_md5_of_what_was_encoded(archiver: Archiver) -> None:
    """It is that of the bytes before they were encoded: some stores keep it so."""
    headers = {"Content-Encoding": "gzip", **md5(AUDIO)}
    archiver.serve(Reply(200, headers, GZIPPED))
    assert archiver.archived()[:2] == (AUDIO, {"md5_mismatch"})


@pytest.mark.parametrize("audio", [AUDIO, LARGE], ids=["short", "large"])
def test_bytes_that_differ_each_time_are_damaged_on_the_way(
    archiver: Archiver, audio: bytes
) -> None:
    numbers = count(1)
    archiver.serve(lambda _: Reply(200, md5(audio), audio[:-9] + next(numbers).to_bytes(9)))
    assert archiver.refused() == "digest_mismatch"


def test_damage_that_passes_leaves_no_finding(archiver: Archiver) -> None:
    damaged = AUDIO[:-1] + b"x"
    archiver.serve([Reply(200, md5(AUDIO), damaged), Reply(200, md5(AUDIO), AUDIO)])
    assert archiver.archived()[:2] == (AUDIO, set())


# --- Retry-After


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_the_pause_that_a_blob_store_asks_for(archiver: Archiver, status: int) -> None:
    archiver.serve([Reply(status, {"Retry-After": "17"}), Reply(200, {}, AUDIO)])
    assert archiver.archived()[0] == AUDIO
    assert [int(slept) for slept in archiver.clock.sleeps] == [17]


def test_it_may_be_a_date(archiver: Archiver) -> None:
    now = archiver.clock.now()
    headers = {
        "Date": format_datetime(now, usegmt=True),
        "Retry-After": format_datetime(now + timedelta(seconds=21), usegmt=True),
    }
    archiver.serve([Reply(503, headers), Reply(200, {}, AUDIO)])
    assert archiver.archived()[0] == AUDIO
    assert [int(slept) for slept in archiver.clock.sleeps] == [21]


def test_a_pause_in_the_middle_does_not_make_a_download_too_slow(
    made: Callable[..., Archiver],
) -> None:
    archiver = made(audio=LARGE, min_bytes_per_second=1 << 20, rate_grace_seconds=30.0)

    def busy(request: Request) -> Reply:
        reply = archiver.platform.answer(request)
        if len(archiver.blob_requests) in (2, 3):
            return Reply(503, {"Retry-After": "50"})
        reply.close_after = 4 << 20
        return reply

    archiver.serve(busy)
    assert archiver.archived()[0] == LARGE
    assert sum(archiver.clock.sleeps) >= 100
