"""A bucket as the tests see it: over plain boto3, beside the archiver."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROBE = "manifest/probe"
"""The archiver's test of the store may leave a second version of this one small object."""


@dataclass(frozen=True)
class Bucket:
    """One bucket; `client` is boto3's."""

    client: Any
    name: str

    @classmethod
    def make(cls, client: Any, name: str, *, versioned: bool = False, lock: bool = False) -> Bucket:
        client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=lock)
        if versioned and not lock:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return cls(client, name)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(item["Key"] for item in self._pages("list_objects_v2", "Contents", prefix))

    def versions(self) -> list[tuple[str, str, bool, str, int, str]]:
        """Every version and delete marker of every key, with all that would tell a rewrite."""
        found = []
        for kind in ("Versions", "DeleteMarkers"):
            for item in self._pages("list_object_versions", kind, ""):
                found.append(
                    (
                        item["Key"],
                        item["VersionId"],
                        kind == "DeleteMarkers",
                        item.get("ETag", ""),
                        item.get("Size", 0),
                        item["LastModified"].isoformat(),
                    )
                )
        return sorted(found)

    def objects(self) -> list[tuple[str, str, int, str]]:
        """Every object of an unversioned bucket, with all that would tell a rewrite."""
        return sorted(
            (item["Key"], item["ETag"], item["Size"], item["LastModified"].isoformat())
            for item in self._pages("list_objects_v2", "Contents", "")
        )

    def assert_written_once(self, *, but: str = "") -> set[tuple[str, str]]:
        """No key has two versions, and none was deleted; key and version of each object. `but` is
        a key of which this need not hold."""
        versions = [row for row in self.versions() if row[0] != but]
        assert not [row for row in versions if row[2]], "something was deleted"
        assert len({row[0] for row in versions}) == len(versions), "something was written twice"
        return {row[:2] for row in versions}

    def head(self, key: str, version_id: str | None = None) -> dict[str, Any]:
        more = {"VersionId": version_id} if version_id else {}
        told: dict[str, Any] = self.client.head_object(Bucket=self.name, Key=key, **more)
        return told

    def open_uploads(self) -> list[str]:
        """Multipart uploads that nobody aborted: they cost money and are seen by nobody."""
        answer = self.client.list_multipart_uploads(Bucket=self.name)
        return [upload["Key"] for upload in answer.get("Uploads", ())]

    def get(self, key: str, version_id: str | None = None) -> bytes:
        more = {"VersionId": version_id} if version_id else {}
        body = self.client.get_object(Bucket=self.name, Key=key, **more)["Body"]
        return b"".join(body.iter_chunks(1 << 20))

    def sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.client.get_object(Bucket=self.name, Key=key)["Body"].iter_chunks(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def download(self, directory: Path) -> Path:
        """The plain copy that any S3 tool would make."""

        def one(key: str) -> None:
            file = directory / key
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                answer = self.client.get_object(Bucket=self.name, Key=key)
                for chunk in answer["Body"].iter_chunks(1 << 20):
                    out.write(chunk)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, self.keys()))
        return directory

    def _pages(self, operation: str, kind: str, prefix: str) -> Iterator[dict[str, Any]]:
        for page in self.client.get_paginator(operation).paginate(Bucket=self.name, Prefix=prefix):
            yield from page.get(kind, ())
