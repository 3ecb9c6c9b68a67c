"""Between the archiver and its three servers: a forwarding proxy, private roots, and IPv6.

The servers are real: Azurite, an S3 server, and an API with a certificate.
"""

from __future__ import annotations

import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.fakes.connect_proxy import ConnectProxy
from tests.system import audit, checker
from tests.system.azure_api import AzureApi
from tests.system.bucket import Bucket
from tests.system.command import Archiver
from tests.system.conftest import MakeArchive, archiver_to
from tests.system.servers import Azurite, Tls, Weed, free_port
from tests.system.tcp_proxy import TcpProxy
from tests.system.test_azurite import RANGE, Scene, make_scene

NOBODY = "http://127.0.0.1:9"
USERINFO = "arch@iver:p@ss word"
TRANSPORTS = ("fast", "standard")


@dataclass
class Site:
    """All three servers, over TLS with a private root."""

    scene: Scene
    api: AzureApi
    weed: Weed
    signing_key: Path
    numbers: Iterator[int]

    def archive(self, **settings: str) -> tuple[Archiver, Bucket]:
        """A new bucket, and the command to it. It trusts nobody yet."""
        name = f"calls-{next(self.numbers)}"
        bucket = Bucket.make(self.weed.client, name, versioned=True)
        source = self.api.settings(self.scene.azurite)
        return archiver_to(self.weed, name, self.signing_key, source, **settings), bucket

    @property
    def hosts(self) -> set[str]:
        return {
            self.api.host, self.scene.azurite.host, self.weed.endpoint_url.removeprefix("https://")
        }  # fmt: skip


