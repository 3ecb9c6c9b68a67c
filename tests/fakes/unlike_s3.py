"""A proxy in front of a real store that answers some requests as stores do that differ from S3.

What it refuses, the real store never hears of. All else the real store answers, and it checks each
signature: only where a header has to be left out is a request signed anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.fakes.forwarding import Forwarding, Front

CONDITION = r" if-none-match( |$)"


@dataclass(frozen=True)
class Refusal:
    """Requests whose `METHOD /path?query`, with the names of `_MARKED` headers that it has, match
    `pattern`; `without` is a header that saves them."""

    pattern: str
    status: int
    code: str
    without: str = ""


@dataclass(frozen=True)
class Habits:
    """What a store does otherwise than S3."""

    refusals: tuple[Refusal, ...] = ()
    ignores_conditions: bool = False
    """A write that should not overwrite does."""
    tells_length: bool = True
    """Whether a HEAD is answered with Content-Length."""
    wants_names: bool = False
    """The bucket must stand in the host's name. The proxy is then an HTTP proxy of the client."""


_PUT = Refusal(rf"^PUT [^ ]*{CONDITION}", 501, "NotImplemented")
_END = Refusal(rf"^POST [^ ]*{CONDITION}", 501, "NotImplemented")
_NO_LOCK_CALL = (
    Refusal(r"^PUT [^ ]*[?&]retention", 400, "MissingContentMD5", without="content-md5"),
    Refusal(r"^PUT [^ ]*[?&]legal-hold", 400, "MissingContentMD5", without="content-md5"),
)

B2 = Habits((_PUT, _END))
"""Backblaze B2, and OVHcloud: 501 NotImplemented for a conditional write."""
GCS = Habits(
    (Refusal(r"^GET [^ ]*[?&]object-lock", 400, "InvalidArgument"),),
    ignores_conditions=True,
    tells_length=False,
)
"""Google Cloud Storage's XML API: conditions are for reads, 400 for `?object-lock` (boto3#3174),
and no length of what it may decompress on the way."""
OSS = Habits(
    (
        _PUT,
        _END,
        Refusal(r"^GET [^ ]*[?&]object-lock", 404, "NoSuchObjectWormConfiguration"),
        Refusal(r"^GET [^ ]*[?&]versioning", 405, "MethodNotAllowed"),
    ),
    wants_names=True,
)
"""Alibaba OSS: virtual-hosted addresses alone (403 SecondLevelDomainForbidden), 501 for conditional
writes; `?versioning` and `?object-lock` are none of the requests that it takes."""
MINIO = Habits((_END, *_NO_LOCK_CALL))
"""MinIO of 2021: lock calls need Content-MD5, a CRC does not do (minio#12118). Here the end of an
upload takes no condition, though a PUT does."""

_MARKED = ("if-none-match", "content-md5")


@dataclass
class UnlikeS3(Front):
    """`with UnlikeS3(upstream, habits, environment) as store`: `store.url` is where it answers."""

    upstream: str
    habits: Habits
    credentials: Mapping[str, str]
    """The real store's, as boto3 finds them in the environment."""

    def __post_init__(self) -> None:
        self.handler = _Handler
        self.seen: list[str] = []


class _Handler(Forwarding):
    front: UnlikeS3

    def serve(self, body: bytes) -> None:
        habits, bucket_is_named = self.front.habits, False
        if self.path.startswith("http"):  # as a proxy is asked
            url = urlsplit(self.path)
            bucket_is_named = (url.hostname or "").count(".") > 2
            self.path = f"{url.path}?{url.query}" if url.query else url.path
        marks = [name for name in _MARKED if name in self.headers]
        line = " ".join((f"{self.command} {self.path}", *marks))
        self.front.seen.append(line)
        if habits.wants_names and not bucket_is_named:
            self._refuse(403, "SecondLevelDomainForbidden")
            return
        for one in habits.refusals:
            if re.search(one.pattern, line) and not (one.without and one.without in marks):
                self._refuse(one.status, one.code)
                return
        if habits.ignores_conditions and "if-none-match" in marks:
            self._sign_without_condition(body)
        status, headers, data = self.ask(body)
        if self.command == "HEAD" and status == 200 and not habits.tells_length:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "keep-alive"):
                    self.send_header(name, value)
            self.end_headers()
        else:
            self.answer(status, headers, data)

    def _refuse(self, status: int, code: str) -> None:
        page = f"<Error><Code>{code}</Code><Message>Not here.</Message></Error>".encode()
        self.answer(status, [("Content-Type", "application/xml")], page)

    def _sign_without_condition(self, body: bytes) -> None:
        """Sign the request anew for the real store, which would obey the condition."""
        dropped = ("authorization", "if-none-match", "x-amz-date", "host", "content-length")
        kept = {name: text for name, text in self.headers.items() if name.lower() not in dropped}
        request = AWSRequest(self.command, self.front.upstream + self.path, kept, body)
        where = self.front.credentials
        signer = Credentials(where["AWS_ACCESS_KEY_ID"], where["AWS_SECRET_ACCESS_KEY"])
        S3SigV4Auth(signer, "s3", where["AWS_DEFAULT_REGION"]).add_auth(request)
        del self.headers["If-None-Match"], self.headers["Host"]
        for name, text in request.headers.items():
            del self.headers[name]
            self.headers[name] = text
