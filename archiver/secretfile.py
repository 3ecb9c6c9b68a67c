"""Secrets that may be rotated while we run: a file is read again when it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from archiver.errors import UsageError

Secret = Callable[[], str]
"""Gives the secret's value of now."""


def fixed(value: str) -> Secret:
    return lambda: value


def from_file(path: Path, variable: str) -> Secret:
    """The file's content, stripped. The first reading is at once; raises `UsageError`."""
    reader = _File(path, variable)
    reader()
    return reader


class _File:
    """Kubernetes swaps a secret's file by a symbolic link: inode and time tell."""

    def __init__(self, path: Path, variable: str) -> None:
        self._path = path
        self._variable = variable
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._value = ""

    def __call__(self) -> str:
        with self._lock:
            try:
                status = self._path.stat()
                stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
                if stamp != self._stamp:
                    self._value, self._stamp = self._read(), stamp
            except (OSError, UnicodeDecodeError, UsageError) as error:
                if self._stamp is None:
                    raise self._unusable(error) from None
                # A rotation may be under way: the value that we have goes on until it is done.
            return self._value

    def _read(self) -> str:
        value = self._path.read_text("utf-8").strip()
        if not value or not value.isprintable() or not value.isascii():
            raise UsageError(f"{self._variable}: {self._path} holds no secret in one ASCII line")
        return value

    def _unusable(self, error: Exception) -> UsageError:
        if isinstance(error, UsageError):
            return error
        return UsageError(f"{self._variable}: {self._path} cannot be read ({_why(error)})")


def _why(error: Exception) -> str:
    return (error.strerror or "error") if isinstance(error, OSError) else "not UTF-8"
