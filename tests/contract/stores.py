"""The stores that the suite knows, and what each does where it does not do as promised.

Data alone: the suite holds it against the real servers, in both directions, so a store that gets
better fails a test until this page says so; the README's list of known stores is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from archiver.store.probe import RACERS, Capabilities


@dataclass(frozen=True)
class Known:
    """A store, in one kind of bucket."""

    server: str
    """Which process serves it: a fixture of `conftest.py`."""
    title: str
    label: str
    """For a table's cells."""
    locked: bool
    """Whether the bucket is made with Object Lock (and is versioned by that)."""
    proved: Capabilities
    """What `probe` finds on a fresh prefix; with `COMPLIANCE` where the bucket is `locked`."""
    loose: frozenset[str] = field(default_factory=frozenset)
    """Fields of `proved` that come out one way or the other, by chance."""


def _proved(**differs: bool | int | None) -> Capabilities:
    """All that can be hoped for of a bucket with Object Lock, but for what differs."""
    best: dict[str, bool | int | None] = {
        "checksums": True,
        "create_once": True,
        "object_lock": True,
        "versioning": True,
        "conditional_writes": True,
        "create_once_racers": RACERS,
        "create_once_race_winners": 1,
        "complete_create_once": True,
        "lock_holds": True,
        "lock_at_multipart": True,
        "legal_hold": True,
    }
    found = {**best, **differs}
    return Capabilities(**found, whole_checksums=bool(found["checksums"]))  # type: ignore[arg-type]


_PLAIN: dict[str, bool | int | None] = {
    "object_lock": False,
    "versioning": False,
    "lock_holds": None,
    "lock_at_multipart": None,
    "legal_hold": None,
}
_ALL_WIN: dict[str, bool | int | None] = {
    "create_once": False,
    "create_once_race_winners": RACERS,
    "complete_create_once": False,
    "checksums": False,
}

_REFUSED: dict[str, bool | int | None] = {
    "create_once": False,
    "conditional_writes": False,
    "create_once_racers": 0,
    "create_once_race_winners": None,
    "complete_create_once": False,
}
"""The store refuses the condition itself."""

KNOWN: Mapping[str, Known] = {
    "weed-locked": Known(
        "weed",
        "SeaweedFS 4.48 (`weed mini`), bucket with Object Lock",
        "SeaweedFS (locked)",
        True,
        _proved(),
    ),
    "weed-plain": Known(
        "weed",
        "SeaweedFS 4.48 (`weed mini`), plain bucket",
        "SeaweedFS (plain)",
        False,
        _proved(**_PLAIN),
    ),
    "rgw-locked": Known(
        "rgw",
        "Ceph RGW 16.2, bucket with Object Lock",
        "Ceph RGW (locked)",
        True,
        _proved(**_ALL_WIN, lock_at_multipart=False),
    ),
    "rgw-plain": Known(
        "rgw",
        "Ceph RGW 16.2, plain bucket",
        "Ceph RGW (plain)",
        False,
        _proved(**_PLAIN, checksums=False, complete_create_once=False),
    ),
    "moto": Known(
        "moto",
        "moto 5.2 (a fake of S3 for tests), bucket with Object Lock",
        "moto",
        True,
        _proved(checksums=False, lock_holds=False, lock_at_multipart=False),
        loose=frozenset({"create_once", "create_once_race_winners"}),
    ),
    "rclone": Known(
        "rclone",
        "rclone 1.75 (`serve s3` of a directory)",
        "rclone",
        False,
        _proved(**_PLAIN, **_ALL_WIN),
    ),
    "b2-like": Known(
        "b2_like",
        "B2-like: 501 for a conditional write (Backblaze B2, OVHcloud), bucket with Object Lock",
        "B2-like",
        True,
        _proved(**_REFUSED),
    ),
    "gcs-like": Known(
        "gcs_like",
        "GCS-like: conditions are ignored, 400 for `?object-lock`, a HEAD without a length",
        "GCS-like",
        False,
        _proved(**{**_PLAIN, **_ALL_WIN, "checksums": True}),
    ),
    "oss-like": Known(
        "oss_like",
        "OSS-like: the bucket only in the host's name, 501 for a conditional write, 404 for "
        "`?object-lock`, 405 for `?versioning`",
        "OSS-like",
        False,
        _proved(**{**_PLAIN, **_REFUSED}),
    ),
    "minio-like": Known(
        "minio_like",
        "MinIO-like (2021): lock calls need Content-MD5; 501 for a conditional end of an upload",
        "MinIO-like",
        True,
        _proved(complete_create_once=False),
    ),
}


