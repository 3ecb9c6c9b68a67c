"""What is asked of the store past boto3, what is left to boto3, and what both are sent as."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import boto3
import pytest
from botocore.exceptions import ClientError

from archiver.core.errors import KeyTaken, StoreError
from archiver.core.http import Transport, TransportError, make_client
from archiver.core.retry import Retry
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, connect
from archiver.store.client import make_client as make_boto3_client
from archiver.store.signed_requests import SignedRequests
from tests.fakes.clock import HandClock
from tests.fakes.proxy import FaultProxy
from tests.fakes.rig import aws_session
from tests.fakes.traps import CHUNKED, OK, Connection, Trap, answering, scripted

DIGEST = hashlib.sha256(b"data").hexdigest()
STORED = OK + b'ETag: "x"\r\nContent-Length: 0\r\n\r\n'
SESSION = boto3.Session("AKID", "s3cr3t", region_name="us-east-1")


@pytest.fixture
def asking(transport: Transport) -> Callable[..., SignedRequests]:
    """Makes what asks a trap server for objects; `by_boto3` with the switch off."""

    def make(server: Trap, *, by_boto3: bool = False) -> SignedRequests:
        options = StoreOptions("bucket", endpoint_url=server.url)
        client = make_boto3_client(options, SESSION)
        if by_boto3:
            return SignedRequests(client, "bucket")
        return SignedRequests(client, "bucket", SESSION, make_client(transport))

    return make


def fields(request: bytes) -> dict[str, str]:
    lines = request.decode("latin-1").split("\r\n")[1:-1]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


# --- what is sent


KEYS = ["a b+c/d", "%2F%41", "\u00fc\u540d", "~-_.!*'()", "a?b#c&d=e", "a/.b/..c/d.."]
DOTS = ["a/../b", "a/./b", "..", "a/."]


def test_a_key_is_sent_as_boto3_sends_it(asking):
    """One with `.` or `..` as a segment by boto3: an HTTP client would resolve it."""
    keys = [*KEYS, *DOTS, "a//b", "x/"]
    with answering(STORED) as server:
        for by_boto3 in (True, False):
            store = asking(server, by_boto3=by_boto3)
            for key in keys:
                store.put_object(Bucket="bucket", Key=key, Body=memoryview(b"data"))
        paths = [request.split(b" ")[1] for request in server.requests]
        agents = [fields(request)["user-agent"].partition("/")[0] for request in server.requests]
    assert paths[len(keys) :] == paths[: len(keys)]
    assert len(set(paths)) == len(keys)
    assert set(agents[: len(keys)]) == {"Boto3"}
    assert [key for key, by in zip(keys, agents[len(keys) :], strict=True) if by == "Boto3"] == DOTS


def test_a_real_store_finds_it(open_bucket, weed, transport):
    """It checks each signature."""
    bucket = open_bucket(endpoint_url=weed.endpoint_url, transport=transport)
    for key in KEYS:
        bucket.put_once(key, key.encode())
    assert [bucket.read(key) for key in KEYS] == [key.encode() for key in KEYS]
    assert {item.key for item in bucket.list("")} == set(KEYS)


def test_only_boto3_asks_where_it_is_so_set(weed, open_bucket, transport):
    with FaultProxy(weed.endpoint_url) as proxy:
        for signed in (True, False):
            bucket = open_bucket(
                endpoint_url=proxy.url, transport=transport, signed_requests=signed
            )
            bucket.head("k")
    ours, botos = (sent["user-agent"] for sent in proxy.headers)
    assert ours.startswith("call-archiver/")
    assert botos.startswith("Boto3/")


def test_without_tls_the_announced_digest_is_what_signs_the_body(weed, open_bucket):
    with FaultProxy(weed.endpoint_url) as proxy:
        open_bucket(endpoint_url=proxy.url).put_once("k", b"data")
        [sent] = [h for line, h in zip(proxy.seen, proxy.headers, strict=True) if line[:3] == "PUT"]
    assert sent["x-amz-content-sha256"] == DIGEST
    assert sent["if-none-match"] == "*"


def test_memory_that_is_used_again_may_be_sent(open_bucket, weed, transport):
    bucket = open_bucket(endpoint_url=weed.endpoint_url, transport=transport)
    buffer = bytearray(b"..data..")
    stored = bucket.put_once("k", memoryview(buffer)[2:6])
    assert (stored.size, stored.sha256) == (4, DIGEST)
    assert bucket.read("k") == b"data"


# --- what is answered


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (403, "AccessDenied")])
def test_a_refusal_that_comes_early_is_heard(asking, status, code):
    page = f"<Error><Code>{code}</Code></Error>".encode()

    def serve(_: Trap, connection: Connection) -> None:
        connection.head()
        connection.send(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(page)))
        connection.send(page)
        connection.read(5 << 20)

    with Trap(serve) as server, pytest.raises(ClientError) as caught:
        asking(server).put_object(Bucket="bucket", Key="k", Body=memoryview(bytes(5 << 20)))
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def test_an_object_that_is_cut_is_none(asking):
    with scripted([OK + b"Content-Length: 9\r\n\r\nhalf"]) as server:
        answer = asking(server).get_object(Bucket="bucket", Key="k")
        with pytest.raises(TransportError) as caught:
            list(answer["Body"].iter_chunks(4))
        answer["Body"].close()
    assert (answer["ContentLength"], caught.value.kind) == (9, "truncated")


def test_an_object_without_a_length_is_asked_of_boto3(asking):
    whole = CHUNKED + b"4\r\ndata\r\n0\r\n\r\n"
    with scripted([whole], [whole], [whole]) as server:
        answer = asking(server).get_object(Bucket="bucket", Key="k")
        assert b"".join(answer["Body"].iter_chunks(9)) == b"data"
        agents = [fields(request)["user-agent"].partition("/")[0] for request in server.requests]
    assert agents == ["call-archiver", "Boto3"]


@pytest.mark.parametrize("status", [301, 307])
def test_where_an_object_lies_elsewhere_boto3_goes_there(asking, status):
    # The server says that it closes: else boto3 may send its next request just as it does.
    moved = b"HTTP/1.1 %d Moved\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status
    with scripted([moved], [moved], [STORED]) as server, pytest.raises(ClientError):
        asking(server).put_object(Bucket="bucket", Key="k", Body=memoryview(b"data"))
    agents = [fields(request)["user-agent"].partition("/")[0] for request in server.requests]
    assert agents[:2] == ["call-archiver", "Boto3"]


def test_a_bucket_of_another_region_is_left_to_boto3(weed, open_bucket, transport):
    with FaultProxy(weed.endpoint_url) as proxy:
        bucket = open_bucket(endpoint_url=proxy.url, transport=transport)
        with proxy.harming("elsewhere", "^PUT .*/k"):
            stored = bucket.put_once("k", b"data")
        puts = [line for line in proxy.seen if line.startswith("PUT ")]
        assert len(puts) == 2, "ours, and boto3's"
        with proxy.harming("elsewhere", "^HEAD .*/k"):
            head = bucket.head("k", stored.version_id)
    assert head is not None
    assert (head.size, head.sha256) == (4, DIGEST)


# --- how the store is reached


def bucket_at(url: str, clock: HandClock, transport: Transport) -> Bucket:
    options = StoreOptions("bucket", endpoint_url=url, region="us-east-1", transport=transport)
    client = connect(options, clock.check, aws_session())
    return Bucket(options, clock, Retry(clock), client=client)


@pytest.mark.usefixtures("aws_keys")
def test_a_bundle_of_the_environment_is_trusted(tls, root, clock, transport, monkeypatch):
    taken = b"HTTP/1.1 412 No\r\nContent-Length: 0\r\n\r\n"
    with scripted([taken], tls=tls[0]) as server:
        with pytest.raises(StoreError, match="not trusted: set AWS_CA_BUNDLE") as caught:
            bucket_at(server.url, clock, transport).head("k")
        assert (caught.value.retryable, server.requests) == (False, [])
    monkeypatch.setenv("AWS_CA_BUNDLE", str(root))
    with scripted([taken], tls=tls[0]) as server:
        bucket = bucket_at(server.url, clock, transport)
        with pytest.raises(KeyTaken):
            bucket.client.call_once("put_object", "k", Body=b"data", ChecksumSHA256="x")
        sent = fields(server.requests[0])
    assert sent["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD", "TLS and the checksum guard it"


@pytest.mark.usefixtures("aws_keys")
def test_a_proxy_is_asked(clock, transport, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with scripted([STORED]) as server:
        with pytest.raises(StoreError, match="unreachable"):
            bucket_at(server.url, clock, transport).head("k")
        assert server.connections == 0


def test_without_credentials_it_says_so(clock, transport, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreError, match="no S3 credentials"):
        bucket_at("http://127.0.0.1:1", clock, transport).head("k")
