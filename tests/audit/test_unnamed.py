"""What lies in the bucket and nothing names: information, counted, with a few keys of each."""

from __future__ import annotations

import pytest

from archiver.audit.leftovers import SHOWN
from archiver.core.errors import StoreError
from tests.audit.builder import Builder, hour, small_archive
from tests.audit.damage import THIRD, flip
from tests.audit.store import MemoryStore


def with_leftovers(store: MemoryStore | None = None, *, files: int = 1) -> Builder:
    """A record that no segment tells of with its two files, and files of tries that came to
    nothing."""
    builder = small_archive(store)
    builder.call("vc_e", hour(13), kinds=("recording", "transcript"))
    for number in range(files):
        builder.put(f"recordings/dt=2024-01-15/vc_d/recording-{number:016x}.wav", b"RIFF")
    return builder


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("refused", [False, True])
def test_leftovers_are_information(versioned: bool, refused: bool) -> None:
    """However the store lists them: with versions, without, or not at all."""
    builder = with_leftovers(MemoryStore(versioned=versioned))
    if refused:
        whole = builder.store.versions
        builder.store.versions = lambda prefix: fail(whole(prefix))  # type: ignore[method-assign]

    report = builder.audit()

    assert report.ok
    assert [(f.code, f.key.split("/", 2)[2]) for f in report.findings] == [
        ("unnamed_object", "vc_d/recording-0000000000000000.wav"),
        ("unnamed_object", "vc_e/recording.wav"),
        ("unnamed_object", "vc_e/transcript.json"),
        ("untold_record", "vc_e/r1.json"),
    ]


def fail(versions):
    """A listing that breaks off, so that what was seen of it must not count."""
    yield from list(versions)[:3]
    raise StoreError("not here", reason="refused", status=501)


def test_many_leftovers_are_counted_and_few_of_them_shown() -> None:
    report = with_leftovers(files=300).audit()

    shown = [f for f in report.findings if f.code == "unnamed_object"]
    assert report.totals == {"unnamed_object": 302, "untold_record": 1}
    assert len(shown) == SHOWN


def test_leftovers_do_not_crowd_out_what_is_wrong() -> None:
    builder = with_leftovers(files=30)
    builder.store.delete(THIRD + ".seal")
    report = builder.audit(max_findings=3)

    assert {"pointer_missing", "deleted"} <= {f.code for f in report.findings}


def test_where_it_cannot_be_told_nothing_is_said() -> None:
    assert with_leftovers().audit(start=hour(12).start).totals == {}, "other windows may name it"
    assert with_leftovers().audit(level="manifest").totals == {}

    builder = with_leftovers()
    builder.store.rot(THIRD + ".jsonl", flip)
    report = builder.audit()
    assert not {"unnamed_object", "untold_record"} & set(report.totals)
    assert any("what nothing names was not looked for" in note for note in report.notes)


def test_a_carried_file_and_an_amended_record_have_their_names() -> None:
    """vc_a has two revisions, in two segments; both name the recording."""
    assert small_archive().audit().totals == {}
