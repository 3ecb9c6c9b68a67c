"""Lines of a file that may be large or hostile: in bounded memory, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import IO

from archiver.errors import FormatError

MAX_LINE_BYTES = 16 << 20
"""The window line is the long one: it may have to name every id of a window as pending."""
BLOCK_BYTES = 256 << 10
"""What is read at a time to find lines in."""


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """Its lines, newline included; raises `FormatError` for one too long or without its newline."""
    for lines in blocks_of(file):
        yield from lines


def blocks_of(file: IO[bytes]) -> Iterator[list[bytes]]:
    """The same, some lines at a time: asking a file for each of them takes longer than hashing it.

    Never an empty list. A line longer than a block is read in pieces that grow with it, so that it
    is not copied again and again.
    """
    rest = b""
    while len(rest) <= MAX_LINE_BYTES and (block := file.read(max(BLOCK_BYTES, len(rest)))):
        lines = BytesIO(rest + block).readlines()
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if lines and len(lines[0]) > MAX_LINE_BYTES + 1:
            raise FormatError("a line too long, or cut off")
        if lines:
            yield lines
    if rest:
        raise FormatError("a line too long, or cut off")
