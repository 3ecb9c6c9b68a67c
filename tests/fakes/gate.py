"""A gate before a real store that lets through what AWS's policies allow, as AWS would.

    with Gate(store_url, [policy]) as gate:
        ...  # gate.url; afterwards gate.used and gate.denied

Behind it everybody has the store's own credentials: which policies hold is a matter of the gate
that one comes through. What it knows of AWS stands in `iam.py`.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

from tests.fakes import iam

_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass
class Gate:
    """Everything that came through it, and what did not."""

    upstream: str
    policies: Sequence[iam.Policy]
    used: set[str] = field(default_factory=set)
    """Actions without which an answer would have been another."""
    denied: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.gate = self
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        assert self.broken == [], "a request that iam.py does not know"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def allows(self, act: iam.Act) -> bool:
        if iam.allows(self.policies, act):
            self.used.add(act.action)
            return True
        self.denied.append(f"{act.action} {act.resource}")
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    gate: Gate

    def handle_error(self, *_: object) -> None:
        """A client that went away before it was answered is no news; `broken` has the others."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = iam.Asked(self.command, self.path, headers, body)
        try:
            verdicts = [self.server.gate.allows(act) for act in iam.acts(asked)]
        except Exception as error:
            self.server.gate.broken.append(f"{asked.method} {asked.path}: {error!r}")
            raise
        if all(verdicts):
            self._forward(asked)
        else:
            self._answer(403, [], _REFUSAL)

    def _forward(self, asked: iam.Asked) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.server.gate.upstream).netloc)
        headers = {name: value for name, value in asked.headers.items() if name not in _HOP}
        connection.request(asked.method, asked.path, body=asked.body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if self._hides_absence(asked, answer.status):
            self._answer(403, [], _REFUSAL)
        else:
            told = [pair for pair in answer.getheaders() if self._tells(asked, pair[0])]
            self._answer(answer.status, told, data, answer.headers.get("Content-Length"))

    def _hides_absence(self, asked: iam.Asked, status: int) -> bool:
        """Who may not list is not told that there is no such key."""
        bucket, key = asked.place
        absent = status == 404 and key and asked.method in ("GET", "HEAD")
        listing = iam.Act("s3:ListBucket", f"arn:aws:s3:::{bucket}")
        return bool(absent) and not self.server.gate.allows(listing)

    def _tells(self, asked: iam.Asked, header: str) -> bool:
        action = iam.SHOWN_TO.get(header.lower())
        resource = "arn:aws:s3:::" + "/".join(asked.place)
        return action is None or self.server.gate.allows(iam.Act(action, resource))

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815
