"""A strict check of an archive against the frozen contract, by hashlib, json and openssl alone.

It reads a plain copy of the bucket and shares nothing with the archiver, so that a mistake in the
archiver's own formats cannot agree with itself here.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.fakes.merkle import merkle_root

RECORD = {
    "archived_at", "audio", "call_id", "campaign_id", "direction", "duration_seconds", "ended_at",
    "files", "findings", "outcome", "reason", "record", "retention", "revision", "source",
    "started_at", "state", "type", "v",
}  # fmt: skip
FILE = {"bytes", "content_type", "key", "kind", "sha256", "version_id"}
AUDIO = {"bits_per_sample", "channels", "duration_seconds", "encoding", "sample_rate_hz"}
SOURCE = {"api", "content_md5", "etag", "last_modified", "recording_host", "request_id"}
WINDOW = {
    "archived", "failed", "filter", "from", "listed", "listed_at", "listed_sha256", "no_recording",
    "pages", "passes", "pending", "revision", "source_total", "to", "type", "v", "vanished",
}  # fmt: skip
SEAL = {
    "archive", "key_id", "prev", "records", "sealed_at", "segments", "seq", "type", "v",
    "watermark",
}  # fmt: skip
ENTRY = {"bytes", "key", "records", "root", "sha256"}

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DAY = r"dt=\d{4}-\d\d-\d\d"
_CALL = r"([A-Za-z0-9_-]{1,128}|id\.[0-9a-f]{64})"
_KEYS = [
    re.compile(pattern)
    for pattern in (
        rf"recordings/{_DAY}/{_CALL}/(recording|transcript|epa)(-[0-9a-f]{{16}})?\.(wav|json)",
        rf"records/{_DAY}/{_CALL}/r[1-9]\d*\.json",
        rf"manifest/segments/{_DAY}/[0-2]\d[0-5]\d\.r[1-9]\d*\.(jsonl|sha256|seal)",
        r"manifest/seals/\d{12}\.json(\.sig)?",
        r"manifest/keys/([0-9a-f]{16}\.pem|VERIFY\.md|verify\.sh)",
        r"manifest/sightings/dt=\d{4}-\d\d-\d\d/[0-2]\d[0-5]\d-[0-9a-f]{16}\.json",
        r"manifest/probe",
    )
]


@dataclass(frozen=True)
class Expected:
    """What the archive must hold: `calls` by id, as the source tells of them.

    Each is `{"document": …, "epa": … or None, "recording": {"bytes", "sha256"} or None}`; calls in
    other states than `Completed` are passed by. `failed` maps ids to the reason that must stand.
    """

    calls: Mapping[str, Mapping[str, Any]]
    start: datetime
    end: datetime
    api: str
    recording_host: str
    window: timedelta = timedelta(hours=1)
    failed: Mapping[str, str] = field(default_factory=dict)
    retention: tuple[str, int] | None = None
    """Lock mode and days."""
    leftovers: bool = False
    """Whether files may stand there that no record names: several writers, or a crash."""
    revisions: Mapping[str, int] = field(default_factory=dict)
    """Newest revision of a call, where it is not 1."""
    totals: bool = True
    """Whether the source always says how many calls it lists; a bare array does not."""
    loop: bool = False
    """Whether the loop ran too: it moves the watermark, as a backfill never does."""


@dataclass(frozen=True)
class Checked:
    """What the archive holds, after everything held."""

    records: Mapping[str, Mapping[str, Any]]
    """The newest record of each call."""
    seals: int
    segments: int
    head: str
    """`SEQ:SHA256`, as `verify --head` takes it."""


def check(directory: Path, expected: Expected) -> Checked:
    """Raises `AssertionError` that names the object."""
    return _Check(directory, expected).run()


def canonical(document: Any) -> bytes:
    """The archive's JSON: sorted keys, compact, UTF-8, one newline."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def call_directory(call_id: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,128}", call_id):
        return call_id
    return "id." + sha256(call_id.encode())


