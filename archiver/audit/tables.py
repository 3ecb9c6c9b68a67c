"""Records as a table, as JSON lines, as CSV; the history of a call as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from archiver.audit.holdtables import act_line, state
from archiver.audit.query import History, Row
from archiver.audit.render import printable
from archiver.errors import UsageError
from archiver.manifest.event import ObjectRef
from archiver.manifest.record import Record
from archiver.model import format_time

Format = Literal["table", "jsonl", "csv"]

COLUMNS = (
    "started_at",
    "call_id",
    "outcome",
    "reason",
    "direction",
    "campaign_id",
    "state",
    "duration_seconds",
    "recording_bytes",
    "recording_sha256",
    "recording_key",
    "findings",
    "revision",
    "archived_at",
    "record",
    "segment",
    "seal",
)
"""The columns of the CSV form: stable; later versions only add at the end."""

_TABLE = (
    ("started_at", 20),
    ("call_id", 24),
    ("outcome", 12),
    ("duration_seconds", 8),
    ("recording_bytes", 12),
    ("revision", 3),
    ("seal", 6),
    ("reason", 0),
)
_INDENT = " " * 16
_TITLES = {"duration_seconds": "seconds", "recording_bytes": "bytes", "revision": "rev"}
_LAST = "reason, findings"


def render(rows: Iterable[Row], form: Format) -> Iterator[str]:
    """The rows as text, piece by piece, each piece with its newline. Of `jsonl`, each line is the
    record's exact bytes. Raises `UsageError` for another form."""
    forms: Mapping[str, Callable[[Iterable[Row]], Iterator[str]]] = {
        "table": _table,
        "jsonl": lambda rows: (row.line.decode() for row in rows),
        "csv": _csv,
    }
    if form not in forms:
        raise UsageError("--format is table, jsonl or csv")
    return forms[form](rows)


def cells(row: Row) -> dict[str, Any]:
    """What each of `COLUMNS` holds for a record."""
    document = row.record.document
    recording: Mapping[str, Any] = next(
        (f for f in document["files"] if f["kind"] == "recording"), {}
    )
    own = {name: document.get(name) for name in COLUMNS if name in document}
    return own | {
        "recording_bytes": recording.get("bytes"),
        "recording_sha256": recording.get("sha256"),
        "recording_key": recording.get("key"),
        "findings": " ".join(str(finding) for finding in document.get("findings") or ()),
        "segment": row.segment,
        "seal": row.seal,
    }


def safe_cell(value: object) -> str:
    """A value as a spreadsheet may have it: what it would take for a formula gets a `'` before."""
    text = "" if value is None else str(value)
    if text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r")):
        return "'" + text
    return text


def _csv(rows: Iterable[Row]) -> Iterator[str]:
    yield _csv_line(COLUMNS)
    for row in rows:
        told = cells(row)
        yield _csv_line(safe_cell(told.get(name)) for name in COLUMNS)


def _csv_line(values: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerow(values)
    return text.getvalue()


def _table(rows: Iterable[Row]) -> Iterator[str]:
    yield _table_line({name: _TITLES.get(name, name) for name, _ in _TABLE} | {"reason": _LAST})
    for row in rows:
        told = cells(row)
        last = [str(told[name]) for name in ("reason", "findings") if told.get(name)]
        yield _table_line(told | {"reason": " ".join(last) or None})


def _table_line(told: Mapping[str, Any]) -> str:
    texts = []
    for name, width in _TABLE:
        value = told.get(name)
        text = "-" if value is None else printable(str(value))
        right = isinstance(value, int | float) or name in _TITLES
        texts.append(text.rjust(width) if right else text.ljust(width))
    return "  ".join(texts).rstrip() + "\n"


def history_text(history: History) -> str:
    """What `manifest show` prints: its holds, each revision with its files, segment and seal."""
    lines = [f"call {printable(history.call_id)}", *_holds(history)]
    for found in history.revisions:
        document = found.document
        lines += [
            "",
            f"revision {found.revision}: {found.outcome}"
            + (f" ({printable(str(document['reason']))})" if document.get("reason") else ""),
            f"  record        {found.key}",
            *_stored(history, ObjectRef(found.key, None)),
            f"  started       {printable(str(document.get('started_at')))}",
            f"  archived      {printable(str(document.get('archived_at')))}",
        ]
        for file in document["files"]:
            lines.append(_file_line(file))
            lines += _stored(history, ObjectRef(file["key"], file.get("version_id")))
        if document.get("findings"):
            lines.append(f"  findings      {printable(' '.join(map(str, document['findings'])))}")
        lines.append(f"  sealed        {_sealed(history, found)}")
    return "\n".join(lines) + "\n"


def _holds(history: History) -> Iterator[str]:
    """The call's legal holds, as the ledger tells of them, and what they are on elsewhere."""
    standing = history.standing
    if standing is None:
        return
    yield f"legal hold      {state(standing)}"
    yield from (f"  {act_line(act)}" for act in standing.acts)
    shown = {one.key for one in history.objects}
    for one in sorted(one for one in standing.heads if one.key not in shown):
        yield f"  also about    {printable(one.key)}"
        yield from _stored(history, one)


def _stored(history: History, one: ObjectRef) -> Iterator[str]:
    """What the store says of an object's lock and hold."""
    standing = history.standing
    if standing is None:
        return
    head = standing.heads.get(one)
    if head is None:
        yield f"{_INDENT}NOT THERE: run archiver verify"
        return
    lock = f"{printable(head.lock_mode)} lock" if head.lock_mode else "no lock"
    until = f" until {format_time(head.lock_until)}" if head.lock_mode and head.lock_until else ""
    hold = "legal hold" if head.held else "NO LEGAL HOLD" if standing.is_held else "no legal hold"
    yield f"{_INDENT}in the store: {lock}{until}, {hold}"


def _sealed(history: History, found: Record) -> str:
    """Where a record is sealed. One that was amended before its window was closed never will be:
    a segment tells the newest record of a call."""
    if found.key in history.sealed:
        segment, number = history.sealed[found.key]
        return f"seal {number}, {segment}"
    for later in history.revisions:
        if later.revision > found.revision and later.key in history.sealed:
            return f"no: revision {later.revision} came before any segment told of it"
    return "not yet"


def _file_line(file: Mapping[str, Any]) -> str:
    version = f" version {printable(file['version_id'])}" if file.get("version_id") else ""
    return (
        f"  {printable(file['kind']):12}  {printable(file['key'])}{version}\n"
        f"{_INDENT}{file['bytes']:,} bytes, SHA-256 {printable(file['sha256'])}"
    )
