"""Reads an archive whose objects may be damaged, missing, huge or hostile.

`Reader` is the port that the auditor reads through. Two readers over it tell an object that cannot
be read from a store that cannot be used:

- `ReportingReader` turns what the store does not hand out into a finding: `unreadable`,
  `too_large`, `unlistable`. `verify` uses it.
- `ItemReader` raises `Unreadable`, and its caller goes on with the next object.

Both raise `StoreError` for an outage, or a refusal of everything. A control request tells the one
from the other: after a failure the same kind of request is sent for another object, first for seal
0, then for its neighbours. Where one is answered, the store is up and the credentials hold for this
kind of request, so the failure belongs to the object alone, however many of them fail, and be it
the first that was asked for.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from time import sleep
from typing import IO, Literal, Protocol, TypeVar

from archiver.audit.findings import Findings
from archiver.core.errors import FormatError, StoreError
from archiver.manifest import layout
from archiver.store.types import Head, ListedObject, Version

__all__ = ["Head", "ItemReader", "ListedObject", "Reader", "ReportingReader", "Version"]

T = TypeVar("T")

RequestKind = Literal["get", "get_version", "head", "head_version", "list", "versions"]
"""What a policy of the store may permit or refuse by itself."""

TRIES = 3
"""Of a request, and of a stream: the store's client tries a request again, not a broken stream."""
LATE_TRIES = 4
"""How often an object is asked for again that a writer may be about to write."""
SPOOL_BYTES = 8 << 20
"""What a spooled object may take of memory; beyond it goes to a temporary file."""
CONTROL_KEYS = (
    layout.seal_key(0),
    layout.signature_key(0),
    layout.seal_key(1),
    layout.VERIFY_PAGE,
)
"""Small objects that nearly every archive has. That there is none is an answer too."""
OUTAGES = {"unreachable", "credentials", "tls", "settings", "clock", "no_bucket"}
"""Reasons that hardly ever are about one object. Two control requests that fail so are enough,
because each of them may take the store's client many seconds."""
CONTROL_BYTES = 1 << 20
CONTROL_ITEMS = 1000


class Reader(Protocol):
    """An archive, read only. `store/bucket.py` satisfies it.

    - Keys are relative to the archive's prefix, in both directions.
    - Many threads call at once. Nothing is written, ever.
    - `read`, `stream` and `head` return None where there is no such object, version or key. Without
      a `version_id` they mean the newest version. Any other refusal raises `StoreError`.
    - `read` holds at most `max_bytes`; a larger object raises `StoreError` with reason `too_large`.
    - `stream` yields chunks of bounded size, and raises `StoreError` where the body ends early. A
      `retryable` error may be tried again with a new stream.
    - `list` and `versions` yield everything below a prefix in any order. `versions` yields nothing
      where the store keeps none, or one version `null` a key.
    - `folders` are the names right below a prefix that a slash ends; with `hidden` also those where
      delete markers hide all that lies below.
    """

    def read(
        self, key: str, version_id: str | None = ..., max_bytes: int = ...
    ) -> bytes | None: ...

    def stream(self, key: str, version_id: str | None = ...) -> Iterator[bytes] | None: ...

    def head(self, key: str, version_id: str | None = ...) -> Head | None: ...

    def list(self, prefix: str) -> Iterator[ListedObject]: ...

    def folders(self, prefix: str, *, hidden: bool = ...) -> set[str]: ...

    def versions(self, prefix: str) -> Iterator[Version]: ...


class Unreadable(FormatError):
    """One object, or one listing, that the store does not hand out while it answers others."""


def lists_no_versions(error: StoreError) -> bool:
    """Whether the store says that it does not list versions at all."""
    return error.reason == "refused" or error.status in (405, 501)


