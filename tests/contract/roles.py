"""The roles of deploy/iam on stores that hold them to it, each by the form that the store takes.

- `aws`: the identity policies and `guard.json`, judged by a gate that knows AWS's rules;
- `weed`: the identity policies without conditions, by SeaweedFS itself;
- `rgw`: `bucket-policy.json`, by Ceph's gateway.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tests.fakes.gate import Gate
from tests.system.ceph import Ceph
from tests.system.servers import Weed, s3_client

FOLDER = Path(__file__).parents[2] / "deploy" / "iam"
BUCKET = "call-archive"
ROLES = ("writer", "holder", "auditor")


def policy(name: str, prefix: str = "") -> dict[str, Any]:
    """A file of deploy/iam; for an archive below a prefix, as its README says."""
    text = (FOLDER / f"{name}.json").read_text()
    if prefix:
        text = text.replace(f"{BUCKET}/", f"{BUCKET}/{prefix}/")
    found: dict[str, Any] = json.loads(text)
    return found


def without_conditions(document: Mapping[str, Any]) -> dict[str, Any]:
    statements = [
        {name: value for name, value in statement.items() if name != "Condition"}
        for statement in document["Statement"]
    ]
    return {**document, "Statement": statements}


@dataclass(frozen=True)
class Door:
    """Where somebody comes in, and as whom."""

    endpoint_url: str
    credentials: Mapping[str, str]

    @property
    def settings(self) -> dict[str, str]:
        return {"ARCHIVER_S3_ENDPOINT_URL": self.endpoint_url, **self.credentials}

    @property
    def client(self) -> Any:
        return s3_client(self.endpoint_url, self.credentials)


@dataclass(frozen=True)
class Scene:
    """A locked bucket with an administrator, and the roles."""

    admin: Door
    doors: Mapping[str, Door]
    prefix: str = ""
    gates: Mapping[str, Gate] = field(default_factory=dict)
    single_writer: bool = False

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name


@contextmanager
def on_aws(weed: Weed, prefix: str) -> Iterator[Scene]:
    """The store does what each is let through for: the gate alone refuses."""
    admin = Door(weed.endpoint_url, weed.environment)
    weed.create_bucket(BUCKET)
    guard = policy("guard", prefix)
    with ExitStack() as stack:
        gates = {
            role: stack.enter_context(Gate(weed.endpoint_url, [policy(role, prefix), guard]))
            for role in ROLES
        }
        doors = {role: Door(gate.url, weed.environment) for role, gate in gates.items()}
        yield Scene(admin, doors, prefix, gates)


class _WeedWithRoles(Weed):
    """One that knows a user for each role."""

    def __init__(self, directory: Path) -> None:
        self.users = {role: (f"key-of-{role}", secrets.token_hex(20)) for role in ROLES}
        super().__init__(directory)

    def _identities(self) -> dict[str, Any]:
        document = super()._identities()
        document["identities"] += [
            {
                "name": f"archiver-{role}",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "policyNames": [role],
            }
            for role, (access_key, secret_key) in self.users.items()
        ]
        document["policies"] = [
            {"name": role, "content": json.dumps(without_conditions(policy(role)))}
            for role in ROLES
        ]
        return document


@contextmanager
def on_weed(directory: Path) -> Iterator[Scene]:
    server = _WeedWithRoles(directory)
    try:
        server.create_bucket(BUCKET)
        doors = {
            role: Door(
                server.endpoint_url,
                {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key},
            )
            for role, (access_key, secret_key) in server.users.items()
        }
        yield Scene(Door(server.endpoint_url, server.environment), doors)
    finally:
        server.kill()


@contextmanager
def on_rgw(ceph: Ceph) -> Iterator[Scene]:
    doors = {role: Door(ceph.endpoint_url, ceph.add_user(f"archiver-{role}")) for role in ROLES}
    admin = Door(ceph.endpoint_url, ceph.environment)
    admin.client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    admin.client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy("bucket-policy")))
    yield Scene(admin, doors, single_writer=True)


# --- what each may do with plain S3 requests


def deeds(scene: Scene, role: str) -> dict[str, Callable[[], Any]]:
    """What somebody may try in this role's name, each on an object made for it."""
    client, admin = scene.doors[role].client, scene.admin.client
    soon = datetime.now(UTC) + timedelta(minutes=1)
    lock = {"Mode": "GOVERNANCE", "RetainUntilDate": soon}
    shorter = {**lock, "RetainUntilDate": soon - timedelta(seconds=50)}

    def victim(folder: str = "recordings") -> dict[str, str]:
        at = {"Bucket": BUCKET, "Key": scene.key(f"{folder}/{role}-{secrets.token_hex(4)}")}
        return {**at, "VersionId": admin.put_object(**at, Body=b"x")["VersionId"]}

    def locked() -> dict[str, str]:
        at = victim()
        admin.put_object_retention(**at, Retention=lock)
        return at

    def held() -> dict[str, str]:
        at = victim()
        admin.put_object_legal_hold(**at, LegalHold={"Status": "ON"})
        return at

    def new(folder: str) -> dict[str, Any]:
        key = scene.key(f"{folder}/{role}-{secrets.token_hex(4)}")
        return {"Bucket": BUCKET, "Key": key, "Body": b"x", "IfNoneMatch": "*"}

    def unversioned(at: dict[str, str]) -> dict[str, str]:
        return {name: at[name] for name in ("Bucket", "Key")}

    bucket = {"Bucket": BUCKET}
    public = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}
    opened = {**public, "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    expiry = {"ID": "all", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
    bypass = {"BypassGovernanceRetention": True}
    return {
        "write a recording": partial(client.put_object, **new("recordings")),
        "write a record": partial(client.put_object, **new("records")),
        "write into the manifest": partial(client.put_object, **new("manifest/events")),
        "write outside the archive": partial(client.put_object, **new("elsewhere")),
        "overwrite": partial(client.put_object, **unversioned(victim()), Body=b"y"),
        "overwrite the manifest": partial(
            client.put_object, **unversioned(victim("manifest")), Body=b"y"
        ),
        "begin an upload": partial(client.create_multipart_upload, **unversioned(victim())),
        "lock": partial(client.put_object_retention, **victim(), Retention=lock),
        "hold": partial(client.put_object_legal_hold, **victim(), LegalHold={"Status": "ON"}),
        "take a hold off": partial(
            client.put_object_legal_hold, **held(), LegalHold={"Status": "OFF"}
        ),
        "delete a version": partial(client.delete_object, **victim()),
        "hide under a marker": partial(client.delete_object, **unversioned(victim())),
        "delete around a lock": partial(client.delete_object, **locked(), **bypass),
        "shorten a lock": partial(
            client.put_object_retention, **locked(), Retention=shorter, **bypass
        ),
        "let everything expire": partial(
            client.put_bucket_lifecycle_configuration,
            **bucket,
            LifecycleConfiguration={"Rules": [expiry]},
        ),
        "suspend versioning": partial(
            client.put_bucket_versioning, **bucket, VersioningConfiguration={"Status": "Suspended"}
        ),
        "lock everything by default": partial(
            client.put_object_lock_configuration,
            **bucket,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Years": 90}},
            },
        ),
        "open the bucket": partial(
            client.put_bucket_policy,
            **bucket,
            Policy=json.dumps({"Version": "2012-10-17", "Statement": [opened]}),
        ),
        "remove the bucket's policy": partial(client.delete_bucket_policy, **bucket),
    }


def done(deed: Callable[[], Any]) -> bool:
    """False where it is refused for lack of permission, and for nothing else."""
    try:
        deed()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 403:
            raise
        return False
    return True
