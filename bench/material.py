"""What the source serves: recordings, and the platform's answers about them, as files in memory.

    rec/<size>-<n>.wav           four recordings of each size; every URL leads to one of them
    <size>/list/<from>-<page>.json   the listing of a window, by pages of 100
    <size>/call/<id>.json        a call with its transcript
    <size>/epa/<id>.json         its survey
    files/<size>/<id>.wav        the recordings by name, for who asks for a directory

`nginx.conf` (servers.py) gives them their addresses, and makes the signed URLs.
"""

from __future__ import annotations

import json
import os
import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import trustme

from bench.cases import BYTES_PER_SECOND, END, HEADER_BYTES, START, WINDOWS, Recordings

VARIANTS = 4
PAGE = 100
TURNS = 24
_META = {"requestId": "req_bench000000", "timestamp": "2024-01-16T00:00:00Z"}


class Certificate(NamedTuple):
    """A certificate for 127.0.0.1, its key, and the root that vouches for it: rustls refuses a
    root as a server's own certificate."""

    cert: Path
    key: Path
    root: Path


def make_certificate(directory: Path) -> Certificate:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    files = Certificate(*(directory / name for name in ("cert.pem", "key.pem", "root.pem")))
    leaf.cert_chain_pems[0].write_to_path(str(files.cert))
    leaf.private_key_pem.write_to_path(str(files.key))
    authority.cert_pem.write_to_path(str(files.root))
    return files


def make(root: Path, recordings: Recordings) -> None:
    """Write all that is served of some recordings."""
    _audio(root, recordings)
    home = root / recordings.name
    for name in ("list", "call", "epa"):
        (home / name).mkdir(parents=True)
    calls = _calls(recordings)
    for call in calls:
        _write(home / "call" / f"{call['id']}.json", {"data": call, "meta": _META})
        _write(home / "epa" / f"{call['id']}.json", {"data": _survey(call), "meta": _META})
    per_window = -(-len(calls) // WINDOWS)
    for number in range(WINDOWS):
        chosen = calls[number * per_window : (number + 1) * per_window]
        _list(home / "list", START + number * timedelta(hours=1), chosen)
    (home / "list" / "-1.json").symlink_to(_page_name(_text(START), 1))


def _audio(root: Path, recordings: Recordings) -> None:
    size = recordings.bytes - HEADER_BYTES
    header = b"RIFF" + struct.pack("<I", recordings.bytes - 8) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, 8000, BYTES_PER_SECOND, 2, 16)
    header += b"data" + struct.pack("<I", size)
    (root / "rec").mkdir(exist_ok=True)
    for number in range(VARIANTS):
        with (root / "rec" / f"{recordings.name}-{number}.wav").open("wb") as file:
            file.write(header + os.urandom(size))
    names = root / "files" / recordings.name
    names.mkdir(parents=True)
    for number, call_id in enumerate(recordings.ids):
        variant = root / "rec" / f"{recordings.name}-{number % VARIANTS}.wav"
        (names / f"{call_id}.wav").hardlink_to(variant)


def _calls(recordings: Recordings) -> list[dict[str, Any]]:
    seconds = (recordings.bytes - HEADER_BYTES) // BYTES_PER_SECOND
    step = (END - START) / recordings.count
    calls = []
    for number, call_id in enumerate(recordings.ids):
        began = (START + number * step).replace(microsecond=0)
        ended = began + timedelta(seconds=seconds)
        calls.append({
            "id": call_id,
            "campaignId": "camp_bench",
            "direction": "Outbound",
            "state": "Completed",
            "startTime": _text(began),
            "endTime": _text(ended),
            "durationSeconds": seconds,
            "talkTimeSeconds": seconds,
            "outcome": "Completed",
            "transcript": [_turn(turn, began) for turn in range(TURNS)],
            "epaResults": None,
            "createdAt": _text(began),
        })  # fmt: skip
    return calls


def _turn(number: int, began: datetime) -> dict[str, str]:
    return {
        "role": ("agent", "customer")[number % 2],
        "text": f"Line {number}: a sentence of about as many words as people say at a time.",
        "timestamp": _text(began + timedelta(seconds=number)),
    }


def _survey(call: dict[str, Any]) -> dict[str, Any]:
    responses = [
        {"question": f"Question {n}?", "answer": f"Answer {n}", "score": n} for n in range(5)
    ]
    return {
        "callId": call["id"],
        "state": "Completed",
        "completionReason": "AllQuestionsAnswered",
        "totalQuestions": len(responses),
        "questionsAnswered": len(responses),
        "calculatedScore": 2.0,
        "responses": responses,
    }


def _list(directory: Path, start: datetime, calls: list[dict[str, Any]]) -> None:
    pages = [calls[at : at + PAGE] for at in range(0, len(calls), PAGE)] or [[]]
    for number, page in enumerate(pages, 1):
        pagination = {"page": number, "pageSize": PAGE, "totalCount": len(calls)}
        pagination["totalPages"] = len(pages)
        data = [{k: v for k, v in call.items() if k != "transcript"} for call in page]
        name = _page_name(_text(start), number)
        _write(directory / name, {"data": data, "meta": _META, "pagination": pagination})
        # nginx looks for the name as the query spells it, and clients spell a colon in two ways.
        (directory / _page_name(quote(_text(start)), number)).symlink_to(name)


def _page_name(start: str, number: int) -> str:
    return f"{start}-{number}.json"


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
