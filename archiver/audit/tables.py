"""Formats the output of the auditor's commands: text for people, JSON and CSV for programs.

Keys and texts come from a bucket and a source that may be hostile. In text, characters that could
move a terminal's cursor or reverse the direction of text are shown as escapes (`printable`). In
CSV, a `'` precedes values that a spreadsheet would run as a formula (`safe_cell`).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

from archiver.audit.findings import CODES, Report, Severity, counted
from archiver.audit.hold_ledger import CallHolds, hold_document
from archiver.audit.query import CallHistory, Row
from archiver.core.model import format_second, format_time
from archiver.manifest import canonical
from archiver.manifest.event import HoldEvent, ObjectRef, SealedHold
from archiver.manifest.record import Record

Format = Literal["table", "jsonl", "csv"]

SHOWN = 100
"""Findings that the text of `verify` shows; `--json` has all kept ones."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

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
TABLE = {
    "started_at": ("started_at", 20),
    "call_id": ("call_id", 24),
    "outcome": ("outcome", 12),
    "duration_seconds": ("seconds", 8),
    "recording_bytes": ("bytes", 12),
    "revision": ("rev", 3),
    "seal": ("seal", 6),
    "reason": ("reason, findings", 0),
}
"""The columns of the table form, each with its title and width."""
NUMBERS = ("duration_seconds", "recording_bytes", "revision")
"""Columns whose titles are right-aligned, like their values."""
WIDEST = 40
"""Maximum width of a column in the table of held calls. A longer value shifts the rest of its
line."""
INDENT = " " * 16


def printable(text: str) -> str:
    """Return the text with each unprintable character as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- verify


def report_json(report: Report) -> str:
    """`Report.document` as one line of JSON with sorted keys."""
    return canonical.dump(report.document()).decode()


def report_text(report: Report) -> str:
    """Return summary, findings, notes and verdict, in this order. Ends with a newline."""
    counts, head, calls = report.counts, report.head, report.counts.calls
    origin = "the key that you gave" if report.key_given else "the key of seal 0"
    lines = [
        f"archive   {printable(report.archive or 'unknown')}",
        f"key       {report.key_id or 'unknown'} ({origin})",
    ]
    if head is not None:
        sealed, mark = format_time(head.sealed_at), format_time(head.watermark)
        lines.append(f"head      {head.seq}:{head.sha256}")
        lines.append(f"          sealed {sealed}, watermark {mark}")
    hashed = f", {counts.files_hashed:,} read and hashed ({_size(counts.bytes_hashed)})"
    level = report.scope["level"]
    names = ("seals", "segments", "windows", "records", "events")
    read = ", ".join(f"{getattr(counts, name):,} {name}" for name in names)
    outcomes = (
        f"{calls['archived']:,} archived, {calls['no_recording']:,} without recording, "
        f"{calls['failed']:,} failed, {counts.pending:,} pending"
    )
    lines += [
        f"manifest  {read}",
        f"calls     {outcomes}",
        f"files     {counts.files:,} ({_size(counts.bytes)}){hashed if level == 'bytes' else ''}",
        *_findings(report),
        *(f"note: {note}" for note in report.notes),
    ]
    severities = Counter[str]()
    for code, count in report.totals.items():
        severities[CODES[code].severity] += count
    found = ", ".join(
        counted(severities[severity], severity, severity if severity == "info" else "")
        for severity in SEVERITIES
        if severities[severity]
    )
    verdict = "OK" if report.ok else "NOT OK"
    lines.append(f"{verdict}: verified at level {level}; {found or 'nothing found'}")
    return "\n".join(lines) + "\n"


def _findings(report: Report) -> Iterator[str]:
    ordered = sorted(report.findings, key=lambda f: (SEVERITIES.index(f.severity), f))
    if not ordered:
        return
    yield ""
    shown = ordered[:SHOWN]
    wide = max(len(finding.code) for finding in shown)
    for finding in shown:
        detail = f"  ({printable(finding.detail)})" if finding.detail else ""
        yield f"{finding.severity:7}  {finding.code:{wide}}  {printable(finding.key)}{detail}"
    rest = Counter(report.totals) - Counter(finding.code for finding in shown)
    for code, count in sorted(rest.items()):
        yield f"{CODES[code].severity:7}  {code:{wide}}  and {count:,} more"
    yield ""
    for code in sorted({finding.code for finding in shown}):
        yield f"{code}: {CODES[code].meaning} (docs/manifest-format.md: {CODES[code].clause})"
    yield ""


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


# --- manifest list


def records_text(rows: Iterable[Row], form: Format) -> Iterator[str]:
    """Yield the rows as text, in pieces that end with a newline. In `jsonl` each line is the
    record's exact bytes."""
    match form:
        case "table":
            return _table(rows)
        case "jsonl":
            return (row.record.data.decode() for row in rows)
        case "csv":
            return _csv(rows)


