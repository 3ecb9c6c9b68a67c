"""The record: the immutable JSON object that commits one call (docs/manifest-format.md).

Rules:
- A call is archived once its record exists. A record names only objects that are durable already.
- Revision n+1 of a call amends revision n and is complete in itself: it lists unchanged files too.
- `reason` and `findings` are codes of the tables below. They never contain text of the source.
- `attempts` and `status` (the last HTTP status) exist only if the outcome is not `archived`.
- `files` has the order of `FILE_KINDS`. If an archived call has no `epa`, no `epa_malformed` and
  no finding `survey_unavailable`, the source had no survey; so for each of `DOCUMENTS`.
- A reader accepts files of kinds that it does not know, and checks their hashes.
- `unavailable` says why a document could not be fetched. It is absent if all were fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

import msgspec

from archiver.core.errors import FormatError, NewerFormat
from archiver.core.model import DOCUMENTS, Call, format_second, format_time
from archiver.manifest import canonical, layout

Outcome = Literal["archived", "no_recording", "failed"]
_HEX = re.compile("[0-9a-f]*")
OUTCOMES: tuple[Outcome, ...] = ("archived", "no_recording", "failed")

NO_RECORDING_REASONS = {
    "not_found": "the source answered 404 to the request for a recording URL",
    "gone": "the source answered 410 to the request for a recording URL",
    "no_url": "the source answered without a recording URL",
}
FAILED_REASONS = {
    "recording_missing": "the signed URL led to no blob (404 or 410)",
    "recording_empty": "the blob has no bytes",
    "not_wav": "the blob is an error page (HTML, XML or JSON), and no recording",
    "truncated": "fewer bytes came than the blob store announced, or, without a length, than the "
    "WAV header or the content coding",
    "recording_changed": "the blob changed while it was read, each time anew",
    "too_large": "the recording is larger than MAX_RECORDING_BYTES",
    "too_slow": "the download stayed below MIN_RATE, or took more than 6 days",
    "url_refused": "the signed URL was refused (403), three fresh ones too",
    "url_not_allowed": "the recording URL names a host outside RECORDING_HOSTS or is malformed",
    "digest_mismatch": "the bytes do not have the Content-MD5 that the blob store announced, and "
    "differ each time",
    "bad_response": "an answer that no client can use (two lengths, an end that nothing confirms, "
    "a second redirect, an odd status)",
    "bad_document": "the source's JSON for the call is malformed, too large or of another call",
    "call_refused": "the source answers 401 or 403 to a request for the call, and not for others",
    "call_missing": "the source listed the call but answers 404 to a request for it",
    "source_unavailable": "the source or its blob store went on failing",
    "store_refused": "the store refused to keep what the source sent for the call",
}
INCOMPLETE = {"document_malformed", *(row.unavailable for row in DOCUMENTS.values())}
"""With one of these findings, a call's documents are fetched again at the ages of RELIST, and by a
backfill."""
FINDINGS = {
    "audio_empty": "the WAV file has a header and no audio",
    "audio_unreadable": "the format of the audio cannot be told: a WAV file without a usable "
    "format or without audio in its first 5 MiB, or a file of an unknown kind",
    "document_malformed": "a document of the call is no proper JSON: its bytes are kept as they "
    "came, in a file whose kind ends in `_malformed`",
    "duration_mismatch": "the audio's length differs from the call's by over 2 s and over 2 %",
    "duration_uncertain": "the figures of the WAV header for the audio's length disagree, there "
    "are none, or it is not clear where the audio ends, so `duration_seconds` is null and not "
    "compared with the call's",
    "header_length_mismatch": "the sizes in the WAV header do not agree with the file or with "
    "each other: more than is there, audio beyond the end of RIFF, or bytes after the audio that "
    "are no chunk",
    "header_length_unknown": "the WAV header leaves the length of its data open: 0, or a number "
    "near 2^31 or 2^32, as programs do that write a stream",
    "length_unconfirmed": "the blob came in chunks, without a length, and neither Content-MD5 nor "
    "the WAV header confirms that this is all of it",
    "md5_mismatch": "the bytes do not have the Content-MD5 that the blob store announced; a second "
    "download brought the same bytes",
    "not_wav": "the recording is no WAV file: the extension of its key and its `content_type` say "
    "what it is",
    "time_implausible": "the call's end lies before its window, or over a day after the listing: "
    "the lock counts from the window's end",
    "trailing_bytes": "the file goes on after the end that its RIFF header states",
    "undecodable": "the blob store named a content coding that cannot be decoded: the bytes are "
    "kept as they came",
    **{
        row.unavailable: f"{row.noun} could not be had; it is asked for again"
        for row in DOCUMENTS.values()
    },
}


@dataclass(frozen=True)
class FileKind:
    """One kind of file that a record may name. `name` is the file's name in the call's directory.
    Only a recording may have another extension and content type (`core.audio.TYPES`)."""

    name: str
    content_type: str
    means: str

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]

    @property
    def suffix(self) -> str:
        return self.name.removeprefix(self.stem)


MALFORMED = {kind: f"{kind}_malformed" for kind in DOCUMENTS}
"""By document, the kind of the file that has its bytes if they are not valid JSON."""
FILE_KINDS = {
    "recording": FileKind(
        "recording.wav",
        "audio/wav",
        "the recording, byte for byte; decoded, where it came with gzip or deflate",
    ),
    **{
        kind: FileKind(f"{kind}.json", "application/json", row.means)
        for kind, row in DOCUMENTS.items()
    },
    **{
        MALFORMED[kind]: FileKind(
            f"{kind}.bad",
            "application/octet-stream",
            f"what came in place of {row.noun}, and is no proper JSON: the bytes as they came",
        )
        for kind, row in DOCUMENTS.items()
    },
}
"""All kinds, in the order of a record's `files`."""


