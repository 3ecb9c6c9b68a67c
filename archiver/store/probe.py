"""Tests what this store really does, before an archive relies on it.

S3-compatible stores ignore headers without an error, differ in create-once writes and Object Lock,
and sometimes report what they did not do. So each store is tested on one small object,
`manifest/probe`, which stays.

- `probe` tests everything, with 32 concurrent writers; `init` and `check` run it.
- `quick_probe` tests the minimum and creates nothing new; every other start runs it.
- Unlike in `Bucket`, no write is verified afterwards, because the store's own answer is what is
  tested. Only temporary errors (throttling, a lost connection) are retried.
- With Object Lock the object gets a second version, which shows whether a lock given with a
  multipart upload is kept. If a store accepts what it should refuse, there are more versions; these
  are deleted again, as far as the credentials allow.
- It is locked for `LOCK_SECONDS` at a time only.
- A writer needs no permission to delete, to list versions or to set holds. A denied test is None.
- Some stores refuse the condition of a create-once write itself (Backblaze B2, Alibaba OSS and
  OVHcloud answer 501). Then the object is written without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from archiver.core import checksums
from archiver.core.errors import KeyTaken, StoreError
from archiver.core.model import next_second
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.store.bucket import PROBE_BYTES, Bucket
from archiver.store.client import etag_of, make_client
from archiver.store.types import ObjectHead, ObjectVersion, Stored

T = TypeVar("T")

RACERS = 32
PATIENCE_SECONDS = 1.0
HOLD_TRIES = 5
LOCK_SECONDS = 60
NOT_DONE = ("not_implemented", "not_configured", "not_found", "refused")
"""Error reasons of a store that does not support a request, whatever the credentials."""
IN_PARTS = "text/x-uploaded-in-parts"
"""The content type of versions that were made by a multipart upload."""
_OTHER_SHA256 = checksums.hex_to_base64(checksums.sha256_hex(b"another"))
"""The SHA-256 of other bytes, in base64."""


@dataclass(frozen=True)
class Capabilities:
    """What the store proved; seal 0 has it as `store`. None means not tested, or not known."""

    checksums: bool
    """A wrong SHA-256 is refused, of a part and of a whole object."""
    create_once: bool
    """Of concurrent writers that create an object one wins, and later ones are refused."""
    object_lock: bool | None
    """Whether the bucket has it."""
    versioning: bool | None
    conditional_writes: bool | None = None
    """The store takes a PUT with `If-None-Match`; False if it refuses all of them."""
    whole_checksums: bool = False
    """A wrong SHA-256 of a whole object is refused. False also if this could not be tested."""
    create_once_racers: int = 0
    """How many wrote at once: to create the object, or to overwrite it if it existed."""
    create_once_race_winners: int | None = None
    complete_create_once: bool | None = None
    """CompleteMultipartUpload refuses a key that is taken. Whether atomically is not tested. False
    also if it refuses the condition itself."""
    lock_holds: bool | None = None
    """A locked version keeps mode and date, cannot be deleted, and its date cannot be shortened."""
    lock_at_multipart: bool | None = None
    """A lock given when a multipart upload begins is kept."""
    legal_hold: bool | None = None
    """A legal hold can be set and removed, and is shown."""
    clock_skew_seconds: float | None = None
    """The store's clock minus ours."""
    tls: bool = False

    def document(self) -> dict[str, Any]:
        """As seal 0 stores it."""
        return {name: value for name, value in asdict(self).items() if name != "clock_skew_seconds"}


def quick_probe(bucket: Bucket, proved: Mapping[str, Any]) -> Capabilities:
    """Return what the store shows now, limited to what it `proved` when the archive was begun
    (`store` in seal 0). Raises `StoreError` if the store refuses or is unreachable."""
    refuses: bool | None = False
    if proved.get("create_once") is not False:
        # The first write may find the object gone, and create it.
        refuses = _refuses_overwrite(bucket) or _refuses_overwrite(bucket)
    checksums = proved.get("checksums") is not False and _refuses_wrong_part(bucket)
    return Capabilities(
        checksums=checksums,
        whole_checksums=checksums and proved.get("whole_checksums") is True,
        create_once=refuses is True,
        object_lock=None,
        versioning=None,
        conditional_writes=refuses is not None and proved.get("conditional_writes"),
        complete_create_once=False if proved.get("complete_create_once") is False else None,
        lock_holds=False if proved.get("lock_holds") is False else None,
        tls=bucket.client.uses_tls,
    )


