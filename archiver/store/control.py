"""The control: whether a request failed for its own object alone, or because the store is out.

A store that is out fails everybody's requests, one that refuses an object fails those about that
object. So after a failure it is asked for an object that every archive has.
"""

from __future__ import annotations

from typing import Protocol

from archiver.errors import Reach, StoreError
from archiver.manifest import layout

_OF_ALL = ("clock", "credentials", "no_bucket", "settings", "tls")
"""Reasons that are never about one object."""


class Objects(Protocol):
    """Who reads objects: a `Bucket`. Raises `StoreError`."""

    def read(self, key: str, /) -> bytes | None: ...


def is_of_one_object(store: Objects, error: StoreError) -> bool:
    """Whether the store answers for another object: then the failure was about its own alone."""
    if error.reach is Reach.ITEM:
        return True
    if error.reason in _OF_ALL:
        return False
    try:
        return store.read(layout.seal_key(0)) is not None
    except StoreError:
        return False
