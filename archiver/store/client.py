"""The boto3 client that the archive's store is asked with, and how each object is written."""

from __future__ import annotations

import email.utils
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

import botocore.config
import botocore.loaders
import botocore.session
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.exceptions import BotoCoreError

from archiver import __version__
from archiver.store.faults import translate
from archiver.store.heads import WholeHead

READ_TIMEOUT_SECONDS = 60.0
_ENDPOINTS = "endpoints.json"
_ASKED = ("s3", "sts", "sso", "portal.sso", "oidc", "signin")
"""The store, and who may give credentials for it."""
USER_AGENT = f"call-archiver/{__version__}"


@dataclass(frozen=True)
class StoreOptions:
    """How to reach the bucket and how each object is written, in plain values."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    lock_mode: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    connections: int = 16

    @property
    def key_prefix(self) -> str:
        return self.prefix.strip("/") + "/" if self.prefix.strip("/") else ""


def make_session() -> botocore.session.Session:
    """What knows the credentials and the settings of AWS's environment and files."""
    session = botocore.session.Session()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    # botocore reads dates with dateutil, which takes longer than all else about a long listing.
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=parse_time)
    return session


def make_client(
    options: StoreOptions,
    session: botocore.session.Session | None = None,
    *,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
) -> Any:
    """A boto3 client without retries of its own, with checksums only where we give them."""
    config = botocore.config.Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=10,
        read_timeout=read_timeout_seconds,
        max_pool_connections=options.connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        user_agent=USER_AGENT,  # botocore's own is put together anew each time
        # A store behind an address of its own rarely has a DNS name for each bucket.
        s3={"addressing_style": "path" if options.endpoint_url else "auto"},
    )
    session = session or make_session()
    try:
        client = session.create_client(
            "s3", endpoint_url=options.endpoint_url, region_name=options.region, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise translate(error, "connect", options.bucket) from None
    # There is no other way to say it; the tests would fail where botocore hears it no more.
    pools: Any = {"http": _Pool, "https": _TlsPool}
    cast("Any", client)._endpoint.http_session._pool_classes_by_scheme.update(pools)
    return client


@cache
def _loader(data_path: str | None) -> botocore.loaders.Loader:
    """What knows botocore's description of S3. To read that takes longer than all else about a
    client, and a process may make several: they share one."""
    loader = botocore.loaders.create_loader(data_path)
    loader.file_loader = _PlainFiles()
    return loader


class _PlainFiles(botocore.loaders.JSONFileLoader):
    """botocore's asks for `OrderedDict`s, from a time when others had no order: they take twice the
    memory. So do the addresses of 400 services that nobody here asks."""

    def _load_file(self, full_path: str, open_method: Any) -> Any:
        if not os.path.isfile(full_path):  # noqa: PTH113  (as botocore asks)
            return None
        with open_method(full_path, "rb") as file:
            found = json.loads(file.read())
        for partition in found.get("partitions", ()) if full_path.endswith(_ENDPOINTS) else ():
            services = partition.get("services", {})
            partition["services"] = {name: services[name] for name in _ASKED if name in services}
        return found


class _Connection(AWSHTTPConnection):
    response_class = WholeHead  # type: ignore[assignment]


class _TlsConnection(AWSHTTPSConnection):
    response_class = WholeHead  # type: ignore[assignment]


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def parse_time(text: Any) -> datetime:
    """A time in an answer's body (RFC 3339) or header (RFC 9110). Raises `ValueError`."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        moment = email.utils.parsedate_to_datetime(str(text))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
