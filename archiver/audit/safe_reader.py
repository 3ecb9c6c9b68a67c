"""Reads an archive whose objects may be damaged, missing, huge or hostile.

`Reader` is the port that the auditor reads through. Two readers on top of it distinguish an object
that cannot be read from a store that cannot be used:

- `ItemReader` raises `Unreadable` for one object, and its caller continues with the next.
- `ReportingReader`, for `verify`, adds a finding instead: `unreadable`, `too_large`, `unlistable`.

Both raise `StoreError` for an outage, or if the store refuses everything. A control request decides
between the two: after a failure, a request of the same kind is sent for another object, first
seal 0, then others (`CONTROL_KEYS`). If one is answered, the store is up and the credentials allow
this kind of request, so only the object is at fault. This holds for any number of failures, and for
the first request too.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from time import sleep
from typing import IO, Literal, Protocol, TypeVar

from archiver.audit.findings import Findings
from archiver.core.errors import FormatError, NewerFormat, StoreError
from archiver.manifest import layout
from archiver.store.types import ListedObject, ObjectHead, ObjectVersion

T = TypeVar("T")

RequestKind = Literal["get", "get_version", "head", "head_version", "list", "versions"]
"""Kinds of requests that a bucket policy can allow or deny separately."""

REQUEST_TRIES = 2
STREAM_TRIES = 3
"""More than for requests: the store's client retries a request, but not a stream that breaks."""
LATE_TRIES = 4
"""Retries for a missing object that a writer may be about to write."""
SPOOL_BYTES = 8 << 20
"""Largest object that is spooled in memory; a larger one goes to a temporary file."""
CONTROL_KEYS = (
    layout.seal_key(0),
    layout.signature_key(0),
    layout.seal_key(1),
    layout.VERIFY_PAGE,
)
"""Small objects that nearly every archive has. "Not found" counts as an answer too."""
OUTAGES = {"unreachable", "credentials", "tls", "settings", "clock", "no_bucket"}
"""Reasons that rarely concern one object. After two control requests that fail with one of them no
more are sent, because the store's client may spend many seconds on each."""
CONTROL_BYTES = 1 << 20
CONTROL_ITEMS = 1000


class Reader(Protocol):
    """An archive, read only. `store/bucket.py` implements it.

    - Keys are relative to the archive's prefix, in arguments and results.
    - Threads share it. It writes nothing.
    - `read`, `stream` and `head` return None if the key or version does not exist. Without a
      `version_id` they read the newest version. Any other failure raises `StoreError`.
    - `read` returns at most `max_bytes`; a larger object raises `StoreError` with reason
      `too_large`.
    - `stream` yields chunks of bounded size, and raises `StoreError` if the body ends early. After
      a `retryable` error the caller may open a new stream.
    - `list` and `versions` yield everything below a prefix, in any order. If the store keeps no
      versions, `versions` yields nothing, or one version `null` for each key.
    - `folders` returns the names of the folders directly below a prefix, without the slash. With
      `hidden` it includes folders whose objects are all hidden by delete markers.
    """

    def read(
        self, key: str, version_id: str | None = ..., max_bytes: int = ...
    ) -> bytes | None: ...

    def stream(self, key: str, version_id: str | None = ...) -> Iterator[bytes] | None: ...

    def head(self, key: str, version_id: str | None = ...) -> ObjectHead | None: ...

    def list(self, prefix: str) -> Iterator[ListedObject]: ...

    def folders(self, prefix: str, *, hidden: bool = ...) -> set[str]: ...

    def versions(self, prefix: str) -> Iterator[ObjectVersion]: ...


class Unreadable(FormatError):
    """The store does not return one object or one listing, while it returns others. `why` is the
    message of the store's error."""

    def __init__(self, what: str, error: StoreError) -> None:
        super().__init__(f"{what} ({error})", retryable=error.retryable, reason=error.reason)
        self.why = str(error)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Add the key and what to do to the message of a `FormatError`. An `Unreadable` has both."""
    try:
        yield
    except Unreadable:
        raise
    except FormatError as error:
        raise FormatError(f"{key}: {error}; run archiver verify") from None


class Damages(dict[str, None]):
    """A line for each object that could not be read, in order. `with damages:` adds a `FormatError`
    to them, and the caller goes on after the block. Threads share it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        if isinstance(error, FormatError):
            self[str(error)] = None
        return isinstance(error, FormatError)


