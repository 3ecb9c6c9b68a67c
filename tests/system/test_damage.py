"""Done when 6: `verify` exits 1 and names the damage by its code, whatever the damage is; and what
stands in the bucket, `verify.sh` finds as well, with standard tools alone.

What lies below the newest versions of a bucket: tests/audit/test_attacks.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.fakes.merkle import merkle_root
from tests.system import audit
from tests.system.bucket import Bucket
from tests.system.checker import canonical, sha256
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive
from tests.system.servers import Source

DAY = "2024-06-01"
CALLS = 24

pytestmark = pytest.mark.timeout(180)


class Objects(Protocol):
    """What a vandal needs: a bucket has it, and so has a copy of it."""

    def keys(self, prefix: str = "") -> list[str]: ...

    def get(self, key: str) -> bytes: ...

    def put(self, key: str, data: bytes) -> None: ...

    def delete(self, key: str) -> None: ...


@dataclass(frozen=True)
class Copy:
    """A plain copy of a bucket."""

    directory: Path

    def keys(self, prefix: str = "") -> list[str]:
        files = (file for file in self.directory.rglob("*") if file.is_file())
        keys = sorted(str(file.relative_to(self.directory)) for file in files)
        return [key for key in keys if key.startswith(prefix)]

    def get(self, key: str) -> bytes:
        return (self.directory / key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        (self.directory / key).write_bytes(data)

    def delete(self, key: str) -> None:
        (self.directory / key).unlink()


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


# --- what a vandal does: to a bucket or to a copy of it


def first(objects: Objects, prefix: str, suffix: str, number: int = 0) -> str:
    return [key for key in objects.keys(prefix) if key.endswith(suffix)][number]


def seal_key(number: int) -> str:
    return f"manifest/seals/{number:012d}.json"


def flip(prefix: str, suffix: str, number: int = 0) -> Callable[[Objects], None]:
    """One bit in the middle of an object."""

    def damage(objects: Objects) -> None:
        key = first(objects, prefix, suffix, number)
        data = bytearray(objects.get(key))
        data[len(data) // 2] ^= 1
        objects.put(key, bytes(data))

    return damage


def lose(prefix: str, suffix: str, number: int = 0) -> Callable[[Objects], None]:
    return lambda objects: objects.delete(first(objects, prefix, suffix, number))


def swap(*suffixes: str) -> Callable[[Objects], None]:
    """Seals 1 and 2 change places."""

    def damage(objects: Objects) -> None:
        for suffix in suffixes:
            one, two = (seal_key(number) + suffix for number in (1, 2))
            data = objects.get(one), objects.get(two)
            objects.put(one, data[1])
            objects.put(two, data[0])

    return damage


def truncate(objects: Objects) -> None:
    """The newest seal goes, with everything that tells of it."""
    newest = [key for key in objects.keys("manifest/seals/") if key.endswith(".json")][-1]
    for entry in json.loads(objects.get(newest))["segments"]:
        for extension in ("jsonl", "sha256", "seal"):
            objects.delete(entry["key"].replace("jsonl", extension))
    objects.delete(newest)
    objects.delete(f"{newest}.sig")


def without_a_record(objects: Objects, key: str) -> bytes:
    """A segment less its first record, its window line put right."""
    lines = objects.get(key).split(b"\n")[:-1]
    dropped, window = json.loads(lines[0]), json.loads(lines[-1])
    ids = sorted(json.loads(line)["call_id"] for line in lines[1:-1])
    window["listed"] -= 1
    window[dropped["outcome"]] -= 1
    window["listed_sha256"] = sha256("".join(f"{i}\n" for i in ids).encode())
    return b"".join(line + b"\n" for line in lines[1:-1]) + canonical(window)


def drop_a_record(*, reseal: bool, rechain: bool) -> Callable[[Objects], None]:
    """A record leaves its segment, and all hashes are made anew as far as one can without the
    key: the companion; the seal's entry too (`reseal`); and `prev` of all later seals."""

    def damage(objects: Objects) -> None:
        key = first(objects, "manifest/segments/", ".jsonl", 2)
        dropped = json.loads(objects.get(key).split(b"\n")[0])
        gone = {dropped["record"], *(file["key"] for file in dropped["files"])}
        data = without_a_record(objects, key)
        checksum_list = key.replace(".jsonl", ".sha256")
        rows = objects.get(checksum_list).decode().splitlines()[1:]
        rows = [row for row in rows if row.split("  ", 1)[1] not in gone]
        rows.insert(0, f"{sha256(data)}  {key}")
        objects.put(checksum_list, "".join(f"{row}\n" for row in rows).encode())
        objects.put(key, data)
        if reseal:
            number = int(objects.get(key.replace(".jsonl", ".seal")))
            reseal_segment(objects, number, key, data, rechain=rechain)

    return damage


