"""The archive's JSON: one form going out, strictness coming in."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.core.errors import FormatError
from archiver.manifest import canonical

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


def test_the_form_is_sorted_compact_utf8_with_one_newline():
    data = canonical.dump({"b": [1, 2.5, None, True], "a": "zß水🍌", "A": {}})
    assert data == '{"A":{},"a":"zß水🍌","b":[1,2.5,null,true]}\n'.encode()


def test_keys_are_sorted_by_code_point_not_by_utf16_unit():
    assert (
        canonical.dump({"\U0001f34c": 1, "\uffee": 2}) == '{"\uffee":2,"\U0001f34c":1}\n'.encode()
    )


@given(DOCUMENTS)
def test_what_is_dumped_loads_as_the_same_and_dumps_as_the_same_bytes(document):
    data = canonical.dump(document)
    assert canonical.load(data) == document
    assert canonical.dump(canonical.load(data)) == data
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0123dD8 ', max_size=60).map(str.encode))
def test_nothing_but_a_format_error_comes_of_any_bytes(data):
    try:
        document = canonical.load(data)
    except FormatError:
        return
    assert json.loads(data) == document


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"{} {}", b"\xef\xbb\xbf{}", b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}',
        b'{"a":1,"\\u0061":2}', b"NaN", b'{"x":[NaN]}', b"Infinity", b"-Infinity", b"1e999",
        b"-1e999", b'"\\ud800"', b'"\\uDFFF"', b'{"\\udc00":1}', b'"\\ud83d \\udc4b"',
        b'"\xed\xa0\x80"', b'"\xff"', b"1" * 5000, b"[" * 65 + b"]" * 65,
        b'{"a":' * 70 + b"1" + b"}" * 70, b"[" * 100_000, b'"\x01"', b"{'a':1}",
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_refused(data):
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
def test_what_only_looks_odd_is_read(data, document):
    loaded = canonical.load(data)
    assert document is None or loaded == document


def test_the_message_never_shows_what_was_read():
    for data in (b'{"secret":"words', b'{"secret":1,"secret":2}', b'"secret \\ud800"'):
        with pytest.raises(FormatError) as caught:
            canonical.load(data)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\udc00": 1}])
def test_what_has_no_form_is_not_dumped(value):
    with pytest.raises(FormatError):
        canonical.dump({"a": [value]})


def test_only_objects_are_objects():
    assert canonical.load_object(b"{}") == {}
    for data in (b"[]", b"1", b"null", b'"x"'):
        with pytest.raises(FormatError):
            canonical.load_object(data)


@pytest.mark.parametrize("tail", [b'"' + b'\\"' * 500_000, b'"' + b"\\" * 999_999, b'"' * 999_999])
def test_the_time_to_refuse_grows_no_faster_than_the_input(tail):
    began = time.process_time()
    with pytest.raises(FormatError):
        canonical.load(b"[" * 65 + tail)
    assert time.process_time() - began < 2


# --- lines of our own, against the rule that they are read faster than


def strictly(data: bytes) -> tuple[dict[str, Any], bool] | None:
    """The rule, by the standard library alone; None for what is no JSON object."""
    try:
        document = canonical.load_object(data)
        return document, canonical.dump(document) == data
    except FormatError:
        return None


def by_line(data: bytes) -> tuple[dict[str, Any], bool] | None:
    try:
        return canonical.load_line(data)
    except FormatError:
        return None


@settings(deadline=None)
@given(st.dictionaries(TEXT, DOCUMENTS, max_size=4), st.randoms(use_true_random=False))
def test_a_line_is_canonical_by_the_fast_rule_if_it_is_by_the_strict_one(document, rng):
    data = canonical.dump(document)
    assert by_line(data) == (document, True)
    for other in (
        json.dumps(document).encode(),
        json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n",
        _damaged(data, rng),
        _damaged(_damaged(data, rng), rng),
    ):
        assert repr(by_line(other)) == repr(strictly(other)), other


def _damaged(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data)), rng.choice([0, 1, 1, 2, 8])
    pieces = [
        *(bytes([one]) for one in b'0123456789.eE+-"\\,:{}[] \n\t/u'),
        b"null",
        b"\xed\xa0\x80",
    ]
    return (
        data[:at] + rng.choice([*pieces, data[at : at + 9], rng.randbytes(2)]) + data[at + size :]
    )


NUMBERS = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.from_regex(r"-?[0-9]{1,25}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)


@settings(deadline=None)
@given(NUMBERS)
def test_numbers_are_canonical_in_one_spelling_alone(text):
    data = f'{{"a":[{text}]}}\n'.encode()
    assert repr(by_line(data)) == repr(strictly(data))


@pytest.mark.parametrize(
    "value",
    [
        *(b"0.00001", b"1e-05", b"1e16", b"1e+16", b"1e400", b"-1e400", b"-0", b"-0.0", b"0.10"),
        *(b"1" * 4300, b"1" * 4301, b"-" + b"9" * 30, b"18446744073709551616", b"1.0", b"1E5"),
        *(b"NaN", b"Infinity", b"-Infinity", b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"[1, 2]"),
        *(b'"\\ud800"', b'"\\ud83d\\udc4b"', b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b'"\\/"'),
        *(b'"\\u0041"', b'"\\u001F"', b'"\\u001f"', b'"\\u0008"', b'"\\b"', b'"\x01"', b'"\x7f"'),
        *(b"[" * depth + b"]" * depth for depth in (62, 63, 64, 65, 500, 100_000)),
        *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (63, 64, 2000)),
        *(b'"' + b"[" * 100 + b'"', b"true", b"null", b'"\xef\xbb\xbf"'),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_odd_values_are_judged_as_by_the_strict_rule(value):
    for data in (b'{"a":' + value + b"}\n", b'{"a":' + value + b"}", value + b"\n"):
        assert repr(by_line(data)) == repr(strictly(data))


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}\n{}\n", b"\n{}\n", b"\xef\xbb\xbf{}\n", b"{}\r\n"]
)
def test_what_is_not_one_line_is_judged_as_by_the_strict_rule(data):
    assert repr(by_line(data)) == repr(strictly(data))