class _Check:
    def __init__(self, directory: Path, expected: Expected) -> None:
        self.directory = directory
        self.expected = expected
        self.wanted = {
            call_id: call
            for call_id, call in expected.calls.items()
            if call["document"].get("state") == "Completed"
        }
        self.named: set[str] = set()
        self.records: dict[str, dict[str, Any]] = {}
        self.segments: dict[str, bytes] = {}

    def run(self) -> Checked:
        keys = {
            str(file.relative_to(self.directory))
            for file in self.directory.rglob("*")
            if file.is_file()
        }
        for key in sorted(keys):
            assert any(pattern.fullmatch(key) for pattern in _KEYS), f"unknown key {key}"
        for key in sorted(key for key in keys if key.endswith(".jsonl")):
            self.segments[key] = self.read(key)
            self.segment(key)
        self.windows()
        self.sightings(keys)
        assert self.records.keys() == self.wanted.keys(), "records are not those of the calls"
        seals, head = self.chain(
            sum(re.fullmatch(r".*/\d{12}\.json", key) is not None for key in keys)
        )
        self.nothing_else(keys)
        return Checked(self.records, seals, len(self.segments), head)

    def sightings(self, keys: set[str]) -> None:
        """Each id that was listed and written down has a record."""
        for key in sorted(key for key in keys if key.startswith("manifest/sightings/")):
            document = json.loads(self.read(key))
            assert document.keys() == {"at", "from", "ids", "to", "type", "v"}, key
            assert set(document["ids"]) <= self.records.keys(), f"listed, then silence: {key}"

    def read(self, key: str) -> bytes:
        return (self.directory / key).read_bytes()

    def json(self, key: str, data: bytes, fields: set[str]) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(data)
        assert canonical(document) == data, f"{key} is not in canonical form"
        assert document.keys() == fields, f"{key}: {sorted(document.keys() ^ fields)}"
        return document

    # --- segments

    def segment(self, key: str) -> None:
        data = self.segments[key]
        assert data.endswith(b"\n")
        lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
        records = [self.record(line) for line in lines[:-1]]
        window = self.json(key, lines[-1], WINDOW)
        names = [record["record"] for record in records]
        assert names == sorted(set(names)), f"{key} is not sorted"
        self.window_line(key, window)
        checksum_list = [f"{sha256(data)}  {key}"]
        checksum_list += [
            f"{sha256(line)}  {r['record']}" for line, r in zip(lines, records, strict=False)
        ]
        checksum_list += [f"{f['sha256']}  {f['key']}" for r in records for f in r["files"]]
        written = self.read(key.replace(".jsonl", ".sha256")).decode()
        assert written == "".join(f"{row}\n" for row in checksum_list), f"the companion of {key}"

    def window_line(self, key: str, line: dict[str, Any]) -> None:
        start, end = (datetime.fromisoformat(line[name]) for name in ("from", "to"))
        assert (line["type"], line["v"]) == ("window", 1)
        assert end - start == self.expected.window
        assert key == (
            f"manifest/segments/dt={start:%Y-%m-%d}/{start:%H%M}.r{line['revision']}.jsonl"
        )
        for name in ("from", "to", "listed_at"):
            assert _TIME.fullmatch(line[name]), f"{key}: {name}"
        ids = sorted(
            call_id for call_id, call in self.wanted.items() if start <= _placed(call) < end
        )
        assert line["listed_sha256"] == sha256("".join(f"{i}\n" for i in ids).encode()), key
        assert line["listed"] == len(ids), key
        totals = {len(ids)} if self.expected.totals else {len(ids), None}
        assert line["source_total"] in totals, key
        counts = {"archived": 0, "no_recording": 0, "failed": 0}
        for call_id in ids:
            counts[self.outcome(call_id, line["revision"])] += 1
        assert {name: line[name] for name in counts} == counts, key
        assert (line["pending"], line["vanished"]) == ([], []), key
        assert line["filter"] == {"state": ["Completed"]}
        assert line["passes"] >= 2
        assert line["pages"] >= 1

    def outcome(self, call_id: str, revision: int) -> str:
        """What the listing that wrote a segment of that revision must have counted."""
        if call_id in self.expected.failed:
            return "failed"
        if self.expected.revisions.get(call_id, 1) > revision:
            return "failed"  # only what failed is tried again
        return "archived" if self.wanted[call_id]["recording"] else "no_recording"

    def windows(self) -> None:
        start = self.expected.start
        while start < self.expected.end:
            key = f"manifest/segments/dt={start:%Y-%m-%d}/{start:%H%M}.r1.jsonl"
            assert key in self.segments, f"no segment for the window of {start}"
            start += self.expected.window

    # --- records

    def record(self, data: bytes) -> dict[str, Any]:
        document = json.loads(data)
        failed = document["outcome"] != "archived"
        record = self.json("record", data, RECORD | ({"attempts", "status"} if failed else set()))
        key, call_id = record["record"], record["call_id"]
        call = self.wanted[call_id]
        day = _placed(call).date()
        revision = record["revision"]
        assert key == f"records/dt={day}/{call_directory(call_id)}/r{revision}.json"
        assert self.read(key) == data, f"{key} is not the line of its segment"
        assert (record["type"], record["v"]) == ("call", 1)
        last = revision == self.expected.revisions.get(call_id, 1)
        self.fields(key, record, call["document"])
        self.retention(key, record, call["document"])
        if last:
            self.result(key, record, call)
            assert call_id not in self.records, f"two records of {call_id}"
            self.records[call_id] = record
        self.files(key, record, call)
        self.named.add(key)
        return record

    def fields(self, key: str, record: dict[str, Any], document: Mapping[str, Any]) -> None:
        for name, field_name in (
            ("campaign_id", "campaignId"),
            ("direction", "direction"),
            ("duration_seconds", "durationSeconds"),
            ("state", "state"),
        ):
            assert record[name] == document.get(field_name), f"{key}: {name}"
        for name, field_name in (("started_at", "startTime"), ("ended_at", "endTime")):
            told = document.get(field_name)
            assert (record[name] is None) == (told is None), f"{key}: {name}"
            if told is not None:
                assert _TIME.fullmatch(record[name]), f"{key}: {name}"
                assert _moment(record[name]) == _moment(told), f"{key}: {name}"
        assert _TIME.fullmatch(record["archived_at"]), key
        assert record["findings"] == sorted(set(record["findings"])), key

    def retention(self, key: str, record: dict[str, Any], document: Mapping[str, Any]) -> None:
        if self.expected.retention is None:
            assert record["retention"] is None, key
            return
        mode, days = self.expected.retention
        told = record["retention"]
        assert told.keys() == {"mode", "until"}, key
        assert told["mode"] == mode, key
        if document.get("endTime"):
            late = _moment(told["until"]) - _moment(document["endTime"]) - timedelta(days=days)
            assert timedelta(0) <= late < timedelta(seconds=1), f"{key}: retention"

    def result(self, key: str, record: dict[str, Any], call: Mapping[str, Any]) -> None:
        source = record["source"]
        assert source["api"] == self.expected.api, key
        assert source["request_id"], key
        reason = self.expected.failed.get(record["call_id"])
        if reason is not None:
            assert (record["outcome"], record["reason"]) == ("failed", reason), key
            assert record["attempts"] >= 1, key
            assert record["audio"] is None, key
        elif call["recording"] is None:
            assert (record["outcome"], record["reason"]) == ("no_recording", "not_found"), key
            assert record["status"] == 404, key
            assert record["audio"] is None, key
        else:
            assert (record["outcome"], record["reason"]) == ("archived", None), key
            assert source.keys() == SOURCE, key
            assert source["recording_host"] == self.expected.recording_host, key
            assert record["audio"].keys() == AUDIO, key

    def files(self, key: str, record: dict[str, Any], call: Mapping[str, Any]) -> None:
        kinds = [file["kind"] for file in record["files"]]
        archived = record["outcome"] == "archived"
        wanted = ["recording"] * archived + ["transcript"] + ["epa"] * (call["epa"] is not None)
        assert kinds == wanted, f"{key}: {kinds}"
        document = {k: v for k, v in call["document"].items() if k != "epaResults"}
        sidecars = {"transcript": canonical(document), "epa": canonical(call["epa"])}
        home = key.replace("records/", "recordings/").rpartition("/")[0]
        for file in record["files"]:
            assert file.keys() == FILE, key
            data = self.read(file["key"])
            assert (len(data), sha256(data)) == (file["bytes"], file["sha256"]), file["key"]
            kind = file["kind"]
            if kind == "recording":
                told = call["recording"]
                assert (len(data), sha256(data)) == (told["bytes"], told["sha256"]), file["key"]
                self.audio(key, record["audio"], data)
            else:
                assert data == sidecars[kind], f"{file['key']} is not what the source sent"
            extension = "wav" if kind == "recording" else "json"
            name = rf"{re.escape(home)}/{kind}(-[0-9a-f]{{16}})?\.{extension}"
            assert re.fullmatch(name, file["key"]), file["key"]
            media = "audio/wav" if kind == "recording" else "application/json"
            assert file["content_type"] == media, file["key"]
            self.named.add(file["key"])

    def audio(self, key: str, audio: dict[str, Any], data: bytes) -> None:
        """The header of a plain PCM file: all that the tests' sources serve."""
        channels = int.from_bytes(data[22:24], "little")
        rate = int.from_bytes(data[24:28], "little")
        bits = int.from_bytes(data[34:36], "little")
        seconds = (len(data) - 44) / (channels * rate * bits // 8)
        assert audio == {
            "bits_per_sample": bits,
            "channels": channels,
            "duration_seconds": seconds,
            "encoding": "pcm",
            "sample_rate_hz": rate,
        }, key

    # --- the chain

    def chain(self, count: int) -> tuple[int, str]:
        previous, archive, total, sealed = "0" * 64, None, 0, set[str]()
        watermark: str | None = None
        for number in range(count):
            key = f"manifest/seals/{number:012d}.json"
            data = self.read(key)
            seal = self.json(key, data, SEAL | ({"public_key", "store"} if not number else set()))
            assert (seal["seq"], seal["prev"], seal["v"]) == (number, previous, 1), key
            assert seal["type"] == ("seal" if number else "genesis"), key
            archive = archive or seal["archive"]
            assert seal["archive"] == archive, key
            for name in ("sealed_at", "watermark"):
                assert _TIME.fullmatch(seal[name]), key
            self.key(seal, number)
            for entry in seal["segments"]:
                assert entry["key"] not in sealed, f"{entry['key']} is sealed twice"
                sealed.add(entry["key"])
                self.entry(entry, number)
                total += entry["records"]
            assert seal["records"] == total, f"{key}: records"
            watermark = self.watermark(key, seal["watermark"], watermark, sealed)
            self.signature(key, seal["key_id"])
            self.named |= {key, f"{key}.sig"}
            previous = sha256(data)
        assert sealed == self.segments.keys(), "segments and seals differ"
        return count, f"{count - 1}:{previous}"

    def watermark(self, key: str, mark: str, before: str | None, sealed: set[str]) -> str:
        """It never goes back, and all between is sealed."""
        at, end = _moment(before or mark), _moment(mark)
        assert at <= end, f"{key}: the watermark goes back"
        assert at == end or self.expected.loop, f"{key}: a backfill moved the watermark"
        while at < end:
            window = f"manifest/segments/dt={at:%Y-%m-%d}/{at:%H%M}.r1.jsonl"
            assert window in sealed, f"{key}: the watermark passes the window of {at}"
            at += self.expected.window
        return mark

    def key(self, seal: dict[str, Any], number: int) -> None:
        file = f"manifest/keys/{seal['key_id']}.pem"
        pem = self.read(file)
        der = subprocess.run(
            ["openssl", "pkey", "-pubin", "-outform", "DER"],
            input=pem, capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert seal["key_id"] == sha256(der)[:16], file
        if number == 0:
            assert seal["public_key"].encode() == pem, file
            assert seal["segments"] == []
            assert isinstance(seal["store"], dict)
        self.named.add(file)

    def entry(self, entry: dict[str, Any], number: int) -> None:
        key = entry["key"]
        data = self.segments[key]
        lines = data.split(b"\n")[:-1]
        assert entry == {
            "bytes": len(data),
            "key": key,
            "records": len(lines) - 1,
            "root": merkle_root(lines).hex(),
            "sha256": sha256(data),
        }, f"{key} in seal {number}"
        pointer = key.replace(".jsonl", ".seal")
        assert self.read(pointer) == f"{number}\n".encode(), pointer
        self.named |= {key, pointer, key.replace(".jsonl", ".sha256")}

    def signature(self, key: str, key_id: str) -> None:
        file = self.directory / key
        assert len(file.with_name(f"{file.name}.sig").read_bytes()) == 64, f"{key}.sig"
        public = self.directory / f"manifest/keys/{key_id}.pem"
        subprocess.run(
            ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", file,
             "-sigfile", f"{file}.sig"],
            check=True, capture_output=True,
        )  # fmt: skip

    def nothing_else(self, keys: set[str]) -> None:
        beside = {"manifest/keys/VERIFY.md", "manifest/keys/verify.sh", "manifest/probe"}
        assert beside <= keys, f"missing: {sorted(beside - keys)}"
        left = keys - self.named - beside
        left = {key for key in left if not key.startswith("manifest/sightings/")}
        if self.expected.leftovers:
            left = {key for key in left if not key.startswith("recordings/")}
        assert not left, f"named by nobody: {sorted(left)[:5]}"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.upper().replace("Z", "+00:00"))


def _placed(call: Mapping[str, Any]) -> datetime:
    document = call["document"]
    return _moment(document.get("startTime") or document["createdAt"])
