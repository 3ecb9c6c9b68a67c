"""AWS's judgement of S3 requests, by its authorization reference; no I/O.

`acts` says which permissions a request takes, `allows` whether policies give one. Only what the
policies in deploy/iam and the archiver's requests need is known here: all else is an error, so that
a new kind of request or condition has to be looked up before a test passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

Policy = Mapping[str, Any]
Headers = Mapping[str, str]

ON_OBJECTS = {
    ("DELETE", ""): "s3:DeleteObject",
    ("DELETE", "uploadId"): "s3:AbortMultipartUpload",
    ("GET", ""): "s3:GetObject",
    ("GET", "legal-hold"): "s3:GetObjectLegalHold",
    ("GET", "retention"): "s3:GetObjectRetention",
    ("HEAD", ""): "s3:GetObject",
    ("POST", "uploadId"): "s3:PutObject",
    ("POST", "uploads"): "s3:PutObject",
    ("PUT", ""): "s3:PutObject",
    ("PUT", "legal-hold"): "s3:PutObjectLegalHold",
    ("PUT", "retention"): "s3:PutObjectRetention",
    ("PUT", "uploadId"): "s3:PutObject",
}
VERSIONED = {
    "s3:DeleteObject": "s3:DeleteObjectVersion",
    "s3:GetObject": "s3:GetObjectVersion",
}
"""What a request takes instead when it names a version."""
BY_HEADER = {
    "x-amz-bypass-governance-retention": "s3:BypassGovernanceRetention",
    "x-amz-object-lock-legal-hold": "s3:PutObjectLegalHold",
    "x-amz-object-lock-mode": "s3:PutObjectRetention",
}
"""What a request takes as well."""
SHOWN_TO = {
    "x-amz-object-lock-legal-hold": "s3:GetObjectLegalHold",
    "x-amz-object-lock-mode": "s3:GetObjectRetention",
    "x-amz-object-lock-retain-until-date": "s3:GetObjectRetention",
}
"""Headers of an answer that only some are told."""
ON_BUCKETS = {
    ("DELETE", "policy"): "s3:DeleteBucketPolicy",
    ("GET", ""): "s3:ListBucket",
    ("GET", "object-lock"): "s3:GetBucketObjectLockConfiguration",
    ("GET", "uploads"): "s3:ListBucketMultipartUploads",
    ("GET", "versioning"): "s3:GetBucketVersioning",
    ("GET", "versions"): "s3:ListBucketVersions",
    ("PUT", "lifecycle"): "s3:PutLifecycleConfiguration",
    ("PUT", "object-lock"): "s3:PutBucketObjectLockConfiguration",
    ("PUT", "policy"): "s3:PutBucketPolicy",
    ("PUT", "versioning"): "s3:PutBucketVersioning",
}
SUBRESOURCES = {name for _, name in (*ON_OBJECTS, *ON_BUCKETS) if name}


@dataclass(frozen=True)
class Act:
    """One permission that a request takes, on what, and what conditions may look at."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A path-style request; header names in lower case."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.path.partition("?")[2], keep_blank_values=True))

    @property
    def place(self) -> tuple[str, str]:
        """Bucket and key; the key is empty where the bucket itself is meant."""
        bucket, _, key = unquote(self.path.partition("?")[0]).lstrip("/").partition("/")
        return bucket, key

    @property
    def subresource(self) -> str:
        named = SUBRESOURCES & self.query.keys()
        assert len(named) <= 1, self.path
        return named.pop() if named else ""


def acts(asked: Asked) -> Iterator[Act]:
    """Every permission that a request takes; all are needed."""
    bucket, key = asked.place
    table = ON_OBJECTS if key else ON_BUCKETS
    action = table[asked.method, asked.subresource]
    if "versionId" in asked.query:
        action = VERSIONED.get(action, action)
    resource = f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"
    context = {name: value for name, value in _context(asked, action) if value is not None}
    yield Act(action, resource, context)
    for header, more in BY_HEADER.items():
        if header in asked.headers:
            yield Act(more, resource, context)


def _context(asked: Asked, action: str) -> Iterator[tuple[str, str | None]]:
    yield "aws:SecureTransport", "true"  # in truth it is plain http, on loopback
    yield "s3:if-none-match", asked.headers.get("if-none-match")
    if action == "s3:PutObject":
        creates = (asked.method, asked.subresource) in (("PUT", ""), ("POST", "uploadId"))
        yield "s3:ObjectCreationOperation", str(creates).lower()
    status = re.search(rb"<Status>(\w+)</Status>", asked.body)
    if asked.subresource == "legal-hold" and status:
        yield "s3:object-lock-legal-hold", status[1].decode()
    else:
        yield "s3:object-lock-legal-hold", asked.headers.get("x-amz-object-lock-legal-hold")


def allows(policies: Iterable[Policy], act: Act) -> bool:
    """Whether one statement allows it and none denies it."""
    effects = {
        statement["Effect"]
        for policy in policies
        for statement in policy["Statement"]
        if _concerns(statement, act)
    }
    return effects == {"Allow"}


def _concerns(statement: Policy, act: Act) -> bool:
    return (
        any(_matches(pattern, act.action) for pattern in listed(statement["Action"]))
        and any(_matches(pattern, act.resource) for pattern in listed(statement["Resource"]))
        and all(
            _holds(operator, act.context.get(name), value)
            for operator, pairs in statement.get("Condition", {}).items()
            for name, value in pairs.items()
        )
    )


def _holds(operator: str, found: str | None, value: str) -> bool:
    if operator == "Null":
        return (found is None) == (value == "true")
    if operator in ("StringEquals", "Bool"):
        return found == value
    raise NotImplementedError(operator)


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text) is not None


def listed(value: str | list[str]) -> list[str]:
    """What a policy may write as one text or as a list of them."""
    return [value] if isinstance(value, str) else value