@pytest.fixture(scope="module")
def site(tls: Tls, signing_key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    weed = Weed(directory / "weed", tls)
    with Azurite(directory / "azurite", tls) as azurite:
        scene = make_scene(azurite)
        with AzureApi(list(scene.calls.values()), scene.blobs, tls) as api:
            yield Site(scene, api, weed, signing_key, iter(range(1, 100)))
    weed.remove()


def check_all_archived(
    archiver: Archiver, bucket: Bucket, scene: Scene, api: AzureApi, directory: Path
) -> None:
    archiver.run("backfill", *RANGE).expect(0)
    checker.check(bucket.download(directory / "copy"), scene.expected(api))
    audit.assert_clean(archiver)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_legs_go_through_the_proxy(
    site: Site, tls: Tls, tmp_path: Path, transport: str
) -> None:
    name, _, password = USERINFO.partition(":")
    with ConnectProxy(USERINFO) as proxy:
        url = f"http://{quote(name)}:{quote(password)}@{proxy.address}"
        archiver, bucket = site.archive(HTTP_TRANSPORT=transport)
        archiver = archiver.within(SSL_CERT_FILE=str(tls.ca), HTTPS_PROXY=url)
        archiver.run("check").expect(0)
        check_all_archived(archiver, bucket, site.scene, site.api, tmp_path)
        archiver.run("reconcile", *RANGE).expect(0)
        assert set(proxy.tunnels) == site.hosts
        assert proxy.refused == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_no_proxy_names_is_asked_directly(
    site: Site, tls: Tls, tmp_path: Path, transport: str
) -> None:
    archiver, bucket = site.archive(HTTP_TRANSPORT=transport)
    archiver = archiver.within(
        SSL_CERT_FILE=str(tls.ca), https_proxy=NOBODY, no_proxy="10.0.0.0/8, 127.0.0.0/8"
    )
    check_all_archived(archiver, bucket, site.scene, site.api, tmp_path)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_leg_alone_is_asked_directly(
    site: Site, tls: Tls, tmp_path: Path, transport: str
) -> None:
    """By host and port: the other two go through the proxy."""
    with ConnectProxy() as proxy:
        archiver, bucket = site.archive(HTTP_TRANSPORT=transport)
        archiver = archiver.within(
            SSL_CERT_FILE=str(tls.ca),
            ALL_PROXY=f"http://{proxy.address}",
            NO_PROXY=site.weed.endpoint_url.removeprefix("https://"),
        )
        check_all_archived(archiver, bucket, site.scene, site.api, tmp_path)
        assert set(proxy.tunnels) == {site.api.host, site.scene.azurite.host}


@pytest.mark.parametrize("password", ["", "other:one@"])
def test_a_proxy_that_refuses_is_named(site: Site, tls: Tls, password: str) -> None:
    with ConnectProxy(USERINFO) as proxy:
        archiver, bucket = site.archive()
        proxied = archiver.within(
            SSL_CERT_FILE=str(tls.ca), HTTPS_PROXY=f"http://{password}{proxy.address}"
        )
        for verb, code in (("backfill", 3), ("verify", 4)):
            result = proxied.run(verb, *RANGE).expect(code)
            [line] = result.complaints
            assert "HTTPS_PROXY" in line
            assert "other" not in result.stderr, "a password may be there"
    assert bucket.keys() == []


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1", "http://", "https://u:s3cret@[::1"])
def test_a_proxy_that_is_no_url_is_named(site: Site, tls: Tls, url: str) -> None:
    archiver, _ = site.archive()
    proxied = archiver.within(SSL_CERT_FILE=str(tls.ca), HTTPS_PROXY=url)
    for verb in ("backfill", "verify"):
        result = proxied.run(verb, *RANGE).expect(2)
        [line] = result.complaints
        assert "HTTPS_PROXY" in line
        assert "s3cret" not in result.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("given", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_a_private_root(
    site: Site, tls: Tls, other_tls: Tls, tmp_path: Path, transport: str, given: str
) -> None:
    """One variable is enough for all legs."""
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "other.crt").write_bytes(other_tls.ca.read_bytes())
    (roots / "ours.crt").write_bytes(tls.ca.read_bytes())
    archiver, bucket = site.archive(HTTP_TRANSPORT=transport)
    archiver = archiver.within(**{given: str(roots if given == "SSL_CERT_DIR" else tls.ca)})
    check_all_archived(archiver, bucket, site.scene, site.api, tmp_path)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE"])
def test_roots_that_cannot_be_read_are_named(site: Site, tmp_path: Path, variable: str) -> None:
    (tmp_path / "no-root").write_text("nothing\n")
    archiver, _ = site.archive()
    for path in (tmp_path / "no-root", tmp_path / "missing"):
        [line] = archiver.within(**{variable: str(path)}).run("verify").expect(2).complaints
        assert line.startswith(f"archiver: {variable}: ")
        assert str(path) in line


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_over_ipv6(
    make_archive: MakeArchive, weed: Weed, tmp_path: Path, transport: str
) -> None:
    with ExitStack() as stack:
        azurite = stack.enter_context(Azurite(tmp_path / "azurite"))
        scene = make_scene(azurite)
        api = stack.enter_context(AzureApi(list(scene.calls.values()), scene.blobs))
        fronts = [stack.enter_context(TcpProxy("::1")) for _ in range(3)]
        blob, source, store = fronts
        blob.upstream, source.upstream = azurite.host, api.host
        store.upstream = weed.endpoint_url.removeprefix("http://")
        azurite.host, api.host = blob.address, source.address
        archiver, bucket = make_archive(api.settings(azurite), versioned=True)
        archiver = archiver.having(
            S3_ENDPOINT_URL=f"http://{store.address}", HTTP_TRANSPORT=transport
        )
        check_all_archived(archiver, bucket, scene, api, tmp_path)
        assert all(front.brought for front in fronts)


def test_metrics_and_health_on_both(make_archive: MakeArchive) -> None:
    port = free_port()
    with AzureApi([]) as api:
        archiver, _ = make_archive(api.settings())
        loop = archiver.having(METRICS_PORT=str(port)).start("run")
        loop.wait_for(1, "round.done")
        for host in ("127.0.0.1", "[::1]"):
            for path in ("metrics", "healthz", "readyz"):
                url = f"http://{host}:{port}/{path}"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    assert answer.status == 200
        loop.send(signal.SIGTERM)
        loop.wait().expect(0)
