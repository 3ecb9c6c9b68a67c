"""Writes the archive's canonical JSON, and parses JSON strictly.

Canonical form (docs/manifest-format.md): UTF-8, keys sorted by code point, no white space, one
newline at the end.

Parsing is strict, so that two parsers never see different documents in the same bytes. Duplicate
keys, NaN, Infinity, numbers that overflow, lone surrogates and nesting beyond `MAX_DEPTH` raise
`FormatError`.

Lines that the archiver wrote take a fast path: `msgspec` decodes them about ten times as fast as
the standard library. If encoding the result again gives the same bytes, the line is canonical and
contains none of the above. Every other line goes through the standard library.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import msgspec

from archiver.core.errors import FormatError

T = TypeVar("T")

MAX_DEPTH = 64
"""Deepest nesting of objects and arrays that is parsed."""

# The possessive quantifier and the optional closing quote keep matching linear on hostile input.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BRACKETS = re.compile(rb"[\[\]{}]")


def dump(document: Any) -> bytes:
    """Return `document` as canonical JSON, newline included.

    Raises `FormatError` for values without a canonical form: NaN, infinities, lone surrogates.
    """
    try:
        return _ENCODER.encode(document).encode("utf-8") + b"\n"
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not representable as JSON: {type(error).__name__}") from None


def load(data: bytes) -> Any:
    """Parse one JSON document strictly. Raises `FormatError`, whose message never quotes the
    input: messages are logged, and the input may be a transcript."""
    _check_depth(data)
    try:
        document = _DECODER.decode(data.decode("utf-8"))
        if _SURROGATE.search(data):
            dump(document)  # raises for a lone surrogate, which has no UTF-8 form
        return document
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {type(error).__name__}") from None


def load_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object strictly. Raises `FormatError`, also for any other JSON value."""
    document = load(data)
    if not isinstance(document, dict):
        raise FormatError("not a JSON object")
    return document


def load_line(data: bytes) -> tuple[dict[str, Any], bool]:
    """Parse one JSON object as `load_object` does. The bool says whether `data` is canonical."""
    match decode_lines([data], _ANYTHING):
        case [dict() as document]:
            return document, True
    document = load_object(data)
    return document, dump(document) == data


def line_decoder(schema: type[T]) -> msgspec.json.Decoder[T]:
    """Return a decoder for `decode_lines`. A schema must declare floats as `Any`: msgspec calls
    the hook that checks their spelling only for untyped floats."""
    return msgspec.json.Decoder(schema, float_hook=_shortest)


def decode_lines(lines: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> list[T] | None:
    """Decode lines that are all canonical and fit the decoder's schema. None does not mean that a
    line is invalid: the caller parses the lines one by one then."""
    if max(line.count(b"[") + line.count(b"{") for line in lines) > MAX_DEPTH:
        return None
    data = b"".join(lines)
    try:
        found = decoder.decode_lines(data)
    except msgspec.MsgspecError:
        return None
    # A duplicate key, an unknown field, white space, another order or another spelling is lost in
    # decoding, so the bytes differ.
    same = len(found) == len(lines) and _LINES.encode_lines(found) == data
    return found if same else None


def _check_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub(b"", data)):
        depth += 1 if bracket.group() in b"[{" else -1
        if depth > MAX_DEPTH:
            raise FormatError(f"JSON nested deeper than {MAX_DEPTH}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise FormatError("JSON with a duplicate key")
    return document


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"JSON with {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise FormatError("JSON number out of range")
    return number


def _shortest(text: str) -> float:
    """Parse a float in Python's spelling. Raises `ValueError` for any other: msgspec reads and
    writes `0.00001`, where the canonical form is `1e-05`."""
    number = float(text)
    if repr(number) != text:
        raise ValueError
    return number


# Built once: `json.dumps` and `json.loads` build a new one on each call that passes options.
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
_LINES = msgspec.json.Encoder(order="sorted")
_ANYTHING = line_decoder(dict)
