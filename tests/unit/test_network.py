"""Proxies and roots by the environment: every library is given the same answer."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from botocore.exceptions import BotoCoreError, ClientError

from archiver.core.errors import StoreError, UsageError
from archiver.core.http import TransportError, make_client
from archiver.core.network import boto3_bundle, check, openssl_bundle, proxy_for, root_bundle
from archiver.store.client import StoreOptions, connect
from archiver.store.errors import translate
from tests.fakes.rig import aws_session
from tests.fakes.traps import LAST, Connection, Trap, answering, scripted

PROXY = "http://proxy.example.com:3128"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
ROOTS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, aws_keys: None) -> pytest.MonkeyPatch:
    """Without any variable of proxies and roots."""
    for name in (*NAMES, *map(str.upper, NAMES), *ROOTS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# --- proxies


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://a.example.com/", None),
        ({"HTTPS_PROXY": PROXY}, "https://a.example.com/", PROXY),
        ({"https_proxy": PROXY}, "https://a.example.com/", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://a.example.com/", None),
        ({"HTTP_PROXY": PROXY}, "http://a.example.com/", PROXY),
        ({"ALL_PROXY": PROXY}, "http://a.example.com/", PROXY),
        ({"ALL_PROXY": "http://b:1", "https_proxy": PROXY}, "https://a.example.com/", PROXY),
        ({"HTTPS_PROXY": "proxy.example.com:3128"}, "https://a.example.com/", PROXY),
        ({"HTTPS_PROXY": ""}, "https://a.example.com/", None),
    ],
)
def test_which_proxy(environment, variables, url, proxy):
    for name, value in variables.items():
        environment.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    ("exceptions", "url", "is_direct"),
    [
        ("*", "https://a.example.com/", True),
        ("example.com", "https://example.com/", True),
        ("example.com", "https://a.example.com/", True),
        ("example.com", "https://notexample.com/", False),
        ("EXAMPLE.com", "https://a.Example.COM./x", True),
        (".example.com", "https://a.example.com/", True),
        ("*.example.com", "https://a.example.com/", True),
        ("a.example.com", "https://b.example.com/", False),
        ("a.example.com:443", "https://a.example.com/", True),
        ("a.example.com:8443", "https://a.example.com/", False),
        ("a.example.com:8443", "https://a.example.com:8443/", True),
        (" x.org ,\ta.example.com ", "https://a.example.com/", True),
        ("", "https://a.example.com/", False),
        (", ,.,", "https://a.example.com/", False),
        ("10.1.2.3", "https://10.1.2.3/", True),
        ("10.1.2.3", "https://10.1.2.30/", False),
        ("10.0.0.0/8", "https://10.1.2.3/", True),
        ("10.1.2.3/8", "https://10.9.9.9/", True),
        ("10.0.0.0/8", "https://11.1.2.3/", False),
        ("10.0.0.0/8:443", "https://10.1.2.3/", True),
        ("10.0.0.0/8:80", "https://10.1.2.3/", False),
        ("10.0.0.0/8", "https://10.example.com/", False),
        ("10.0.0.0/99", "https://10.1.2.3/", False),
        ("fd00::1", "https://[fd00::1]/", True),
        ("[fd00::1]", "https://[fd00::1]/", True),
        ("[fd00::1]:443", "https://[fd00::1]/", True),
        ("[fd00::1]:444", "https://[fd00::1]/", False),
        ("fd00::/8", "https://[fd00::1]:9000/", True),
        ("fd00::/8", "https://10.1.2.3/", False),
        ("0.0.0.0/0", "https://[fd00::1]/", False),
    ],
)
def test_exceptions(environment, exceptions, url, is_direct):
    environment.setenv("HTTPS_PROXY", PROXY)
    environment.setenv("NO_PROXY", exceptions)
    assert proxy_for(url) == (None if is_direct else PROXY)


@pytest.mark.parametrize(
    "url", ["socks5://127.0.0.1:1", "http://", "http://h:70000", "http://[::1", "ftp://u:pw@h"]
)
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"])
def test_a_malformed_proxy_is_named_without_its_password(environment, name, url):
    environment.setenv(name, url)
    with pytest.raises(UsageError, match=f"^{name}: takes a URL such as http://") as caught:
        check()
    assert "pw" not in str(caught.value)
    with pytest.raises(UsageError):
        make_client("fast")


def by_http(transport: str, over_httpx: bool) -> Callable[[str], object]:
    def ask(url: str) -> None:
        http = make_client(transport, roots=root_bundle(), over_httpx=over_httpx)
        http.request("GET", url, {}, max_bytes=1000, seconds=10)

    return ask


def by_boto3(url: str) -> None:
    options = StoreOptions("bucket", endpoint_url=url, region="us-east-1", signed_requests=False)
    requests = connect(options, lambda: None, aws_session())
    try:
        requests.boto3_client.head_bucket(Bucket="bucket")
    except (BotoCoreError, ClientError) as error:
        raise translate(error, "HeadBucket", "bucket") from None


CLIENTS = {
    "fast": by_http("fast", False),
    "httpx over fast": by_http("fast", True),
    "standard": by_http("standard", False),
    "boto3": by_boto3,
}


@pytest.fixture(params=CLIENTS)
def ask(request: pytest.FixtureRequest) -> Callable[[str], object]:
    return CLIENTS[request.param]


@pytest.mark.parametrize(
    ("exceptions", "is_direct"),
    [
        ("", False),
        ("*", True),
        ("127.0.0.0/8", True),
        ("127.0.0.1:{port}", True),
        ("127.0.0.1:1", False),
        ("::1,[::1]:80,fd00::/8", False),
        ("example.com", False),
    ],
)
def test_every_client_hears_the_same(environment, ask, exceptions, is_direct):
    with answering(LAST) as proxy, answering(LAST) as server:
        environment.setenv("ALL_PROXY", f"http://{proxy.address}")
        port = server.address.rpartition(":")[2]
        environment.setenv("NO_PROXY", exceptions.format(port=port))
        ask(server.url)
        assert (proxy.connections, server.connections) == ((0, 1) if is_direct else (1, 0))


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_every_client_names_a_dead_proxy(environment, ask, variable):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment.setenv(variable, f"http://user:s3cret@127.0.0.1:{port}")
    with pytest.raises((TransportError, StoreError), match=f"proxy.* {variable}") as caught:
        ask("https://127.0.0.1:1/")
    assert "s3cret" not in str(caught.value)


def speak_no_tls(_: Trap, connection: Connection) -> None:
    connection.read(1)
    connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def test_a_port_without_tls_is_not_called_untrusted(ask):
    with Trap(speak_no_tls) as server, pytest.raises((TransportError, StoreError)) as caught:
        ask(f"https://{server.address}/")
    assert "trusted" not in str(caught.value)
    assert getattr(caught.value, "reason", "unreachable") == "unreachable"
    assert getattr(caught.value, "kind", "unconnected") == "unconnected"


# --- roots


def test_no_variable_means_the_systems(environment):
    assert root_bundle() is None
    assert openssl_bundle() is None


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """PEM files by name, each of an authority of its own, and a directory of two others."""
    made = {}
    for name in ("file", "directory/one.crt", "directory/two.crt", "requests", "aws"):
        made[name] = tmp_path / name
        made[name].parent.mkdir(exist_ok=True)
        trustme.CA().cert_pem.write_to_path(str(made[name]))
    (tmp_path / "directory" / "README").write_text("no certificate")
    return made


def test_the_first_that_is_set_counts(environment, roots, tmp_path):
    environment.setenv("REQUESTS_CA_BUNDLE", str(roots["requests"]))
    assert root_bundle() == boto3_bundle() == roots["requests"]
    environment.setenv("SSL_CERT_FILE", str(roots["file"]))
    assert root_bundle() is None, "OpenSSL and pyreqwest read it by themselves"
    assert openssl_bundle() == boto3_bundle() == roots["file"]
    assert root_bundle(str(roots["aws"])) == boto3_bundle(str(roots["aws"])) == roots["aws"]
    directory = tmp_path / "directory"
    environment.setenv("SSL_CERT_DIR", f"{tmp_path / 'missing'}:{directory}")
    merged = openssl_bundle()
    assert merged is not None
    assert merged.parent == Path(tempfile.gettempdir())
    text = merged.read_text()
    for name in ("file", "directory/one.crt", "directory/two.crt"):
        assert roots[name].read_text().strip() in text
    assert roots["requests"].read_text().strip() not in text


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("content", [None, b"", b"nothing", b"an empty directory", b"damaged"])
def test_roots_that_cannot_be_read(environment, tmp_path, name, content):
    path = tmp_path / "roots"
    if content == b"an empty directory":
        path.mkdir()
    elif content == b"damaged":
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif content is not None:
        path.write_bytes(content)
    environment.setenv(name, str(path))
    given = str(path) if name == "AWS_CA_BUNDLE" else None
    with pytest.raises(UsageError, match=f"^{name}: no certificate .* {path}$"):
        boto3_bundle(given)


def test_a_directory_of_roots_hides_no_file_without_any(environment, roots, tmp_path):
    environment.setenv("SSL_CERT_DIR", str(tmp_path / "directory"))
    environment.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match=r"^SSL_CERT_FILE: no certificate"):
        openssl_bundle()


def test_merged_roots_need_a_place(environment, roots, tmp_path, monkeypatch):
    environment.setenv("SSL_CERT_DIR", str(tmp_path / "directory"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match=r"^TMPDIR: "):
        openssl_bundle()


@pytest.mark.parametrize("signed", [False, True])
def test_providers_of_credentials_trust_the_same_roots(environment, root, signed):
    """boto3 asks for a role with clients of its own."""
    environment.setenv("SSL_CERT_FILE", str(root))
    options = StoreOptions("bucket", region="us-east-1", signed_requests=signed)
    aws = aws_session()
    connect(options, lambda: None, aws)
    assert aws.get_config_variable("ca_bundle") == str(root)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_every_client_trusts_a_private_root(environment, ask, tls, root, name):
    environment.setenv(name, str(root.parent if name == "SSL_CERT_DIR" else root))
    with scripted([LAST], tls=tls[0]) as server:
        ask(server.url)
        assert len(server.requests) == 1
