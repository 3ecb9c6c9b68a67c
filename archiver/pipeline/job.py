"""One try at one call: what to fetch, which files that makes, and what its record will say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import structlog

from archiver import fixity, metrics
from archiver.clock import Clock
from archiver.errors import CallError, FormatError, NoRecording
from archiver.manifest import canonical, layout, record
from archiver.manifest.record import FILE_KINDS, File, Record, Result
from archiver.model import Call, Retention, Window, lock_start, placing_time
from archiver.pipeline.attempts import UNSAID
from archiver.pipeline.download import Download, audio_of, put_beside
from archiver.pipeline.ports import Recordings, Source, Store
from archiver.pressure import Pressure
from archiver.retry import Retry
from archiver.source.resume import Resumed
from archiver.source.signed import SignedUrl
from archiver.store.objects import Stored

log = structlog.get_logger()

MISMATCH_SECONDS = 2.0
MISMATCH_SHARE = 0.02
MAX_SIDECAR_BYTES = 64 << 20

Survey = dict[str, Any] | list[Any]


_SIDECARS = {*record.UNAVAILABLE, *(FILE_KINDS[kind].malformed for kind in record.UNAVAILABLE)}
_RECORDED_AS = {
    "campaignId": "campaign_id",
    "direction": "direction",
    "durationSeconds": "duration_seconds",
    "endTime": "ended_at",
    "startTime": "started_at",
    "state": "state",
}
"""Fields of a call → those of its record."""


@dataclass(frozen=True)
class Document:
    """A document in the archive's form."""

    data: bytes
    has_transcript: bool


class Tools:
    """What every try needs. Threads share it."""

    def __init__(
        self,
        source: Source,
        recordings: Recordings,
        store: Store,
        download: Download,
        retry: Retry,
        retention: Retention,
        clock: Clock,
        pressure: Pressure | None,
    ) -> None:
        self.source = source
        self.recordings = recordings
        self.store = store
        self.download = download
        self.retry = retry
        self.retention = retention
        self.clock = clock
        self._pressure = pressure

    def open(self, renew: Callable[[], SignedUrl]) -> Resumed:
        """A recording as one stream, whatever happens to its connections."""
        return Resumed(self.recordings, renew, self.clock, self._pressure)


