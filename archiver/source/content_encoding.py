"""Content codings of HTTP answers (RFC 9110, section 8.4): which labels encode, and a decoder.

Rules:
- A label that is no content coding encodes nothing. Blob stores answer with whatever whoever
  uploaded a blob wrote into its properties: `utf-8`, `binary`, `aws-chunked`, or nothing at all.
- gzip and deflate are decoded. What has another coding, or two, is left as it is.
- A label on bytes that are not encoded encodes nothing either: the bytes are passed on.
- What is decoded ends where the coding says that it ends, and has the checksum that it states. What
  follows and is no other member of a gzip file is ignored, as gunzip does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from archiver.core.audio import UNKNOWN, recognise
from archiver.core.errors import CallError

READ_BYTES = 64 << 10
"""How many encoded bytes are read at a time."""

_CODINGS = {
    "aes128gcm", "br", "bzip2", "compress", "dcb", "dcz", "deflate", "exi", "gzip", "lz4", "lzma",
    "pack200-gzip", "snappy", "xz", "zstd",
}  # fmt: skip
"""The content codings of IANA's registry, and a few others that are in use."""
DECODED = ("gzip", "deflate")
_GZIP_MAGIC = b"\x1f\x8b"


def codings(label: str | None) -> tuple[str, ...]:
    """The codings that a `Content-Encoding` really names, in the order in which they were applied;
    empty if the body is not encoded."""
    names = [name.partition(";")[0].strip("\"' \t") for name in (label or "").lower().split(",")]
    return tuple(name for name in (name.removeprefix("x-") for name in names) if name in _CODINGS)


class Undecodable(CallError):
    """The bytes are not encoded as their label says, or the last of them are missing. That may be
    damage on the way, or the blob's own."""


class Decoder:
    """Decodes gzip or deflate as it comes, in bounded memory. Not thread-safe."""

    def __init__(self, coding: str, read: Callable[[memoryview], int], max_bytes: int) -> None:
        """`read` fills a buffer with encoded bytes, and with fewer only at their end. More than
        `max_bytes` decoded bytes are refused."""
        self.coding: str | None = coding
        """None once the bytes turn out not to be encoded, despite their label."""
        self._read = read
        self._left = max_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._encoded = b""
        self._stream: Any = None
        self._has_ended = False
        """Whether the coding has ended, and what follows is ignored."""

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as the decoded bytes go; fewer only at their end.

        Raises `Undecodable`, `CallError` (`too_large`), and what `read` raises.
        """
        filled = 0
        while filled < len(view) and (piece := self._decode(len(view) - filled)):
            if len(piece) > self._left:
                raise CallError("larger than MAX_RECORDING_BYTES when decoded", reason="too_large")
            self._left -= len(piece)
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def _decode(self, most: int) -> bytes:
        """The next decoded bytes, at most `most`; none at their end.

        1. Decode what has come. zlib may have more of it than it returned the last time.
        2. Read more. The encoded bytes must not end before the coding does.
        3. Begin the coding, or the next member of a gzip file. Anything else after it is ignored.
        """
        while not self._has_ended:
            is_open = self._stream is not None and not self._stream.eof
            piece = b""  # 1
            if self.coding is None:
                piece, self._encoded = self._encoded[:most], self._encoded[most:]
            elif is_open:
                piece = self._inflate(most)
            if piece:
                return piece
            is_open = self._stream is not None and not self._stream.eof
            if is_open or len(self._encoded) < len(_GZIP_MAGIC):  # 2
                if count := self._read(self._buffer):
                    self._encoded += bytes(self._buffer[:count])
                    continue
                if is_open:
                    text = "the encoded blob ends early"
                    raise Undecodable(text, retryable=True, reason="truncated")
                if not self._encoded:
                    return b""
            self._begin()  # 3
        while self._read(self._buffer):
            pass
        return b""

    def _inflate(self, most: int) -> bytes:
        try:
            piece: bytes = self._stream.decompress(self._encoded, most)
        except zlib.error:
            text = "the blob is not encoded as its label says"
            raise Undecodable(text, retryable=True, reason="bad_response") from None
        self._encoded = self._stream.unconsumed_tail or self._stream.unused_data
        return piece

    def _begin(self) -> None:
        is_first, is_gzip = self._stream is None, self._encoded[:2] == _GZIP_MAGIC
        if self.coding == "gzip" and is_gzip:
            self._stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        elif not is_first:
            self._has_ended = True
        elif self.coding == "gzip" or recognise(self._encoded).type is not UNKNOWN:
            self.coding = None
        else:
            # "deflate" means the zlib format (RFC 9110, section 8.4.1.2). Some servers send the
            # bare format. The first two bytes tell (RFC 1950, section 2.2).
            head = self._encoded[:2]
            is_zlib = head[0] & 15 == 8 and int.from_bytes(head) % 31 == 0
            self._stream = zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)
