"""Tells an object that cannot be read from a store that cannot be used.

When a request fails, the same kind of request is made for another object, the control: first for
seal 0, then for its neighbours. If one is answered, the store is up and the credentials hold for
this kind of request, so the failure belongs to the object alone, however many of them there are.
If none is answered, it is an outage, or a refusal of everything.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, TypeVar

from archiver.audit.reader import Head, Listed, Reader, Version
from archiver.errors import FormatError, StoreError
from archiver.manifest import layout

T = TypeVar("T")

Kind = Literal["get", "get_version", "head", "head_version", "list", "versions"]
"""What a policy of the store may permit or refuse by itself."""

CONTROL_KEYS = (
    layout.seal_key(0),
    layout.signature_key(0),
    layout.seal_key(1),
    layout.VERIFY_PAGE,
)
"""Small objects that nearly every archive has. That there is none is an answer too."""
OUTAGES = {"unreachable", "credentials", "tls", "settings", "clock", "no_bucket"}
"""Reasons that hardly ever are about one object: two controls that fail so are enough. Each of them
may take the store's client many seconds."""
CONTROL_BYTES = 1 << 20
CONTROL_ITEMS = 1000


class Unreadable(FormatError):
    """One object, or one listing, that the store does not hand out, while it answers others."""


class Control:
    """Asks for another object. Threads share it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._answered: set[Kind] = set()
        """Kinds that were answered at least once: the credentials hold for them."""

    def succeeded(self, kind: Kind) -> None:
        """Note that a request of this kind was answered."""
        if kind not in self._answered:
            with self._lock:
                self._answered.add(kind)

    def is_answered(self, kind: Kind, failed: str) -> bool:
        """Whether the store answers now, and has answered this kind of request at least once.

        `failed` is the key or the prefix that was asked for: it is no control for itself.
        """
        silent = 0
        for key in CONTROL_KEYS:
            if key == failed or silent > 1:
                continue
            try:
                self._ask(kind if kind not in self._answered else _plain(kind), key)
            except StoreError as error:
                silent += error.reason in OUTAGES
                if error.reason != "too_large":
                    continue
            self.succeeded(kind)
            return True
        return False

    def _ask(self, kind: Kind, key: str) -> None:
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


def _plain(kind: Kind) -> Kind:
    """A cheaper request that shows as well that the store is up."""
    return "head" if kind in ("get_version", "head_version") else kind


class ItemReader:
    """A reader that raises `Unreadable` for one object or one listing that cannot be had, and
    `StoreError` only for an outage or a refusal of everything. Threads share it.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._control = Control(reader)

    def read(
        self, key: str, version_id: str | None = None, max_bytes: int = 64 << 20
    ) -> bytes | None:
        kind: Kind = "get" if version_id is None else "get_version"
        return self._asked(kind, key, lambda: self._reader.read(key, version_id, max_bytes))

    def stream(self, key: str, version_id: str | None = None) -> Iterator[bytes] | None:
        kind: Kind = "get" if version_id is None else "get_version"
        chunks = self._asked(kind, key, lambda: self._reader.stream(key, version_id))
        return None if chunks is None else self._each(kind, key, chunks)

    def head(self, key: str, version_id: str | None = None) -> Head | None:
        kind: Kind = "head" if version_id is None else "head_version"
        return self._asked(kind, key, lambda: self._reader.head(key, version_id))

    def list(self, prefix: str) -> Iterator[Listed]:
        return self._each("list", prefix, self._reader.list(prefix))

    def folders(self, prefix: str, *, hidden: bool = False) -> set[str]:
        kind: Kind = "versions" if hidden else "list"
        return self._asked(kind, prefix, lambda: self._reader.folders(prefix, hidden=hidden))

    def versions(self, prefix: str) -> Iterator[Version]:
        return self._each("versions", prefix, self._reader.versions(prefix))

    def _asked(self, kind: Kind, key: str, ask: Callable[[], T]) -> T:
        try:
            answer = ask()
        except StoreError as error:
            raise self._translated(kind, key, error) from None
        self._control.succeeded(kind)
        return answer

    def _each(self, kind: Kind, key: str, items: Iterator[T]) -> Iterator[T]:
        try:
            yield from items
        except StoreError as error:
            raise self._translated(kind, key, error) from None
        self._control.succeeded(kind)

    def _translated(self, kind: Kind, key: str, error: StoreError) -> Exception:
        if error.reason != "too_large" and not self._control.is_answered(kind, key):
            return error
        what = f"{key or 'the bucket'} cannot be " + (
            "listed" if kind in ("list", "versions") else "read"
        )
        return Unreadable(f"{what} ({error})", retryable=error.retryable, reason=error.reason)


def has_no_versions(error: StoreError) -> bool:
    """Whether the store says that it does not list versions at all."""
    return error.reason == "refused" or error.status in (405, 501)
