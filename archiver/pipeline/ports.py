"""What the pipeline needs of the outside. Each port's own file states its full contract.

- `Source` (`source/client.py`): raises `SourceRefused`, `SourceError`, `CallError`, `NoRecording`;
  retries within.
- `Recordings` (`source/recording.py`): raises `CallError`; never retries. `source/resume.py` makes
  one download of as many connections as it takes.
- `Store` (`store/bucket.py`): what returns is durable and checked; create-once; raises
  `StoreError`, `KeyTaken`; retries within.
Threads share all of them; they raise `Interrupted` once the process must end.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import IO, Any, Protocol

from archiver.core.checksums import Buffer
from archiver.core.model import Call, Window
from archiver.source.api import SignedUrl
from archiver.source.recordings import RecordingClient as Recordings
from archiver.store.types import Head, Listed, Lock, Stored

__all__ = ["NoProgress", "Progress", "Recordings", "Source", "Store", "Upload"]


class Source(Protocol):
    """The platform's API."""

    base_url: str

    def call(self, call_id: str) -> tuple[Call, str | None]: ...

    def survey(self, call_id: str) -> dict[str, Any] | list[Any] | None: ...

    def recording_url(self, call_id: str) -> SignedUrl: ...


class Upload(Protocol):
    """A multipart upload under way."""

    def part(self, data: Buffer, sha256: str | None = ...) -> None: ...

    def complete(self, sha256: str) -> Stored: ...

    def abort(self) -> None: ...


class Store(Protocol):
    """The archive's bucket."""

    @property
    def read_back(self) -> bool: ...

    def is_answering(self) -> bool: ...

    def put_once(
        self,
        key: str,
        data: Buffer | IO[bytes],
        *,
        content_type: str = ...,
        retain_until: datetime | None = ...,
        held: bool = ...,
        sha256: str | None = ...,
        look: bool = ...,
    ) -> Stored: ...

    def extend(self, key: str, version_id: str | None, retain_until: datetime | None) -> Lock: ...

    def set_hold(self, key: str, version_id: str | None, held: bool) -> None: ...

    def begin(self, key: str, *, content_type: str, retain_until: datetime | None) -> Upload: ...

    def read(
        self, key: str, version_id: str | None = ..., max_bytes: int = ...
    ) -> bytes | None: ...

    def read_into(self, key: str, file: IO[bytes], max_bytes: int) -> bool: ...

    def tail(self, key: str, max_bytes: int) -> bytes | None: ...

    def stream(self, key: str, version_id: str | None = ...) -> Iterator[bytes] | None: ...

    def head(self, key: str, version_id: str | None = ...) -> Head | None: ...

    def list(self, prefix: str, start_after: str = ...) -> Iterator[Listed]: ...

    def folders(self, prefix: str) -> set[str]: ...


class Progress(Protocol):
    """Somebody who watches. Called from many threads."""

    def window_listed(self, window: Window, new_calls: int) -> None: ...

    def call_done(self, outcome: str, recording_bytes: int) -> None: ...

    def window_done(self, window: Window) -> None: ...


class NoProgress:
    """Nobody watches."""

    def window_listed(self, window: Window, new_calls: int) -> None:
        pass

    def call_done(self, outcome: str, recording_bytes: int) -> None:
        pass

    def window_done(self, window: Window) -> None:
        pass
