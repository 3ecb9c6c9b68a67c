"""Done when 6: `verify` exits 1 and names the damage by its code, whatever the damage is; and what
stands in the bucket, `verify.sh` finds as well, with standard tools alone.

What a more cunning vandal does: tests/audit/damage.py. What lies below the newest versions of a
bucket: tests/audit/test_attacks.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.system import audit
from tests.system.bucket import Bucket
from tests.system.checker import sha256
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive
from tests.system.servers import Source

DAY = "2024-06-01"
CALLS = 24

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Archive:
    """A sound archive; `head` is its newest seal as `SEQ:SHA256`."""

    archiver: Archiver
    bucket: Bucket
    copy: Path
    head: str


@pytest.fixture(scope="module")
def sound(make_archive: MakeArchive, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Six windows, sealed in three runs: at least four seals."""
    directory = tmp_path_factory.mktemp("damage")
    dates = ("--from", f"{DAY}T00:00:00", "--to", f"{DAY}T06:00:00")
    with Source(directory, "--calls", str(CALLS), "--short", *dates, truth=False) as source:
        archiver, bucket = make_archive(source.settings())
        for hour in (0, 2, 4):
            start, end = (f"{DAY}T{h:02}:00:00Z" for h in (hour, hour + 2))
            archiver.run("backfill", "--from", start, "--to", end).expect(0)
    seals = bucket.keys("manifest/seals/")[::2]
    assert len(seals) >= 4
    head = f"{len(seals) - 1}:{sha256(bucket.get(seals[-1]))}"
    audit.assert_clean(archiver)
    return Archive(archiver, bucket, bucket.download(directory / "copy"), head)


# --- what a vandal does


def first(bucket: Bucket, prefix: str, suffix: str, number: int = 0) -> str:
    return [key for key in bucket.keys(prefix) if key.endswith(suffix)][number]