class File(msgspec.Struct, frozen=True, gc=False):
    """A file that a record names. `key` is relative to the archive's prefix, `bytes` is the size. A
    field of another type makes a parsed record invalid.

    `gc=False` saves memory and time: a segment has very many, and they cannot form a cycle.
    """

    kind: str
    key: str
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(min_length=64, max_length=64)]
    content_type: Any = msgspec.UNSET
    version_id: str | None = None


def build(
    call: Call,
    *,
    outcome: Outcome,
    files: Iterable[File],
    source: Mapping[str, Any],
    day: date,
    revision: int,
    archived_at: datetime,
    retention: Mapping[str, Any] | None,
    audio: Mapping[str, Any] | None = None,
    findings: Iterable[str] = (),
    reason: str | None = None,
    attempts: int | None = None,
    status: int | None = None,
    unavailable: Mapping[str, Mapping[str, Any]] | None = None,
) -> Record:
    """Build the record of an attempt.

    `day` is the `dt` of the call's directory, which may differ from the day of its start time.
    `unavailable` maps a file kind to the `reason` and `status` of the failed request.
    """
    key = layout.record_key(day, call.id, revision)
    document: dict[str, Any] = {
        "archived_at": format_second(archived_at),
        "audio": audio,
        "call_id": call.id,
        "campaign_id": call.campaign_id,
        "direction": call.text("direction"),
        "duration_seconds": call.duration_seconds,
        "ended_at": format_time(call.ended_at) if call.ended_at else None,
        "files": list(map(msgspec.structs.asdict, files)),
        "findings": sorted(findings),
        "outcome": outcome,
        "reason": reason,
        "record": key,
        "retention": retention,
        "revision": revision,
        "source": dict(source),
        "started_at": format_time(call.started_at) if call.started_at else None,
        "state": call.state,
        "type": "call",
        "v": 1,
    }
    if outcome != "archived":
        document |= {"attempts": attempts, "status": status}
    if unavailable:
        document["unavailable"] = {kind: dict(why) for kind, why in unavailable.items()}
    return Record(canonical.dump(document), call.id, outcome, revision, key, document)


@dataclass(frozen=True)
class Record:
    """A record: its bytes in the bucket, and the parsed document."""

    data: bytes
    call_id: str
    outcome: Outcome
    revision: int
    key: str
    document: Mapping[str, Any]

    @property
    def files(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.document["files"]
        return found

    @property
    def incomplete(self) -> set[str]:
        """The record's findings that are in `INCOMPLETE`."""
        findings = self.document.get("findings")
        return {code for code in INCOMPLETE if isinstance(findings, list) and code in findings}

    def why_unavailable(self, kind: str) -> str | None:
        """Return why the document of a file kind could not be fetched; None if it was fetched."""
        unavailable = self.document.get("unavailable")
        why = unavailable.get(kind) if isinstance(unavailable, dict) else None
        reason = why.get("reason") if isinstance(why, dict) else None
        return reason if isinstance(reason, str) else None


def parse(data: bytes) -> Record:
    """Parse a record. Raises `FormatError` unless it is of version 1 and in canonical form, and
    its key matches its call id and revision."""
    document, is_canonical = canonical.load_line(data)
    check_type(document, "call", "not a call record of version 1")
    call_id, outcome = document.get("call_id"), document.get("outcome")
    revision, key = document.get("revision"), document.get("record")
    if not isinstance(call_id, str) or outcome not in OUTCOMES:
        raise FormatError("a record without call_id or with an unknown outcome")
    parsed = layout.parse_record_key(key) if isinstance(key, str) else None
    if parsed is None or parsed[1:] != (layout.call_dir(call_id), revision):
        raise FormatError("a record whose key, call_id and revision disagree")
    if not is_canonical:
        raise FormatError("a record that is not in canonical form")
    try:
        files = msgspec.convert(document.get("files"), list[File])
    except msgspec.ValidationError:
        raise FormatError("a record without files, or with a malformed file entry") from None
    if not have_digests(files):
        raise FormatError("a record with a malformed file entry")
    return Record(data, call_id, outcome, parsed[2], str(key), document)


def refuse_newer(document: Mapping[str, Any]) -> None:
    """Raise `NewerFormat` if a document of the manifest, of any type, has a `v` above 1."""
    version = document.get("v")
    if type(version) is int and version > 1 and isinstance(document.get("type"), str):
        raise NewerFormat(f"written by a newer release, in format {version}: use that release")


def check_type(document: Mapping[str, Any], expected: str, problem: str) -> None:
    """Raise `NewerFormat` as `refuse_newer` does, and `FormatError` with the text `problem` unless
    the document has the expected `type`, and `v` 1."""
    refuse_newer(document)
    if document.get("type") != expected or document.get("v") != 1:
        raise FormatError(problem)


def have_digests(files: Iterable[File]) -> bool:
    """Whether each `sha256` consists of hex digits; the schema checks the length. One match for all
    files: a pattern in the schema would take longer than parsing the record."""
    return _HEX.fullmatch("".join([file.sha256 for file in files])) is not None