def probe(bucket: Bucket) -> Capabilities:
    """Test the store. Raises `StoreError` if it refuses, is unreachable, or ignores the settings
    with which each object is to be written.

    1. Create the object with concurrent writers, or try to overwrite it with them.
    2. Send wrong checksums.
    3. Read the bucket's settings and the store's clock.
    4. Upload the object in parts, with a lock.
    5. Lock a version, and try to break the lock.
    6. Put a legal hold on a version, and remove it.
    7. Delete the versions that the store should have refused.
    """
    create_once, conditional, winners = _try_create_once(bucket)  # 1
    whole: bool | None = False
    if _refuses_wrong_part(bucket):  # 2
        # A store that accepts wrong parts would keep a wrong object, so it is not sent one. If a
        # bucket policy denies all writes that are not create-once, the result for the part counts.
        whole = _unless_denied(lambda: _refuses_wrong_object(bucket))
    found = Capabilities(
        checksums=whole is not False,
        whole_checksums=whole is True,
        create_once=create_once,
        conditional_writes=conditional,
        create_once_racers=0 if winners is None else RACERS,
        create_once_race_winners=winners,
        object_lock=_unless_denied(bucket.has_object_lock),  # 3
        versioning=_unless_denied(bucket.is_versioned),
        clock_skew_seconds=bucket.latest_clock_skew_seconds(),
        tls=bucket.client.uses_tls,
    )
    mode = bucket.options.lock_mode
    locks = mode is not None and found.object_lock is not False
    refused, kept = _try_multipart(bucket, locks=locks)  # 4
    found = replace(found, complete_create_once=refused, lock_at_multipart=kept)
    if mode is not None:  # 5
        found = replace(found, lock_holds=locks and _lock_holds(bucket, mode))
    if found.object_lock:  # 6
        found = replace(found, legal_hold=_hold_works(bucket))
    if not (found.create_once and found.complete_create_once and found.checksums):  # 7
        for version in _versions(bucket) or ():
            if not version.is_latest:
                with suppress(StoreError):
                    bucket.client.call_once("delete_object", layout.PROBE, version.version_id)
    return found


def require_safe(found: Capabilities, *, single_writer: bool) -> None:
    """Raise `StoreError` unless the store is safe: several writers need create-once writes, and a
    promised lock must hold. The error names all that is missing, because the remedy for one alone
    would only lead to the other."""
    missing = []
    if not found.create_once and not single_writer:
        refuses = "the store refuses to create objects only once (If-None-Match)"
        overwrites = "the store overwrites objects that must be created once"
        missing.append(
            f"{refuses if found.conditional_writes is False else overwrites}, so two writers could "
            "harm each other: use another store, or run exactly one process with --single-writer"
        )
    if found.lock_holds is False:
        missing.append(
            "the store says that it locks objects, but lets locked ones be changed or deleted: "
            "use another store, or set ARCHIVER_OBJECT_LOCK_MODE=none"
        )
    if missing:
        raise StoreError("; ".join(missing))


def _try_create_once(bucket: Bucket) -> tuple[bool, bool, int | None]:
    """Create the object with concurrent writers, or try to overwrite it. Returns whether the store
    creates once, whether it takes the condition at all, and how many writers won (None if there was
    no race).

    A winner whose answer was lost finds the key taken when it retries. So no winner is as good as
    one, and versions count as well as answers.
    """
    is_new = bucket.head(layout.PROBE) is None
    winners = _race(bucket) if is_new else None
    is_there = _is_ours(bucket)
    if winners is not None and is_there:
        _verify_put(bucket)
        winners = max(winners, len(_put_versions(bucket)))
    refuses = _refuses_overwrite(bucket)
    if refuses is None:
        if not is_there:
            _put_plainly(bucket)
            _verify_put(bucket)
        return False, False, None
    if refuses and not is_new:
        winners = _race(bucket)
    return refuses and (winners or 0) <= (1 if is_new else 0), True, winners


def _is_ours(bucket: Bucket) -> bool:
    """Whether the object is there. Raises `StoreError` if it has other bytes than ours."""
    found = bucket.read(layout.PROBE, max_bytes=1 << 20)
    if found not in (None, PROBE_BYTES):
        raise StoreError("manifest/probe holds other bytes than the archiver's: use another prefix")
    return found is not None


def _put_plainly(bucket: Bucket) -> None:
    """Write the object without a condition."""
    bucket.client.retrying(lambda: etag_of(bucket.put_probe()))