def flip(prefix: str, suffix: str, number: int = 0) -> Callable[[Bucket], None]:
    """One bit in the middle of an object."""

    def damage(bucket: Bucket) -> None:
        key = first(bucket, prefix, suffix, number)
        data = bytearray(bucket.get(key))
        data[len(data) // 2] ^= 1
        bucket.put(key, bytes(data))

    return damage


def lose(prefix: str, suffix: str, number: int = 0) -> Callable[[Bucket], None]:
    return lambda bucket: bucket.delete(first(bucket, prefix, suffix, number))


def truncate(bucket: Bucket) -> None:
    """The newest seal goes, with everything that tells of it."""
    newest = [key for key in bucket.keys("manifest/seals/") if key.endswith(".json")][-1]
    for entry in json.loads(bucket.get(newest))["segments"]:
        for extension in ("jsonl", "sha256", "seal"):
            bucket.delete(entry["key"].replace("jsonl", extension))
    bucket.delete(newest)
    bucket.delete(f"{newest}.sig")


@dataclass(frozen=True)
class Damage:
    """`codes` is what `verify` must say, `also` what it may say beside; `head`: `--head` is given.

    What else is wrong with a flipped bit depends on where it falls: JSON may be broken or not.
    """

    do: Callable[[Bucket], None]
    codes: set[str]
    also: set[str] = field(default_factory=set)
    head: bool = False


SEGMENTS, SEALS = "manifest/segments/", "manifest/seals/"
BROKEN_SEGMENT = {
    "segment_invalid", "record_mismatch", "companion_mismatch", "file_hash", "window_counts",
    "listed_mismatch", "window_balance",
}  # fmt: skip
BROKEN_SEAL = {
    "seal_invalid", "segment_missing", "segment_mismatch", "segment_root", "segment_records",
    "pointer_missing", "pointer_dangling", "running_total", "archive_mismatch", "key_mismatch",
    "watermark_back", "seal_time", "companion_mismatch",
}  # fmt: skip
PLACES = {
    "recording": ("recordings/", ".wav"),
    "transcript": ("recordings/", "transcript.json"),
    "survey": ("recordings/", "epa.json"),
    "record": ("records/", ".json"),
    "segment": (SEGMENTS, ".jsonl"),
    "companion": (SEGMENTS, ".sha256"),
    "pointer": (SEGMENTS, ".seal"),
    "public key": ("manifest/keys/", ".pem"),
    "seal 0": (SEALS, ".json", 0),
    "seal 1": (SEALS, ".json", 1),
    "seal 2": (SEALS, ".json", 2),
    "newest seal": (SEALS, ".json", -1),
    "signature 1": (SEALS, ".sig", 1),
    "signature 2": (SEALS, ".sig", 2),
}
FLIPPED: dict[str, tuple[set[str], set[str]]] = {
    "recording": ({"file_hash"}, set()),
    "transcript": ({"file_hash"}, set()),
    "survey": ({"file_hash"}, set()),
    "record": ({"record_mismatch"}, set()),
    "segment": ({"segment_mismatch"}, BROKEN_SEGMENT),
    "companion": ({"companion_mismatch"}, set()),
    "seal 1": ({"signature_invalid", "prev_mismatch"}, BROKEN_SEAL),
    "newest seal": ({"signature_invalid"}, BROKEN_SEAL),
    "signature 1": ({"signature_invalid"}, set()),
}
MISSING: dict[str, tuple[set[str], set[str]]] = {
    "recording": ({"file_missing"}, set()),
    "transcript": ({"file_missing"}, set()),
    "record": ({"record_missing"}, set()),
    "segment": ({"segment_missing"}, set()),
    "companion": ({"companion_missing"}, set()),
    "pointer": ({"pointer_missing"}, set()),
    "seal 2": ({"seal_missing"}, {"pointer_dangling"}),
    "signature 2": ({"signature_missing"}, set()),
    # Without seal 0, and no key from outside, nothing tells which key the archive has.
    "seal 0": ({"seal_missing"}, {"signature_invalid"}),
    "public key": ({"public_key_missing"}, set()),
}
DAMAGES = {
    **{
        f"flipped bit in {one}": Damage(flip(*PLACES[one]), *codes)
        for one, codes in FLIPPED.items()
    },
    **{f"missing {one}": Damage(lose(*PLACES[one]), *codes) for one, codes in MISSING.items()},
    "cut-off tail": Damage(truncate, {"tail_missing"}, head=True),
}
each_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))


@pytest.fixture
def restored(sound: Archive) -> Iterator[None]:
    """After a test, the bucket is as before."""
    yield
    there = set(sound.bucket.keys())
    for file in (file for file in sound.copy.rglob("*") if file.is_file()):
        key, data = str(file.relative_to(sound.copy)), file.read_bytes()
        if key not in there or sound.bucket.get(key) != data:
            sound.bucket.put(key, data)


@pytest.mark.usefixtures("restored")
@each_damage
def test_both_verifiers_find_the_damage(sound: Archive, damage: Damage, tmp_path: Path) -> None:
    options = ("--head", sound.head) if damage.head else ()
    damage.do(sound.bucket)
    found = audit.findings(sound.archiver, "--level", "bytes", *options, code=1)
    assert damage.codes <= found <= damage.codes | damage.also
    script = audit.run_script(sound.bucket.download(tmp_path / "copy"), *options)
    assert script.returncode == 1, script.stdout
    assert "FAIL" in script.stdout


@pytest.mark.usefixtures("restored")
def test_without_a_known_head_a_cut_off_tail_cannot_be_told(sound: Archive, tmp_path: Path) -> None:
    """The limit that docs/manifest-format.md states: before a *known* head."""
    audit.assert_script_clean(sound.copy, "--head", sound.head)
    truncate(sound.bucket)
    script = audit.run_script(sound.bucket.download(tmp_path / "copy"))
    assert script.returncode == 0
    assert "--head" in script.stdout
