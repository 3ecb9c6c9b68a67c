"""What deploy/iam may say, whoever uses it; tests/contract/test_roles.py tries it out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archiver.manifest import layout
from tests.fakes import iam

FOLDER = Path(__file__).parents[2] / "deploy" / "iam"
ROLES = ("writer", "holder", "auditor")
BUCKET = "arn:aws:s3:::call-archive"
ON_BUCKETS = set(iam.ON_BUCKETS.values())
ON_OBJECTS = {
    *iam.ON_OBJECTS.values(),
    *iam.VERSIONED.values(),
    *iam.BY_HEADER.values(),
    *iam.SHOWN_TO.values(),
}
HARMFUL = ("Delete", "Bypass", "PutBucket", "PutLifecycle", "Acl", "*")


def statements(name: str) -> list[dict[str, Any]]:
    document = json.loads((FOLDER / f"{name}.json").read_text())
    assert document.keys() == {"Version", "Statement"}
    assert document["Version"] == "2012-10-17"
    found: list[dict[str, Any]] = document["Statement"]
    assert len({one["Sid"] for one in found}) == len(found)
    assert all(one["Sid"].isalnum() for one in found), "AWS takes letters and digits only"
    return found


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_given_known_actions_on_what_they_are_for(role):
    for one in statements(role):
        actions, resources = iam.listed(one["Action"]), iam.listed(one["Resource"])
        assert actions == sorted(set(actions))
        assert one["Effect"] == "Allow"
        on_bucket = resources == [BUCKET]
        assert on_bucket or all(resource.startswith(f"{BUCKET}/") for resource in resources)
        assert set(actions) <= (ON_BUCKETS if on_bucket else ON_OBJECTS)
        assert not [a for a in actions if any(word in a for word in HARMFUL)]


def test_only_the_holder_may_take_a_hold_off():
    holds = {
        role: [one for one in statements(role) if "s3:PutObjectLegalHold" in one["Action"]]
        for role in ROLES
    }
    assert [one.get("Condition") for one in holds["holder"]] == [None]
    assert [one.get("Condition") for one in holds["writer"]] == [
        {"StringEquals": {"s3:object-lock-legal-hold": "ON"}}
    ]
    assert holds["auditor"] == []


def test_writers_write_where_the_archive_has_its_keys_and_the_holder_on_the_ledger():
    folders = {layout.SEALS, layout.SEGMENTS, layout.EVENTS, layout.SIGHTINGS, layout.PROBE}
    folders |= {layout.VERIFY_PAGE}
    ledger = {f"{BUCKET}/{folder.split('/')[0]}/*" for folder in folders}
    written = {
        role: {
            resource
            for one in statements(role)
            if "s3:PutObject" in iam.listed(one["Action"])
            for resource in iam.listed(one["Resource"])
        }
        for role in ROLES
    }
    calls = {f"{BUCKET}/recordings/*", f"{BUCKET}/records/*"}
    assert written == {"writer": ledger | calls, "holder": ledger, "auditor": set()}


def test_the_bucket_policy_says_the_same_without_conditions():
    expected = []
    for role in ROLES:
        principal = {"AWS": f"arn:aws:iam:::user/archiver-{role}"}
        for one in statements(role):
            one.pop("Condition", None)
            expected.append({**one, "Principal": principal})
    assert statements("bucket-policy") == expected


def test_the_guard_only_denies():
    for one in statements("guard"):
        assert (one["Effect"], one["Principal"]) == ("Deny", "*")
        assert one["Condition"]
