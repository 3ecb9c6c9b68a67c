"""Our signature of a request against botocore's of the same."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from archiver.store.sigv4 import UNSIGNED, signed_headers


class Known(S3SigV4Auth):
    """botocore's signer, of a body whose digest is known."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["payload"])


def botocores(
    method: str, url: str, headers: dict[str, str], payload: str, who: Credentials
) -> dict[str, str]:
    request = AWSRequest(method, url, headers=headers)
    request.context["payload"] = payload
    Known(who, "s3", "eu-central-1").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def assert_same(
    method: str, url: str, headers: dict[str, str], payload: str, token: str | None = None
) -> None:
    who = Credentials("access", secrets.token_hex(8), token)
    theirs = botocores(method, url, headers, payload, who)
    at = datetime.strptime(theirs["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    parts = urlsplit(url)
    ours = signed_headers(
        method, parts.netloc, parts.path, parts.query, headers,
        payload=payload, credentials=who, region="eu-central-1", now=at,
    )  # fmt: skip
    assert ours.pop("host") == parts.netloc
    assert ours == theirs


@given(
    key=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40),
    upload=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
    number=st.integers(1, 10_000),
)
def test_any_key_and_any_part(key: str, upload: str, number: int) -> None:
    path = "https://store.example.com:8443/bucket/" + quote(key, safe="/~")
    query = f"partNumber={number}&uploadId={quote(upload, safe='')}"
    assert_same("PUT", f"{path}?{query}", {"if-none-match": "*"}, UNSIGNED)


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
@pytest.mark.parametrize("token", [None, "session"])
def test_headers_and_a_session(method: str, token: str | None) -> None:
    headers = {
        "content-type": "audio/wav",
        "x-amz-checksum-sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "x-amz-object-lock-mode": "COMPLIANCE",
    }
    url = "http://bucket.s3.example.com/recordings/a%25b.wav?versionId=v1"
    assert_same(method, url, headers, "0" * 64, token)