@dataclass(frozen=True)
class Spooled:
    """A local copy of an object. `file` is at its start; close it after use."""

    file: IO[bytes]
    bytes: int
    sha256: str


def lists_no_versions(error: StoreError) -> bool:
    """Whether an error means that the store cannot list versions at all. A missing permission has
    the reason `denied`, and does not count."""
    return error.reason == "refused" or error.status in (405, 501)


class ItemReader:
    """Reads as `Reader` does. Raises `Unreadable` if one object or listing cannot be read, and
    `StoreError` only for an outage or if the store refuses everything. Threads share it."""

    def __init__(self, reader: Reader, pause: Callable[[float], None] = sleep) -> None:
        self._reader = reader
        self._pause = pause
        self._answered: set[RequestKind] = set()
        """Kinds that were answered at least once, so the credentials allow them."""

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = 64 << 20
    ) -> bytes | None:
        kind: RequestKind = "get" if version_id is None else "get_version"
        return self._ask(kind, key, lambda: self._reader.read(key, version_id, max_bytes))

    def head(self, key: str, version_id: str | None = None) -> ObjectHead | None:
        kind: RequestKind = "head" if version_id is None else "head_version"
        return self._ask(kind, key, lambda: self._reader.head(key, version_id))

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        kind: RequestKind = "versions" if hidden else "list"
        return self._ask(kind, prefix, lambda: self._reader.folders(prefix, hidden=hidden))

    def list(self, prefix: str) -> Iterator[ListedObject]:
        return self._each("list", prefix, self._reader.list(prefix))

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """Raises `StoreError` if the store does not list versions at all."""
        return self._each("versions", prefix, self._reader.versions(prefix))

    def spool(self, key: str, limit: int, *, hashed: bool = True) -> Spooled | None:
        """Download an object of at most `limit` bytes, in bounded memory; None if there is none.
        With `hashed=False` the digest is that of the empty string."""

        def spool() -> Spooled | None:
            chunks = self._reader.stream(key)
            if chunks is None:
                return None
            sha256, size = hashlib.sha256(), 0
            file = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
            try:
                for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise StoreError("more bytes than it may have", reason="too_large")
                    if hashed:
                        sha256.update(chunk)
                    file.write(chunk)
            except BaseException:
                file.close()
                raise
            file.seek(0)
            return Spooled(file, size, sha256.hexdigest())

        return self._ask("get", key, spool, STREAM_TRIES)

    def sha256(self, key: str, version_id: str | None, size: int) -> str | None:
        """Return the hex SHA-256 of an object; None if there is none. If it has more than `size`
        bytes, return a text that is not a digest, so that it differs from any."""

        def digest() -> str | None:
            chunks = self._reader.stream(key, version_id)
            if chunks is None:
                return None
            sha256, received = hashlib.sha256(), 0
            for chunk in chunks:
                received += len(chunk)
                if received > size:
                    return "longer than its record says"
                sha256.update(chunk)
            return sha256.hexdigest()

        kind: RequestKind = "get" if version_id is None else "get_version"
        return self._ask(kind, key, digest, STREAM_TRIES)

    def _ask(
        self, kind: RequestKind, key: str, ask: Callable[[], T], tries: int = REQUEST_TRIES
    ) -> T:
        """Send a request at most `tries` times. Before the last try a control request must be
        answered, so that an outage that has just ended is not reported as an unreadable object."""
        for left in range(tries - 1, -1, -1):
            try:
                answer = ask()
                break
            except StoreError as error:
                is_too_large = error.reason == "too_large"
                is_last = is_too_large or not (left and error.retryable)
                asks_control = not is_too_large and (is_last or left == 1)
                if asks_control and not self._is_answered(kind, key):
                    raise
                if is_last:
                    raise Unreadable(f"{key} cannot be read", error) from None
            if left > 1:
                self._pause(0.5)
        self._answered.add(kind)
        return answer

    def _each(self, kind: RequestKind, prefix: str, items: Iterator[T]) -> Iterator[T]:
        try:
            yield from items
        except StoreError as error:
            if not self._is_answered(kind, prefix):
                raise
            raise Unreadable(f"{prefix or 'the bucket'} cannot be listed", error) from None
        self._answered.add(kind)

    def _is_answered(self, kind: RequestKind, failed: str) -> bool:
        """Send control requests. Returns whether the store answers now and has answered this kind
        of request at least once.

        `failed` is the key or prefix of the failed request; it cannot serve as its own control.
        """
        outages = 0
        for key in CONTROL_KEYS:
            if key == failed or outages > 1:
                continue
            try:
                self._send_control(kind, key)
            except StoreError as error:
                outages += error.reason in OUTAGES
                if error.reason != "too_large":
                    continue
            self._answered.add(kind)
            return True
        return False

    def _send_control(self, kind: RequestKind, key: str) -> None:
        match kind:
            case "get":
                self._reader.read(key, None, CONTROL_BYTES)
            case "list" | "versions":
                items = self._reader.list if kind == "list" else self._reader.versions
                for _ in islice(items(key), CONTROL_ITEMS):
                    pass
            case "head" | "get_version" | "head_version":
                head = self._reader.head(key)
                if kind == "head" or kind in self._answered:
                    return  # the kind was answered before; this HEAD shows that the store is up
                if head is None or head.version_id is None:
                    raise StoreError("no version to ask for")
                if kind == "get_version":
                    self._reader.read(key, head.version_id, CONTROL_BYTES)
                else:
                    self._reader.head(key, head.version_id)


