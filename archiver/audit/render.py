"""An audit's report for people, and for programs.

Keys come from a bucket that may be hostile: what could move a terminal's cursor, or turn text
around, is shown as an escape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from archiver.audit.findings import CODES, Severity
from archiver.audit.result import Report
from archiver.manifest import canonical
from archiver.model import format_time

SHOWN = 100
"""Findings that the text shows; `--json` has all that were kept."""

_ORDER: tuple[Severity, ...] = ("error", "warning", "info")


def printable(text: str) -> str:
    """The text with everything that is not printable as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_json(report: Report) -> str:
    """`Report.document` as one line of JSON, keys sorted."""
    return canonical.dump(report.document()).decode()


def as_text(report: Report) -> str:
    """Summary, findings, notes and the verdict, in this order; ends with a newline."""
    lines = [*_summary(report), *_findings(report)]
    lines += [f"note: {note}" for note in report.notes]
    lines.append(_verdict(report))
    return "\n".join(lines) + "\n"


def _summary(report: Report) -> Iterator[str]:
    counts, head = report.counts, report.head
    origin = "the key that you gave" if report.key_given else "the key of seal 0"
    yield f"archive   {printable(report.archive or 'unknown')}"
    yield f"key       {report.key_id or 'unknown'} ({origin})"
    if head is not None:
        yield f"head      {head.seq}:{head.sha256}"
        sealed, mark = format_time(head.sealed_at), format_time(head.watermark)
        yield f"          sealed {sealed}, watermark {mark}"
    yield (
        f"manifest  {counts.seals:,} seals, {counts.segments:,} segments, "
        f"{counts.windows:,} windows, {counts.records:,} records, {counts.events:,} events"
    )
    calls = counts.calls
    yield (
        f"calls     {calls['archived']:,} archived, {calls['no_recording']:,} without recording, "
        f"{calls['failed']:,} failed, {counts.pending:,} pending"
    )
    yield f"files     {counts.files:,} ({_bytes(counts.bytes)})" + (
        f", {counts.files_hashed:,} read and hashed ({_bytes(counts.bytes_hashed)})"
        if report.scope["level"] == "bytes"
        else ""
    )


def _findings(report: Report) -> Iterator[str]:
    ordered = sorted(report.findings, key=lambda f: (_ORDER.index(f.severity), f))
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


def _verdict(report: Report) -> str:
    counts: Counter[str] = Counter()
    for code, count in report.totals.items():
        counts[CODES[code].severity] += count
    told = ", ".join(_count(counts[s], s) for s in _ORDER if counts[s])
    verdict = "OK" if report.ok else "NOT OK"
    return f"{verdict}: verified at level {report.scope['level']}; {told or 'nothing found'}"


def _count(number: int, severity: Severity) -> str:
    plural = "s" if number != 1 and severity != "info" else ""
    return f"{number:,} {severity}{plural}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
