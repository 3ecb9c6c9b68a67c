"""The one JSON form of the archive, and the one way to read JSON that others wrote.

Rules (docs/manifest-format.md): UTF-8, keys sorted by code point, no white space, one newline at
the end.
Reading is strict, because two readers must never see two documents in the same bytes: duplicate
keys, NaN, Infinity, numbers that overflow, lone surrogates and too deep nesting are refused.

A line of our own is read with `msgspec`, ten times as fast: where encoding it anew gives the same
bytes, the line is canonical, and nothing of the above can be in it. The standard library decides
about every other line.
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
"""Deepest nesting of objects and arrays that is read."""

# Possessive, and content with no closing quote: time stays linear in whatever is sent.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_BRACKETS = re.compile(rb"[\[\]{}]")


def dump(document: Any) -> bytes:
    """Return `document` in the archive's form, with its newline.

    Raises `FormatError` for what has no such form: NaN, infinities, lone surrogates.
    """
    try:
        return _ENCODER.encode(document).encode("utf-8") + b"\n"
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not representable as JSON: {type(error).__name__}") from None


def load(data: bytes) -> Any:
    """Parse one JSON document strictly; raises `FormatError` and never shows what it read."""
    _check_depth(data)
    try:
        document = _DECODER.decode(data.decode("utf-8"))
        if _SURROGATE.search(data):
            dump(document)  # an escaped half of a pair has no UTF-8 form
        return document
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {type(error).__name__}") from None


def load_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly; raises `FormatError` for any other value too."""
    document = load(data)
    if not isinstance(document, dict):
        raise FormatError("not a JSON object")
    return document


def load_line(data: bytes) -> tuple[dict[str, Any], bool]:
    """Parse a JSON object strictly, as `load_object`; and whether `data` is its canonical form."""
    match decode_lines([data], _ANYTHING):
        case [dict() as document]:
            return document, True
    document = load_object(data)
    return document, dump(document) == data


def line_decoder(schema: type[T]) -> msgspec.json.Decoder[T]:
    """A decoder for `decode_lines`. Floats must have type `Any`: only those have their spelling
    checked."""
    return msgspec.json.Decoder(schema, float_hook=_shortest)


def decode_lines(lines: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> list[T] | None:
    """What stands in lines, if all are canonical and fit the decoder's schema. None means only that
    this is not known: parse them one by one then."""
    if max(line.count(b"[") + line.count(b"{") for line in lines) > MAX_DEPTH:
        return None
    data = b"".join(lines)
    try:
        found = decoder.decode_lines(data)
    except msgspec.MsgspecError:
        return None
    # A duplicate key, an unknown field, white space, another order or spelling is not written anew.
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
    """A float in Python's spelling: msgspec takes `0.00001`, and the canonical form is `1e-05`."""
    number = float(text)
    if repr(number) != text:
        raise ValueError
    return number


# Made once: `json.loads` and `json.dumps` make theirs anew each time they are told anything.
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
_LINES = msgspec.json.Encoder(order="sorted")
_ANYTHING = line_decoder(dict)
