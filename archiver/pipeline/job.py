"""One try at one call: what to fetch, which files that makes, and what its record will say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import date, datetime
from typing import Any

import structlog

from archiver import fixity, metrics
from archiver.clock import Clock
from archiver.errors import CallError, FormatError, NoRecording
from archiver.manifest import canonical, layout, record
from archiver.manifest.record import File, Record, Result
from archiver.model import Call, Retention, Window, lock_start, placing_time
from archiver.pipeline.download import WAV, Download, audio_of, put_beside
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
JSON = "application/json"

Survey = dict[str, Any] | list[Any]


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
    that the call is worked at for."""

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
        self._tools = tools
        self._window = window
        self._attempts = attempts
        self.held = held
        self.began = tools.clock.now()
        self.was_beaten = False
        """Whether another writer's record had the place."""
        self._told: Mapping[str, Any] = previous.document if previous else {"files": []}
        self._home = layout.parse_record_key(previous.key) if previous else None
        self._files: list[File] = []
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
    def retain_until(self) -> datetime | None:
        start, _ = lock_start(self.call, self._window, self._listed_at)
        return self._tools.retention.until(start)

    def run(self, settled: bool) -> Result:
        """Fetch and store everything. Raises `CallError` where the call can't be archived now."""
        survey = self._fetch()
        try:
            audio, findings = self._recording()
        except NoRecording as error:
            if not settled:
                raise
            self._sidecars(survey)
            return self._result("no_recording", reason=error.reason, status=error.status)
        self._sidecars(survey)
        return self._result("archived", audio=audio, findings=self._with_mismatch(findings, audio))

    def refresh(self) -> Result:
        """What an archived call's record would say now: the recording stays, call and survey are
        fetched again. Raises `CallError`."""
        told = self._told
        survey = self._fetch()
        self._source = {**told["source"], **self._source}
        self._files = [_as_told(file) for file in told["files"] if file["kind"] == "recording"]
        self._sidecars(survey)
        judged_anew = ("duration_mismatch", "time_implausible")
        findings = [code for code in told["findings"] if code not in judged_anew]
        audio = told["audio"]
        return self._result("archived", audio=audio, findings=self._with_mismatch(findings, audio))

    def failure(self, reason: str, status: int | None) -> Result:
        """The result for a call that is given up: what is known of it is kept."""
        self._files = []
        if self.call.document.get("transcript") is not None:
            survey = self.call.document.get("epaResults")
            self._sidecars(_merged(None, survey))
        else:
            self._files = [_as_told(file) for file in self._told["files"]]
        return self._result("failed", reason=reason, status=status)

    def _fetch(self) -> Survey | None:
        """The call as the source tells it now; its survey."""
        source = self._tools.source
        self.call, self._source["request_id"] = source.call(self.call.id)
        return _merged(source.survey(self.call.id), self.call.document.get("epaResults"))

    def _result(
        self, outcome: record.Outcome, *, findings: tuple[str, ...] = (), **fields: Any
    ) -> Result:
        attempts = None if outcome == "archived" else self._attempts
        _, plausible = lock_start(self.call, self._window, self._listed_at)
        return Result(
            outcome,
            files=tuple(self._files),
            source=self._source,
            attempts=attempts,
            findings=findings if plausible else (*findings, "time_implausible"),
            **fields,
        )

    # --- sidecars

    def _sidecars(self, survey: Survey | None) -> None:
        document = dict(self.call.document)
        if isinstance(document.get("epaResults"), dict | list | None):
            document.pop("epaResults", None)  # anything else is no survey, and would be lost
        self._sidecar("transcript", document)
        if survey is not None:
            self._sidecar("epa", survey)
        elif (before := self._before("epa")) is not None:
            self._files.append(before)  # that the source has lost it is no reason to lose it too

    def _sidecar(self, kind: str, document: Survey) -> None:
        try:
            data = canonical.dump(document)
        except FormatError:
            raise CallError("not representable as JSON", reason="bad_document") from None
        before = self._before(kind)
        if before is not None and self._stands(before, data, document):
            self._files.append(before)
            return
        key = layout.recording_dir(self.day, self.call.id) + f"{kind}.json"
        store, until = self._tools.store, self.retain_until
        stored = put_beside(store, key, data, JSON, until, self.held, look=False)
        self._add(kind, stored, JSON)

    def _add(self, kind: str, stored: Stored, content_type: str) -> None:
        self._files.append(_file(kind, stored, content_type))
        self.lock_modes |= {stored.lock_mode} if stored.lock_mode else set()

    def _before(self, kind: str) -> File | None:
        """The file of this kind that the standing record names."""
        found = (_as_told(file) for file in self._told["files"] if file["kind"] == kind)
        return next(found, None)

    def _stands(self, before: File, data: bytes, document: Survey) -> bool:
        """Whether a standing sidecar is still the one to name: the same bytes, or the one that
        has a transcript where the source has none any more."""
        if before.sha256 == fixity.sha256_hex(data):
            return True
        if not isinstance(document, dict) or before.kind != "transcript":
            return False
        if document.get("transcript") or not self._had_transcript(before):
            return False
        log.warning("call.transcript_withdrawn")
        return True

    def _had_transcript(self, before: File) -> bool:
        data = self._tools.store.read(before.key, before.version_id, MAX_SIDECAR_BYTES)
        try:
            return bool(canonical.load_object(data or b"").get("transcript"))
        except FormatError:
            return False

    # --- the recording

    def _recording(self) -> tuple[dict[str, Any], list[str]]:
        """Bring the recording into the store; one that changes on the way is begun anew."""
        return self._tools.retry.call("transfer", self._recording_once)

    def _recording_once(self) -> tuple[dict[str, Any], list[str]]:
        tools = self._tools
        key = layout.recording_dir(self.day, self.call.id) + "recording.wav"
        with (
            metrics.stage("transfer"),
            closing(tools.open(self._signed_url)) as recording,
        ):
            done = tools.download.run(recording, key, self.retain_until, self.held)
        self._add("recording", done.stored, WAV)
        self._source |= {
            "content_md5": done.info.content_md5,
            "etag": done.info.etag,
            "last_modified": done.info.last_modified,
            "recording_host": done.info.host,
        }
        return audio_of(done.header, done.info.length)

    def _signed_url(self) -> SignedUrl:
        signed = self._tools.source.recording_url(self.call.id)
        self._source["request_id"] = signed.request_id or self._source["request_id"]
        return signed

    def _with_mismatch(self, findings: list[str], audio: Mapping[str, Any]) -> tuple[str, ...]:
        """`findings`, and whether the audio's length is not the call's."""
        told, seconds = self.call.duration_seconds, audio["duration_seconds"]
        if told is not None and abs(seconds - told) > max(MISMATCH_SECONDS, MISMATCH_SHARE * told):
            return (*findings, "duration_mismatch")
        return tuple(findings)


def _file(kind: str, stored: Stored, content_type: str) -> File:
    return File(kind, stored.key, stored.size, stored.sha256, content_type, stored.version_id)


def _as_told(file: Mapping[str, Any]) -> File:
    """A file as a record names it."""
    names = ("kind", "key", "bytes", "sha256", "content_type", "version_id")
    return File(**{name: file[name] for name in names})


def _merged(survey: Survey | None, inline: object) -> Survey | None:
    """The survey of its own endpoint, and what only the call's inline copy has: nothing is lost."""
    if not isinstance(inline, dict | list) or not inline:
        return survey
    if isinstance(inline, dict) and isinstance(survey, dict):
        return {**inline, **survey}
    return inline if survey is None else survey
