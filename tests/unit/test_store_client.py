"""boto3's client as it is set up: one try, no checksums of its own, the bucket where it lies."""

from __future__ import annotations

from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError, HTTPClientError

from archiver.core.errors import StoreError
from archiver.store.client import StoreOptions, make_client
from tests.fakes.traps import OK, answering, silent

SESSION = boto3.Session("a", "b", region_name="us-east-1")


def test_it_tries_once():
    """Trying again is `retry.py`'s matter, which knows what may have happened."""
    with answering(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n") as server:
        client = make_client(StoreOptions("bucket", endpoint_url=server.url), SESSION)
        with pytest.raises(ClientError):
            client.put_object(Bucket="bucket", Key="k", Body=b"data")
        assert len(server.requests) == 1


def test_it_waits_no_longer_than_it_is_told():
    with silent() as server:
        options = StoreOptions("bucket", endpoint_url=server.url)
        client = make_client(options, SESSION, read_timeout_seconds=0.2)
        with pytest.raises(HTTPClientError):
            client.head_object(Bucket="bucket", Key="k")
        assert len(server.requests) == 1


def test_checksums_are_sent_where_we_give_them_alone():
    with answering(OK + b"Content-Length: 0\r\n\r\n") as server:
        client = make_client(StoreOptions("bucket", endpoint_url=server.url), SESSION)
        client.put_object(Bucket="bucket", Key="k", Body=b"data")
        client.put_object(Bucket="bucket", Key="k", Body=b"data", ChecksumSHA256="x")
    one, other = server.requests
    assert b"x-amz-checksum" not in one.lower()
    assert b"x-amz-checksum-sha256: x\r\n" in other.lower()
    assert b"call-archiver/" in one, "the store's own log tells who asked"


@pytest.mark.parametrize(
    ("endpoint", "host", "path"),
    [
        (None, "bucket.s3.amazonaws.com", "/k"),
        ("https://store.example.com:9000", "store.example.com:9000", "/bucket/k"),
    ],
)
def test_where_a_bucket_lies(endpoint, host, path):
    """A store behind an address of its own rarely has a name for each bucket."""
    client = make_client(StoreOptions("bucket", endpoint_url=endpoint), SESSION)
    where = {"Bucket": "bucket", "Key": "k"}
    url = urlsplit(client.generate_presigned_url("head_object", Params=where))
    assert (url.netloc, url.path) == (host, path)


def test_an_endpoint_that_is_none_is_said_to_be_none():
    with pytest.raises(StoreError, match="ARCHIVER_S3_ENDPOINT_URL"):
        make_client(StoreOptions("bucket", endpoint_url="store.example.com"), SESSION)
