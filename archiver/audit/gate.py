"""Reading what may be damaged, missing, huge or hostile: a bad object is a finding, never a crash.

Of what the store refuses, some is about one object or one listing (a finding: `unreadable`,
`too_large`, `unlistable`), some about the store or our credentials (raised as it is). Which of them
it is, a control decides (`control.py`): while the store answers the same question about another
object, it is a finding: also of the first object that is asked for, and of however many.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TypeVar

from archiver.audit.control import Control, Kind
from archiver.audit.findings import Findings
from archiver.audit.reader import Head, Listed, Reader, Version
from archiver.errors import StoreError
from archiver.hub import sleep

T = TypeVar("T")

TRIES = 3
LATE_TRIES = 4
SPOOL_BYTES = 8 << 20
"""What a segment may take of memory; beyond it goes to a temporary file."""


class TooLarge(Exception):
    """More bytes came than were allowed."""


class _StoreIsOut(Exception):
    """The control was not answered either, so nobody need ask it again."""

    def __init__(self, error: StoreError) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True)
class Spooled:
    """An object on our side, to be read more than once. Close `file` after use."""

    file: IO[bytes]
    bytes: int
    sha256: str


class Gate:
    """A reader whose refusals become findings. None always means that it has been said."""

    def __init__(
        self, reader: Reader, findings: Findings, pause: Callable[[float], None] = sleep
    ) -> None:
        self.reader = reader
        self.findings = findings
        self._pause = pause
        self._control = Control(reader)
        self.unlistable: set[str] = set()
        """The prefixes that could not be listed to their end."""

    def read(
        self, key: str, limit: int, missing: str | None, *, late: bool = False
    ) -> bytes | None:
        """An object's bytes. `missing` is the code to report where there is none (None: nothing is
        said); with `late` it is waited for a little first, because a writer may be about to write
        it."""

        def ask() -> bytes | None:
            data = self.reader.read(key, None, limit)
            for _ in range(LATE_TRIES if late else 0):
                if data is not None:
                    break
                self._pause(0.5)
                data = self.reader.read(key, None, limit)
            return data

        return self._tell("get", key, missing, ask, "there is none")

    def head(self, key: str, version_id: str | None, missing: str | None) -> Head | None:
        """What the store says of an object, or of a version of it. `missing` None: where there is
        none, that was said already."""
        detail = "there is none" if version_id is None else "not in the version that is recorded"
        kind: Kind = "head" if version_id is None else "head_version"
        return self._tell(kind, key, missing, lambda: self.reader.head(key, version_id), detail)

    def is_there(self, key: str) -> bool | None:
        """Whether there is such an object; None where the store does not say, and that has been
        reported."""

        def ask() -> bool:
            return self.reader.head(key) is not None

        return self._tell("head", key, None, ask, "")

    def list(self, prefix: str) -> Iterator[Listed]:
        """Every object below a prefix, as far as it can be listed: else that is reported."""
        return self._listed("list", prefix, self.reader.list(prefix))

    def versions(self, prefix: str) -> Iterator[Version]:
        """Every version below a prefix, as far as they can be listed: else that is reported. Raises
        `StoreError` also where the store does not list versions at all."""
        return self._listed("versions", prefix, self.reader.versions(prefix))

    def _listed(self, kind: Kind, prefix: str, items: Iterator[T]) -> Iterator[T]:
        try:
            yield from items
        except StoreError as error:
            if not self._control.is_answered(kind, prefix):
                raise
            self.unlistable.add(prefix)
            self.findings.add("unlistable", prefix, str(error))
            return
        self._control.succeeded(kind)

    def spool(
        self, key: str, limit: int, missing: str | None, *, hashed: bool = True
    ) -> Spooled | None:
        """An object of any size up to `limit`, in bounded memory. The caller closes its file."""

        def ask() -> Spooled | None:
            return spool(self.reader, key, limit, hashed=hashed)

        return self._tell("get", key, missing, ask, "there is none")

    def sha256(self, key: str, version_id: str | None, size: int, missing: str) -> str | None:
        """Hex digest of an object's bytes; of more than `size` bytes, a digest of nothing real."""

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

        kind: Kind = "get" if version_id is None else "get_version"
        return self._tell(kind, key, missing, digest, "there is none")

    def _tell(
        self, kind: Kind, key: str, missing: str | None, ask: Callable[[], T | None], detail: str
    ) -> T | None:
        """Ask; whatever keeps us from an answer is reported or raised."""
        try:
            answer = self._persist(kind, key, ask)
        except TooLarge:
            self.findings.add("too_large", key)
            return None
        except _StoreIsOut as outage:
            raise outage.error from None
        except StoreError as error:
            if error.reason == "too_large":
                self.findings.add("too_large", key)
            elif self._control.is_answered(kind, key):
                self.findings.add("unreadable", key, str(error))
            else:
                raise
            return None
        self._control.succeeded(kind)
        if answer is None and missing is not None:
            self.findings.add(missing, key, detail)
        return answer

    def _persist(self, kind: Kind, key: str, ask: Callable[[], T]) -> T:
        """A stream that breaks is begun anew: the reader's own tries cannot cover its chunks. The
        last try comes after a control was answered: an outage that has just ended harms nobody."""
        for attempt in range(1, TRIES):
            try:
                return ask()
            except StoreError as error:
                if not error.retryable:
                    raise
                if attempt == TRIES - 1 and not self._control.is_answered(kind, key):
                    raise _StoreIsOut(error) from None
                self._pause(0.5 * attempt)
        return ask()


def spool(reader: Reader, key: str, limit: int, *, hashed: bool = True) -> Spooled | None:
    """Read an object to our side; None where there is none, `TooLarge` beyond `limit` bytes. Its
    digest is that of nothing unless it is to be `hashed`."""
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
    count = 0
    for chunk in chunks:
        count += len(chunk)
        if count > limit:
            raise TooLarge
        yield chunk
