"""What somebody with other rights than the writer's may do to a real archive on a real store, by
the store's own requests: each is found, and told by a code of its own.

Three archives by the real pipeline: in a bucket locked in GOVERNANCE mode, whose locks a privileged
person can get round; in one that keeps versions and locks nothing; and in one that keeps none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.audit.verify import Options, verify
from archiver.core.model import Retention
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.manifest.layout import SegmentName
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from tests.conftest import LOCKED, PLAIN
from tests.fakes.clock import HandClock
from tests.fakes.platform import Platform
from tests.fakes.population import TEN, a_call
from tests.fakes.rig import new_key, wired
from tests.system.servers import Weed

pytestmark = pytest.mark.weed

SEGMENT = SegmentName(TEN, 1)
SEAL = layout.seal_key(1)
VERSIONED = "versioned"


@dataclass(frozen=True)
class Attacker:
    """Has every right there is in a bucket, but not the signing key."""

    s3: Any
    bucket: Bucket

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket.options.bucket, "Key": f"{self.bucket.client.prefix}{key}"}

    def overwrite(self, key: str, data: bytes | None = None) -> None:
        """With the same bytes unless told: then only the versions give it away."""
        whole = self.bucket.read(key) if data is None else data
        self.s3.put_object(**self.at(key), Body=whole)

    def hide(self, key: str) -> None:
        self.s3.delete_object(**self.at(key))

    def recreate(self, key: str) -> None:
        data = self.bucket.read(key)
        self.hide(key)
        self.overwrite(key, data)

    def shorten(self, key: str) -> None:
        retention = {"Mode": "GOVERNANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)}
        self.s3.put_object_retention(
            **self.at(key), Retention=retention, BypassGovernanceRetention=True
        )

    def hold(self, key: str) -> None:
        self.bucket.set_hold(key, None, True)

    def wipe(self, key: str) -> None:
        """The version itself, not a marker over it; then put the same bytes back."""
        data, head = self.bucket.read(key), self.bucket.head(key)
        assert head is not None
        version = {"VersionId": head.version_id} if head.version_id else {}
        bypass = {"BypassGovernanceRetention": True} if head.lock_mode else {}
        self.s3.delete_object(**self.at(key), **version, **bypass)
        self.overwrite(key, data)


Act = Callable[[Attacker, str], None]
ON_ANY_VERSIONS: list[tuple[Act, str, set[str]]] = [
    (Attacker.overwrite, "recording", {"overwritten"}),
    (Attacker.hide, "recording", {"deleted"}),
    (Attacker.recreate, "recording", {"recreated"}),
    (Attacker.overwrite, "record", {"overwritten"}),
    (Attacker.hide, "record", {"deleted", "record_missing"}),
    (Attacker.recreate, "record", {"recreated"}),
    (Attacker.wipe, "transcript", {"file_missing"}),
    (Attacker.overwrite, SEAL, {"overwritten"}),
    (Attacker.recreate, layout.seal_key(0), {"recreated"}),
    (Attacker.hide, SEGMENT.sha256, {"deleted", "companion_missing"}),
    (Attacker.recreate, SEGMENT.seal, {"recreated"}),
]
ON_A_LOCKED_BUCKET: list[tuple[Act, str, set[str]]] = [
    (Attacker.shorten, "recording", {"retention_weaker"}),
    (Attacker.shorten, "record", {"retention_weaker"}),
    (Attacker.shorten, SEGMENT.jsonl, {"retention_weaker"}),
    (Attacker.shorten, layout.signature_key(1), {"retention_weaker"}),
    (Attacker.hold, "recording", {"hold_unrecorded"}),
]
WITHOUT_VERSIONS: list[tuple[Act, str, set[str]]] = [
    (lambda a, k: a.overwrite(k, b"short"), "recording", {"file_size"}),
    (lambda a, k: a.overwrite(k, bytes(len(a.bucket.read(k) or b""))), "recording", {"file_hash"}),
    (Attacker.hide, "recording", {"file_missing"}),
    (lambda a, k: a.overwrite(k, b"{}\n"), "record", {"record_mismatch"}),
    (Attacker.recreate, "transcript", set()),  # the same bytes, and nothing tells of the others
]


def with_the_lock_gone(act: Act, what: str, codes: set[str]) -> tuple[Act, str, set[str]]:
    """A new version has no lock: that is seen of what is not asked for by version."""
    is_new = act in (Attacker.overwrite, Attacker.recreate)
    is_seen = is_new and what in ("record", SEAL, SEGMENT.seal)
    return act, what, codes | ({"retention_missing"} if is_seen else set())


ATTACKS = {
    LOCKED: [
        *itertools.starmap(with_the_lock_gone, ON_ANY_VERSIONS),
        *ON_A_LOCKED_BUCKET,
    ],
    VERSIONED: [
        *ON_ANY_VERSIONS,
        (lambda a, k: a.overwrite(k, b"other"), "recording", {"overwritten"}),
        (Attacker.overwrite, SEGMENT.jsonl, {"overwritten"}),
    ],
    PLAIN: WITHOUT_VERSIONS,
}  # fmt: skip
RETENTION = {LOCKED: Retention("GOVERNANCE", 20 * 365), VERSIONED: Retention(), PLAIN: Retention()}


@pytest.mark.parametrize("kind", ATTACKS)
def test_each_attack_has_its_code(
    kind: str, weed: Weed, s3: Any, prefix: str, clock: HandClock
) -> None:
    """One archive, a call for each attack, and one audit of them all."""
    name = kind
    if kind == VERSIONED:
        name = f"{kind}-{prefix}"
        s3.create_bucket(Bucket=name)
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    mode = RETENTION[kind].mode
    where = {"prefix": prefix, "endpoint_url": weed.endpoint_url, "region": "us-east-1"}
    options = StoreOptions(name, lock_mode=mode, **where)  # type: ignore[arg-type]
    bucket = Bucket(options, clock, Retry(clock), client=s3)
    calls = [f"vc_{number}" for number in range(len(ATTACKS[kind]))]
    archive(bucket, clock, calls, RETENTION[kind])
    assert verify(bucket, Options(level="bytes")).totals == {}

    attacker, expected = Attacker(s3, bucket), set()
    for call, (act, what, codes) in zip(calls, ATTACKS[kind], strict=True):
        key = where_it_lies(call, what)
        act(attacker, key)
        expected |= set(itertools.product(codes, [key]))

    report = verify(bucket, Options(level="bytes"), pause=lambda _: None)
    assert {(f.code, f.key) for f in report.findings} == expected
    told = any("keeps no versions" in note for note in report.notes)
    assert told == (kind == PLAIN), "where a rewrite leaves no trace, the auditor must know"


def archive(bucket: Bucket, clock: HandClock, calls: list[str], retention: Retention) -> None:
    clock.turn_to(TEN + timedelta(days=3))
    with (
        Platform(clock=clock.now) as platform,
        wired(platform, bucket, clock, new_key(), retention=retention) as rig,
    ):
        platform.add(*(a_call(call) for call in calls))
        assert rig.backfill().committed == {"archived": len(calls)}


def where_it_lies(call: str, what: str) -> str:
    if what == "record":
        return layout.record_key(TEN.date(), call, 1)
    if what == "recording":
        return layout.recording_dir(TEN.date(), call) + "recording.wav"
    if what == "transcript":
        return layout.recording_dir(TEN.date(), call) + "transcript.json"
    return what
