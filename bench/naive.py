"""What one writes in an hour: `requests`, `boto3`, a pool of threads, everything at its defaults.

With `--urls` it copies and hashes recordings; with `--api` it does a whole call: the call, its
survey, the signed URL, the recording, two sidecars and a record. It checks nothing, tries nothing
twice, and keeps no ledger.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import requests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--urls", type=Path)
    parser.add_argument("--api")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--workers", type=int, required=True)
    asked = parser.parse_args()
    s3 = boto3.client("s3", endpoint_url=asked.endpoint)
    session = requests.Session()

    def put(key: str, data: bytes) -> None:
        s3.put_object(Bucket=asked.bucket, Key=key, Body=data)

    def copy(url: str, key: str) -> str:
        answer = session.get(url)
        answer.raise_for_status()
        put(key, answer.content)
        return hashlib.sha256(answer.content).hexdigest()

    def get(path: str, **query: str | int) -> Any:
        answer = session.get(asked.api + path, params=query, headers={"Authorization": "Bearer x"})
        answer.raise_for_status()
        return answer.json()

    def archive(call_id: str) -> None:
        call = get(f"/voice-calls/{call_id}")["data"]
        survey = get(f"/voice-calls/{call_id}/epa-results")["data"]
        url = get(f"/voice-calls/{call_id}/recording-url")["data"]["recordingUrl"]
        home = f"naive/{call_id}"
        digest = copy(url, f"{home}/recording.wav")
        put(f"{home}/transcript.json", json.dumps(call).encode())
        put(f"{home}/epa.json", json.dumps(survey).encode())
        put(f"{home}/record.json", json.dumps({"id": call_id, "sha256": digest}).encode())

    def listed() -> list[str]:
        ids: list[str] = []
        for hour in range(8, 12):
            pages = number = 1
            while number <= pages:
                start = f"2024-01-15T{hour:02d}:00:00Z"
                answer = get("/voice-calls", dateFrom=start, page=number, pageSize=100)
                ids += [call["id"] for call in answer["data"]]
                pages, number = answer["pagination"]["totalPages"], number + 1
        return ids

    with ThreadPoolExecutor(asked.workers) as pool:
        if asked.api:
            list(pool.map(archive, listed()))
        else:
            urls = asked.urls.read_text().split()
            list(pool.map(lambda url: copy(url, url.rpartition("/")[2]), urls))


main()
