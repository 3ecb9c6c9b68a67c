"""The error classes: how far each error reaches, its exit code, and whether a retry can help.

    ArchiverError            exit code  reach
    ├── UsageError           2          everything  a setting, an option or a key file is wrong
    ├── SourceError          3          source      the source refuses everything, or is unreachable
    │   ├── SourceRefused    3          source      401/403: the credentials, or a scope
    │   └── ListingError     3          window      one listing fails, and the source answers others
    ├── StoreError           4          store       or `item`, if it is about one object
    │   └── KeyTaken         4          item        a create-once write found its key taken
    ├── CallError            1          item        one call, or one document of a call
    │   └── NoRecording      1          item        the source says that a call has no recording
    └── FormatError          1          item        bytes that do not conform to their format
        └── NewerFormat      1          item        a newer release wrote them

The code that catches an error acts by its reach: an error that reaches an item or a window stops
only that one, and the other items and windows go on (docs/architecture.md).

Every message is one line that says what to do. It contains no URL query, token or transcript text.
"""

from __future__ import annotations

from enum import Enum


class Reach(Enum):
    """What an error affects."""

    ITEM = "item"
    """One call, one document of a call, one entry of a listing, one object of the bucket."""
    WINDOW = "window"
    STORE = "store"
    SOURCE = "source"
    EVERYTHING = "everything"


class ArchiverError(Exception):
    """Base class of all errors that are shown to a person as one line.

    `retryable`: whether the same request, sent again, may succeed. `retry_after_seconds`: the pause
    that the server asked for, if any.
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
        """`reach` overrides that of the class."""
        super().__init__(message)
        if reach is not None:
            self.reach = reach
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason
        self.status = status
        self.stage: str | None = None
        """The stage in which it happened, as in `metrics.stage`."""


class UsageError(ArchiverError):
    """Settings, options or a key file are wrong. Nothing was done."""

    exit_code = 2


class SourceError(ArchiverError):
    """The source is unreachable, or its answer cannot be used by any client."""

    exit_code = 3
    reach = Reach.SOURCE


class SourceRefused(SourceError):
    """The source refuses our credentials or a scope. With the reach of an item, it refuses one
    request only, and the control request was answered."""


class ListingError(SourceError):
    """The listing of one window fails, while the source answers other requests."""

    reach = Reach.WINDOW


class StoreError(ArchiverError):
    """The store refuses a request, is unreachable, or does not keep what it promised."""

    exit_code = 4
    reach = Reach.STORE


class KeyTaken(StoreError):
    """A create-once write found an object under its key."""

    reach = Reach.ITEM


class CallError(ArchiverError):
    """One call, or one document of it, cannot be archived now.

    `reason` comes from a closed set (`record.py`). `body` has the bytes of a document that is not
    valid JSON.

    `undecided` marks a refusal (401, 403) of which it is not known yet whether it is about this
    call or about the credentials. The call is tried again and not given up.
    """

    reach = Reach.ITEM
    body: bytes | None = None
    undecided: bool = False


class NoRecording(CallError):
    """The source says that the call has no recording; `status` is the HTTP status of its answer."""


class FormatError(ArchiverError):
    """Bytes that do not conform to their format."""

    reach = Reach.ITEM


class NewerFormat(FormatError):
    """A newer release wrote these bytes (`v` is higher than this release supports)."""
