"""Recordings that are really there, with their records and a sealed window: for level `bytes`."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

from archiver.manifest import canonical, layout, record, seal
from archiver.manifest.record import Record
from bench.ledger import archive, material

DIFFERENT = 4
"""Recordings that differ; the others are the same again, under keys of their own."""


def make(count: int, size: int) -> None:
    """Fill the bucket that the environment names with one window of so many calls; nothing but a
    recording of `size` bytes belongs to each."""
    blobs = cycle([os.urandom(size) for _ in range(DIFFERENT)])
    ids = material.call_ids(0, count)
    with ThreadPoolExecutor(archive.UPLOADS) as uploads:
        records = list(uploads.map(_call, ids, blobs))
        closed = material.close_records(material.window(0), records)
        archive.put(closed.name.jsonl, closed.data)
        archive.put(closed.name.sha256, closed.checksum_list)
        chain = archive.Chain(uploads)
        chain.append(0, seal.segment_entry(closed.name.jsonl, io.BytesIO(closed.data)), 0)
        chain.finish()


def _call(call_id: str, blob: bytes) -> Record:
    """An archived call: its recording, then its record."""
    key = layout.recording_dir(material.START.date(), call_id) + "recording.wav"
    document = dict(material.call_record(call_id, material.window(0)).document)
    file = {"bytes": len(blob), "content_type": "audio/wav", "key": key, "kind": "recording"}
    file |= {"sha256": hashlib.sha256(blob).hexdigest(), "version_id": archive.put(key, blob)}
    document |= {"files": [file], "outcome": "archived", "reason": None, "retention": None}
    found = record.parse(canonical.dump(document))
    archive.put(found.key, found.data)
    return found


def curl(home: Path, at_a_time: int) -> list[str]:
    """The command that hashes all recordings with curl and openssl, so many at a time."""
    bucket = os.environ["ARCHIVER_S3_BUCKET"]
    urls = home / "urls"
    signed = (
        archive.client().generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
        for key in archive.keys(layout.RECORDINGS)
    )
    urls.write_text("".join(f"{url}\n" for url in signed))
    each = 'curl --silent --fail "$0" | openssl dgst -sha256'
    command = f"xargs -P {at_a_time} -n 1 bash -o pipefail -c {shlex.quote(each)} < {urls}"
    return ["bash", "-c", f"{command} > {home / 'digests'}"]