def cells(row: Row) -> dict[str, Any]:
    """Return the values of a record by column. A column without a value may be absent."""
    document = row.record.document
    files: Iterable[Mapping[str, Any]] = document["files"]
    recording = next((file for file in files if file["kind"] == "recording"), {})
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
    """Return a value for CSV, with a `'` in front if a spreadsheet would run it as a formula."""
    text = "" if value is None else str(value)
    if text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r")):
        return "'" + text
    return text


def _csv(rows: Iterable[Row]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    for values in chain([dict(zip(COLUMNS, COLUMNS, strict=True))], map(cells, rows)):
        writer.writerow([safe_cell(values.get(name)) for name in COLUMNS])
        yield text.getvalue()
        text.seek(text.truncate(0))


def _table(rows: Iterable[Row]) -> Iterator[str]:
    def line(values: Mapping[str, Any]) -> str:
        texts = []
        for name, (_, width) in TABLE.items():
            value = values.get(name)
            text = "-" if value is None else printable(str(value))
            right = isinstance(value, int | float) or name in NUMBERS
            texts.append(text.rjust(width) if right else text.ljust(width))
        return "  ".join(texts).rstrip() + "\n"

    yield line({name: title for name, (title, _) in TABLE.items()})
    for row in rows:
        values = cells(row)
        last = [str(values[name]) for name in ("reason", "findings") if values.get(name)]
        yield line(values | {"reason": " ".join(last) or None})


# --- manifest show


def history_text(history: CallHistory) -> str:
    """Return the text about one call: its holds, then each revision with files, segment, seal."""
    lines = [f"call {printable(history.call_id)}"]
    if (holds := history.holds) is not None:
        lines.append(f"legal hold      {_state(holds)}")
        lines += [f"  {_act_line(act)}" for act in holds.acts]
        shown = {one.key for one in history.objects}
        for one in sorted(one for one in holds.heads if one.key not in shown):
            lines += [f"  also about    {printable(one.key)}", *_in_the_store(history, one)]
    for record in history.revisions:
        document = record.document
        reason = f" ({printable(str(document['reason']))})" if document.get("reason") else ""
        lines += [
            "",
            f"revision {record.revision}: {record.outcome}{reason}",
            f"  record        {record.key}",
            *_in_the_store(history, ObjectRef(record.key, None)),
            f"  started       {printable(str(document.get('started_at')))}",
            f"  archived      {printable(str(document.get('archived_at')))}",
        ]
        for file in document["files"]:
            version_id = file.get("version_id")
            version = f" version {printable(version_id)}" if version_id else ""
            lines += [
                f"  {printable(file['kind']):12}  {printable(file['key'])}{version}",
                f"{INDENT}{file['bytes']:,} bytes, SHA-256 {printable(file['sha256'])}",
                *_in_the_store(history, ObjectRef(file["key"], version_id)),
            ]
        if document.get("findings"):
            lines.append(f"  findings      {printable(' '.join(map(str, document['findings'])))}")
        lines.append(f"  sealed        {_sealed(history, record)}")
    return "\n".join(lines) + "\n"


def _in_the_store(history: CallHistory, one: ObjectRef) -> Iterator[str]:
    """Yield a line about an object's lock and hold in the store; nothing if they were not read."""
    holds = history.holds
    if holds is None:
        return
    head = holds.heads.get(one)
    if head is None:
        yield f"{INDENT}NOT THERE: run archiver verify"
        return
    lock = f"{printable(head.lock_mode)} lock" if head.lock_mode else "no lock"
    until = f" until {format_time(head.lock_until)}" if head.lock_mode and head.lock_until else ""
    hold = "legal hold" if head.held else "NO LEGAL HOLD" if holds.is_held else "no legal hold"
    yield f"{INDENT}in the store: {lock}{until}, {hold}"


def _sealed(history: CallHistory, record: Record) -> str:
    """Return the seal and segment of a record. A record that was amended before its window was
    closed is never sealed, because a segment has only the newest record of a call."""
    if record.key in history.sealed:
        segment, number = history.sealed[record.key]
        return f"seal {number}, {segment}"
    for later in history.revisions:
        if later.revision > record.revision and later.key in history.sealed:
            return f"no: revision {later.revision} came before any segment told of it"
    return "not yet"


# --- legal holds


def holds_json(
    by_call: Mapping[str, CallHolds],
    call_ids: Sequence[str],
    unsealed: Sequence[str],
    damaged: Sequence[str] = (),
) -> str:
    """Return the JSON of `hold list`: `type` holds, `v` 1, `calls` [{call_id, held, acts}] with the
    oldest act first, `unsealed` with the keys of segments that no seal names, and `damaged` with a
    line for each object that could not be read. Without `call_ids`, the calls that are held now."""
    wanted = call_ids or [call_id for call_id, holds in by_call.items() if holds.is_held]
    calls = [
        {"call_id": call_id, **by_call.get(call_id, CallHolds(())).document()}
        for call_id in dict.fromkeys(wanted)
    ]
    document = {"calls": calls, "damaged": [*damaged], "type": "holds", "unsealed": [*unsealed]}
    return canonical.dump({**document, "v": 1}).decode()


def held_calls(by_call: Mapping[str, CallHolds], damaged: Sequence[str] = ()) -> str:
    """Return the calls that are held now, longest held first, with a line for each act."""
    held = [holds.last for holds in by_call.values() if holds.is_held]
    if not held:
        unsure = ", as far as the acts can be read" if damaged else ""
        return f"no call is held{unsure}\n"
    rows = [("call_id", "held since", "objects", "by", "reason")]
    for hold in (
        act.hold for acts in sorted(held, key=lambda acts: acts[0].hold.at) for act in acts
    ):
        call_id, by, reason = (printable(text) for text in (hold.call_id, hold.by, hold.reason))
        rows.append((call_id, format_second(hold.at), str(len(hold.objects)), by, reason))
    wide = [min(max(len(row[column]) for row in rows), WIDEST) for column in range(4)]
    return "".join(
        f"{call_id:{wide[0]}}  {since:{wide[1]}}  {objects:>{wide[2]}}  {by:{wide[3]}}  {reason}\n"
        for call_id, since, objects, by, reason in rows
    )


def acts_text(by_call: Mapping[str, CallHolds], call_ids: Sequence[str]) -> str:
    """Return, for each of these calls, whether it is held, and all acts, oldest first."""
    lines = []
    for call_id in dict.fromkeys(call_ids):
        holds = by_call.get(call_id, CallHolds(()))
        lines.append(f"{printable(call_id)}: {_state(holds)}\n")
        lines += [f"  {_act_line(act)}\n" for act in holds.acts]
    return "".join(lines)


def _state(holds: CallHolds) -> str:
    if not holds.acts:
        return "never held: the ledger has no act about it"
    word = "held" if holds.is_held else "not held"
    return f"{word} since {format_second(holds.last[0].hold.at)}"


def _act_line(act: SealedHold) -> str:
    hold = act.hold
    by, reason = printable(hold.by), printable(hold.reason)
    return (
        f"{format_second(hold.at)}  {hold.action:6}  {counted(len(hold.objects), 'object')}, "
        f"seal {act.seal}, by {by}: {reason}"
    )


def done_json(
    rows: Iterable[tuple[HoldEvent, int, Collection[str], bool]], left: Sequence[str] = ()
) -> str:
    """Return the JSON of `hold add` and `hold remove`: `type` hold_done, `v` 1, `calls` with each
    call's act, number of the seal, keys of missing objects (`gone`), and whether another command
    has reversed the act; `left` with the ids of calls that are not done."""
    calls = [
        {"call_id": hold.call_id, "gone": sorted(gone), "reversed": undone, "seal": seal}
        | hold_document(hold)
        for hold, seal, gone, undone in rows
    ]
    document = {"calls": calls, "left": list(left), "type": "hold_done", "v": 1}
    return canonical.dump(document).decode()


def done_line(hold: HoldEvent, seal: int, *, undone: bool) -> str:
    """Return a line about what a command did to a call."""
    verb = "held" if hold.action == "add" else "hold taken off"
    objects = counted(len(hold.objects), "object")
    reversed_since = ", and REVERSED since by another command" if undone else ""
    return f"{printable(hold.call_id)}: {verb}, {objects}; seal {seal}{reversed_since}"
