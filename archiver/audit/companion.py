"""What the `.sha256` beside a segment must hold, and whether it does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import IO

from archiver.audit.glance import Batch
from archiver.audit.told import Told

ROWS = 1000
"""Rows that are hashed at a time."""
READ_BYTES = 256 << 10


class Companion:
    """The segment's row, then the records', then the files'.

    The latter two are kept as digests, because the files' rows come after all records', and both
    may be many.
    """

    def __init__(self, segment_sha256: str, key: str) -> None:
        self._head = f"{segment_sha256}  {key}\n".encode()
        self._records, self._files = _Rows(), _Rows()

    def add(self, line: bytes, found: Told) -> None:
        """The next record."""
        self._records.add(_record_rows([line], [found.key]))
        self._files.add(f"{file.sha256}  {file.key}\n" for file in found.named)

    def add_batch(self, lines: Sequence[bytes], found: Batch) -> None:
        """The next records."""
        self._records.add(_record_rows(lines, found.keys))
        rows = [
            [f"{sha256}  {key}\n" if key else "" for _, key, sha256, _ in zip(*kind, strict=True)]
            for kind in found.files
        ]
        self._files.add(chain.from_iterable(zip(*rows, strict=True)))

    def equals(self, file: IO[bytes], records_known: bool) -> bool:
        """Compare with a file at its start; only the first row where the records are not known."""
        if file.read(len(self._head)) != self._head:
            return False
        return not records_known or (
            self._records.come_next(file) and self._files.come_next(file) and not file.read(1)
        )


def _record_rows(lines: Iterable[bytes], keys: Iterable[str]) -> list[str]:
    sha256 = hashlib.sha256
    return [f"{sha256(line).hexdigest()}  {key}\n" for line, key in zip(lines, keys, strict=True)]


class _Rows:
    """Rows as their number of bytes and their SHA-256."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._bytes = 0
        self._sha256 = hashlib.sha256()

    def add(self, rows: Iterable[str]) -> None:
        self._rows += rows
        if len(self._rows) >= ROWS:
            self._hash()

    def come_next(self, file: IO[bytes]) -> bool:
        """Whether a file goes on with these rows; it is read as far as they go."""
        self._hash()
        left, found = self._bytes, hashlib.sha256()
        while left and (chunk := file.read(min(left, READ_BYTES))):
            left -= len(chunk)
            found.update(chunk)
        return found.digest() == self._sha256.digest()

    def _hash(self) -> None:
        data = "".join(self._rows).encode("utf-8", "surrogatepass")
        self._rows.clear()
        self._bytes += len(data)
        self._sha256.update(data)
