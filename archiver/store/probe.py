"""What this store really does, tried out before anything is built on it.

S3-compatible stores ignore headers in silence, differ in what create-once and Object Lock mean, and
sometimes lie. So it is tried out, on one small object, `manifest/probe`, which stays. It gets a
second version where Object Lock is used, to see a lock that came with a multipart upload; and more
where a store keeps what it should have refused: those are taken away again, as far as we may.
It is locked for `LOCK_SECONDS` at a time, never for long.

- `probe` tries everything, with 32 racing writers; `init` and `check` run it.
- `glance` asks the least, and leaves nothing new; every other start runs it.
- A writer needs no permission to delete, to list versions or to hold: what it may not ask is None.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

from archiver.errors import KeyTaken, StoreError
from archiver.store.bucket import Bucket
from archiver.store.objects import Head
from archiver.store.requests import whole_second
from archiver.store.trial import IN_PARTS, Trial, is_taken, unless_denied

RACERS = 32
PATIENCE_SECONDS = 1.0
HOLD_TRIES = 5
LOCK_SECONDS = 60
NOT_DONE = ("not_implemented", "not_configured", "refused")
"""Reasons of a store that cannot do what was asked, whoever asks."""


@dataclass(frozen=True)
class Capabilities:
    """What the store proved; seal 0 has it as `store`. None: not tried, or not to be known."""

    checksums: bool
    """A wrong SHA-256 is refused, of a part and of a whole object."""
    create_once: bool
    """Of writers that race to create an object, one wins; later ones are refused."""
    object_lock: bool | None
    """The bucket has it."""
    versioning: bool | None
    whole_checksums: bool = False
    """A wrong SHA-256 of a whole object was refused: else we may not have been let try."""
    create_once_racers: int = 0
    """How many raced; to create the object, or where it was there, to overwrite it."""
    create_once_race_winners: int | None = None
    complete_create_once: bool | None = None
    """CompleteMultipartUpload refuses a key that is taken (not that it is atomic)."""
    lock_holds: bool | None = None
    """A locked version keeps mode and date, cannot be deleted, and the date not be shortened."""
    lock_at_multipart: bool | None = None
    """A lock given when a multipart upload begins is kept."""
    legal_hold: bool | None = None
    """A legal hold can be set and taken off again, and is shown."""
    clock_skew_seconds: float | None = None
    """The store's clock less ours."""
    tls: bool = False

    def document(self) -> dict[str, Any]:
        """As seal 0 has it."""
        return {name: value for name, value in asdict(self).items() if name != "clock_skew_seconds"}


def glance(bucket: Bucket, proved: Mapping[str, Any]) -> Capabilities:
    """What the store shows now, and no more than it `proved` when the archive was begun (seal 0's
    `store`). Raises `StoreError` where the store refuses or is unreachable."""
    trial = Trial(bucket)
    refuses = proved.get("create_once") is not False and (
        # The first may find the object gone, and create it.
        _refuses_overwrite(trial) or _refuses_overwrite(trial)
    )
    checksums = proved.get("checksums") is not False and trial.refuses_wrong_part()
    return Capabilities(
        checksums=checksums,
        whole_checksums=checksums and proved.get("whole_checksums") is True,
        create_once=refuses,
        object_lock=None,
        versioning=None,
        lock_holds=False if proved.get("lock_holds") is False else None,
        tls=trial.uses_tls,
    )


def probe(bucket: Bucket) -> Capabilities:
    """Try the store out. Raises `StoreError` where it refuses, is unreachable, or does not keep the
    settings that each object is to be written with."""
    trial = Trial(bucket)
    raced = _create_once(trial)
    checksums, whole = _checksums(trial)
    found = Capabilities(
        **raced,
        checksums=checksums,
        whole_checksums=whole,
        object_lock=unless_denied(bucket.has_object_lock),
        versioning=unless_denied(bucket.is_versioned),
        clock_skew_seconds=trial.clock_skew_seconds(),
        tls=trial.uses_tls,
    )
    locks = trial.lock_mode is not None and found.object_lock is not False
    refused, kept = _multipart(trial, locks=locks)
    found = replace(found, complete_create_once=refused, lock_at_multipart=kept)
    if trial.lock_mode is not None:
        found = replace(found, lock_holds=locks and _lock_holds(trial))
    if found.object_lock:
        found = replace(found, legal_hold=_hold_works(trial))
    if not (found.create_once and found.complete_create_once and found.checksums):
        trial.clean_up()
    return found


def require_safe(found: Capabilities, *, single_writer: bool) -> None:
    """Several writers need create-once, a promised lock must hold; else raises `StoreError`."""
    if not found.create_once and not single_writer:
        raise StoreError(
            "the store overwrites objects that must be created once, so two writers could harm "
            "each other: use another store, or run exactly one process with --single-writer"
        )
    if found.lock_holds is False:
        raise StoreError(
            "the store says that it locks objects, but lets locked ones be changed or deleted: "
            "use another store, or set ARCHIVER_OBJECT_LOCK_MODE=none"
        )


# --- create-once


