"""Lines of large and hostile files, and how records are counted that come many at a time."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.audit import segment_lines
from archiver.audit.segment_lines import MAX_LINE_BYTES, blocks_of, lines_of
from archiver.audit.verify import Options, verify
from archiver.core.errors import FormatError
from tests.audit.builder import Builder, hour, small_archive, unordered_archive


@given(
    st.lists(st.binary(max_size=40).map(lambda one: one.replace(b"\n", b"") + b"\n")),
    st.integers(1, 50),
)
def test_lines_are_those_of_the_file_whatever_the_block(wanted: list[bytes], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_lines, "BLOCK_BYTES", size)
        assert list(lines_of(io.BytesIO(b"".join(wanted)))) == wanted


@pytest.mark.parametrize("whole", [b"", b"a\nb\n"])
def test_a_last_line_without_its_newline_comes_after_the_others(whole: bytes) -> None:
    taken = lines_of(io.BytesIO(whole + b"cut off"))
    assert [next(taken) for _ in whole.splitlines()] == whole.splitlines(keepends=True)
    with pytest.raises(FormatError):
        next(taken)


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    longest = b"x" * MAX_LINE_BYTES + b"\n"
    assert list(lines_of(io.BytesIO(longest + b"y\n"))) == [longest, b"y\n"]
    for too_long in (b"x" + longest, b"a\nx" + longest, b"x" * (4 * MAX_LINE_BYTES)):
        with pytest.raises(FormatError):
            list(lines_of(io.BytesIO(too_long)))


class Endless(io.RawIOBase):
    """One line without an end; it counts what was read."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        self.taken += size
        return b"x" * size


def test_a_line_without_an_end_is_read_no_further_than_it_may_be_long() -> None:
    file = Endless()
    with pytest.raises(FormatError):
        next(blocks_of(file))  # type: ignore[arg-type]
    assert file.taken <= 2 * MAX_LINE_BYTES


@pytest.mark.parametrize("make", [small_archive, unordered_archive])
def test_every_level_counts_the_same_records_and_files(make: Callable[[], Builder]) -> None:
    store = make().store
    levels = [verify(store, Options(level=level)).counts for level in ("manifest", "objects")]
    told = [(c.records, c.files, c.bytes, c.calls, c.pending) for c in levels]
    assert told[0] == told[1]


def test_a_file_that_two_revisions_name_counts_once_though_one_line_is_odd() -> None:
    builder = Builder().genesis()
    first = builder.call("vc_a", hour(10))
    odd = builder.call("vc_a", hour(10), revision=2, fields={"campaignId": "a\tb"})
    builder.close(hour(10), [first, odd])
    counts = verify(builder.store, Options(level="manifest")).counts
    assert (counts.records, counts.files) == (2, 3)
