"""What can go wrong, what the process answers, and whether trying again can help.

    ArchiverError            exit_code 1
    ├── UsageError           2  a setting, an option or a key file is wrong; nothing was done
    ├── SourceError          3  the source refused or is unreachable
    │   └── SourceRefused    3  401/403: no call can be archived until somebody mends it
    ├── StoreError           4  the store refused, is unreachable or is unsafe
    │   └── KeyTaken         4  a create-once write found its key taken
    ├── CallError            1  one call cannot be archived now; the others go on
    │   └── NoRecording      1  the source says that this call has no recording
    └── FormatError          1  bytes that are not what their format promises

Every message is one line that says what to do, and holds no URL query, token or transcript text.
"""

from __future__ import annotations


class ArchiverError(Exception):
    """Base of all errors that a person is shown as one line.

    `retryable` says whether the same request, sent again, may succeed; `retry_after_seconds`
    is what the other side asked for, if it did.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        reason: str = "error",
        status: int | None = None,
    ) -> None:
        super().__init__(message)
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


class SourceRefused(SourceError):
    """The source refuses our credentials or a scope: an error of the whole run, not of a call."""


class StoreError(ArchiverError):
    """The store refused, is unreachable, or does not keep what it promised."""

    exit_code = 4


class KeyTaken(StoreError):
    """A create-once write found an object under its key."""


class CallError(ArchiverError):
    """One call cannot be archived now. `reason` comes from a closed set (see `record.py`)."""


class NoRecording(CallError):
    """The source says that the call has no recording; `status` is its answer's HTTP status."""


class FormatError(ArchiverError):
    """Bytes that are not what their format promises."""
