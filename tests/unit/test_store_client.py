"""Our way to botocore's description of AWS says what botocore's own says."""

from __future__ import annotations

import botocore.session
import pytest

from archiver.store.client import make_session

REGIONS = [
    "us-east-1",
    "eu-central-1",
    "cn-north-1",
    "us-gov-west-1",
    "eusc-de-east-1",
    "nowhere-1",
]
SERVICES = ["s3", "sts", "sso", "sso-oidc"]
"""The store, and where credentials come from."""


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("service", SERVICES)
def test_addresses_are_botocores(service: str, region: str) -> None:
    ours, theirs = (
        session.create_client(
            service, region_name=region, aws_access_key_id="x", aws_secret_access_key="x"
        )
        for session in (make_session(), botocore.session.Session())
    )
    assert ours.meta.endpoint_url == theirs.meta.endpoint_url
    assert ours.meta.partition == theirs.meta.partition
    assert ours.meta.region_name == theirs.meta.region_name


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_regions_are_botocores(partition: str) -> None:
    for service in ("s3", "sts"):
        ours, theirs = (
            session.get_available_regions(service, partition, allow_non_regional=True)
            for session in (make_session(), botocore.session.Session())
        )
        assert ours == theirs
        assert ours