class ControlRequests:
    """Sends the control requests. Threads share it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._answered: set[RequestKind] = set()
        """Kinds that were answered at least once: the credentials hold for them."""

    def succeeded(self, kind: RequestKind) -> None:
        """Note that a request of this kind was answered."""
        if kind not in self._answered:
            with self._lock:
                self._answered.add(kind)

    def is_answered(self, kind: RequestKind, failed: str) -> bool:
        """Whether the store answers now, and has answered this kind of request at least once.

        `failed` is the key or the prefix that was asked for: it is no control for itself.
        """
        silent = 0
        for key in CONTROL_KEYS:
            if key == failed or silent > 1:
                continue
            asked = kind
            if kind in self._answered and kind in ("get_version", "head_version"):
                asked = "head"  # cheaper, and it shows as well that the store is up
            try:
                self._ask(asked, key)
            except StoreError as error:
                silent += error.reason in OUTAGES
                if error.reason != "too_large":
                    continue
            self.succeeded(kind)
            return True
        return False

    def _ask(self, kind: RequestKind, key: str) -> None:
        """Make one request. Raises `StoreError`."""
        match kind:
            case "get":
                self._reader.read(key, None, CONTROL_BYTES)
            case "head":
                self._reader.head(key)
            case "get_version" | "head_version":
                head = self._reader.head(key)
                if head is None or head.version_id is None:
                    raise StoreError("no version to ask for")
                if kind == "get_version":
                    self._reader.read(key, head.version_id, CONTROL_BYTES)
                else:
                    self._reader.head(key, head.version_id)
            case "list":
                deque(islice(self._reader.list(key), CONTROL_ITEMS), maxlen=0)
            case "versions":
                deque(islice(self._reader.versions(key), CONTROL_ITEMS), maxlen=0)


class ItemReader:
    """A `Reader` that raises `Unreadable` for one object or one listing that cannot be had, and
    `StoreError` only for an outage or a refusal of everything. Threads share it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._control = ControlRequests(reader)

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = 64 << 20
    ) -> bytes | None:
        kind: RequestKind = "get" if version_id is None else "get_version"
        return self._asked(kind, key, lambda: self._reader.read(key, version_id, max_bytes))

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        kind: RequestKind = "get" if version_id is None else "get_version"
        chunks = self._asked(kind, key, lambda: self._reader.stream(key, version_id))
        return None if chunks is None else self._each(kind, key, chunks)

    def head(self, key: str, version_id: str | None = None) -> Head | None:
        kind: RequestKind = "head" if version_id is None else "head_version"
        return self._asked(kind, key, lambda: self._reader.head(key, version_id))

    def list(self, prefix: str) -> Iterator[ListedObject]:
        return self._each("list", prefix, self._reader.list(prefix))

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        kind: RequestKind = "versions" if hidden else "list"
        return self._asked(kind, prefix, lambda: self._reader.folders(prefix, hidden=hidden))

    def versions(self, prefix: str) -> Iterator[Version]:
        return self._each("versions", prefix, self._reader.versions(prefix))

    def _asked(self, kind: RequestKind, key: str, ask: Callable[[], T]) -> T:
        try:
            answer = ask()
        except StoreError as error:
            raise self._translated(kind, key, error) from None
        self._control.succeeded(kind)
        return answer

    def _each(self, kind: RequestKind, key: str, items: Iterator[T]) -> Iterator[T]:
        try:
            yield from items
        except StoreError as error:
            raise self._translated(kind, key, error) from None
        self._control.succeeded(kind)

    def _translated(self, kind: RequestKind, key: str, error: StoreError) -> Exception:
        if error.reason != "too_large" and not self._control.is_answered(kind, key):
            return error
        verb = "listed" if kind in ("list", "versions") else "read"
        what = f"{key or 'the bucket'} cannot be {verb} ({error})"
        return Unreadable(what, retryable=error.retryable, reason=error.reason)


