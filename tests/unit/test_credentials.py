"""Credentials that expire or are rotated, providers that fail, and how each is told."""

from __future__ import annotations

import json
import stat
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from archiver.core.errors import ArchiverError, StoreError, UsageError
from archiver.core.http import Transport
from archiver.core.retry import Retry
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions, connect
from tests.fakes.clock import HandClock
from tests.fakes.http_server import BendableServer, Reply, Request
from tests.fakes.rig import aws_session

OURS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")


class Store:
    """A store with one object that knows one access key, and refuses others as S3 does."""

    def __init__(self, valid: str, code: str = "ExpiredToken", status: int = 400) -> None:
        self.valid = valid
        self.refusal = Reply(status, body=f"<Error><Code>{code}</Code></Error>".encode())
        self.asked: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self.server = BendableServer("blob", ("127.0.0.1", 0), self._answer)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, request: Request) -> Reply:
        signed = str(request.headers["Authorization"])
        access_key = signed.partition("Credential=")[2].partition("/")[0]
        with self._lock:
            self.asked.append((request.method, access_key))
        if access_key != self.valid:
            return self.refusal
        if "uploads" in request.raw_query:
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId>"
            return Reply(body=body + b"</InitiateMultipartUploadResult>")
        if request.method == "PUT":
            return Reply(headers={"ETag": '"x"'})
        headers = {"ETag": '"x"', "Content-Range": "bytes 0-0/4"}
        return Reply(206 if "Range" in request.headers else 200, headers, b"data")


@pytest.fixture
def store() -> Any:
    made: list[Store] = []

    def make(*arguments: Any) -> Store:
        made.append(Store(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.server.stop()


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def open_at(clock: HandClock, transport: Transport) -> Callable[..., Bucket]:
    def make(url: str, **more: Any) -> Bucket:
        options = StoreOptions(
            "bucket", endpoint_url=url, region="us-east-1", transport=transport, **more
        )
        client = connect(options, clock.check, aws_session())
        return Bucket(options, clock, Retry(clock), client=client)

    return make


def keys_file(path: Path, access_key: str) -> None:
    text = f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = s\n"
    path.write_text(f"{text}aws_session_token = t\n")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared credentials file with the key `old`."""
    path = tmp_path / "credentials"
    keys_file(path, "old")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    return path


def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `credential_process` in the AWS configuration that runs `script`."""
    program = tmp_path / "give-keys"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))


