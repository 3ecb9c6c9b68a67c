"""`verify.sh`: the same damages, found with standard tools alone on a downloaded copy."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver import audit
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from tests.audit.builder import Builder, hour, small_archive, unordered_archive
from tests.audit.damage import DAMAGES, RECORD, TRANSCRIPT, WAV, Damage, damaged, flip
from tests.audit.foreign import (
    FOREIGN_BYTES,
    SIGHTING,
    SOUND,
    at,
    passed_over,
    sight,
    unreadable_entries,
)

SCRIPT = Path(audit.__file__).with_name("verify.sh")

pytestmark = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The script, as an auditor starts it, in another directory than the copy."""
    command = ["bash", str(SCRIPT), *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def check(builder: Builder, *options: str) -> tuple[int, list[str]]:
    """Run it on a copy of a builder's archive: the exit code, and the lines that do not say OK."""
    with tempfile.TemporaryDirectory() as folder:
        builder.store.save(Path(folder))
        done = run(Path(folder), *options)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    return done.returncode, [line for line in lines if not line.startswith("OK ")]


def test_a_sound_archive_holds() -> None:
    builder = small_archive()
    code, rest = check(builder, "--head", builder.head)

    assert code == 0
    assert rest[-1] == f"all holds; note the newest seal: {builder.head}"
    assert [line for line in rest if "FAIL" in line] == []


def test_files_of_every_kind_are_hashed_known_or_not() -> None:
    kinds = ("recording", "transcript_malformed", "epa_malformed", "diary")
    builder = Builder().genesis()
    builder.close(hour(10), [builder.call("vc_a", hour(10), kinds=kinds)])
    assert check(builder)[0] == 0
    builder.store.rot("recordings/dt=2024-01-15/vc_a/diary.md", flip)
    code, rest = check(builder)
    assert code == 1
    assert any("diary.md" in line for line in rest)


def test_the_given_key_is_used(tmp_path: Path) -> None:
    builder = small_archive()
    (tmp_path / "right.pem").write_bytes(builder.key.public.pem)
    (tmp_path / "wrong.pem").write_bytes(SigningKey.generate().public.pem)

    assert check(builder, "--public-key", str(tmp_path / "right.pem"))[0] == 0
    code, rest = check(builder, "--public-key", str(tmp_path / "wrong.pem"))
    assert code == 1
    assert len([line for line in rest if "is no signature of the key" in line]) == 5


@pytest.mark.parametrize(
    "damage", [damage for damage in DAMAGES if damage.shell], ids=lambda damage: damage.name
)
def test_damage_is_found(damage: Damage) -> None:
    builder, head = damaged(damage)
    code, rest = check(builder, *(["--head", head] if damage.head else []))

    assert code == 1, rest
    assert rest[0].startswith("FAIL  ")


def test_each_flip_is_named() -> None:
    """What is wrong is told with its key."""
    for key in (WAV, TRANSCRIPT, RECORD):
        builder = small_archive()
        builder.store.rot(key, flip)
        _, rest = check(builder)
        assert any(key in line for line in rest), rest


def test_the_manifest_alone_can_be_checked() -> None:
    builder = small_archive()
    for key in builder.store.all_keys("record"):
        builder.store.lose(key)

    assert check(builder, "--manifest-only")[0] == 0
    assert check(builder)[0] == 1


@pytest.mark.parametrize(("name", "do"), SOUND, ids=[name for name, _ in SOUND])
def test_what_is_sound_holds(name: str, do: Callable[[Builder], object]) -> None:
    builder = small_archive()
    do(builder)
    code, rest = check(builder)

    assert code == 0, rest


def test_a_revision_whose_key_is_taken_was_passed_over() -> None:
    builder = small_archive()
    passed_over(FOREIGN_BYTES)(builder)
    assert check(builder)[0] == 0

    builder = small_archive()
    passed_over(None)(builder)
    code, rest = check(builder)
    assert code == 1
    assert "a revision before it is in no seal" in rest[0]


def test_a_sighted_call_that_is_lost_is_found() -> None:
    builder = small_archive()
    sight("vc_d", "vc_lost", "../odd\nid")(builder)
    code, rest = check(builder)

    told = "2 sighted calls have no record and are not pending"
    assert (code, rest[0]) == (1, f"FAIL  {told}")
    for key in builder.store.all_keys("record"):
        builder.store.lose(key)
    code, rest = check(builder, "--manifest-only")
    assert code == 0
    assert rest[0].startswith("NOTE  2 sighted calls have no sealed record: ")


def test_a_sighting_that_cannot_be_read_is_noted() -> None:
    builder = small_archive()
    at(SIGHTING, b"{}")(builder)
    code, rest = check(builder)

    assert (code, rest[0]) == (0, f"NOTE  {SIGHTING} is no sighting of this format")


def test_entries_that_are_no_calls_are_outside_of_the_balance() -> None:
    builder = small_archive()
    unreadable_entries(builder, 3)

    assert check(builder)[0] == 0


def test_the_newest_record_is_the_one_with_the_highest_number() -> None:
    assert check(unordered_archive())[0] == 0


@pytest.mark.parametrize(
    "options",
    [[], ["nowhere"], ["--head", "4", "."], ["--head", "x:y", "."], ["--key"], [".", "."],
     ["--public-key"], ["--public-key", "nowhere", "."], ["--head"]],
)  # fmt: skip
def test_wrong_usage_ends_with_2(options: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *options], capture_output=True, text=True)

    assert done.returncode == 2
    assert "usage: bash verify.sh" in done.stderr


def test_an_empty_directory_is_no_archive(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 1


def test_an_archive_whose_seal_0_tells_nothing_of_the_page_holds() -> None:
    builder = Builder().genesis(pages=None)
    builder.store.put(layout.VERIFY_SCRIPT, SCRIPT.read_bytes())

    assert check(builder)[0] == 0