def _create_once(trial: Trial) -> dict[str, Any]:
    """Race to create the object, or where it is there, to overwrite it. A winner whose answer was
    lost is told by its next try that the key is taken: so none is as good as one, and versions
    count as well as answers."""
    fresh = trial.head() is None
    winners = _race(trial) if fresh else None
    if not trial.is_ours():
        raise StoreError("manifest/probe holds other bytes than the archiver's: use another prefix")
    if winners is not None:
        trial.check_settings()
        winners = max(winners, trial.times_put())
    refuses = _refuses_overwrite(trial)
    if refuses and not fresh:
        winners = _race(trial)
    return {
        "create_once": refuses and (winners or 0) <= (1 if fresh else 0),
        "create_once_racers": 0 if winners is None else RACERS,
        "create_once_race_winners": winners,
    }


def _race(trial: Trial) -> int:
    """Writers that all want to create the object; how many the store let win. A store that makes
    losers wait in line may do so for long: who has waited `PATIENCE_SECONDS` asks again."""
    barrier = threading.Barrier(RACERS, timeout=10)
    racers = trial.hasty(RACERS, PATIENCE_SECONDS)

    def run(_: int) -> bool:
        with suppress(threading.BrokenBarrierError):  # a machine that denies us so many threads
            barrier.wait()
        try:
            return not _refuses_overwrite(racers)
        except StoreError as error:
            if not error.retryable:
                raise
            return not _refuses_overwrite(trial)

    with ThreadPoolExecutor(RACERS, thread_name_prefix="racer") as pool:
        return sum(pool.map(run, range(RACERS)))


def _refuses_overwrite(trial: Trial) -> bool:
    return is_taken(lambda: trial.put(IfNoneMatch="*"))


def _checksums(trial: Trial) -> tuple[bool, bool]:
    """Whether what is wrong is refused, and whether that is known of whole objects too. A store
    that takes wrong parts would keep a wrong object: it is not sent one. Where a policy of the
    bucket refuses whatever is not create-once, the part's answer must do."""
    if not trial.refuses_wrong_part():
        return False, False
    whole = unless_denied(trial.refuses_wrong_put)
    return whole is not False, whole is True


# --- multipart uploads and Object Lock


def _multipart(trial: Trial, *, locks: bool) -> tuple[bool, bool | None]:
    """Whether an upload's end refuses a taken key, and whether a lock given at its beginning is
    kept. The second takes a version that came about so; a later probe finds it there."""
    until = trial.bucket.requests.clock.now() + timedelta(seconds=LOCK_SECONDS)
    made: list[str | None] = []

    def upload(**condition: str) -> None:
        made.append(trial.upload(until if locks else None, **condition))

    refused = is_taken(lambda: upload(IfNoneMatch="*"))
    if not locks:
        return refused, None
    if not made:
        if trial.content_type() == IN_PARTS:
            # Without leave to list versions this one was locked by `_lock_holds`: it tells nothing.
            return refused, None if trial.versions() is None else _is_locked(trial, None)
        with suppress(KeyTaken):
            unless_denied(upload)
    return refused, _is_locked(trial, made[0]) if made else None


def _is_locked(trial: Trial, version: str | None) -> bool:
    head = trial.head(version)
    return head is not None and head.lock_mode is not None


def _lock_holds(trial: Trial) -> bool:
    """Lock a version for a minute, try to get round that, and look. A lock that the bucket itself
    gave it may be longer, and its mode cannot be changed."""
    version, head = _put_version(trial)
    if version is None or head is None or trial.lock_mode is None:
        return False
    now = trial.bucket.requests.clock.now()
    mode, until = trial.lock_mode, whole_second(now + timedelta(seconds=LOCK_SECONDS))
    if head.lock_mode is not None and head.lock_until is not None and head.lock_until > now:
        mode, until = head.lock_mode, max(until, head.lock_until)
    try:
        trial.lock(version, mode, until)
    except StoreError as error:
        if error.reason in NOT_DONE:
            return False
        raise
    trial.try_to_unlock(version, mode, until - timedelta(seconds=LOCK_SECONDS // 2))
    left = trial.head(version)
    kept = left is not None and left.lock_until is not None and left.lock_until >= until
    return kept and left is not None and left.lock_mode == mode


def _hold_works(trial: Trial) -> bool | None:
    """Whether a legal hold can be set, is shown, and can be taken off; None where we may not."""
    version, _ = _put_version(trial)

    def holds(status: bool) -> bool:
        trial.hold(version, status)
        head = trial.head(version)
        return head is not None and head.held == status

    def works(status: bool) -> bool:
        # Another process may be trying the same: what it does just then is no word on the store.
        return any(holds(status) for _ in range(HOLD_TRIES))

    try:
        return unless_denied(lambda: works(True) and works(False))
    except StoreError as error:
        if error.reason in NOT_DONE:
            return False
        raise


def _put_version(trial: Trial) -> tuple[str | None, Head | None]:
    """The oldest version that was not made for `_multipart`; the newest one where we may not list
    them. A later one may be a race's, and has to be taken away again: so it gets no lock. Stores
    differ in the order in which they list a key's versions, so the dates say which is the oldest;
    of one second, the last that is listed."""
    put = trial.put_versions()
    oldest = min(enumerate(put), key=lambda one: (one[1][1], -one[0]), default=(0, (None, None)))
    head = trial.head(oldest[1][0])
    return head.version_id if head else None, head
