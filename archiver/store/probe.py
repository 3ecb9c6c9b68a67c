"""What this store really does, tried out before anything is built on it.

One small object stays behind, under one key for the whole archive; a later probe finds it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from archiver.errors import StoreError
from archiver.manifest import layout
from archiver.store.bucket import Bucket

PROBE_BYTES = b"Written to learn whether this store refuses to overwrite it.\n"


@dataclass(frozen=True)
class Capabilities:
    """What the store proved; it stands in seal 0 as `store`."""

    checksums: bool
    """A wrong SHA-256 is refused."""
    create_once: bool
    """A second create-once write of a key is refused."""
    object_lock: bool | None
    versioning: bool | None
    """None where we may not ask."""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def probe(bucket: Bucket) -> Capabilities:
    """Try the store out. Raises `StoreError` where it refuses or is unreachable."""
    bucket.put_once(layout.PROBE, PROBE_BYTES, content_type="text/plain")
    return Capabilities(
        checksums=bucket.refuses_wrong_checksum(layout.PROBE),
        create_once=bucket.refuses_overwrite(layout.PROBE, PROBE_BYTES),
        object_lock=_unless_denied(bucket.has_object_lock),
        versioning=_unless_denied(bucket.is_versioned),
    )


def _unless_denied(ask: Callable[[], bool]) -> bool | None:
    try:
        return ask()
    except StoreError as error:
        if error.reason != "denied":
            raise
        return None


def require_safe(create_once: bool, *, single_writer: bool) -> None:
    """Several writers need create-once; raises `StoreError` where it is missing."""
    if not create_once and not single_writer:
        raise StoreError(
            "the store overwrites objects that must be created once, so two writers could harm "
            "each other: use another store, or run exactly one process with --single-writer"
        )