class Job:
    """One try. `previous` is the record that stands, if one does: a new one would amend it. Where
    the call is `held`, its files are born so. `listed_at` is when the listing of the window began
    that the call is worked at for.

    The recording and the two documents, the call's own (`transcript`) and the survey (`epa`), are
    fetched and judged one by one: one that cannot be had takes nothing from the others.
    """

    def __init__(
        self,
        tools: Tools,
        listed: Call,
        window: Window,
        previous: Record | None,
        attempts: int,
        *,
        listed_at: datetime,
        held: bool,
        taken: int = 0,
    ) -> None:
        self.call = listed
        self.taken = taken
        """The highest revision whose key foreign bytes have."""
        self._listed_at = listed_at
        self._listed = listed
        self._tools = tools
        self._window = window
        self._attempts = attempts
        self.held = held
        self.began = tools.clock.now()
        self.was_beaten = False
        """Whether another writer's record had the place."""
        self._previous = previous
        self._told: Mapping[str, Any] = previous.document if previous else {"files": []}
        self._home = layout.parse_record_key(previous.key) if previous else None
        self._documents: dict[str, Document] = {}
        """File kind → what came of that document; a kind is absent where the source has none."""
        self._errors: dict[str, CallError] = {}
        """File kind → why that document could not be had."""
        self._files: list[File] = []
        self._findings: set[str] = set()
        """Those about documents."""
        self.lock_modes: set[str] = set()
        """The modes that the files of this try are locked in."""
        self._source: dict[str, Any] = {"api": tools.source.base_url}

    @property
    def day(self) -> date:
        """The call's `dt`; a later revision stays where the first one is."""
        if self._home is not None:
            return self._home[0]
        return placing_time(self.call, self._window, self._listed_at).date()

    @property
    def recording_key(self) -> str:
        """Where the recording is to lie; it may lie beside it."""
        return layout.recording_dir(self.day, self.call.id) + "recording.wav"

    @property
    def retain_until(self) -> datetime | None:
        start, _ = lock_start(self.call, self._window, self._listed_at)
        return self._tools.retention.until(start)

    def run(self, settled: bool) -> Result:
        """Fetch and store everything: 1. the call's own document, 2. the survey, 3. the recording,
        4. the sidecars, 5. the result.

        A document that cannot be had is a finding of the record. Until the window has `settled`,
        the call waits for it instead, and its recording is not downloaded meanwhile.
        Raises `CallError` where the call cannot be archived now.
        """
        # 1. and 2.
        self._fetch()
        self._files = self._carried(exclude={"recording"})
        for error in self._errors.values() if not settled else ():
            raise error
        # 3.
        try:
            audio, findings = self._recording()
        except NoRecording as error:
            if not settled:
                raise
            own = self._errors.get("transcript")
            if own is not None and own.reason == "call_missing":
                raise own from None  # the source knows nothing of the call: no word on a recording
            # 4. and 5.
            self._sidecars()
            return self._result("no_recording", reason=error.reason, status=error.status)
        # 4. and 5.
        self._sidecars()
        return self._result("archived", audio=audio, findings=self._with_mismatch(findings, audio))

    def refresh(self) -> Result:
        """What an archived call's record would say now: the recording stays, call and survey are
        fetched again."""
        told = self._told
        self._fetch()
        self._source = {**told["source"], **self._source}
        self._files = self._carried()
        self._sidecars()
        again = {"duration_mismatch", "time_implausible", *record.INCOMPLETE}
        findings = [code for code in told["findings"] if code not in again]
        audio = told["audio"]
        return self._result("archived", audio=audio, findings=self._with_mismatch(findings, audio))

    def failure(self, reason: str, status: int | None) -> Result:
        """The result for a call that is given up: what is known of it is kept."""
        self._files = self._carried(exclude={"recording"})
        self._sidecars()
        return self._result("failed", reason=reason, status=status)

    @property
    def unanswered(self) -> CallError | None:
        """Why the source did not answer for a document, where that says nothing of the document
        and the standing record does not say it already."""
        for kind, error in self._errors.items():
            if error.undecided:
                return error
            told = self._previous.why_unavailable(kind) if self._previous else None
            if error.reason in UNSAID and error.reason != told:
                return error
        return None

    def _result(
        self, outcome: record.Outcome, *, findings: Iterable[str] = (), **fields: Any
    ) -> Result:
        order = list(FILE_KINDS)
        last = len(order)  # a kind of a newer release
        _, is_plausible = lock_start(self.call, self._window, self._listed_at)
        odd_time = () if is_plausible else ("time_implausible",)
        self._files.sort(key=lambda f: order.index(f.kind) if f.kind in FILE_KINDS else last)
        unavailable = {
            kind: {"reason": error.reason, "status": error.status}
            for kind, error in self._errors.items()
            if record.UNAVAILABLE[kind] in self._findings
        }
        return Result(
            outcome,
            files=tuple(self._files),
            source=self._source,
            attempts=None if outcome == "archived" else self._attempts,
            findings=(*findings, *self._findings, *odd_time),
            unavailable=unavailable,
            **fields,
        )

    # --- the documents

    def _fetch(self) -> None:
        """1. The call's own document: where it cannot be had, the listing says what is known of the
        call. 2. The survey."""
        source, call_id = self._tools.source, self._listed.id
        # 1.
        try:
            self.call, self._source["request_id"] = source.call(call_id)
            self._take("transcript", _without_survey(self.call))
        except CallError as error:
            self._could_not_have("transcript", error)
            if self._listed.document.get("transcript") is not None:
                self._take("transcript", _without_survey(self._listed))
        if "transcript" in self._errors:
            self.call = self._as_known()
        # 2.
        inline, survey = self.call.document.get("epaResults"), None
        try:
            survey = source.survey(call_id)
        except CallError as error:
            self._could_not_have("epa", error)
        # Where one of the survey's two copies is missing today, what only that one had stays.
        if survey is not None and inline is None and "transcript" in self._errors:
            inline = self._standing_survey()
        if survey is None and inline and "epa" not in self._errors:
            survey, inline = _survey(inline), self._standing_survey()
        merged = _merged(survey, inline)
        if merged is not None:
            self._take("epa", merged)

    def _take(self, kind: str, document: Survey) -> None:
        """Keep a document in the archive's form; one that has no such form is none."""
        try:
            data = canonical.dump(document)
        except FormatError:
            error = CallError("not representable as JSON", reason="bad_document")
            self._could_not_have(kind, error)
            return
        has_transcript = isinstance(document, dict) and bool(document.get("transcript"))
        self._documents[kind] = Document(data, has_transcript)

    def _could_not_have(self, kind: str, error: CallError) -> None:
        self._errors.setdefault(kind, error)
        log.warning(
            "call.document_unavailable", kind=kind, reason=error.reason, status=error.status
        )

    def _as_known(self) -> Call:
        """The call as it is listed, and as the standing record tells what the listing does not."""
        told = {name: self._told.get(field) for name, field in _RECORDED_AS.items()}
        listed = {name: v for name, v in self._listed.document.items() if v is not None}
        return Call(self._listed.id, {**told, **listed})

    def _standing_survey(self) -> object:
        """The survey that the standing record names."""
        before = self._before("epa")
        return self._load(before) if before is not None else None

    def _carried(self, exclude: Set[str] = frozenset()) -> list[File]:
        """The files of the standing record that this try does not fetch: the recording, and what a
        newer release knows."""
        leave = {*_SIDECARS, *exclude}
        return [_as_told(file) for file in self._told["files"] if file["kind"] not in leave]

    def _sidecars(self) -> None:
        """Store the documents, and set down which ones could not be had.

        A file that stands and is whole stays, whatever the source answers today.
        """
        for kind, code in record.UNAVAILABLE.items():
            error, document, before = (
                self._errors.get(kind), self._documents.get(kind), self._before(kind)
            )  # fmt: skip
            if error is not None and self._is_known(kind):
                document = None
            elif error is not None:
                self._findings.add(code)
                self._malformed(kind, error.body)
            if document is not None:
                self._sidecar(kind, document, before)
            elif before is not None:
                self._files.append(before)  # the source has lost it: no reason to lose it too

    def _is_known(self, kind: str) -> bool:
        """Whether the standing record has the whole document, or knows that there is none."""
        if self._previous is None or record.UNAVAILABLE[kind] in self._told["findings"]:
            return False
        return self._previous.outcome == "archived" or self._before(kind) is not None

    def _malformed(self, kind: str, body: bytes | None) -> None:
        """Keep the bytes that came in place of a document; else those of an earlier revision."""
        malformed = FILE_KINDS[kind].malformed
        assert malformed is not None  # noqa: S101  (the kind of a document)
        before = self._before(malformed)
        if body and (before is None or before.sha256 != fixity.sha256_hex(body)):
            self._store(malformed, body)
        elif before is not None:
            self._files.append(before)
        else:
            return
        self._findings.add("document_malformed")

    def _sidecar(self, kind: str, document: Document, before: File | None) -> None:
        if before is not None and self._stands(before, document):
            self._files.append(before)
        else:
            self._store(kind, document.data)

    def _store(self, kind: str, data: bytes) -> None:
        row = FILE_KINDS[kind]
        key = layout.recording_dir(self.day, self.call.id) + row.name
        stored = put_beside(
            self._tools.store, key, data, row.content_type, self.retain_until, self.held, look=False
        )
        self._add(kind, stored)

    def _add(self, kind: str, stored: Stored) -> None:
        self._files.append(
            File(
                kind,
                stored.key,
                stored.size,
                stored.sha256,
                FILE_KINDS[kind].content_type,
                stored.version_id,
            )
        )
        self.lock_modes |= {stored.lock_mode} if stored.lock_mode else set()

    def _before(self, kind: str) -> File | None:
        """The file of this kind that the standing record names."""
        found = (_as_told(file) for file in self._told["files"] if file["kind"] == kind)
        return next(found, None)

    def _stands(self, before: File, document: Document) -> bool:
        """Whether a standing sidecar is still the one to name: the same bytes, or the one that
        has a transcript where the source has none any more."""
        if before.sha256 == fixity.sha256_hex(document.data):
            return True
        if before.kind != "transcript" or document.has_transcript:
            return False
        standing = self._load(before)
        if not (isinstance(standing, dict) and standing.get("transcript")):
            return False
        log.warning("call.transcript_withdrawn")
        return True

    def _load(self, file: File) -> object:
        """The JSON of a standing sidecar; None for one that cannot be read."""
        data = self._tools.store.read(file.key, file.version_id, MAX_SIDECAR_BYTES)
        try:
            return canonical.load(data or b"")
        except FormatError:
            return None

    # --- the recording

    def _recording(self) -> tuple[dict[str, Any], list[str]]:
        """Bring the recording into the store; one that changes on the way is begun anew."""
        return self._tools.retry.call("transfer", self._recording_once)

    def _recording_once(self) -> tuple[dict[str, Any], list[str]]:
        tools, key = self._tools, self.recording_key
        with (
            metrics.stage("transfer"),
            closing(tools.open(self._signed_url)) as recording,
        ):
            done = tools.download.run(recording, key, self.retain_until, self.held)
        self._add("recording", done.stored)
        self._source |= {
            "content_md5": done.info.content_md5,
            "etag": done.info.etag,
            "last_modified": done.info.last_modified,
            "recording_host": done.info.host,
        }
        return audio_of(done.header, done.info.length)

    def _signed_url(self) -> SignedUrl:
        signed = self._tools.source.recording_url(self.call.id)
        self._source["request_id"] = signed.request_id or self._source.get("request_id")
        return signed

    def _with_mismatch(self, findings: list[str], audio: Mapping[str, Any]) -> tuple[str, ...]:
        """`findings`, and whether the audio's length is not the call's."""
        told, seconds = self.call.duration_seconds, audio["duration_seconds"]
        if told is not None and abs(seconds - told) > max(MISMATCH_SECONDS, MISMATCH_SHARE * told):
            return (*findings, "duration_mismatch")
        return tuple(findings)


def _as_told(file: Mapping[str, Any]) -> File:
    """A file as a record names it."""
    names = ("kind", "key", "bytes", "sha256", "content_type", "version_id")
    return File(**{name: file[name] for name in names})


def _without_survey(call: Call) -> dict[str, Any]:
    """The call as `transcript.json` has it."""
    document = dict(call.document)
    if isinstance(document.get("epaResults"), dict | list | None):
        document.pop("epaResults", None)  # anything else is no survey, and would be lost
    return document


def _survey(inline: object) -> Survey | None:
    """The inline copy of a survey, where it is one."""
    return inline if isinstance(inline, dict | list) else None


def _merged(survey: Survey | None, inline: object) -> Survey | None:
    """The survey of its own endpoint, and what only the call's inline copy has: nothing is lost."""
    if not isinstance(inline, dict | list) or not inline:
        return survey
    if isinstance(inline, dict) and isinstance(survey, dict):
        return {**inline, **survey}
    return inline if survey is None else survey