class ReportingReader:
    """Reads for `verify`: where it returns None, a finding says why, or the caller asked for none.
    Raises `StoreError` only for an outage or a refusal of everything. Threads share it."""

    def __init__(
        self, reader: Reader, findings: Findings, pause: Callable[[float], None] = sleep
    ) -> None:
        self.reader = reader
        self.findings = findings
        self._pause = pause
        self._control = ControlRequests(reader)
        self.unlistable: set[str] = set()
        """The prefixes that could not be listed to their end."""

    def read(
        self, key: str, limit: int, missing: str | None, *, late: bool = False
    ) -> bytes | None:
        """An object's bytes. `missing` is the code to report where there is none; None reports
        nothing. With `late` we wait for it a little: a writer may be about to write it."""

        def ask() -> bytes | None:
            data = self.reader.read(key, None, limit)
            for _ in range(LATE_TRIES if late else 0):
                if data is not None:
                    break
                self._pause(0.5)
                data = self.reader.read(key, None, limit)
            return data

        return self._asked("get", key, missing, ask)

    def head(self, key: str, version_id: str | None, missing: str | None) -> Head | None:
        """What the store says of an object, or of a version of it. `missing` as in `read`."""
        kind: RequestKind = "head" if version_id is None else "head_version"
        detail = "there is none" if version_id is None else "not in the version that is recorded"
        return self._asked(kind, key, missing, lambda: self.reader.head(key, version_id), detail)

    def is_there(self, key: str) -> bool | None:
        """Whether there is such an object; None where the store does not say, and that has been
        reported."""
        return self._asked("head", key, None, lambda: self.reader.head(key) is not None)

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Every object below a prefix, as far as it can be listed: else that is reported."""
        return self._each("list", prefix, self.reader.list(prefix))

    def versions(self, prefix: str) -> Iterator[Version]:
        """Every version below a prefix, as far as they can be listed: else that is reported. Raises
        `StoreError` also where the store does not list versions at all."""
        return self._each("versions", prefix, self.reader.versions(prefix))

    def spool(
        self, key: str, limit: int, missing: str | None, *, hashed: bool = True
    ) -> Spooled | None:
        """An object of any size up to `limit`, in bounded memory. The caller closes its file."""
        return self._asked("get", key, missing, lambda: spool(self.reader, key, limit, hashed))

    def sha256(self, key: str, version_id: str | None, size: int, missing: str) -> str | None:
        """Hex digest of an object's bytes; words that are no digest where it has more than `size`
        bytes."""

        def digest() -> str | None:
            chunks = self.reader.stream(key, version_id)
            if chunks is None:
                return None
            sha256 = hashlib.sha256()
            try:
                for chunk in _limited(chunks, size):
                    sha256.update(chunk)
            except TooLarge:
                return "longer than its record says"
            return sha256.hexdigest()

        return self._asked("get" if version_id is None else "get_version", key, missing, digest)

    def _each(self, kind: RequestKind, prefix: str, items: Iterator[T]) -> Iterator[T]:
        try:
            yield from items
        except StoreError as error:
            if not self._control.is_answered(kind, prefix):
                raise
            self.unlistable.add(prefix)
            self.findings.add("unlistable", prefix, str(error))
            return
        self._control.succeeded(kind)

    def _asked(
        self,
        kind: RequestKind,
        key: str,
        missing: str | None,
        ask: Callable[[], T | None],
        detail: str = "there is none",
    ) -> T | None:
        """Ask, up to `TRIES` times; whatever keeps us from an answer is reported or raised.

        The last try comes after a control request was answered: an outage that has just ended
        harms no object.
        """
        for attempt in count(1):
            try:
                answer = ask()
                break
            except StoreError as error:
                if error.reason == "too_large":
                    self.findings.add("too_large", key)
                    return None
                is_last = attempt == TRIES or not error.retryable
                asks_control = is_last or attempt == TRIES - 1
                if asks_control and not self._control.is_answered(kind, key):
                    raise
                if is_last:
                    self.findings.add("unreadable", key, str(error))
                    return None
            self._pause(0.5 * attempt)
        self._control.succeeded(kind)
        if answer is None and missing is not None:
            self.findings.add(missing, key, detail)
        return answer


class TooLarge(StoreError):
    """More bytes came than were allowed."""

    def __init__(self) -> None:
        super().__init__("more bytes than it may have", reason="too_large")


@dataclass(frozen=True)
class Spooled:
    """An object on our side, to be read more than once. Close `file` after use."""

    file: IO[bytes]
    bytes: int
    sha256: str


def spool(reader: Reader, key: str, limit: int, hashed: bool = True) -> Spooled | None:
    """Read an object to our side; None where there is none. Raises `TooLarge` beyond `limit` bytes.
    Its digest is that of nothing unless it is to be `hashed`."""
    chunks = reader.stream(key)
    if chunks is None:
        return None
    sha256, size = hashlib.sha256(), 0
    file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    try:
        for chunk in _limited(chunks, limit):
            if hashed:
                sha256.update(chunk)
            size += len(chunk)
            file.write(chunk)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return Spooled(file, size, sha256.hexdigest())


def _limited(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    received = 0
    for chunk in chunks:
        received += len(chunk)
        if received > limit:
            raise TooLarge
        yield chunk
