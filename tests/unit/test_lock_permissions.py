"""Whether we may see locks and legal holds: one object that the store does not hand out is no sign
that we may not."""

from __future__ import annotations

import pytest

from archiver.audit.verify import Options, verify
from archiver.core.errors import StoreError
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.store.bucket import PROBE_BYTES, Bucket
from archiver.store.client import StoreOptions
from tests.fakes.clock import HandClock
from tests.fakes.memory_rig import HOUR, World
from tests.fakes.memory_s3 import Answer, Effect, MemoryS3, S3Uploads, refusal
from tests.fakes.population import TEN, a_call

BAD = pytest.mark.parametrize(
    ("code", "status"), [("AccessDenied", 403), ("403", 403), ("InternalError", 500)]
)


@pytest.fixture
def world() -> World:
    """A sealed window, and the object that the store was tried out on."""
    made = World(TEN + 6 * HOUR, TEN)
    made.platform.add(a_call("vc_1"))
    made.writer("a").round()
    made.store.put_once(layout.PROBE, PROBE_BYTES)
    return made


def bucket_of(world: World, clock: HandClock, code: str, status: int, *keys: str) -> Bucket:
    """The store answers so to whoever asks for one of these objects; without any, for all."""

    def carrier(operation: str, key: str, effect: Effect) -> Answer:
        of_one = operation not in ("list", "versions")
        if key in keys or (not keys and of_one):
            raise refusal(code, status, operation)
        return effect()

    s3 = MemoryS3(world.store, S3Uploads(), clock.now, carrier)
    return Bucket(StoreOptions("b"), clock, Retry(clock), client=s3)


@BAD
@pytest.mark.parametrize("keys", [(layout.PROBE,), (layout.PROBE, layout.seal_key(0))])
def test_objects_that_the_store_does_not_hand_out_end_no_audit(world, code, status, keys):
    bucket = bucket_of(world, world.clock, code, status, *keys)
    bucket.check_access()
    bucket.check_lock_permissions()
    found = verify(bucket, Options(level="bytes", workers=1), now=world.clock.now())
    assert found.ok == (keys == (layout.PROBE,))


def test_a_permission_that_we_lack_is_named(world):
    bucket = bucket_of(world, world.clock, "AccessDenied", 403)
    with pytest.raises(StoreError, match="s3:GetObjectRetention") as caught:
        bucket.check_lock_permissions()
    assert (caught.value.reason, caught.value.exit_code) == ("denied", 4)


def test_a_permission_that_we_lack_is_named_in_an_empty_archive(clock):
    """AWS refuses whoever may not ask before it looks whether there is such an object."""
    empty = World(TEN + 6 * HOUR, TEN)
    with pytest.raises(StoreError, match="s3:GetObjectRetention"):
        bucket_of(empty, clock, "AccessDenied", 403).check_lock_permissions()
    bucket_of(empty, clock, "AccessDenied", 403, layout.PROBE).check_lock_permissions()
