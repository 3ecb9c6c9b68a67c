"""The policies of deploy/iam: with its own each role can do its work, and nothing beyond it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import pytest

from archiver.core.clock import SystemClock
from archiver.core.errors import StoreError
from archiver.core.retry import Retry
from archiver.manifest import layout
from archiver.manifest.signing import SigningKey
from archiver.store.bucket import Bucket
from archiver.store.client import StoreOptions
from archiver.store.probe import probe
from tests.contract import roles
from tests.contract.conftest import ASKED
from tests.contract.roles import BUCKET, ROLES, Scene
from tests.fakes import iam
from tests.fakes.audio import wav
from tests.fakes.command import Done, command_for
from tests.fakes.gate import Gate
from tests.fakes.platform import Platform
from tests.fakes.population import YESTERDAY_TEN, a_call
from tests.system.servers import REGION, Weed

TEN = YESTERDAY_TEN
HOUR = ["--from", TEN.isoformat(), "--to", (TEN + timedelta(hours=1)).isoformat()]
ON_WEED = ["aws", "weed"] if "weed" in ASKED else []
STORES = [*ON_WEED, *(["rgw"] if "rgw" in ASKED else [])]

MAY = {
    "writer": {
        "write a recording",
        "write a record",
        "write into the manifest",
        "begin an upload",
        "lock",
        "hold",
    },
    "holder": {"write into the manifest", "hold", "take a hold off"},
    "auditor": set[str](),
}
"""Of `roles.deeds`."""
MORE = {
    "writer": {"overwrite", "overwrite the manifest", "take a hold off"},
    "holder": {"overwrite the manifest"},
    "auditor": set[str](),
}
"""What they may besides where the store knows neither the guard nor the condition on the writer's
holds: all but AWS."""

TRIED: dict[str, set[str]] = {
    "writer": {"s3:DeleteObjectVersion", "s3:PutObject", "s3:PutObjectLegalHold"},
    "holder": set(),
    "auditor": set(),
}
"""What the trial of a store asks for and goes on without: to delete a locked version, to end an
upload unconditionally, to put a hold on its object."""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """One call whose recording comes in parts, and one whose recording comes later."""
    calls = [
        a_call("vc_1", TEN, epa={"a": 1}),
        a_call("vc_big", TEN, seconds=600, audio=wav(600)),
        a_call("vc_late", TEN, audio=None),
    ]
    with Platform(calls) as served:
        yield served


@pytest.fixture
def scene(
    store: str, prefix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    opened: AbstractContextManager[Scene]
    if store == "aws":
        opened = roles.on_aws(request.getfixturevalue("weed"), prefix)
    elif store == "weed":
        (tmp_path / "weed").mkdir()
        opened = roles.on_weed(tmp_path / "weed")
    else:
        opened = roles.on_rgw(request.getfixturevalue("ceph"))
    with opened as found:
        yield found


class Crew:
    """Runs commands in each role."""

    def __init__(self, scene: Scene, platform: Platform, directory: Path, key: SigningKey) -> None:
        self.command = command_for(
            platform, key, directory, {},
            S3_BUCKET=BUCKET, S3_PREFIX=scene.prefix, S3_REGION=REGION,
            OBJECT_LOCK_MODE="COMPLIANCE", RETENTION_DAYS="7300",
        )  # fmt: skip
        self._scene = scene
        self._alone = ["--single-writer"] if scene.single_writer else []

    def act(self, role: str, *arguments: str, alone: bool = True) -> Done:
        options = self._alone if alone else []
        return self.command.run(*arguments, *options, **self._scene.doors[role].settings).expect()

    def read(self, role: str, *arguments: str) -> Done:
        return self.act(role, *arguments, alone=False)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.timeout(180)
def test_each_role_does_its_work_and_nothing_more(
    store: str, scene: Scene, platform: Platform, tmp_path: Path, key: SigningKey
) -> None:
    crew = Crew(scene, platform, tmp_path, key)
    platform.add(a_call("vc_late", TEN, audio=None))
    crew.act("writer", "backfill", *HOUR)  # begins the archive as `init` does
    sighted = scene.admin.client.list_objects_v2(Bucket=BUCKET, Prefix=scene.key(layout.SIGHTINGS))
    assert sighted["KeyCount"] == 1, "written below the role's own prefix"
    crew.act("holder", "hold", "add", "vc_1", "vc_late", "--by", "A. N. Other", "--reason", "test")
    crew.act("holder", "hold", "remove", "vc_1", "--by", "A. N. Other", "--reason", "test")
    platform.add(a_call("vc_late", TEN))
    crew.act("writer", "backfill", *HOUR)  # the held call gets a recording
    assert "vc_late" in crew.read("auditor", "hold", "list").out
    assert "held" in crew.read("auditor", "manifest", "show", "vc_late").out
    found = json.loads(crew.read("auditor", "verify", "--level", "bytes", "--json").out)
    assert found["findings"] == []
    probe_object = f"arn:aws:s3:::{BUCKET}/{scene.key(layout.PROBE)}"
    for role, gate in scene.gates.items():
        tried = {f"{action} {probe_object}" for action in TRIED[role]}
        assert set(gate.denied) == tried, f"{role}: what the work would take"
        granted = {
            action
            for statement in roles.policy(role)["Statement"]
            for action in iam.listed(statement["Action"])
        }
        assert gate.used == granted, f"{role}: not what the work takes"
    for role in ROLES:
        managed = {name for name, deed in roles.deeds(scene, role).items() if roles.done(deed)}
        assert managed == (MAY[role] if store == "aws" else MAY[role] | MORE[role]), role


@pytest.mark.parametrize(
    "action",
    [
        "s3:GetBucketObjectLockConfiguration",
        "s3:GetObject",
        "s3:GetObjectLegalHold",
        "s3:GetObjectRetention",
        "s3:GetObjectVersion",
        "s3:ListBucket",
        "s3:PutObject",
        "s3:PutObjectRetention",
    ]
    if ON_WEED
    else [],
)
def test_a_missing_permission_is_named(
    action: str, weed: Weed, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those without which a writer can do nothing."""
    weed.create_bucket(BUCKET)
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    lacking = roles.policy("writer", prefix)
    for statement in lacking["Statement"]:
        statement["Action"] = [one for one in iam.listed(statement["Action"]) if one != action]
    with Gate(weed.endpoint_url, [lacking]) as gate:
        clock = SystemClock()
        options = StoreOptions(BUCKET, prefix, gate.url, REGION, lock_mode="COMPLIANCE")
        bucket = Bucket(options, clock, Retry(clock))
        with pytest.raises(StoreError, match=f"{action}\\b") as caught:
            begin(bucket)
        assert caught.value.exit_code == 4


def begin(bucket: Bucket) -> None:
    """As the command begins an archive."""
    bucket.check_access()
    probe(bucket)
