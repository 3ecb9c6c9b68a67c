"""The archive's JSON: one form going out, strictness coming in."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import FormatError
from archiver.manifest import canonical

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=20,
)


def test_the_form_is_sorted_compact_utf8_with_one_newline() -> None:
    data = canonical.dump({"b": [1, 2.5, None, True], "a": "zß水🍌", "A": {}})
    assert data == '{"A":{},"a":"zß水🍌","b":[1,2.5,null,true]}\n'.encode()


def test_keys_are_sorted_by_code_point_not_by_utf16_unit() -> None:
    assert (
        canonical.dump({"\U0001f34c": 1, "\uffee": 2}) == '{"\uffee":2,"\U0001f34c":1}\n'.encode()
    )


@given(DOCUMENTS)
def test_what_is_dumped_loads_as_the_same_and_dumps_as_the_same_bytes(document: Any) -> None:
    data = canonical.dump(document)
    assert canonical.load(data) == document
    assert canonical.dump(canonical.load(data)) == data
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0123dD8 ', max_size=60).map(str.encode))
def test_nothing_but_a_format_error_comes_of_any_bytes(data: bytes) -> None:
    try:
        document = canonical.load(data)
    except FormatError:
        return
    assert json.loads(data) == document


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1,"\\u0061":2}',
        b"NaN",
        b'{"x":[NaN]}',
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b'"\\ud800"',
        b'"\\uDFFF"',
        b'{"\\udc00":1}',
        b'"\\ud83d \\udc4b"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"1" * 5000,
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b"[" * 100_000,
        b'"\x01"',
        b"{'a':1}",
    ],
)
def test_what_two_readers_could_read_differently_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        canonical.load(data)


@pytest.mark.parametrize(
    ("data", "document"),
    [
        (b'"\\ud83d\\udc4b"', "👋"),
        (b'"\\\\ud800"', "\\ud800"),
        (b"[" * 64 + b"]" * 64, None),
        (b'"' + b"[" * 500 + b'"', "[" * 500),
        (b'["\\"[[[",' + b"1," * 5 + b"1]", ['"[[[', 1, 1, 1, 1, 1, 1]),
        (b'{"a":' * 1 + b"9007199254740993}", {"a": 9007199254740993}),
    ],
)
def test_what_only_looks_odd_is_read(data: bytes, document: Any) -> None:
    loaded = canonical.load(data)
    assert document is None or loaded == document


def test_the_message_never_shows_what_was_read() -> None:
    for data in (b'{"secret":"words', b'{"secret":1,"secret":2}', b'"secret \\ud800"'):
        with pytest.raises(FormatError) as caught:
            canonical.load(data)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\udc00": 1}])
def test_what_has_no_form_is_not_dumped(value: Any) -> None:
    with pytest.raises(FormatError):
        canonical.dump({"a": [value]})


def test_only_objects_are_objects() -> None:
    assert canonical.load_object(b"{}") == {}
    for data in (b"[]", b"1", b"null", b'"x"'):
        with pytest.raises(FormatError):
            canonical.load_object(data)


@pytest.mark.parametrize("tail", [b'"' + b'\\"' * 500_000, b'"' + b"\\" * 999_999, b'"' * 999_999])
def test_the_time_to_refuse_grows_no_faster_than_the_input(tail: bytes) -> None:
    began = time.process_time()
    with pytest.raises(FormatError):
        canonical.load(b"[" * 65 + tail)
    assert time.process_time() - began < 2
