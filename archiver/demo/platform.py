"""The demo's simulated voice-bot platform: the documented API, and signed recording URLs.

It serves HTTP on one port of loopback and responds as documented: a page of calls, a call, its
survey, and a signed URL of its recording, which needs no token, opens that recording only, and
expires. The platform of the tests, whose responses can be changed, is in `tests/fakes/`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import socketserver
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from archiver.demo.calls import DemoCall, make_recording

URL_LIFETIME = timedelta(minutes=15)
_API = "/api/v1"
_CALL = re.compile(rf"{_API}/voice-calls/(\w+)(?:/(epa-results|recording-url))?")
_RECORDING = re.compile(r"/recs/(\w+)\.wav")
_MAX_PAGE_SIZE = 100


class Platform(ThreadingHTTPServer):
    """Serves `calls` to clients with `token`, from the start of the `with` block to its end."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256  # the default of 5 is too few for many workers that connect at once

    def __init__(self, calls: Sequence[DemoCall], token: str, port: int) -> None:
        self.calls = {call.id: call for call in calls}
        self.token = token
        self.signing_key = secrets.token_bytes(32)
        self.host = f"127.0.0.1:{port}"
        self.api_url = f"http://{self.host}{_API}"
        super().__init__(("127.0.0.1", port), _Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        # HTTPServer.server_bind resolves this host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback if a client disconnects: that is not an error of the demo."""


class _Refusal(Exception):
    """An error response in the documented form."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    """Handles one persistent connection, on a thread of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    server: Platform

    def log_message(self, *_: object) -> None:
        """Print no line for each request: the terminal shows the demo's commands."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        try:
            if found := _RECORDING.fullmatch(path):
                self._send_recording(found[1], path, parameters)
            else:
                self._check_token()
                self._send_json(200, self._answer(path, parameters))
        except _Refusal as refusal:
            error = {"code": refusal.code, "message": str(refusal)}
            self._send_json(refusal.status, {"error": error})

    # --- the API

    def _check_token(self) -> None:
        expected = f"Bearer {self.server.token}"
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise _Refusal(401, "unauthorized", "The bearer token is missing or unknown.")

    def _answer(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        if path == f"{_API}/voice-calls":
            return self._list(parameters)
        found = _CALL.fullmatch(path)
        call = self.server.calls.get(found[1]) if found else None
        if found is None or call is None:
            raise _Refusal(404, "not_found", "There is no such call.")
        if found[2] == "epa-results":
            if call.survey is None:
                raise _Refusal(404, "epa_results_not_found", "The call has no survey.")
            return {"data": call.survey}
        if found[2] == "recording-url":
            if not call.audio_seconds:
                raise _Refusal(404, "recording_not_found", "The call has no recording.")
            return {"data": self._sign_url(call)}
        return {"data": call.document}

    def _list(self, parameters: dict[str, str]) -> dict[str, Any]:
        """Return a page of calls, newest first, without transcripts and surveys."""
        try:
            page = max(1, int(parameters.get("page", "1")))
            size = min(_MAX_PAGE_SIZE, max(1, int(parameters.get("pageSize", "25"))))
            start = _moment(parameters.get("dateFrom", "0001-01-01"))
            end = _moment(parameters.get("dateTo", "9999-12-31"))
        except ValueError as error:
            raise _Refusal(400, "validation_error", f"{error}") from None
        equal = {k: v for k, v in parameters.items() if k in ("campaignId", "direction", "state")}
        matching = [
            {k: v for k, v in call.document.items() if k not in ("transcript", "epaResults")}
            for call in reversed(self.server.calls.values())
            if start <= call.start < end and equal.items() <= call.document.items()
        ]
        return {
            "data": matching[(page - 1) * size : page * size],
            "pagination": {
                "page": page,
                "pageSize": size,
                "totalCount": len(matching),
                "totalPages": -(-len(matching) // size),
            },
        }

    def _sign_url(self, call: DemoCall) -> dict[str, str]:
        expiry = f"{datetime.now(UTC) + URL_LIFETIME:%Y-%m-%dT%H:%M:%SZ}"
        path = f"/recs/{call.id}.wav"
        query = urlencode({"se": expiry, "sig": self._signature(path, expiry)})
        url = f"http://{self.server.host}{path}?{query}"
        return {"recordingUrl": url, "expiresAt": expiry}

    def _signature(self, path: str, expiry: str) -> str:
        key = self.server.signing_key
        return base64.b64encode(hmac.digest(key, f"{path}\n{expiry}".encode(), "sha256")).decode()

    # --- the recordings

    def _send_recording(self, call_id: str, path: str, parameters: dict[str, str]) -> None:
        """Send a recording, if the URL has a valid signature and is not expired."""
        expiry = parameters.get("se", "")
        signature = self._signature(path, expiry)
        if not hmac.compare_digest(parameters.get("sig", "").encode(), signature.encode()):
            raise _Refusal(403, "AuthenticationFailed", "The signature does not match.")
        if f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}" >= expiry:
            raise _Refusal(403, "AuthenticationFailed", "The URL has expired.")
        data = make_recording(self.server.calls[call_id])
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        md5 = base64.b64encode(digest).decode()
        headers = {"Content-Type": "audio/wav", "ETag": f'"{digest.hex()}"', "Content-MD5": md5}
        self._send(200, headers, data)

    def _send_json(self, status: int, document: dict[str, Any]) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)  # also sends Date, with which the archiver checks its clock
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _moment(text: str) -> datetime:
    """Parse a date or time, UTC unless it has an offset. Raises `ValueError`."""
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC)
