"""What can go wrong, how far the harm reaches, and whether trying again can help.

    ArchiverError            exit code  reach
    ├── UsageError           2          everything  a setting, an option or a key file is wrong
    ├── SourceError          3          source      the source refuses everything, or is unreachable
    │   ├── SourceRefused    3          source      401/403: the credentials, or a scope
    │   └── ListingError     3          window      one listing fails, and the source answers others
    ├── StoreError           4          store       or `item`, where it is about one object
    │   └── KeyTaken         4          item        a create-once write found its key taken
    ├── CallError            1          item        one call, or one document of a call
    │   └── NoRecording      1          item        the source says that a call has no recording
    └── FormatError          1          item        bytes that are not what their format promises
        └── NewerFormat      1          item        a newer release wrote them

Whoever catches an error acts by its reach: harm that reaches an item or a window stays there, and
the other items and windows go on (docs/architecture.md).

Every message is one line that says what to do, and holds no URL query, token or transcript text.
"""

from __future__ import annotations

from enum import Enum


class Reach(Enum):
    """How far the harm of an error reaches."""

    ITEM = "item"
    """One call, one document of a call, one entry of a listing, one object of the bucket."""
    WINDOW = "window"
    STORE = "store"
    SOURCE = "source"
    EVERYTHING = "everything"


class ArchiverError(Exception):
    """Base of all errors that a person is shown as one line.

    `retryable` says whether the same request, sent again, may succeed; `retry_after_seconds`
    is what the other side asked for, if it did.
    """

    exit_code = 1
    reach = Reach.EVERYTHING

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        reason: str = "error",
        status: int | None = None,
        reach: Reach | None = None,
    ) -> None:
        """`reach` overrides the one of the class."""
        super().__init__(message)
        if reach is not None:
            self.reach = reach
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason
        self.status = status
        self.stage: str | None = None
        """Where in a call's way it happened, as `metrics.stage` knows it."""


class UsageError(ArchiverError):
    """Settings, options or a key file are wrong; nothing was done."""

    exit_code = 2


class SourceError(ArchiverError):
    """The source is unreachable, or answers what no client can use."""

    exit_code = 3
    reach = Reach.SOURCE


class SourceRefused(SourceError):
    """The source refuses our credentials or a scope: an error of the whole run, not of a call."""


class ListingError(SourceError):
    """The listing of one window fails, while the source answers other requests."""

    reach = Reach.WINDOW


class StoreError(ArchiverError):
    """The store refused, is unreachable, or does not keep what it promised."""

    exit_code = 4
    reach = Reach.STORE


class KeyTaken(StoreError):
    """A create-once write found an object under its key."""

    reach = Reach.ITEM


class CallError(ArchiverError):
    """One call, or one document of it, cannot be archived now.

    `reason` comes from a closed set (see `record.py`). `body` holds the bytes of a document that
    came and is no proper JSON.

    `undecided` marks a refusal (401, 403) of which nobody knows yet whether it is about this call
    or about the credentials: the call is not to be blamed for it, only tried again.
    """

    reach = Reach.ITEM
    body: bytes | None = None
    undecided: bool = False


class NoRecording(CallError):
    """The source says that the call has no recording; `status` is its answer's HTTP status."""


class FormatError(ArchiverError):
    """Bytes that are not what their format promises."""

    reach = Reach.ITEM


class NewerFormat(FormatError):
    """A newer release wrote these bytes (`v` is larger than this release knows)."""