def reseal_segment(objects: Objects, number: int, key: str, data: bytes, *, rechain: bool) -> None:
    lines = data.split(b"\n")[:-1]
    seal: dict[str, Any] = json.loads(objects.get(seal_key(number)))
    for entry in seal["segments"]:
        if entry["key"] == key:
            entry |= {
                "bytes": len(data),
                "records": len(lines) - 1,
                "root": merkle_root(lines).hex(),
                "sha256": sha256(data),
            }
    seal["records"] -= 1
    objects.put(seal_key(number), canonical(seal))
    while rechain and seal_key(number + 1) in objects.keys("manifest/seals/"):
        following = json.loads(objects.get(seal_key(number + 1)))
        following["prev"] = sha256(objects.get(seal_key(number)))
        following["records"] -= 1
        number += 1
        objects.put(seal_key(number), canonical(following))


@dataclass(frozen=True)
class Damage:
    """`codes` is what `verify` must say, `also` what it may say beside; `head`: `--head` is given.

    What else is wrong with a flipped bit depends on where it falls: JSON may be broken or not.
    """

    do: Callable[[Objects], None]
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
SWAPPED = {"pointer_mismatch", "running_total", "segment_twice"}
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
    "swapped seals": Damage(swap("", ".sig"), {"seal_number", "prev_mismatch"}, SWAPPED),
    "swapped seals with their signatures left": Damage(
        swap(""), {"signature_invalid", "seal_number", "prev_mismatch"}, SWAPPED
    ),
    "dropped record and companion made anew": Damage(
        drop_a_record(reseal=False, rechain=False), {"segment_mismatch"}, {"companion_mismatch"}
    ),
    "dropped record and seal made anew": Damage(
        drop_a_record(reseal=True, rechain=False),
        {"signature_invalid", "prev_mismatch"},
        {"running_total"},
    ),
    "dropped record and all seals made anew": Damage(
        drop_a_record(reseal=True, rechain=True), {"signature_invalid"}
    ),
    "cut-off tail": Damage(truncate, {"tail_missing"}, head=True),
}
each_damage = pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))


@pytest.fixture
def restored(sound: Archive) -> Iterator[None]:
    """After a test, the bucket is as before."""
    yield
    there = set(sound.bucket.keys())
    copy = Copy(sound.copy)
    whole = copy.keys()
    for key in whole:
        data = copy.get(key)
        if key not in there or sound.bucket.get(key) != data:
            sound.bucket.put(key, data)


@pytest.mark.usefixtures("restored")
@each_damage
def test_verify_names_the_damage(sound: Archive, damage: Damage) -> None:
    options = ("--head", sound.head) if damage.head else ()
    damage.do(sound.bucket)
    found = audit.findings(sound.archiver, "--level", "bytes", *options, code=1)
    assert damage.codes <= found <= damage.codes | damage.also


@each_damage
def test_the_script_finds_it_too(sound: Archive, damage: Damage, tmp_path: Path) -> None:
    copy = Copy(shutil.copytree(sound.copy, tmp_path / "copy"))
    options = ("--head", sound.head) if damage.head else ()
    assert audit.run_script(copy.directory, *options).returncode == 0
    damage.do(copy)
    script = audit.run_script(copy.directory, *options)
    assert script.returncode == 1, script.stdout
    assert "FAIL" in script.stdout


def test_without_a_known_head_a_cut_off_tail_cannot_be_told(sound: Archive, tmp_path: Path) -> None:
    """The limit that docs/manifest-format.md states: before a *known* head."""
    copy = Copy(shutil.copytree(sound.copy, tmp_path / "copy"))
    truncate(copy)
    script = audit.run_script(copy.directory)
    assert script.returncode == 0
    assert "--head" in script.stdout
