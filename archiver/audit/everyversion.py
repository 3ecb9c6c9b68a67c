"""All versions below a prefix: what lies on top of a key, or hides it, hides nothing here.

Who may write to a bucket can put another version on a key, or a delete marker, whatever the lock.
A listing shows what is on top. So what must not be missed is looked for among all versions.
"""

from __future__ import annotations

from collections.abc import Iterator

from archiver.audit.reader import Reader
from archiver.errors import StoreError
from archiver.manifest import layout
from archiver.manifest.event import ObjectRef


class EveryVersion:
    """Lists them; of a store that keeps none, what is there. Threads share it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._are_listed: bool | None = None

    def below(self, prefix: str) -> Iterator[tuple[ObjectRef, bool]]:
        """Each version, or delete marker (True). Raises `StoreError`, also where we may not list
        versions: what we cannot see would pass for missing."""
        if not self._lists_versions():
            yield from ((ObjectRef(item.key, None), False) for item in self._reader.list(prefix))
            return
        for one in self._reader.versions(prefix):
            version_id = None if one.version_id == "null" and one.is_latest else one.version_id
            yield ObjectRef(one.key, version_id), one.is_delete_marker

    def folders(self, prefix: str) -> set[str]:
        """The names right below a prefix that a slash ends, hidden or not."""
        return self._reader.folders(prefix, hidden=self._lists_versions())

    def _lists_versions(self) -> bool:
        """Every archive has a seal 0, hidden or not."""
        if self._are_listed is None:
            try:
                first = next(iter(self._reader.versions(layout.seal_key(0))), None)
            except StoreError as error:
                if error.reason != "refused" and error.status not in (405, 501):
                    raise
                first = None
            self._are_listed = first is not None
        return self._are_listed
