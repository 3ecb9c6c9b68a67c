"""A window of very many calls: the source that lists them, and their records, seeded fast.

The source is the simulated platform as a process of its own, over calls without a transcript. The
records are those of a process that archived every call and was killed before it closed the window.
They are written over plain HTTP: boto3 alone would take longer than all the rest.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from tests.fakes.calls import NoiseRecording, SimulatedCall
from tests.fakes.platform import Platform
from tests.system.checker import canonical
from tests.system.servers import SimulatedSource, Weed

START = datetime(2024, 5, 6, 10, tzinfo=UTC)
LENGTH = timedelta(hours=1)
SECONDS = 60
WRITERS = 32


def documents(count: int) -> Iterator[dict[str, Any]]:
    """The calls of the window, all fields but the transcript, their surveys inline."""
    for number in range(count):
        start = START + LENGTH / count * number
        yield {
            "id": f"vc_{number * 2_654_435_761 % 2**32:08x}{number:05x}",
            "campaignId": f"camp_{number % 7}",
            "direction": ("Outbound", "Inbound")[number % 3 == 0],
            "state": "Completed",
            "startTime": _time(start),
            "endTime": _time(start + timedelta(seconds=SECONDS)),
            "durationSeconds": SECONDS,
            "talkTimeSeconds": SECONDS - number % 20,
            "outcome": "Success",
            "epaResults": _survey(number),
            "createdAt": _time(start - timedelta(seconds=2)),
        }


def _survey(number: int) -> dict[str, Any]:
    answers = [
        {"question": f"Question {n} of campaign {number % 7}?", "answer": "Yes", "score": 5}
        for n in range(2)
    ]
    return {
        "state": "Completed",
        "completionReason": "AllQuestionsAnswered",
        "totalQuestions": len(answers),
        "questionsAnswered": len(answers),
        "calculatedScore": 5.0,
        "responses": answers,
    }


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- the source


class ManyCalls(SimulatedSource):
    """The simulated platform over `documents(count)`."""

    def __init__(self, directory: Path, count: int) -> None:
        super().__init__(directory, "tests.system.many_calls", str(count))


def _serve(count: int) -> None:
    calls = []
    for document in documents(count):
        recording = NoiseRecording(document["id"], SECONDS)
        calls.append(SimulatedCall(document, recording, epa=document.pop("epaResults")))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # A listing with the surveys inline: all that the documents let a source send but transcripts.
    with Platform(calls, frozen=True, listing_has_transcripts=True) as platform:
        told = {
            "api_url": platform.api_url,
            "token": platform.token,
            "blob_host": platform.blob_host,
        }
        print(json.dumps(told), flush=True)
        stop.wait()


# --- the store


class OpenWeed(Weed):
    """A store that lets anybody write into `bucket`: no signature for each of so many objects."""

    bucket = "calls"

    def _identities(self) -> dict[str, Any]:
        anonymous = {"name": "anonymous", "actions": [f"Write:{self.bucket}"]}
        return {"identities": [*super()._identities()["identities"], anonymous]}

    def seed(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Write them all, in no order."""
        waiting, lock = iter(objects), threading.Lock()
        parts = urlsplit(self.endpoint_url)

        def write() -> None:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
            while True:
                with lock:
                    key, data = next(waiting, ("", b""))
                if not key:
                    return connection.close()
                connection.request("PUT", f"/{self.bucket}/{quote(key)}", data)
                answer = connection.getresponse()
                assert answer.status == 200, f"{answer.status} {answer.read()!r}"
                answer.read()

        with ThreadPoolExecutor(WRITERS) as pool:
            for done in [pool.submit(write) for _ in range(WRITERS)]:
                done.result()


def records(count: int) -> Iterator[tuple[str, bytes]]:
    """Key and bytes of the record of each call; none of the files that they name exists."""
    for document in documents(count):
        key = f"records/dt={START:%Y-%m-%d}/{document['id']}/r1.json"
        yield key, canonical(_record(document, key))


def segment(count: int) -> bytes:
    """The window's segment: the records, sorted, and the line that closes it."""
    ids = "".join(f"{call_id}\n" for call_id in sorted(call["id"] for call in documents(count)))
    line = {
        "archived": count,
        "failed": 0,
        "filter": {"state": ["Completed"]},
        "from": _archived_time(START.isoformat()),
        "listed": count,
        "listed_at": "2024-05-06T13:00:05Z",
        "listed_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "no_recording": 0,
        "pages": count // 100 + 1,
        "passes": 2,
        "pending": [],
        "revision": 1,
        "source_total": count,
        "to": _archived_time((START + LENGTH).isoformat()),
        "type": "window",
        "v": 1,
        "vanished": [],
    }
    return b"".join([*(data for _, data in sorted(records(count))), canonical(line)])


def _record(document: dict[str, Any], key: str) -> dict[str, Any]:
    call_id = document["id"]
    survey = canonical(document.pop("epaResults"))
    transcript = canonical(document)
    # Nobody reads the recording: its digest only has to look like one.
    digest = hashlib.sha256(call_id.encode()).digest()
    return {
        "archived_at": "2024-05-06T12:00:00Z",
        "audio": {
            "bits_per_sample": 16,
            "channels": 1,
            "duration_seconds": float(SECONDS),
            "encoding": "pcm",
            "sample_rate_hz": 8000,
        },
        "call_id": call_id,
        "campaign_id": document["campaignId"],
        "direction": document["direction"],
        "duration_seconds": SECONDS,
        "ended_at": _archived_time(document["endTime"]),
        "files": [
            _file(call_id, "recording.wav", 44 + 16_000 * SECONDS, digest),
            _file(call_id, "transcript.json", len(transcript), hashlib.sha256(transcript).digest()),
            _file(call_id, "epa.json", len(survey), hashlib.sha256(survey).digest()),
        ],
        "findings": [],
        "outcome": "archived",
        "reason": None,
        "record": key,
        "retention": None,
        "revision": 1,
        "source": {
            "api": "https://api.example.com/api/v1",
            "content_md5": base64.b64encode(digest[:16]).decode(),
            "etag": f'"0x8DC{digest.hex()[:12].upper()}"',
            "last_modified": "Mon, 06 May 2024 11:00:00 GMT",
            "recording_host": "recordings.example.com",
            "request_id": f"req_{digest.hex()[16:32]}",
        },
        "started_at": _archived_time(document["startTime"]),
        "state": "Completed",
        "type": "call",
        "v": 1,
    }


def _file(call_id: str, name: str, size: int, digest: bytes) -> dict[str, Any]:
    kind, _, extension = name.partition(".")
    return {
        "bytes": size,
        "content_type": "audio/wav" if extension == "wav" else "application/json",
        "key": f"recordings/dt={START:%Y-%m-%d}/{call_id}/{name}",
        "kind": kind,
        "sha256": digest.hex(),
        "version_id": None,
    }


def _archived_time(text: str) -> str:
    """The source's time as a record has it: microseconds, where there are any."""
    return datetime.fromisoformat(text).isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
