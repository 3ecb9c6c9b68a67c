"""A small, strict Voice Calls API over documents in memory, in front of a real Azure blob store.

It is written from the contract alone and knows nothing of the archiver's own simulated source:
two readings of the same documents. It takes signed API keys only, and checks each signature.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import random
import ssl
import threading
import time
import wave
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from uuid import uuid4

from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas

from tests.system.servers import Azurite, Tls

CONTAINER = "recordings"
BASE = "/api/v1"
SAS_MINUTES = 15


@dataclass
class AzureCall:
    """One call; `blob` is the name of its recording's blob, None where it has no recording."""

    document: dict[str, Any]
    epa: dict[str, Any] | None = None
    blob: str | None = None
    stale_urls: int = 0
    """So many signed URLs are handed out that have expired already."""


def audio(chance: random.Random, seconds: int) -> bytes:
    """A telephone WAV of noise: 8 kHz, 16 bit, mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(chance.randbytes(16_000 * seconds))
    return file.getvalue()


def call_document(call_id: str, at: datetime, seconds: int, **more: Any) -> dict[str, Any]:
    """A completed call that began at `at`."""
    return {
        "id": call_id,
        "campaignId": "camp_456",
        "direction": "Inbound",
        "state": "Completed",
        "startTime": _text(at, "milliseconds"),
        "endTime": _text(at + timedelta(seconds=seconds), "milliseconds"),
        "durationSeconds": seconds,
        "createdAt": _text(at, "milliseconds"),
        **more,
    }


class Blobs:
    """The container behind the signed URLs."""

    def __init__(self, azurite: Azurite) -> None:
        self._azurite = azurite
        service = BlobServiceClient(
            azurite.account_url,
            credential=azurite.key,
            connection_verify=str(azurite.tls.ca) if azurite.tls else True,
        )
        self._container = service.create_container(CONTAINER)

    def put(self, name: str, data: bytes, *, in_blocks: bool = False) -> None:
        """Upload; a blob that is put together from blocks has no Content-MD5."""
        blob = self._container.get_blob_client(name)
        if in_blocks:
            names = []
            for offset in range(0, len(data), 4 << 20):
                names.append(f"{offset:012d}")
                blob.stage_block(names[-1], data[offset : offset + (4 << 20)])
            blob.commit_block_list(names)
        else:
            blob.upload_blob(data, overwrite=True)

    def delete(self, name: str) -> None:
        self._container.delete_blob(name)

    def signed_url(self, name: str, *, expired: bool = False) -> tuple[str, datetime]:
        now = datetime.now(UTC)
        expiry = now + timedelta(minutes=-1 if expired else SAS_MINUTES)
        signature = generate_blob_sas(
            account_name=self._azurite.account,
            container_name=CONTAINER,
            blob_name=name,
            account_key=self._azurite.key,
            permission=BlobSasPermissions(read=True),
            start=now - timedelta(minutes=SAS_MINUTES),
            expiry=expiry,
        )
        return f"{self._azurite.account_url}/{CONTAINER}/{quote(name)}?{signature}", expiry


@dataclass
class _State:
    calls: dict[str, AzureCall]
    blobs: Blobs | None
    key: str = field(default_factory=lambda: f"ak_live_{uuid4().hex}")
    secret: str = field(default_factory=lambda: uuid4().hex)
    urls: Counter[str] = field(default_factory=Counter)
    hidden: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    answers: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up, or does not trust our certificate, is the test's matter."""


