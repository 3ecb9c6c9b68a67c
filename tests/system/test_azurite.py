"""Done when 2: from Azurite, with the real signed URLs of `azure-storage-blob`, into a real S3
server; and the same over TLS on both legs, with a private root."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.system import audit, checker
from tests.system.azure_api import AzureApi, AzureCall, Blobs, audio, call_document
from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive, archiver_to
from tests.system.servers import Azurite, Tls, Weed

START, END = datetime(2024, 1, 15, 10, tzinfo=UTC), datetime(2024, 1, 15, 12, tzinfo=UTC)
RANGE = ("--from", "2024-01-15T10:00:00Z", "--to", "2024-01-15T12:00:00Z")
LONG, ODD, SILENT = "vc_long", "Anruf 7/8 ü?", "vc_silent"


def document(call_id: str, number: int, seconds: int) -> dict[str, object]:
    turn = {"role": "agent", "text": f"Grüß Gott, {number} 👋", "timestamp": "0.5"}
    return call_document(
        call_id,
        START + timedelta(minutes=4 * number, milliseconds=250),
        seconds,
        transcript=[turn],
        unheardOf={"nested": [1, 2.5, None, True], "z": "ß"},
    )


@dataclass
class Scene:
    """Blobs, calls and API; `truth` is what the archive must come to hold."""

    azurite: Azurite
    blobs: Blobs
    calls: dict[str, AzureCall] = field(default_factory=dict)
    truth: dict[str, dict[str, object]] = field(default_factory=dict)

    def add(self, call_id: str, seconds: int | None, *, survey: bool = True) -> AzureCall:
        number = len(self.calls)
        told = document(call_id, number, seconds or 0)
        epa = {"state": "Completed", "calculatedScore": 8.5, "id": number} if survey else None
        call = AzureCall(told, epa, f"2024/{number:03d} ä.wav" if seconds else None)
        self.calls[call_id] = call
        self.truth[call_id] = {"document": told, "epa": epa, "recording": None}
        if seconds:
            self.upload(call_id, audio(random.Random(call_id), seconds), in_blocks=seconds > 300)
        return call

    def upload(self, call_id: str, data: bytes, *, in_blocks: bool = False) -> None:
        name = self.calls[call_id].blob
        assert name is not None
        self.blobs.put(name, data, in_blocks=in_blocks)
        told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.truth[call_id]["recording"] = told

    def delete(self, call_id: str) -> None:
        name = self.calls[call_id].blob
        assert name is not None
        self.blobs.delete(name)

    def expected(self, api: AzureApi, **more: object) -> checker.Expected:
        return checker.Expected(
            self.truth, START, END, api=api.url, recording_host=self.azurite.host, **more
        )


def make_scene(azurite: Azurite) -> Scene:
    scene = Scene(azurite, Blobs(azurite))
    for number in range(12):
        scene.add(f"vc_{number:04d}", 2 + number % 3, survey=number % 4 != 0)
    scene.add(LONG, 1300)  # 20.8 MB: parts, and no Content-MD5
    scene.add(ODD, 2)
    scene.add(SILENT, None)
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Azurite(tmp_path / "azurite") as azurite:
        yield make_scene(azurite)


@pytest.fixture
def tls_weed(tmp_path: Path, tls: Tls) -> Iterator[Weed]:
    weed = Weed(tmp_path / "tls-weed", tls)
    yield weed
    weed.remove()


def test_every_byte_from_real_signed_urls(
    scene: Scene, make_archive: MakeArchive, tmp_path: Path
) -> None:
    """All calls arrive, the first over URLs that have expired, one of them overwritten before."""
    scene.calls["vc_0000"].stale_urls = 1
    scene.calls["vc_0001"].stale_urls = 3
    scene.upload("vc_0002", audio(random.Random("the second take"), 5))
    with AzureApi(list(scene.calls.values()), scene.blobs) as api:
        archiver, bucket = make_archive(api.settings(scene.azurite), versioned=True)
        result = archiver.run("backfill", *RANGE).expect(0)
        checked = checker.check(bucket.download(tmp_path / "copy"), scene.expected(api))
        assert api.urls_given["vc_0000"] == 2, "one fresh URL after an expired one"
        assert api.urls_given["vc_0001"] == 4, "three fresh URLs at most"
        assert not result.events("call.failed")
        assert checked.records[SILENT]["outcome"] == "no_recording"
        assert checked.records[LONG]["source"]["content_md5"] is None
        assert checked.records["vc_0002"]["source"]["content_md5"] is not None
        audit.assert_clean(archiver)

        # What is archived stays as it was, whatever the blob store holds later.
        before = bucket.versions()
        name = scene.calls["vc_0003"].blob
        assert name is not None
        scene.blobs.put(name, audio(random.Random("another"), 9))
        archiver.run("backfill", *RANGE).expect(0)
        assert bucket.versions() == before


def test_a_deleted_blob_is_a_failed_call_and_heals(
    scene: Scene, make_archive: MakeArchive, tmp_path: Path
) -> None:
    """Exit 1 and a record that says why; the others go on. Back again, it is archived as r2."""
    scene.delete("vc_0004")
    scene.calls["vc_0005"].stale_urls = 1000
    reasons = {"vc_0004": "recording_missing", "vc_0005": "url_refused"}
    with AzureApi(list(scene.calls.values()), scene.blobs) as api:
        archiver, bucket = make_archive(api.settings(scene.azurite))
        archiver.run("backfill", *RANGE).expect(1)
        copy = bucket.download(tmp_path / "failed")
        checked = checker.check(copy, scene.expected(api, failed=reasons))
        assert {checked.records[i]["status"] for i in reasons} == {404, 403}
        assert api.urls_given["vc_0005"] == 4, "a first URL and three fresh ones"
        audit.assert_clean(archiver)

        scene.upload("vc_0004", audio(random.Random("vc_0004"), 3))
        scene.calls["vc_0005"].stale_urls = 0
        archiver.run("backfill", *RANGE).expect(0)
        healed = scene.expected(api, revisions=dict.fromkeys(reasons, 2))
        checked = checker.check(bucket.download(tmp_path / "healed"), healed)
        assert {checked.records[i]["outcome"] for i in reasons} == {"archived"}
        audit.assert_clean(archiver)


def test_tls_on_both_legs(
    tls_weed: Weed, tls: Tls, other_tls: Tls, signing_key: Path, tmp_path: Path
) -> None:
    """The same with a private root: API, blob store and S3; a wrong root is one clear line."""
    bucket = Bucket.make(tls_weed.client, "calls", versioned=True)
    with Azurite(tmp_path / "azurite", tls) as azurite:
        scene = make_scene(azurite)
        with AzureApi(list(scene.calls.values()), scene.blobs, tls) as api:
            archiver = archiver_to(tls_weed, "calls", signing_key, api.settings(azurite))
            refuses_wrong_roots(archiver, bucket, tls, other_tls)
            trusting = archiver.within(SSL_CERT_FILE=str(tls.ca), AWS_CA_BUNDLE=str(tls.ca))
            trusting.run("backfill", *RANGE).expect(0)
            checker.check(bucket.download(tmp_path / "copy"), scene.expected(api))
            audit.assert_clean(trusting)


def refuses_wrong_roots(archiver: Archiver, bucket: Bucket, tls: Tls, other_tls: Tls) -> None:
    right, wrong = str(tls.ca), str(other_tls.ca)
    for source_root, store_root, code, name in (
        (wrong, right, 3, "SSL_CERT_FILE"),
        (right, wrong, 4, "AWS_CA_BUNDLE"),
    ):
        refusing = archiver.within(SSL_CERT_FILE=source_root, AWS_CA_BUNDLE=store_root)
        result = refusing.run("backfill", *RANGE).expect(code)
        [line] = result.complaints
        assert "certificate" in line
        assert name in line
        assert result.seconds < 10, "no retry can help"
        assert bucket.keys() == []