def _verify_put(bucket: Bucket) -> None:
    """Raise `StoreError` if the store accepted encryption or storage class and ignored it."""
    sha256 = checksums.sha256_hex(PROBE_BYTES)
    bucket.verify_write(Stored(layout.PROBE, None, len(PROBE_BYTES), sha256), None)


def _race(bucket: Bucket) -> int:
    """Return how many of the concurrent writers the store lets create the object.

    A store may keep losers waiting for long, so writers retry after `PATIENCE_SECONDS`.
    """
    barrier = threading.Barrier(RACERS, timeout=10)
    style = bucket.client.s3.meta.config.s3.get("addressing_style")
    options = replace(bucket.options, connections=RACERS, addressing_style=style)
    clock = bucket.client.clock
    session = bucket.client.signed.session
    impatient = make_client(options, session, read_timeout_seconds=PATIENCE_SECONDS)
    racing = Bucket(options, clock, Retry(clock, attempts=1), client=impatient)

    def run(_: int) -> bool:
        with suppress(threading.BrokenBarrierError):  # this machine allows fewer threads
            barrier.wait()
        try:
            return _refuses_overwrite(racing) is False
        except StoreError as error:
            if not error.retryable:
                raise
            return _refuses_overwrite(bucket) is False

    with ThreadPoolExecutor(RACERS, thread_name_prefix="racer") as pool:
        return sum(pool.map(run, range(RACERS)))


def _try_multipart(bucket: Bucket, *, locks: bool) -> tuple[bool, bool | None]:
    """Return whether completing an upload refuses a taken key, and whether a lock given at its
    beginning is kept. The second needs a version made by an upload; a later probe finds it there.
    """
    lock_date = bucket.client.clock.now() + timedelta(seconds=LOCK_SECONDS) if locks else None
    made: list[str | None] = []

    def upload_once(**condition: str) -> None:
        upload = bucket.begin(layout.PROBE, content_type=IN_PARTS, retain_until=lock_date)
        try:
            upload.part(PROBE_BYTES)
            made.append(upload.complete_once(**condition))
        except BaseException:
            upload.abort()
            raise

    def is_locked(version: str | None) -> bool:
        head = bucket.head(layout.PROBE, version)
        return head is not None and head.lock_mode is not None

    refused = _is_taken(
        lambda: bucket.client.retrying(lambda: upload_once(IfNoneMatch="*")),
        lambda: bucket.client.retrying(upload_once),
    )
    if not locks:
        return refused is True, None
    if not made and _raw_head(bucket).get("ContentType") == IN_PARTS:
        # If the versions cannot be listed, `_lock_holds` has locked this one, so it proves nothing.
        return refused is True, None if _versions(bucket) is None else is_locked(None)
    if not made:
        with suppress(KeyTaken):
            _unless_denied(lambda: bucket.client.retrying(upload_once))
    return refused is True, is_locked(made[0]) if made else None


