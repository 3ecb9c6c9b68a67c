"""What may be large lies on disk while it is worked at: a segment may have 100 MB."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

from archiver import liveness
from archiver.errors import StoreError

SPOOL_BYTES = 8 << 20
"""Up to here it stays in memory."""


@contextmanager
def spool(chunks: Iterable[bytes] = ()) -> Iterator[IO[bytes]]:
    """A file that is gone afterwards, with these bytes in it. Raises `StoreError` where the
    temporary directory has no room, while it is written in here or by the caller."""
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as file:
        try:
            for chunk in chunks:  # a large window takes its time
                liveness.note()
                file.write(chunk)
            file.seek(0)
            yield file
        except OSError as error:
            raise StoreError(
                f"a temporary file cannot be written ({error.strerror}): set TMPDIR to a directory "
                "with room"
            ) from None
