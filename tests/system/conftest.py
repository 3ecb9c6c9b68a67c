"""The servers that the tests share, and archives of their own for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from tests.system.bucket import Bucket
from tests.system.ceph import Ceph, is_asked_for
from tests.system.command import Archiver
from tests.system.servers import Tls, Weed

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    server = Weed(tmp_path_factory.mktemp("weed") / "store")
    yield server
    server.remove()


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "signing.pem"
    Archiver({}).run("keygen", "--out", str(file)).expect(0)
    return file


def archiver_to(
    store: Weed | Ceph, bucket: str, signing_key: Path, source: Mapping[str, str], **more: str
) -> Archiver:
    """The command from a source to a bucket, with all that it needs and with `more` settings."""
    settings = {
        **source,
        **store.settings(bucket),
        "SIGNING_KEY_FILE": str(signing_key),
        "METRICS_PORT": "0",
    }
    return Archiver({**settings, **more}, store.environment)


@pytest.fixture(scope="session")
def locking_store(request: pytest.FixtureRequest) -> Weed | Ceph:
    """SeaweedFS; with `CONTRACT_STORES=rgw` Ceph's gateway instead."""
    found: Weed | Ceph = request.getfixturevalue("ceph" if is_asked_for() else "weed")
    return found


_numbers = itertools.count(1)

MakeArchive = Callable[..., tuple[Archiver, Bucket]]


@pytest.fixture(scope="session")
def make_archive(weed: Weed, signing_key: Path) -> MakeArchive:
    """`make_archive(source_settings, versioned=…, lock=…)`: a new bucket, and the command to it."""

    def make(
        source: dict[str, str], *, versioned: bool = False, lock: bool = False
    ) -> tuple[Archiver, Bucket]:
        name = f"calls-{next(_numbers)}"
        bucket = Bucket.make(weed.client, name, versioned=versioned, lock=lock)
        return archiver_to(weed, name, signing_key, source), bucket

    return make


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def other_tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A root that vouches for none of the servers."""
    return make_tls(tmp_path_factory.mktemp("other-tls"))


def make_tls(directory: Path) -> Tls:
    root = trustme.CA()
    leaf = root.issue_cert("127.0.0.1", "localhost")
    files = Tls(directory / "cert.pem", directory / "key.pem", directory / "ca.pem")
    root.cert_pem.write_to_path(files.ca)
    leaf.private_key_pem.write_to_path(files.key)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(files.cert, append=True)
    return files