def _lock_holds(bucket: Bucket, mode: str) -> bool:
    """Lock a version for a minute, try to break the lock, and check it. If the bucket has given it
    a lock by default, that may be longer, and its mode cannot be changed."""
    head = _oldest_put(bucket)
    if head is None or head.version_id is None:
        return False
    version, client = head.version_id, bucket.client
    now = client.clock.now()
    until = next_second(now + timedelta(seconds=LOCK_SECONDS))
    if head.lock_mode is not None and head.lock_until is not None and head.lock_until > now:
        mode, until = head.lock_mode, max(until, head.lock_until)
    lock = {"Mode": mode, "RetainUntilDate": until}
    shorter = {**lock, "RetainUntilDate": until - timedelta(seconds=LOCK_SECONDS // 2)}
    try:
        client.call("put_object_retention", layout.PROBE, version, Retention=lock)
    except StoreError as error:
        if error.reason in NOT_DONE:
            return False
        raise
    with suppress(StoreError):
        client.call_once("put_object_retention", layout.PROBE, version, Retention=shorter)
    with suppress(StoreError):
        client.call_once("delete_object", layout.PROBE, version)
    left = bucket.head(layout.PROBE, version)
    kept = left is not None and left.lock_until is not None and left.lock_until >= until
    return kept and left is not None and left.lock_mode == mode


def _hold_works(bucket: Bucket) -> bool | None:
    """Whether a legal hold can be set, is shown, and can be removed; None if denied."""
    oldest = _oldest_put(bucket)
    version = oldest.version_id if oldest else None

    def takes(held: bool) -> bool:
        # Another process may be testing the same now, which shows nothing about the store.
        hold = {"Status": "ON" if held else "OFF"}
        for _ in range(HOLD_TRIES):
            bucket.client.call("put_object_legal_hold", layout.PROBE, version, LegalHold=hold)
            head = bucket.head(layout.PROBE, version)
            if head is not None and head.held == held:
                return True
        return False

    try:
        return _unless_denied(lambda: takes(True) and takes(False))
    except StoreError as error:
        if error.reason in NOT_DONE:
            return False
        raise


# --- requests about the object


def _refuses_overwrite(bucket: Bucket) -> bool | None:
    """Whether a create-once write finds the key taken. If not, it creates the object. None if the
    store refuses the condition itself."""
    put = partial(bucket.put_probe, IfNoneMatch="*")
    return _is_taken(
        lambda: bucket.client.retrying(lambda: etag_of(put())), lambda: _put_plainly(bucket)
    )


def _refuses_wrong_object(bucket: Bucket) -> bool:
    """Whether the store refuses the object with the SHA-256 of other bytes."""
    put = partial(bucket.put_probe, ChecksumSHA256=_OTHER_SHA256)
    return bucket.client.retrying(lambda: _is_bad_request(put))


def _refuses_wrong_part(bucket: Bucket) -> bool:
    """Whether the store refuses a part with the SHA-256 of other bytes. The upload is aborted."""
    upload = bucket.begin(layout.PROBE, content_type=IN_PARTS, retain_until=None)
    part = {"UploadId": upload.upload_id, "PartNumber": 1, "Body": b"x"}
    checksum = {"ChecksumSHA256": _OTHER_SHA256}

    def send() -> dict[str, Any]:
        return bucket.client.call_once("upload_part", layout.PROBE, None, **part, **checksum)

    try:
        return bucket.client.retrying(lambda: _is_bad_request(send))
    finally:
        upload.abort()


def _raw_head(bucket: Bucket, version: str | None = None) -> dict[str, Any]:
    """boto3's answer to a HEAD, which has more fields than `ObjectHead`."""
    ask = partial(bucket.client.s3.head_object, **bucket.client.at(layout.PROBE, version))
    return bucket.client.retrying(lambda: bucket.client.attempt("HeadObject", lambda: dict(ask())))


def _versions(bucket: Bucket) -> list[ObjectVersion] | None:
    """The object's versions in the store's order; None if the credentials may not list them."""
    found = _unless_denied(lambda: list(bucket.versions(layout.PROBE)))
    if found is None:
        return None
    return [v for v in found if v.key == layout.PROBE and not v.is_delete_marker]


def _put_versions(bucket: Bucket) -> list[tuple[str, datetime]]:
    """The versions that were written by a PUT, with their dates; none if they cannot be listed.
    Versions made by an upload belong to another probe: two may begin an archive at once."""
    found = []
    for one in _versions(bucket) or ():
        head = _raw_head(bucket, one.version_id)
        if head.get("ContentType") != IN_PARTS:
            modified = head.get("LastModified") or datetime.min.replace(tzinfo=UTC)
            found.append((one.version_id, modified))
    return found


def _oldest_put(bucket: Bucket) -> ObjectHead | None:
    """The oldest version that was written by a PUT; the newest version if they cannot be listed.

    A later version may come from the race and must be deleted again, so it gets no lock. Stores
    differ in the order of a key's versions, so the dates decide; among equal dates the last one
    listed counts.
    """
    put = reversed(_put_versions(bucket))
    version_id, _ = min(put, key=lambda one: one[1], default=(None, None))
    return bucket.head(layout.PROBE, version_id)


def _is_taken(write: Callable[[], object], plainly: Callable[[], object]) -> bool | None:
    """Whether the store refuses a conditional write because the key is taken. None if it refuses
    the condition itself: it says so with 501, or it takes the same write `plainly`."""
    try:
        write()
    except KeyTaken:
        return True
    except StoreError as error:
        if error.reason == "not_implemented":
            return None
        if error.reason != "refused" or error.status not in (400, 405):
            raise
        plainly()
        return None
    return False


def _unless_denied(ask: Callable[[], T]) -> T | None:
    """The result of `ask`; None if the credentials may not ask."""
    try:
        return ask()
    except StoreError as error:
        if error.reason != "denied":
            raise
        return None


def _is_bad_request(send: Callable[[], dict[str, Any]]) -> bool:
    """Whether the store answers 400: the request itself is wrong."""
    try:
        etag_of(send())
    except StoreError as error:
        if error.status != 400:
            raise
        return True
    return False