DEEDS: dict[str, Callable[[Bucket], object]] = {
    "put": lambda bucket: bucket.put_probe(),
    "get": lambda bucket: bucket.read("k"),
    "head": lambda bucket: bucket.head("k"),
    "begin": lambda bucket: bucket.begin("k", content_type="a/b", retain_until=None),
    "lock": lambda bucket: bucket.client.call(
        "put_object_legal_hold", "k", LegalHold={"Status": "ON"}
    ),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_rotated_file_is_read_again(store, open_at, shared, deed):
    """The store knows the new key alone; a HEAD is refused without a reason."""
    server = store("new")
    bucket = open_at(server.url)
    keys_file(shared, "new")
    DEEDS[deed](bucket)
    assert server.asked[0][1] == "old"
    assert server.asked[-1][1] == "new"
    before = len(server.asked)
    DEEDS[deed](bucket)
    assert {key for _, key in server.asked[before:]} == {"new"}


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"])
def test_each_refusal_of_credentials_asks_for_new_ones(store, open_at, shared, code):
    server = store("new", code, 403)
    bucket = open_at(server.url)
    keys_file(shared, "new")
    assert bucket.read("k") == b"data"


def test_a_request_asks_once(store, open_at, shared, clock):
    """What is new is refused too: it is told, and not tried again and again."""
    server = store("newer")
    bucket = open_at(server.url)
    keys_file(shared, "new")
    with pytest.raises(StoreError, match="ExpiredToken") as caught:
        bucket.read("k")
    assert [key for _, key in server.asked] == ["old", "new"]
    assert (caught.value.reason, caught.value.exit_code, clock.sleeps) == ("credentials", 4, [])


def test_where_there_is_nothing_new_it_is_asked_no_more(store, open_at, shared):
    server = store("new")
    with pytest.raises(StoreError, match="AWS_SESSION_TOKEN"):
        open_at(server.url).read("k")
    assert [key for _, key in server.asked] == ["old"]


@pytest.mark.parametrize(
    "content", [None, "", "[default\nnonsense", "[default]\naws_access_key_id = new\n"]
)
def test_in_the_middle_of_a_rotation_the_store_s_refusal_is_told(store, open_at, shared, content):
    bucket = open_at(store("new").url)
    shared.unlink() if content is None else shared.write_text(content)
    with pytest.raises(StoreError, match="ExpiredToken"):
        bucket.read("k")
    keys_file(shared, "new")
    assert bucket.read("k") == b"data"


def test_another_provider_is_not_asked(store, open_at, shared, tmp_path, monkeypatch):
    """While the file is empty there are other credentials: they may be for something else."""
    keys = {"Version": 1, "AccessKeyId": "other", "SecretAccessKey": "s"}
    process(tmp_path, monkeypatch, f"print({json.dumps(keys)!r})")
    server = store("new")
    bucket = open_at(server.url)
    shared.write_text("")
    with pytest.raises(StoreError, match="ExpiredToken"):
        bucket.read("k")
    keys_file(shared, "new")
    assert bucket.read("k") == b"data"
    assert {key for _, key in server.asked} == {"old", "new"}


def test_an_upload_is_aborted_in_silence_if_the_provider_fails(
    store, open_at, tmp_path, monkeypatch
):
    """What ended the upload is told, and not what its abort meets."""
    soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()  # so each request asks again
    keys = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s", "SessionToken": "t"}
    broken = tmp_path / "broken"
    process(
        tmp_path, monkeypatch,
        f"""import os, sys
if os.path.exists({str(broken)!r}):
    sys.exit(1)
print({json.dumps({**keys, "Expiration": soon})!r})""",
    )  # fmt: skip
    bucket = open_at(store("k").url)
    upload = bucket.begin("k", content_type="a/b", retain_until=None)
    broken.write_text("")
    with pytest.raises(StoreError, match="credential_process"):
        upload.part(b"data")
    upload.abort()


def test_a_provider_that_is_out_of_reach_is_asked_again(open_at, monkeypatch, clock):
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/")
    with pytest.raises(StoreError, match="the container's role") as caught:
        open_at("http://127.0.0.1:1").read("k")
    assert caught.value.retryable


def test_a_process_is_asked_for_new_ones_once_for_all_threads(
    store, open_at, tmp_path, monkeypatch
):
    """The first keys that it gives are refused."""
    log = tmp_path / "log"
    process(
        tmp_path, monkeypatch,
        f"""import json
with open({str(log)!r}, "a+") as log:
    log.write("x")
    log.seek(0)
    name = "new" if len(log.read()) > 1 else "old"
print(json.dumps({{"Version": 1, "AccessKeyId": name, "SecretAccessKey": "s", "SessionToken": "t",
                  "Expiration": "2099-01-01T00:00:00Z"}}))""",
    )  # fmt: skip
    server = store("new")
    bucket = open_at(server.url)
    read: list[bytes | None] = []
    threads = [threading.Thread(target=lambda: read.append(bucket.read("k"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [b"data"] * 8
    assert log.read_text() == "xx"


# --- what goes wrong before the store is asked


PROCESSES = {
    "fails": "import sys; sys.exit('s3cr3t')",
    "prints no JSON": "print('s3cr3t')",
    "prints no keys": "print('{\"Version\": 1}')",
}


@pytest.mark.parametrize("script", PROCESSES)
def test_a_failing_process_is_named(open_at, tmp_path, monkeypatch, script):
    process(tmp_path, monkeypatch, PROCESSES[script])
    assert_told(lambda: open_at("http://127.0.0.1:1").read("k"), StoreError, "credential_process")


def test_a_process_that_is_not_there_is_named(open_at, tmp_path, monkeypatch):
    process(tmp_path, monkeypatch, "")
    (tmp_path / "give-keys").unlink()
    assert_told(lambda: open_at("http://127.0.0.1:1").read("k"), StoreError, "credential_process")


def test_a_process_that_fails_later_is_named(store, open_at, tmp_path, monkeypatch):
    """Its keys last a second; then there are no others."""
    keys = {"Version": 1, "AccessKeyId": "k", "SecretAccessKey": "s", "SessionToken": "t"}
    script = f"print({json.dumps({**keys, 'Expiration': '2020-01-01T00:00:00Z'})!r})"
    process(tmp_path, monkeypatch, script)
    assert_told(lambda: open_at(store("k").url).read("k"), StoreError, "credential_process")


def test_a_token_s_file_that_is_not_there_is_named(open_at, monkeypatch):
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    name = "AWS_WEB_IDENTITY_TOKEN_FILE"
    assert_told(lambda: open_at("http://127.0.0.1:1").read("k"), StoreError, name)


def test_what_refuses_a_role_is_not_told_as_the_store(store, open_at, tmp_path, monkeypatch):
    """It answers AccessDenied: no permission of the bucket's helps."""
    issuer = store("nobody")
    page = b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
    issuer.refusal = Reply(403, body=page)
    config = tmp_path / "config"
    config.write_text(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = base\n"
        "[profile base]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", issuer.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    asked = lambda: open_at("http://127.0.0.1:1").read("k")  # noqa: E731
    error = assert_told(asked, StoreError, "role_arn")
    assert "AccessDenied" in str(error)
    assert "s3:" not in str(error)


@pytest.mark.parametrize("variable", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
@pytest.mark.parametrize("content", ["[default\nno", "\xff\xfe", None])
def test_a_file_of_aws_that_cannot_be_read_is_named(
    open_at, tmp_path, monkeypatch, variable, content
):
    path = tmp_path / "file"
    path.mkdir() if content is None else path.write_bytes(content.encode("latin-1"))
    monkeypatch.setenv(variable, str(path))
    assert_told(lambda: open_at("http://127.0.0.1:1").read("k"), UsageError, variable)


def test_an_unknown_profile_is_named(open_at, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    error = assert_told(lambda: open_at("http://127.0.0.1:1"), UsageError, "AWS_PROFILE")
    assert "nobody" in str(error)


def test_a_file_that_is_missing_is_told_where_there_are_no_credentials(
    open_at, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "missing"))
    ask = lambda: open_at("http://127.0.0.1:1").read("k")  # noqa: E731
    assert_told(ask, StoreError, "AWS_SHARED_CREDENTIALS_FILE")


def assert_told(ask: Callable[[], object], kind: type[ArchiverError], name: str) -> ArchiverError:
    with pytest.raises(kind, match=name) as caught:
        ask()
    text = str(caught.value)
    assert "\n" not in text
    assert "s3cr3t" not in text
    assert "ARCHIVER_S3_ENDPOINT_URL" not in text
    return caught.value


# --- where the bucket stands


@pytest.mark.parametrize(
    ("configured", "asked", "host"),
    [
        (None, None, "store.example.com"),
        ("virtual", None, "bucket.store.example.com"),
        ("auto", None, "store.example.com"),
        ("path", None, "store.example.com"),
        ("path", "virtual", "bucket.store.example.com"),
        ("virtual", "path", "store.example.com"),
    ],
)
@pytest.mark.parametrize("request_", ["get_object", "list_objects_v2", "get_bucket_versioning"])
def test_the_bucket_stands_where_it_is_asked_for(
    open_at, shared, tmp_path, monkeypatch, configured, asked, host, request_
):
    """The AWS configuration is heard, and our own setting before it. All is sent to a proxy."""
    seen: list[str] = []

    def answer(request: Request) -> Reply:
        seen.append(str(request.headers["Host"]))
        return Reply(
            body=b"<ListBucketResult><Name>b</Name></ListBucketResult>", headers={"ETag": '"x"'}
        )

    config = tmp_path / "config"
    config.write_text(f"[default]\ns3 =\n  addressing_style = {configured}\n" if configured else "")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    server = BendableServer("blob", ("127.0.0.1", 0), answer)
    server.start()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        bucket = open_at("http://store.example.com", addressing_style=asked)
        bucket.client.call_once(request_, "k" if request_ == "get_object" else None)
    finally:
        server.stop()
    assert seen == [host]


def test_an_addressing_style_that_is_none_is_named(open_at, shared, tmp_path, monkeypatch):
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = sideways\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    with pytest.raises(UsageError, match="addressing_style"):
        open_at("http://store.example.com")
