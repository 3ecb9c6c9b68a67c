"""Recording URLs that need no login: signed, for one blob, for a short time; and their blob server.

They follow Azure's shared access signatures in what a client can see: the query `sv`, `st`, `se`,
`sr`, `sp`, `sig`; expiry judged when a request starts; the XML errors and headers of Blob Storage.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import quote, unquote, urlencode
from uuid import uuid4

from archiver.demo.calls import SimulatedCall
from archiver.demo.voices import Recording
from archiver.demo.wire import Reply, Request

_VERSION = "2024-11-04"
_FIELDS = ("sv", "sr", "sp", "st", "se")
_NEVER_HERE = ("Authorization", "X-Api-Key", "X-Signature", "X-Timestamp", "Cookie")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class SasKey:
    """Signs and checks recording URLs with a key made at the start. Thread-safe."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def rotate(self) -> None:
        """Void every URL signed so far."""
        self._key = secrets.token_bytes(32)

    def sign(self, path: str, start: datetime, expiry: datetime) -> str:
        """The query that opens `path` from `start` to `expiry`, both to the second."""
        fields = dict(
            zip(_FIELDS, (_VERSION, "b", "r", _seconds(start), _seconds(expiry)), strict=True)
        )
        return urlencode({**fields, "sig": self._signature(path, fields)}, quote_via=quote)

    def refusal(self, path: str, pairs: list[tuple[str, str]], now: datetime) -> str | None:
        """Why the URL opens nothing at `now`; None if it does."""
        fields = dict(pairs)
        if sorted(name for name, _ in pairs) != sorted((*_FIELDS, "sig")):
            return "The query is not the one that was signed"
        if not hmac.compare_digest(fields["sig"].encode(), self._signature(path, fields).encode()):
            return "Signature did not match"
        if not fields["st"] <= _seconds(now) < fields["se"]:
            return (
                "Signature not valid in the specified time frame: "
                f"Start [{fields['st']}] - Expiry [{fields['se']}] - Current [{_seconds(now)}]"
            )
        return None

    def _signature(self, path: str, fields: Mapping[str, str]) -> str:
        text = "\n".join((unquote(path), *(fields[name] for name in _FIELDS)))
        return base64.b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode()


def blob_path(call_id: str) -> str:
    """Where the blob of a call lies, percent-encoded."""
    return f"/recs/{quote(call_id, safe='')}.wav"


class BlobServer:
    """Answers requests for recordings; says in `violation` what no client may ever send here."""

    def __init__(
        self,
        find: Callable[[str], SimulatedCall | None],
        key: SasKey,
        clock: Callable[[], datetime],
        violation: Callable[[str], None],
    ) -> None:
        self._find = find
        self._key = key
        self._clock = clock
        self._violation = violation

    def answer(self, request: Request) -> Reply:
        reply = self._answer(request)
        common = {
            "Date": format_datetime(self._clock(), usegmt=True),
            "x-ms-request-id": str(uuid4()),
            "x-ms-version": _VERSION,
        }
        reply.headers = {**common, **reply.headers}
        return reply

    def _answer(self, request: Request) -> Reply:
        sent = [name for name in _NEVER_HERE if name in request.headers]
        if sent:
            self._violation(f"{', '.join(sent)} sent to the blob host")
            return _error(400, "InvalidHeaderValue", "A signed URL needs no credentials.")
        if request.method not in ("GET", "HEAD"):
            self._violation(f"{request.method} sent to the blob host")
            return _error(405, "UnsupportedHttpVerb", "The resource doesn't support this verb.")
        refusal = self._key.refusal(request.path, request.pairs, self._clock())
        if refusal is not None:
            return _error(403, "AuthenticationFailed", "Server failed to authenticate.", refusal)
        call = self._find(unquote(request.path).removeprefix("/recs/").removesuffix(".wav"))
        if call is None or call.recording is None or call.blob_missing:
            return _error(404, "BlobNotFound", "The specified blob does not exist.")
        return self._blob(request, call, call.recording)

    def _blob(self, request: Request, call: SimulatedCall, recording: Recording) -> Reply:
        etag = call.etag or recording.etag
        wanted = request.headers.get("If-Match")
        if wanted is not None and wanted not in (etag, "*"):
            return _error(412, "ConditionNotMet", "The condition is not met.")
        headers = {
            "Content-Type": recording.content_type,
            "ETag": etag,
            "Last-Modified": format_datetime(_last_modified(call), usegmt=True),
            "Accept-Ranges": "bytes",
            "x-ms-blob-type": "BlockBlob",
        }
        digest = base64.b64encode(recording.md5()).decode() if recording.content_md5 else None
        asked = request.headers.get("Range")
        if asked is None:
            headers |= {} if digest is None else {"Content-MD5": digest}
            return Reply(200, headers, recording.blocks(), content_length=recording.length)
        headers |= {} if digest is None else {"x-ms-blob-content-md5": digest}
        return _part(asked, headers, recording)


def _part(asked: str, headers: dict[str, str], recording: Recording) -> Reply:
    match = _RANGE.fullmatch(asked)
    if match is None:
        return _error(400, "InvalidHeaderValue", "One range of the form bytes=A-B is understood.")
    start = int(match[1])
    end = min(int(match[2]) + 1 if match[2] else recording.length, recording.length)
    if start >= end:
        reply = _error(416, "InvalidRange", "The range is invalid for the size of the blob.")
        reply.headers = {**reply.headers, "Content-Range": f"bytes */{recording.length}"}
        return reply
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{recording.length}"
    body: Iterator[bytes] = recording.blocks(start, end)
    return Reply(206, headers, body, content_length=end - start)


def _last_modified(call: SimulatedCall) -> datetime:
    if call.last_modified is not None:
        return call.last_modified
    try:
        ended_at = datetime.fromisoformat(call.document["endTime"])
    except (KeyError, TypeError, ValueError):
        return datetime(2024, 1, 1, tzinfo=UTC)
    return ended_at.astimezone(UTC) + timedelta(seconds=5)


def _seconds(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _error(status: int, code: str, message: str, detail: str | None = None) -> Reply:
    more = (
        "" if detail is None else f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>"
    )
    text = (
        '\ufeff<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    )
    headers = {"Content-Type": "application/xml", "x-ms-error-code": code}
    return Reply(status, headers, text.encode())