class ReportingReader:
    """Reads for `verify`, and adds a finding for each object that is missing or cannot be read.

    `missing` is the code for an object that does not exist; with None that is not reported. Raises
    `StoreError` only for an outage or if the store refuses everything. Threads share it.
    """

    def __init__(
        self, reader: Reader, findings: Findings, pause: Callable[[float], None] = sleep
    ) -> None:
        self.items = ItemReader(reader, pause)
        self.findings = findings
        self._pause = pause
        self.unlistable: set[str] = set()
        """The prefixes that could not be listed to their end."""

    def read(
        self, key: str, limit: int, missing: str | None, *, late: bool = False
    ) -> bytes | None:
        """Return an object's bytes. With `late` a missing object is retried for two seconds,
        because a writer may be about to write it."""

        def read() -> bytes | None:
            data = self.items.read(key, None, limit)
            for _ in range(LATE_TRIES if late else 0):
                if data is not None:
                    break
                self._pause(0.5)
                data = self.items.read(key, None, limit)
            return data

        return self._reported(key, missing, read)

    def head(self, key: str, version_id: str | None, missing: str | None) -> ObjectHead | None:
        """Send a HEAD for an object, or for one of its versions."""
        detail = "there is none" if version_id is None else "not in the version that is recorded"
        return self._reported(key, missing, lambda: self.items.head(key, version_id), detail)

    def is_there(self, key: str) -> bool | None:
        """Whether an object exists; None if the store does not answer, which is reported."""
        return self._reported(key, None, lambda: self.items.head(key) is not None)

    def spool(
        self, key: str, limit: int, missing: str | None, *, hashed: bool = True
    ) -> Spooled | None:
        """As `ItemReader.spool`."""
        return self._reported(key, missing, lambda: self.items.spool(key, limit, hashed=hashed))

    def sha256(self, key: str, version_id: str | None, size: int, missing: str) -> str | None:
        """As `ItemReader.sha256`."""
        return self._reported(key, missing, lambda: self.items.sha256(key, version_id, size))

    def parsed(self, key: str, data: bytes, parse: Callable[[bytes], T], invalid: str) -> T | None:
        """Parse an object. If that fails, add the finding `invalid`, or `newer_format`."""
        try:
            return parse(data)
        except FormatError as error:
            code = "newer_format" if isinstance(error, NewerFormat) else invalid
            self.findings.add(code, key, str(error))
            return None

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Yield the objects below a prefix. An error in the middle ends it, and is reported."""
        return self._each(prefix, self.items.list(prefix))

    def versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """Yield the versions below a prefix, as `list` does. Raises `StoreError` also if the store
        does not list versions at all."""
        return self._each(prefix, self.items.versions(prefix))

    def _reported(
        self,
        key: str,
        missing: str | None,
        ask: Callable[[], T | None],
        detail: str = "there is none",
    ) -> T | None:
        try:
            answer = ask()
        except Unreadable as error:
            if error.reason == "too_large":
                self.findings.add("too_large", key)
            else:
                self.findings.add("unreadable", key, error.why)
            return None
        if answer is None and missing is not None:
            self.findings.add(missing, key, detail)
        return answer

    def _each(self, prefix: str, items: Iterator[T]) -> Iterator[T]:
        try:
            yield from items
        except Unreadable as error:
            self.unlistable.add(prefix)
            self.findings.add("unlistable", prefix, error.why)