class AzureApi:
    """The API, from the start of the `with` block to its end."""

    def __init__(
        self, calls: list[AzureCall], blobs: Blobs | None = None, tls: Tls | None = None
    ) -> None:
        """`blobs` may be missing where no call has a recording."""
        self._state = _State({call.document["id"]: call for call in calls}, blobs)
        self._state.answers.set()
        self._server = _Server(("127.0.0.1", 0), _handler(self._state))
        self._scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.cert, tls.key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        """What its URL names. A test may put a proxy there."""

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}{BASE}"

    @property
    def urls_given(self) -> Counter[str]:
        """How many signed URLs each call has been asked for."""
        return self._state.urls

    @property
    def asked(self) -> Counter[str]:
        """How often each call was asked for by its id."""
        return self._state.asked

    def stall(self) -> None:
        """List as before, and answer for no single call until `go_on`."""
        self._state.answers.clear()

    def go_on(self) -> None:
        self._state.answers.set()

    def hide(self, *call_ids: str) -> None:
        """Do not list these any more; who asks for one by its id is answered."""
        with self._state.lock:
            self._state.hidden.update(call_ids)

    def forget(self, *call_ids: str) -> None:
        """Know nothing of these any more."""
        with self._state.lock:
            for call_id in call_ids:
                del self._state.calls[call_id]

    def add(self, call: AzureCall) -> None:
        """Have one more call listed from now on."""
        with self._state.lock:
            self._state.calls[call.document["id"]] = call

    def settings(self, azurite: Azurite | None = None) -> dict[str, str]:
        return {
            "API_BASE_URL": self.url,
            "API_KEY": self._state.key,
            "API_HMAC_SECRET": self._state.secret,
            "RECORDING_HOSTS": azurite.host if azurite else "127.0.0.1:9",
            "ALLOW_HTTP": "false" if self._scheme == "https" else "true",
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


def _handler(state: _State) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            request_id = f"req_{uuid4().hex[:12]}"
            meta = {"requestId": request_id, "timestamp": _text(datetime.now(UTC))}
            try:
                _authenticate(state, self.command, self.path, self.headers)
                status, body = 200, {**_answer(state, self.path), "meta": meta}
            except _Refused as refused:
                told = {"code": refused.code, "message": refused.code, "requestId": request_id}
                status, body = refused.status, {"error": told}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _authenticate(state: _State, method: str, target: str, headers: Mapping[str, str]) -> None:
    """`base64(HMAC-SHA256(secret, "{timestamp}.{METHOD}.{path}.{bodyHash}"))`, and nothing else."""
    if headers.get("Authorization") is not None or headers.get("X-Api-Key") != state.key:
        raise _Refused(401, "unauthorized")
    timestamp = headers.get("X-Timestamp") or ""
    if not timestamp.isdecimal() or abs(int(timestamp) - time.time()) > 30:
        raise _Refused(401, "invalid_timestamp")
    body_hash = base64.b64encode(hashlib.sha256(b"").digest()).decode()
    message = f"{timestamp}.{method}.{target.partition('?')[0]}.{body_hash}".encode()
    wanted = base64.b64encode(hmac.digest(state.secret.encode(), message, "sha256")).decode()
    if not hmac.compare_digest(wanted, headers.get("X-Signature") or ""):
        raise _Refused(401, "invalid_signature")


def _answer(state: _State, target: str) -> dict[str, Any]:
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query, strict_parsing=True) if parts.query else [])
    path = [unquote(part) for part in parts.path.removeprefix(f"{BASE}/").split("/")]
    if path == ["voice-calls"]:
        return _listing(state, query)
    if path[0] != "voice-calls" or query:
        raise _Refused(404, "not_found")
    if len(path) == 2:
        with state.lock:
            state.asked[path[1]] += 1
        state.answers.wait()
    call = state.calls.get(path[1])
    if call is None:
        raise _Refused(404, "call_not_found")
    match path[2:]:
        case []:
            return {"data": {**call.document, "epaResults": call.epa}}
        case ["epa-results"]:
            if call.epa is None:
                raise _Refused(404, "epa_results_not_found")
            return {"data": call.epa}
        case ["recording-url"]:
            return {"data": _recording_url(state, call)}
    raise _Refused(404, "not_found")


def _recording_url(state: _State, call: AzureCall) -> dict[str, str]:
    if call.blob is None or state.blobs is None:
        raise _Refused(404, "recording_not_found")
    with state.lock:
        state.urls[call.document["id"]] += 1
        stale = call.stale_urls > 0
        call.stale_urls -= stale
    url, expiry = state.blobs.signed_url(call.blob, expired=stale)
    return {"recordingUrl": url, "expiresAt": _text(expiry)}


def _listing(state: _State, query: dict[str, str]) -> dict[str, Any]:
    known = {"campaignId", "state", "direction", "dateFrom", "dateTo", "page", "pageSize"}
    size, page = int(query.get("pageSize", "25")), int(query.get("page", "1"))
    if not query.keys() <= known or not 1 <= size <= 100 or page < 1:
        raise _Refused(400, "validation_error")
    with state.lock:
        listed = [call for call_id, call in state.calls.items() if call_id not in state.hidden]
        documents = [call.document for call in listed]
    found = [
        {name: value for name, value in document.items() if name != "transcript"}
        for document in documents
        if _listed(document, query)
    ]
    found.sort(key=lambda document: document["startTime"], reverse=True)
    pagination = {"page": page, "pageSize": size, "totalCount": len(found)}
    pagination["totalPages"] = -(-len(found) // size)
    return {"data": found[(page - 1) * size : page * size], "pagination": pagination}


def _listed(document: dict[str, Any], query: dict[str, str]) -> bool:
    at = datetime.fromisoformat(document["startTime"])
    start, end = query.get("dateFrom"), query.get("dateTo")
    return (
        all(query.get(name, document[name]) == document[name] for name in ("state", "direction"))
        and query.get("campaignId", document["campaignId"]) == document["campaignId"]
        and (start is None or datetime.fromisoformat(start) <= at)
        and (end is None or at < datetime.fromisoformat(end))
    )


def _text(moment: datetime, precision: str = "seconds") -> str:
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")