@dataclass(frozen=True)
class Matter:
    """Something that a store promises, or should, and what the others do instead."""

    promised: str
    instead: Mapping[str, str] = field(default_factory=dict)
    locked: bool = False
    """Only of buckets with Object Lock."""


_RGW = ("rgw-locked", "rgw-plain")
_NO_CONDITION = ("b2-like", "oss-like")


def _all(stores: tuple[str, ...], instead: str) -> dict[str, str]:
    return dict.fromkeys(stores, instead)


MATTERS: Mapping[str, Matter] = {
    "a create-once write of a taken key": Matter(
        "refused",
        {
            "rclone": "overwritten",
            "gcs-like": "overwritten",
            "rgw-locked": "hidden under a second version",
            **_all(_NO_CONDITION, "the condition is refused"),
        },
    ),
    "a create-once end of an upload, of a taken key": Matter(
        "refused",
        {
            "rclone": "overwritten",
            "gcs-like": "overwritten",
            "rgw-locked": "hidden under a second version",
            "rgw-plain": "overwritten",
            **_all((*_NO_CONDITION, "minio-like"), "the condition is refused"),
        },
    ),
    "an object with a wrong SHA-256": Matter("refused", _all((*_RGW, "moto", "rclone"), "kept")),
    "an object with a wrong Content-MD5": Matter("refused", {"moto": "kept"}),
    "a part with a wrong SHA-256": Matter("refused", _all((*_RGW, "moto", "rclone"), "taken")),
    "the SHA-256 of an object, asked for later": Matter("told", _all((*_RGW, "moto"), "not told")),
    "a lock given with an object": Matter("kept", {"moto": "refused"}, locked=True),
    "a lock given when an upload begins": Matter(
        "kept", {"rgw-locked": "dropped", "moto": "dropped"}, locked=True
    ),
    "deleting a locked version": Matter("refused", locked=True),
    "deleting a version locked in COMPLIANCE, with the bypass": Matter("refused", locked=True),
    "shortening a lock": Matter("refused", {"moto": "done"}, locked=True),
    "weakening COMPLIANCE to GOVERNANCE": Matter("refused", {"moto": "done"}, locked=True),
    "strengthening GOVERNANCE to COMPLIANCE": Matter(
        "refused without the bypass", {"moto": "done"}, locked=True
    ),
    "deleting a version on legal hold": Matter("refused", locked=True),
    "a plain delete of a locked object": Matter("hidden under a marker", locked=True),
    "encryption (ARCHIVER_SSE=AES256)": Matter("told as kept", _all(_RGW, "dropped")),
    "a storage class (ARCHIVER_STORAGE_CLASS=STANDARD_IA)": Matter(
        "told as kept", _all(_RGW, "refused")
    ),
    "a lock or a hold without Content-MD5": Matter(
        "taken with another checksum", {"minio-like": "refused"}, locked=True
    ),
    "the size of an object, by a HEAD": Matter("told", {"gcs-like": "not told"}),
    "the bucket's name in the path": Matter("taken", {"oss-like": "refused"}),
    "a listing of versions": Matter("told", {"rclone": "not there"}),
    "an object uploaded in parts": Matter("kept"),
    "the time when an upload was begun": Matter("told", {"moto": "always one of 2010"}),
    "a wrong secret key": Matter("refused", {"moto": "taken"}),
}


def told(matter: str, store: str) -> str:
    """What the table says of a store."""
    one = MATTERS[matter]
    return one.instead.get(store, one.promised)
