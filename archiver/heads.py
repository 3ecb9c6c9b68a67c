"""The head of an HTTP/1.1 answer (RFC 9112), and what is none. Pure, no I/O.

What two readers could take for two different things is refused: folded lines, bare line feeds, two
lengths, a length beside chunks, a coding that is not just `chunked`.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_STATUS = re.compile(r"HTTP/1\.([01]) (\d{3})( .*)?", re.ASCII)
# Possessive: a line that is none is found to be so in linear time.
_FIELDS = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*+([^\r\n\0]*+)\r$", re.MULTILINE)
_LENGTH = re.compile(r"\d{1,15}", re.ASCII)

Kind = Literal[
    "invalid", "unconnected", "untrusted", "broken", "truncated", "malformed", "too_large",
    "too_slow",
]  # fmt: skip


class NoAnswer(Exception):
    """No whole answer came. The message is a few words without anything that was sent or read.

    `kind`: `invalid` for a URL that cannot be asked; `unconnected` where no connection, TLS and
    all, came about; `untrusted` for its certificate; `broken` where it was reset, fell silent or
    ended before the body; `truncated` where it came to an orderly end within it; `malformed` for
    what is no HTTP; `too_large` and `too_slow` for the bounds that were given.
    """

    def __init__(self, what: str, kind: Kind) -> None:
        super().__init__(what)
        self.kind = kind


class Head(NamedTuple):
    """An answer's first part; `headers` by their names in small letters, repeated ones joined."""

    status: int
    headers: dict[str, str]
    persists: bool
    """Whether the connection goes on after the answer."""


def parse_head(text: str) -> Head:
    """An answer's head, without the empty line at its end. Raises `NoAnswer` (`malformed`)."""
    first, _, rest = text.partition("\r\n")
    status = _STATUS.fullmatch(first)
    if status is None:
        raise NoAnswer("no HTTP", "malformed")
    rest = f"{rest}\r\n" if rest else ""
    fields = _FIELDS.findall(rest)
    if len(fields) != rest.count("\n"):
        raise NoAnswer("a header that is none", "malformed")
    headers = {name.lower(): value for name, value in fields}
    if len(headers) < len(fields) or " \r" in rest or "\t\r" in rest:
        headers = _joined(fields)
    _check_framing(headers)
    closes = status[1] == "0" or "close" in headers.get("connection", "").lower()
    return Head(int(status[2]), headers, not closes)


def _joined(fields: list[tuple[str, str]]) -> dict[str, str]:
    """The fields, with repeated ones joined, and without the space behind them."""
    headers: dict[str, str] = {}
    for told, padded in fields:
        name, value = told.lower(), padded.rstrip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_framing(headers: dict[str, str]) -> None:
    if headers.get("transfer-encoding", "").lower() == "identity":
        del headers["transfer-encoding"]  # as good as none
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if length is not None and not _LENGTH.fullmatch(length):
        raise NoAnswer("a length that is none", "malformed")
    if coding is not None and (coding.lower() != "chunked" or length is not None):
        raise NoAnswer("a body whose end is not clear", "malformed")
