"""Legal holds on every store: a hold that the store does not keep is never taken for one."""

from __future__ import annotations

import pytest

from archiver.core.errors import StoreError
from archiver.store.bucket import Bucket
from tests.contract.conftest import LOCKED, STORES


@pytest.mark.parametrize("store", LOCKED)
def test_a_hold_is_set_shown_and_taken_off(bucket: Bucket) -> None:
    version = bucket.put_once("k", b"x").version_id
    bucket.put_once("other", b"x")
    for held in (True, True, False, False, True):
        bucket.set_hold("k", version, held)
        heads = [bucket.head("k", version), bucket.head("other")]
        assert [head.held for head in heads if head] == [held, False]


@pytest.mark.parametrize("store", LOCKED)
def test_what_is_not_there_takes_no_hold(bucket: Bucket) -> None:
    with pytest.raises(StoreError):
        bucket.set_hold("k", None, True)
    assert bucket.head("k") is None


@pytest.mark.parametrize("store", [name for name in STORES if name not in LOCKED])
def test_a_bucket_without_object_lock_takes_none(bucket: Bucket) -> None:
    bucket.put_once("k", b"x")
    with pytest.raises(StoreError, match=r"legal hold.*Object Lock"):
        bucket.set_hold("k", None, True)
